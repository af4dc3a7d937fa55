#include "validate.h"

#include <cstring>

#include "call_checks.h"

namespace mssts {
namespace {

mssts_status check_dtype(int32_t dtype) {
  if (dtype >= MSSTS_FLOAT32 && dtype <= MSSTS_FLOAT64) return MSSTS_OK;
  return fail(MSSTS_INVALID, "dtype is %d, expected float32 (0), float16 (1), bfloat16 (2) or float64 (3)", dtype);
}

template <class Integer>
int64_t integer_at(const void* data, int64_t index) {
  Integer integer;
  std::memcpy(&integer, static_cast<const char*>(data) + index * sizeof integer, sizeof integer);
  return integer;
}

mssts_status read_levels(const mssts_deform_attn& call, std::vector<Level>* levels) {
  const bool wide = call.shapes_dtype == MSSTS_INT64;
  int64_t tokens = 0;
  levels->clear();
  levels->reserve(static_cast<size_t>(call.levels));
  for (int64_t l = 0; l < call.levels; ++l) {
    const int64_t h = wide ? integer_at<int64_t>(call.shapes, 2 * l) : integer_at<int32_t>(call.shapes, 2 * l);
    const int64_t w = wide ? integer_at<int64_t>(call.shapes, 2 * l + 1) : integer_at<int32_t>(call.shapes, 2 * l + 1);
    int64_t area = 0;
    if (h < 0 || w < 0) {
      return fail(MSSTS_INVALID, "shapes[%lld] is (%lld, %lld), expected no negative size", static_cast<long long>(l),
                  static_cast<long long>(h), static_cast<long long>(w));
    }
    levels->push_back({h, w, tokens});
    if (__builtin_mul_overflow(h, w, &area) || __builtin_add_overflow(tokens, area, &tokens)) {
      return fail(MSSTS_INVALID, "shapes[%lld] has more tokens than 64 bits can count", static_cast<long long>(l));
    }
  }
  if (tokens != call.tokens) {
    return fail(MSSTS_INVALID, "the shapes have %lld tokens in all, expected %lld as in value",
                static_cast<long long>(tokens), static_cast<long long>(call.tokens));
  }
  return MSSTS_OK;
}

}  // namespace

mssts_status validate(const mssts_deform_attn* call, bool backward, std::vector<Level>* levels) {
  if (call == nullptr) return fail(MSSTS_INVALID, "the call is NULL, expected a mssts_deform_attn");
  const mssts_deform_attn& c = *call;
  mssts_status status = check_sizes({{"batch", c.batch, 0},
                                     {"tokens", c.tokens, 0},
                                     {"queries", c.queries, 0},
                                     {"heads", c.heads, 1},
                                     {"channels", c.channels, 1},
                                     {"levels", c.levels, 1},
                                     {"points", c.points, 1}});
  if (status != MSSTS_OK) return status;
  if (c.coordinates != 2 && c.coordinates != 4) {
    return fail(MSSTS_INVALID, "coordinates is %d, expected 2 (x, y) or 4 (x, y, w, h)", c.coordinates);
  }
  status = check_dtype(c.dtype);
  if (status != MSSTS_OK) return status;
  if (c.shapes_dtype != MSSTS_INT32 && c.shapes_dtype != MSSTS_INT64) {
    return fail(MSSTS_INVALID, "shapes_dtype is %d, expected int32 (4) or int64 (5)", c.shapes_dtype);
  }
  const int64_t value = elements({c.batch, c.tokens, c.heads, c.channels});
  const int64_t reference = elements({c.batch, c.queries, c.levels, c.coordinates});
  const int64_t points = elements({c.batch, c.queries, c.heads, c.levels, c.points});
  const int64_t offsets = elements({c.batch, c.queries, c.heads, c.levels, c.points, 2});
  const int64_t out = elements({c.batch, c.queries, c.heads, c.channels});
  status = check_tensors({{"shapes", c.shapes, c.levels, true},
                          {"value", c.value, value, true},
                          {"reference", c.reference, reference, true},
                          {"offsets", c.offsets, offsets, true},
                          {"logits", c.logits, points, true},
                          {"out", c.out, out, !backward},
                          {"grad_out", c.grad_out, out, backward}});
  return status == MSSTS_OK ? read_levels(c, levels) : status;
}

mssts_status validate(const mssts_temporal_attn* call, bool backward) {
  if (call == nullptr) return fail(MSSTS_INVALID, "the call is NULL, expected a mssts_temporal_attn");
  const mssts_temporal_attn& c = *call;
  mssts_status status = check_sizes({{"batch", c.batch, 0},
                                     {"locations", c.locations, 0},
                                     {"query_frames", c.query_frames, 0},
                                     {"key_frames", c.key_frames, 1},
                                     {"heads", c.heads, 1},
                                     {"channels", c.channels, 1}});
  if (status == MSSTS_OK) status = check_dtype(c.dtype);
  if (status != MSSTS_OK) return status;
  const int64_t query = elements({c.batch, c.query_frames, c.locations, c.heads, c.channels});
  const int64_t key = elements({c.batch, c.key_frames, c.locations, c.heads, c.channels});
  return check_tensors({{"query", c.query, query, true},
                        {"key", c.key, key, true},
                        {"value", c.value, key, true},
                        {"out", c.out, query, !backward},
                        {"grad_out", c.grad_out, query, backward}});
}

}  // namespace mssts

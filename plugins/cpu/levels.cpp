#include "levels.h"

#include <cstring>

#include "common/error.h"

namespace mssts {
namespace {

template <class Integer>
int64_t integer_at(const void* data, int64_t index) {
  Integer integer;
  std::memcpy(&integer, static_cast<const char*>(data) + index * sizeof integer, sizeof integer);
  return integer;
}

}  // namespace

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

}  // namespace mssts

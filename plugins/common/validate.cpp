#include "common/validate.h"

#include <cstddef>

#include "common/dtype.h"

namespace mssts {
namespace {

struct Size {
  const char* name;
  int64_t value;
  int64_t least;
};

mssts_status check_sizes(std::initializer_list<Size> sizes) {
  for (const Size& size : sizes) {
    if (size.value < size.least) {
      return fail(MSSTS_INVALID, "%s is %lld, expected at least %lld", size.name, static_cast<long long>(size.value),
                  static_cast<long long>(size.least));
    }
  }
  return MSSTS_OK;
}

mssts_status check_dtype(int32_t dtype, const Support& support) {
  if (dtype == MSSTS_FLOAT32 || dtype == MSSTS_FLOAT16 || dtype == MSSTS_BFLOAT16) return MSSTS_OK;
  if (dtype == MSSTS_FLOAT64 && support.float64) return MSSTS_OK;
  if (dtype == MSSTS_FLOAT64) {
    return fail(MSSTS_UNSUPPORTED,
                "the CUDA kernels take float32, float16 and bfloat16, not float64; convert, or use the CPU");
  }
  return fail(MSSTS_INVALID, "dtype is %d, expected float32 (0), float16 (1)%s", dtype,
              support.float64 ? ", bfloat16 (2) or float64 (3)" : " or bfloat16 (2)");
}

struct Tensor {
  const char* name;
  const void* data;
  int64_t elements;
  bool needed;
  size_t alignment;  // in bytes
};

mssts_status check_tensors(std::initializer_list<Tensor> tensors, const Support& support) {
  for (const Tensor& tensor : tensors) {
    if (tensor.elements < 0) return fail(MSSTS_INVALID, "%s has more elements than 64 bits can address", tensor.name);
  }
  for (const Tensor& tensor : tensors) {
    if (tensor.needed && tensor.data == nullptr && tensor.elements > 0) {
      return fail(MSSTS_INVALID, "%s is NULL, expected %lld elements", tensor.name,
                  static_cast<long long>(tensor.elements));
    }
    if (!support.any_alignment && reinterpret_cast<uintptr_t>(tensor.data) % tensor.alignment != 0) {
      return fail(MSSTS_INVALID, "%s is not aligned to its elements of %d bytes", tensor.name,
                  static_cast<int>(tensor.alignment));
    }
  }
  return MSSTS_OK;
}

}  // namespace

int64_t elements(std::initializer_list<int64_t> sizes) {
  int64_t product = 8;
  for (int64_t size : sizes) {
    if (size == 0) return 0;
  }
  for (int64_t size : sizes) {
    if (__builtin_mul_overflow(product, size, &product)) return -1;
  }
  return product / 8;
}

mssts_status validate_sizes(const mssts_deform_attn* call, const Support& support) {
  if (call == nullptr) return fail(MSSTS_INVALID, "the call is NULL, expected a mssts_deform_attn");
  const mssts_deform_attn& c = *call;
  mssts_status status = check_sizes({{"batch", c.batch, 0},
                                     {"tokens", c.tokens, 0},
                                     {"queries", c.queries, 0},
                                     {"heads", c.heads, 1},
                                     {"channels", c.channels, 1},
                                     {"levels", c.levels, 1},
                                     {"points", c.points, 1}});
  if (status == MSSTS_OK) status = check_dtype(c.dtype, support);
  if (status != MSSTS_OK) return status;
  if (c.coordinates != 2 && c.coordinates != 4) {
    return fail(MSSTS_INVALID, "coordinates is %d, expected 2 (x, y) or 4 (x, y, w, h)", c.coordinates);
  }
  if (c.shapes_dtype != MSSTS_INT32 && c.shapes_dtype != MSSTS_INT64) {
    return fail(MSSTS_INVALID, "shapes_dtype is %d, expected int32 (4) or int64 (5)", c.shapes_dtype);
  }
  return MSSTS_OK;
}

mssts_status validate_tensors(const mssts_deform_attn& c, bool backward, int64_t workspace, const Support& support) {
  const size_t bytes = bytes_of(c.dtype), reference_bytes = c.dtype == MSSTS_FLOAT64 ? 8 : 4;
  const int64_t value = elements({c.batch, c.tokens, c.heads, c.channels});
  const int64_t reference = elements({c.batch, c.queries, c.levels, c.coordinates});
  const int64_t points = elements({c.batch, c.queries, c.heads, c.levels, c.points});
  const int64_t offsets = elements({c.batch, c.queries, c.heads, c.levels, c.points, 2});
  const int64_t out = elements({c.batch, c.queries, c.heads, c.channels});
  return check_tensors({{"shapes", c.shapes, c.levels, true, bytes_of(c.shapes_dtype)},
                        {"value", c.value, value, true, bytes},
                        {"reference", c.reference, reference, true, reference_bytes},
                        {"offsets", c.offsets, offsets, true, bytes},
                        {"logits", c.logits, points, true, bytes},
                        {"out", backward ? nullptr : c.out, out, !backward, bytes},
                        {"grad_out", backward ? c.grad_out : nullptr, out, backward, bytes},
                        {"grad_value", backward ? c.grad_value : nullptr, value, false, bytes},
                        {"grad_reference", backward ? c.grad_reference : nullptr, reference, false, reference_bytes},
                        {"grad_offsets", backward ? c.grad_offsets : nullptr, offsets, false, bytes},
                        {"grad_logits", backward ? c.grad_logits : nullptr, points, false, bytes},
                        {"workspace", workspace > 0 ? c.workspace : nullptr, workspace, workspace > 0, 256}},
                       support);
}

mssts_status validate(const mssts_temporal_attn* call, bool backward, const Support& support) {
  if (call == nullptr) return fail(MSSTS_INVALID, "the call is NULL, expected a mssts_temporal_attn");
  const mssts_temporal_attn& c = *call;
  mssts_status status = check_sizes({{"batch", c.batch, 0},
                                     {"locations", c.locations, 0},
                                     {"query_frames", c.query_frames, 0},
                                     {"key_frames", c.key_frames, 1},
                                     {"heads", c.heads, 1},
                                     {"channels", c.channels, 1}});
  if (status == MSSTS_OK) status = check_dtype(c.dtype, support);
  if (status != MSSTS_OK) return status;
  const size_t bytes = bytes_of(c.dtype);
  const int64_t query = elements({c.batch, c.query_frames, c.locations, c.heads, c.channels});
  const int64_t key = elements({c.batch, c.key_frames, c.locations, c.heads, c.channels});
  return check_tensors({{"query", c.query, query, true, bytes},
                        {"key", c.key, key, true, bytes},
                        {"value", c.value, key, true, bytes},
                        {"out", backward ? nullptr : c.out, query, !backward, bytes},
                        {"grad_out", backward ? c.grad_out : nullptr, query, backward, bytes},
                        {"grad_query", backward ? c.grad_query : nullptr, query, false, bytes},
                        {"grad_key", backward ? c.grad_key : nullptr, key, false, bytes},
                        {"grad_value", backward ? c.grad_value : nullptr, key, false, bytes}},
                       support);
}

}  // namespace mssts

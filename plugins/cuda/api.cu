// The C ABI of the CUDA library: checks a call, then launches it.
#include <cstdint>

#include "../cpu/call_checks.h"
#include "deform_attn.h"
#include "launch.h"
#include "mssts/kernels.h"
#include "temporal_attn.h"

#ifdef MSSTS_EMULATION
#define MSSTS_CUDA_BUILD "emulation"
#define MSSTS_CUDA_REAL 80
#define MSSTS_CUDA_PTX 80
#else
// Written by CMakeLists.txt: "sm_80 sm_90 ptx_90, CUDA 13.0", 80,90 and 90.
#include "cuda_build.h"
#endif

namespace mssts {
namespace {

mssts_status check_dtype(int32_t dtype) {
  if (dtype == MSSTS_FLOAT64) {
    return fail(MSSTS_UNSUPPORTED,
                "the CUDA kernels take float32, float16 and bfloat16, not float64; convert, or use the CPU");
  }
  if (dtype == MSSTS_FLOAT32 || dtype == MSSTS_FLOAT16 || dtype == MSSTS_BFLOAT16) return MSSTS_OK;
  return fail(MSSTS_INVALID, "dtype is %d, expected float32 (0), float16 (1) or bfloat16 (2)", dtype);
}

constexpr int64_t kMostRows = (int64_t{1} << 32) - 2;

mssts_status check_deform_sizes(const mssts_deform_attn* call) {
  if (call == nullptr) return fail(MSSTS_INVALID, "the call is NULL, expected a mssts_deform_attn");
  const mssts_deform_attn& c = *call;
  mssts_status status = check_sizes({{"batch", c.batch, 0},
                                     {"tokens", c.tokens, 0},
                                     {"queries", c.queries, 0},
                                     {"heads", c.heads, 1},
                                     {"channels", c.channels, 1},
                                     {"levels", c.levels, 1},
                                     {"points", c.points, 1}});
  if (status == MSSTS_OK) status = check_dtype(c.dtype);
  if (status != MSSTS_OK) return status;
  if (c.coordinates != 2 && c.coordinates != 4) {
    return fail(MSSTS_INVALID, "coordinates is %d, expected 2 (x, y) or 4 (x, y, w, h)", c.coordinates);
  }
  if (c.shapes_dtype != MSSTS_INT32 && c.shapes_dtype != MSSTS_INT64) {
    return fail(MSSTS_INVALID, "shapes_dtype is %d, expected int32 (4) or int64 (5)", c.shapes_dtype);
  }
  const int64_t rows = elements({c.batch, c.tokens, c.heads}), items = elements({c.batch, c.queries, c.heads});
  const int64_t point_numbers = elements({c.levels, c.points, 4}), token_bytes = elements({c.heads, c.channels, 4});
  if (c.batch > 0 && (c.tokens > INT32_MAX || c.queries > INT32_MAX || rows < 0 || rows > kMostRows || items < 0 ||
                      items > kMostRows || point_numbers > INT32_MAX || token_bytes > INT32_MAX)) {
    return fail(
        MSSTS_UNSUPPORTED,
        "tokens %lld, queries %lld, heads %d, channels %d, levels %d or points %d of %lld frames are more than the "
        "CUDA kernels count; split the batch",
        static_cast<long long>(c.tokens), static_cast<long long>(c.queries), c.heads, c.channels, c.levels, c.points,
        static_cast<long long>(c.batch));
  }
  return MSSTS_OK;
}

mssts_status check(const mssts_deform_attn* call, bool backward) {
  const mssts_status status = check_deform_sizes(call);
  if (status != MSSTS_OK) return status;
  const mssts_deform_attn& c = *call;
  const size_t bytes = c.dtype == MSSTS_FLOAT32 ? 4 : 2;
  const int64_t value = elements({c.batch, c.tokens, c.heads, c.channels});
  const int64_t reference = elements({c.batch, c.queries, c.levels, c.coordinates});
  const int64_t points = elements({c.batch, c.queries, c.heads, c.levels, c.points});
  const int64_t offsets = elements({c.batch, c.queries, c.heads, c.levels, c.points, 2});
  const int64_t out = elements({c.batch, c.queries, c.heads, c.channels});
  const int64_t space = backward ? deform_workspace(c) : 0;
  return check_tensors({{"shapes", c.shapes, c.levels, true, c.shapes_dtype == MSSTS_INT64 ? size_t{8} : size_t{4}},
                        {"value", c.value, value, true, bytes},
                        {"reference", c.reference, reference, true, 4},
                        {"offsets", c.offsets, offsets, true, bytes},
                        {"logits", c.logits, points, true, bytes},
                        {"out", backward ? nullptr : c.out, out, !backward, bytes},
                        {"grad_out", backward ? c.grad_out : nullptr, out, backward, bytes},
                        {"grad_value", backward ? c.grad_value : nullptr, value, false, bytes},
                        {"grad_reference", backward ? c.grad_reference : nullptr, reference, false, 4},
                        {"grad_offsets", backward ? c.grad_offsets : nullptr, offsets, false, bytes},
                        {"grad_logits", backward ? c.grad_logits : nullptr, points, false, bytes},
                        {"workspace", space > 0 ? c.workspace : nullptr, space, space > 0, 256}});
}

mssts_status check(const mssts_temporal_attn* call, bool backward) {
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
  const size_t bytes = c.dtype == MSSTS_FLOAT32 ? 4 : 2;
  const int64_t query = elements({c.batch, c.query_frames, c.locations, c.heads, c.channels});
  const int64_t key = elements({c.batch, c.key_frames, c.locations, c.heads, c.channels});
  return check_tensors({{"query", c.query, query, true, bytes},
                        {"key", c.key, key, true, bytes},
                        {"value", c.value, key, true, bytes},
                        {"out", backward ? nullptr : c.out, query, !backward, bytes},
                        {"grad_out", backward ? c.grad_out : nullptr, query, backward, bytes},
                        {"grad_query", backward ? c.grad_query : nullptr, query, false, bytes},
                        {"grad_key", backward ? c.grad_key : nullptr, key, false, bytes},
                        {"grad_value", backward ? c.grad_value : nullptr, key, false, bytes}});
}

bool runs_on(int capability) {
  for (int real : {MSSTS_CUDA_REAL}) {
    if (real / 10 == capability / 10 && real <= capability) return true;
  }
  return MSSTS_CUDA_PTX > 0 && MSSTS_CUDA_PTX <= capability;
}

}  // namespace

mssts_status check_launch(const char* what) {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return MSSTS_OK;
  return fail(MSSTS_CUDA_ERROR, "%s could not be launched: %s", what, cudaGetErrorString(error));
}

}  // namespace mssts

extern "C" {

int mssts_cuda_deform_attn_forward(const mssts_deform_attn* call, void* stream) {
  mssts::clear_error();
  const mssts_status status = mssts::check(call, false);
  return status == MSSTS_OK ? mssts::launch_deform_forward(*call, static_cast<cudaStream_t>(stream)) : status;
}

int mssts_cuda_deform_attn_backward(const mssts_deform_attn* call, void* stream) {
  mssts::clear_error();
  const mssts_status status = mssts::check(call, true);
  return status == MSSTS_OK ? mssts::launch_deform_backward(*call, static_cast<cudaStream_t>(stream)) : status;
}

int64_t mssts_cuda_deform_attn_workspace(const mssts_deform_attn* call) {
  mssts::clear_error();
  return mssts::check_deform_sizes(call) == MSSTS_OK ? mssts::deform_workspace(*call) : 0;
}

int mssts_cuda_temporal_attn_forward(const mssts_temporal_attn* call, void* stream) {
  mssts::clear_error();
  const mssts_status status = mssts::check(call, false);
  if (status != MSSTS_OK) return status;
  const mssts_status launched = mssts::launch_temporal_forward(*call, static_cast<cudaStream_t>(stream));
  return launched == MSSTS_OK ? mssts::check_launch("the forward of temporal attention") : launched;
}

int mssts_cuda_temporal_attn_backward(const mssts_temporal_attn* call, void* stream) {
  mssts::clear_error();
  const mssts_status status = mssts::check(call, true);
  if (status != MSSTS_OK) return status;
  const mssts_status launched = mssts::launch_temporal_backward(*call, static_cast<cudaStream_t>(stream));
  return launched == MSSTS_OK ? mssts::check_launch("the backward of temporal attention") : launched;
}

const char* mssts_cuda_build(void) { return MSSTS_CUDA_BUILD; }

int32_t mssts_cuda_devices(void) {
  int count = 0, usable = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  for (int device = 0; device < count; ++device) {
    int major = 0, minor = 0;
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess) continue;
    if (cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess) continue;
    if (mssts::runs_on(10 * major + minor)) ++usable;
  }
  cudaGetLastError();
  return usable;
}

}  // extern "C"

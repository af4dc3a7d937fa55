// The C ABI of the CUDA library: checks a call, then launches it.
#include <cstdint>

#include "capability.h"
#include "common/validate.h"
#include "deform_attn.h"
#include "launch.h"
#include "mask_rle.h"
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

constexpr int64_t kMostRows = (int64_t{1} << 32) - 2;

mssts_status check_deform_sizes(const mssts_deform_attn* call) {
  const mssts_status status = validate_sizes(call, kCudaSupport);
  if (status != MSSTS_OK) return status;
  const mssts_deform_attn& c = *call;
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
  return validate_tensors(*call, backward, backward ? deform_workspace(*call) : 0, kCudaSupport);
}

}  // namespace

mssts_status check_launch(const char* what) {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return MSSTS_OK;
  return fail(MSSTS_CUDA_ERROR, "%s could not be launched, or a CUDA call before it failed: %s", what,
              cudaGetErrorString(error));
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
  const mssts_status status = mssts::validate(call, false, mssts::kCudaSupport);
  if (status != MSSTS_OK) return status;
  const mssts_status launched = mssts::launch_temporal_forward(*call, static_cast<cudaStream_t>(stream));
  return launched == MSSTS_OK ? mssts::check_launch("the forward of temporal attention") : launched;
}

int mssts_cuda_temporal_attn_backward(const mssts_temporal_attn* call, void* stream) {
  mssts::clear_error();
  const mssts_status status = mssts::validate(call, true, mssts::kCudaSupport);
  if (status != MSSTS_OK) return status;
  const mssts_status launched = mssts::launch_temporal_backward(*call, static_cast<cudaStream_t>(stream));
  return launched == MSSTS_OK ? mssts::check_launch("the backward of temporal attention") : launched;
}

int mssts_cuda_mask_rle(const mssts_mask_rle* call, void* stream) {
  mssts::clear_error();
  const mssts_status status = mssts::validate_mask_rle(call, true);
  return status == MSSTS_OK ? mssts::launch_mask_rle(*call, static_cast<cudaStream_t>(stream)) : status;
}

int64_t mssts_cuda_mask_rle_workspace(const mssts_mask_rle* call) {
  mssts::clear_error();
  return mssts::validate_mask_rle(call, false) == MSSTS_OK ? mssts::mask_rle_workspace(*call) : -1;
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
    if (mssts::runs_on({MSSTS_CUDA_REAL}, MSSTS_CUDA_PTX, 10 * major + minor)) ++usable;
  }
  cudaGetLastError();
  return usable;
}

}  // extern "C"

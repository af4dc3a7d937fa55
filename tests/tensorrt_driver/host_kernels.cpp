// The CUDA half of the C ABI for a machine without a GPU: each call goes, with host pointers, to the library that
// MSSTS_HOST_KERNELS names: the emulated CUDA kernels, or the CPU library. So the plugins' enqueue really runs; what
// runs on a GPU is not tested by it.
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "mssts/kernels.h"

namespace {

thread_local std::string error;

int fail(const std::string& message) {
  error = message;
  return MSSTS_UNSUPPORTED;
}

template <typename Call, typename CpuExtra, typename CudaExtra>
int forward(const char* op, const Call* call, CpuExtra cpu_extra, CudaExtra cuda_extra) {
  error.clear();
  const char* path = std::getenv("MSSTS_HOST_KERNELS");
  if (path == nullptr) return fail("MSSTS_HOST_KERNELS names no library of kernels");
  if (std::strcmp(path, "nothing") == 0) return MSSTS_OK;  // what is left is the plugin's own time
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return fail(dlerror());
  const auto last_error = reinterpret_cast<const char* (*)()>(dlsym(library, "mssts_last_error"));
  int status;
  if (void* cuda = dlsym(library, (std::string("mssts_cuda_") + op).c_str())) {
    status = reinterpret_cast<int (*)(const Call*, CudaExtra)>(cuda)(call, cuda_extra);
  } else if (void* cpu = dlsym(library, (std::string("mssts_cpu_") + op).c_str())) {
    status = reinterpret_cast<int (*)(const Call*, CpuExtra)>(cpu)(call, cpu_extra);
  } else {
    return fail(std::string(path) + " has no " + op);
  }
  if (status != MSSTS_OK) error = last_error();
  return status;
}

}  // namespace

extern "C" {

MSSTS_API int32_t mssts_abi_version(void) { return MSSTS_ABI_VERSION; }
MSSTS_API const char* mssts_last_error(void) { return error.c_str(); }
MSSTS_API const char* mssts_cuda_build(void) { return "host kernels of the tests"; }
MSSTS_API int32_t mssts_cuda_devices(void) { return 0; }

MSSTS_API int mssts_cuda_deform_attn_forward(const mssts_deform_attn* call, void* stream) {
  return forward<mssts_deform_attn, const mssts_executor*, void*>("deform_attn_forward", call, nullptr, stream);
}

MSSTS_API int mssts_cuda_temporal_attn_forward(const mssts_temporal_attn* call, void* stream) {
  return forward<mssts_temporal_attn, const mssts_executor*, void*>("temporal_attn_forward", call, nullptr, stream);
}

}  // extern "C"

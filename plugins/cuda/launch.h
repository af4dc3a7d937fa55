// What every kernel and launch of this folder includes in place of CUDA's headers: under nvcc CUDA's own, under
// MSSTS_EMULATION those of the emulator (tests/cuda_emulation). The macros cover what the two spell differently.
#ifndef MSSTS_CUDA_LAUNCH_H
#define MSSTS_CUDA_LAUNCH_H

#ifdef MSSTS_EMULATION

#include "cuda_emulation.h"

#define MSSTS_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                            \
  ::mssts::emulation::launch(#kernel, reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, stream, \
                             [=] { (kernel)(__VA_ARGS__); })

#define MSSTS_SHARED(type, name, extents)                       \
  using name##_mssts_array = type extents;                      \
  name##_mssts_array& name = *static_cast<name##_mssts_array*>( \
      ::mssts::emulation::shared_array(__FILE__, __LINE__, #name, sizeof(name##_mssts_array)))

#define MSSTS_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(::mssts::emulation::dynamic_shared())

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// MSSTS_LAUNCH((kernel<float, 8>), grid, block, shared_bytes, stream, arguments…): the parentheses protect commas.
#define MSSTS_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)

// MSSTS_SHARED(float, tile, [32][33]): a static array in shared memory.
#define MSSTS_SHARED(type, name, extents) __shared__ type name extents

// MSSTS_DYNAMIC_SHARED(float4, staging): the launch's shared_bytes, 16-byte aligned; one a kernel.
#define MSSTS_DYNAMIC_SHARED(type, name)                                \
  extern __shared__ __align__(16) unsigned char mssts_dynamic_shared[]; \
  type* name = reinterpret_cast<type*>(mssts_dynamic_shared)

#endif

namespace mssts {

// Of the GPU that is compiled for, 900 for sm_90; 0 on the host.
#ifdef __CUDA_ARCH__
constexpr int kArchitecture = __CUDA_ARCH__;
#else
constexpr int kArchitecture = 0;
#endif

}  // namespace mssts

#endif  // MSSTS_CUDA_LAUNCH_H

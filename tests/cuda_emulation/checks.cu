// Small kernels, most of them wrong on purpose, by which tests/test_cuda_kernels.py checks the emulation itself. Built
// as a library of its own, libmssts_emulation_checks.so.
#include <cstdint>

#include "device.cuh"

namespace {

// Right: reverses 64 numbers within a block.
template <int Threads>
__global__ void reverse(const float* in, float* out) {
  MSSTS_SHARED(float, tile, [Threads]);
  tile[threadIdx.x] = in[blockIdx.x * Threads + threadIdx.x];
  __syncthreads();
  out[blockIdx.x * Threads + threadIdx.x] = tile[Threads - 1 - threadIdx.x];
}

// Wrong: as above without the barrier.
__global__ void reverse_without_barrier(const float* in, float* out) {
  MSSTS_SHARED(float, tile, [64]);
  tile[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

// Wrong, where the order shows it: a second barrier is missing before the tile is written again.
__global__ void rotate_twice_with_one_barrier(const float* in, float* out) {
  MSSTS_SHARED(float, tile, [64]);
  float value = in[threadIdx.x];
  for (int round = 0; round < 2; ++round) {
    tile[threadIdx.x] = value;
    __syncthreads();
    value = tile[(threadIdx.x + 1) % 64];
  }
  out[threadIdx.x] = value;
}

// Right: sums of 8 neighbours, each by another operation; out[3 * i + …].
__global__ void sum_by_shuffles(const float* in, float* out) {
  float sum = in[threadIdx.x];
  for (int lanes = 4; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes, 8);
  float first = in[threadIdx.x];
  for (unsigned lanes = 4; lanes > 0; lanes /= 2) first += __shfl_down_sync(0xffffffffu, first, lanes, 8);
  const unsigned odd = __ballot_sync(0xffffffffu, threadIdx.x % 2 == 1);
  out[3 * threadIdx.x] = sum;
  out[3 * threadIdx.x + 1] = __shfl_sync(0xffffffffu, first, 0, 8);
  out[3 * threadIdx.x + 2] = static_cast<float>(__popc(odd) + __reduce_max_sync(0xffffffffu, int(threadIdx.x % 32)));
}

// Right: odd and even lanes apart, each with its own mask.
__global__ void shuffles_of_half_warps(const float* in, float* out) {
  float value = in[threadIdx.x];
  if (threadIdx.x % 2 == 0) {
    value = __shfl_xor_sync(0x55555555u, value, 2);
  } else {
    value = __shfl_xor_sync(0xaaaaaaaau, value, 4);
  }
  out[threadIdx.x] = value;
}

__global__ void barrier_of_some(const float* in, float* out) {
  if (threadIdx.x < 40) __syncthreads();
  out[threadIdx.x] = __shfl_sync(0xffffffffu, in[threadIdx.x], 0);
}

__global__ void barriers_at_two_lines(const float* in, float* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = in[threadIdx.x];
}

__global__ void shuffle_of_some(const float* in, float* out) {
  float value = in[threadIdx.x];
  if (threadIdx.x % 2 == 0) value = __shfl_xor_sync(0xffffffffu, value, 2);
  out[threadIdx.x] = value;
}

__global__ void shuffle_with_the_exited(const float* in, float* out) {
  if (threadIdx.x % 32 == 31) return;
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, in[threadIdx.x], 1);
}

__global__ void shuffle_beside_its_mask(const float* in, float* out) {
  out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, in[threadIdx.x], 1);
}

__global__ void shuffles_with_two_masks(const float* in, float* out) {
  const unsigned mask = threadIdx.x % 32 < 16 ? 0xffffffffu : 0xffff0001u;
  out[threadIdx.x] = __shfl_sync(mask, in[threadIdx.x], 0);
}

__global__ void past_a_static_array(const float* in, float* out) {
  MSSTS_SHARED(float, tile, [63]);
  tile[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[0];
}

__global__ void past_dynamic_memory(const float* in, float* out) {
  MSSTS_DYNAMIC_SHARED(float, tile);
  tile[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[0];
}

// Right: what blocks add up in any order.
__global__ void count(const float*, float* out) {
  atomicAdd(out + threadIdx.x, static_cast<float>(blockIdx.x + 10 * blockIdx.y + 100 * blockIdx.z));
}

__global__ void far_away(const float* in, float* out) {
  __syncthreads();
  out[threadIdx.x] = in[threadIdx.x + (threadIdx.x == 9 ? (int64_t{1} << 40) : 0)];
}

// One product on the tensor cores, of each lane's own registers.
template <typename T>
__global__ void multiply_matrices(const unsigned* a, const unsigned* b, float* c) {
  const unsigned lane = threadIdx.x;
  const unsigned own_a[2] = {a[2 * lane], a[2 * lane + 1]};
  float own_c[4] = {c[4 * lane], c[4 * lane + 1], c[4 * lane + 2], c[4 * lane + 3]};
  mssts::mma_m16n8k8<T>(own_c, own_a, b[lane]);
  for (int i = 0; i < 4; ++i) c[4 * lane + i] = own_c[i];
}

constexpr auto kTooMuch = 100 * 1024;

}  // namespace

// Runs check `which` on 64 floats (blocks of 64 threads) and returns what CUDA's error string says, "" for none, a null
// pointer past the last check.
extern "C" __attribute__((visibility("default"))) const char* mssts_emulation_check(int which, const float* in,
                                                                                    float* out) {
  const cudaStream_t stream = nullptr;
  switch (which) {
    case 0: MSSTS_LAUNCH(reverse<64>, 1, 64, 0, stream, in, out); break;
    case 1: MSSTS_LAUNCH(reverse_without_barrier, 1, 64, 0, stream, in, out); break;
    case 2: MSSTS_LAUNCH(rotate_twice_with_one_barrier, 1, 64, 0, stream, in, out); break;
    case 3: MSSTS_LAUNCH(sum_by_shuffles, 1, 64, 0, stream, in, out); break;
    case 4: MSSTS_LAUNCH(shuffles_of_half_warps, 1, 64, 0, stream, in, out); break;
    case 5: MSSTS_LAUNCH(barrier_of_some, 1, 64, 0, stream, in, out); break;
    case 6: MSSTS_LAUNCH(barriers_at_two_lines, 1, 64, 0, stream, in, out); break;
    case 7: MSSTS_LAUNCH(shuffle_of_some, 1, 64, 0, stream, in, out); break;
    case 8: MSSTS_LAUNCH(shuffle_with_the_exited, 1, 64, 0, stream, in, out); break;
    case 9: MSSTS_LAUNCH(shuffle_beside_its_mask, 1, 64, 0, stream, in, out); break;
    case 10: MSSTS_LAUNCH(shuffles_with_two_masks, 1, 64, 0, stream, in, out); break;
    case 11: MSSTS_LAUNCH(past_a_static_array, 1, 64, 0, stream, in, out); break;
    case 12: MSSTS_LAUNCH(past_dynamic_memory, 1, 64, 63 * sizeof(float), stream, in, out); break;
    case 13: MSSTS_LAUNCH(count, dim3(2, 3, 2), 64, 0, stream, in, out); break;
    case 14: MSSTS_LAUNCH(past_dynamic_memory, 1, 64, kTooMuch, stream, in, out); break;
    case 15:
      if (cudaFuncSetAttribute(past_dynamic_memory, cudaFuncAttributeMaxDynamicSharedMemorySize, kTooMuch)) break;
      MSSTS_LAUNCH(past_dynamic_memory, 1, 64, kTooMuch, stream, in, out);
      cudaFuncSetAttribute(past_dynamic_memory, cudaFuncAttributeMaxDynamicSharedMemorySize, 48 * 1024);
      break;
    case 16: MSSTS_LAUNCH(count, 1, 1025, 0, stream, in, out); break;
    case 17: MSSTS_LAUNCH(count, 0, 64, 0, stream, in, out); break;
    case 18: MSSTS_LAUNCH(far_away, 1, 64, 0, stream, in, out); break;
    default: return nullptr;
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

// A matrix product by one warp; registers of a lane: a 2, b 1, c 4, which get the result.
extern "C" __attribute__((visibility("default"))) const char* mssts_emulation_multiply(int bfloat16, const unsigned* a,
                                                                                       const unsigned* b, float* c) {
  const cudaStream_t stream = nullptr;
  const auto kernel = bfloat16 ? multiply_matrices<__nv_bfloat16> : multiply_matrices<__half>;
  MSSTS_LAUNCH(kernel, 1, 32, 0, stream, a, b, c);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

#ifdef MSSTS_EMULATION

// Conversions: half and bfloat16 of a float, and back; its floor as an integer.
extern "C" __attribute__((visibility("default"))) void mssts_emulation_convert(float value, uint16_t* words,
                                                                               float* back, int* floor) {
  const __half half = __float2half_rn(value);
  const __nv_bfloat16 bfloat16 = __float2bfloat16_rn(value);
  words[0] = __half_as_ushort(half);
  words[1] = __bfloat16_as_ushort(bfloat16);
  back[0] = __half2float(half);
  back[1] = __bfloat162float(bfloat16);
  *floor = __float2int_rd(value);
}

#endif

// CUDA's device language for g++: what a kernel of plugins/cuda may use (README.md beside this file). Threads are
// fibers of one operating-system thread; an operation that waits for other threads parks its fiber (scheduler.cpp).
#ifndef MSSTS_EMULATION_CUDA_EMULATION_H
#define MSSTS_EMULATION_CUDA_EMULATION_H

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <type_traits>

#include "runtime.h"
#include "sixteen_bit.h"
#include "vectors.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ MSSTS_SHARED_or_MSSTS_DYNAMIC_SHARED_of_launch_h
#define __builtin_assume(condition) static_cast<void>(0)

namespace mssts::emulation {

// A place in the source, taken where the operation is written (or inlined from).
struct Site {
  const char* file;
  int line;
};

enum class Operation { kSyncthreads, kSyncwarp, kShuffle, kBallot, kReduceAdd, kReduceMin, kReduceMax, kMatrix };

// The registers of one lane for a product of matrices, and how one of its 16-bit numbers is read.
struct Fragments {
  unsigned a[2], b;
  float c[4];
  float (*number)(uint16_t word);
};

// What a thread brings to an operation with other threads, and takes from it.
struct Request {
  Operation operation;
  unsigned mask;  // of a warp operation
  Site site;
  int source = 0;                  // lane that a shuffle reads
  uint64_t value[2] = {0, 0};      // in and out
  Fragments* fragments = nullptr;  // of a matrix product
};

// Parks the calling thread until all participants have come, and gives it its result; does not return if they cannot.
void meet(Request& request);

// Runs body() once for each thread of the grid. A broken rule or an impossible configuration becomes the last error.
void launch(const char* name, const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            const std::function<void()>& body);

// The block's shared array of this declaration, filled with 0xff when the block begins.
void* shared_array(const char* file, int line, const char* name, size_t bytes);
void* dynamic_shared();

// Ends the launch with an error of the calling thread.
[[noreturn]] void fail(const char* reason, Site site);

template <typename T>
T exchange(unsigned mask, T value, int source, Site site) {
  static_assert(sizeof(T) <= sizeof(Request::value), "a shuffle moves at most 16 bytes");
  Request request{Operation::kShuffle, mask, site, source};
  std::memcpy(request.value, &value, sizeof(T));
  meet(request);
  std::memcpy(&value, request.value, sizeof(T));
  return value;
}

inline uint64_t combine(Operation operation, unsigned mask, uint64_t value, Site site) {
  Request request{operation, mask, site};
  request.value[0] = value;
  meet(request);
  return request.value[0];
}

template <typename T>
void mma_m16n8k8(float (&c)[4], const unsigned (&a)[2], unsigned b, const char* file = __builtin_FILE(),
                 int line = __builtin_LINE()) {
  Fragments fragments{
      {a[0], a[1]}, b, {c[0], c[1], c[2], c[3]}, [](uint16_t word) { return static_cast<float>(bits<T>(word)); }};
  Request request{Operation::kMatrix, 0xffffffffu, Site{file, line}};
  request.fragments = &fragments;
  meet(request);
  std::copy(fragments.c, fragments.c + 4, c);
}

int lane();
void check_width(int width, Site site);

}  // namespace mssts::emulation

// Set by the scheduler whenever a thread goes on.
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
constexpr int warpSize = 32;

#define MSSTS_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define MSSTS_HERE \
  ::mssts::emulation::Site { file, line }

// Synchronisation

inline void __syncthreads(MSSTS_SITE) {
  mssts::emulation::combine(mssts::emulation::Operation::kSyncthreads, 0, 0, MSSTS_HERE);
}
inline int __syncthreads_count(int predicate, MSSTS_SITE) {
  return static_cast<int>(
      mssts::emulation::combine(mssts::emulation::Operation::kSyncthreads, 0, predicate != 0, MSSTS_HERE));
}
inline int __syncthreads_or(int predicate, MSSTS_SITE) { return __syncthreads_count(predicate, file, line) > 0; }
inline int __syncthreads_and(int predicate, MSSTS_SITE) { return __syncthreads_count(!predicate, file, line) == 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu, MSSTS_SITE) {
  mssts::emulation::combine(mssts::emulation::Operation::kSyncwarp, mask, 0, MSSTS_HERE);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// Warp operations

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, MSSTS_SITE) {
  mssts::emulation::check_width(width, MSSTS_HERE);
  const int first = mssts::emulation::lane() & -width;
  return mssts::emulation::exchange(mask, value, first + (source & (width - 1)), MSSTS_HERE);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, MSSTS_SITE) {
  mssts::emulation::check_width(width, MSSTS_HERE);
  const int own = mssts::emulation::lane(), source = own - static_cast<int>(delta);
  return mssts::emulation::exchange(mask, value, source < (own & -width) ? own : source, MSSTS_HERE);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, MSSTS_SITE) {
  mssts::emulation::check_width(width, MSSTS_HERE);
  const int own = mssts::emulation::lane(), source = own + static_cast<int>(delta);
  return mssts::emulation::exchange(mask, value, source >= (own & -width) + width ? own : source, MSSTS_HERE);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, MSSTS_SITE) {
  mssts::emulation::check_width(width, MSSTS_HERE);
  const int own = mssts::emulation::lane(), source = own ^ lanes;
  return mssts::emulation::exchange(mask, value, source >= (own & -width) + width ? own : source, MSSTS_HERE);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, MSSTS_SITE) {
  return static_cast<unsigned>(
      mssts::emulation::combine(mssts::emulation::Operation::kBallot, mask, predicate != 0, MSSTS_HERE));
}
inline int __any_sync(unsigned mask, int predicate, MSSTS_SITE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, MSSTS_SITE) {
  return __ballot_sync(mask, predicate, file, line) == mask;
}
#define MSSTS_EMULATED_REDUCTION(name, operation)                                                                     \
  template <typename T>                                                                                               \
  T name(unsigned mask, T value, MSSTS_SITE) {                                                                        \
    static_assert(std::is_integral<T>::value && sizeof(T) == 4, "CUDA reduces int and unsigned alone");               \
    const uint64_t wide = static_cast<uint64_t>(static_cast<int64_t>(value));                                         \
    return static_cast<T>(mssts::emulation::combine(mssts::emulation::Operation::operation, mask, wide, MSSTS_HERE)); \
  }
MSSTS_EMULATED_REDUCTION(__reduce_add_sync, kReduceAdd)
MSSTS_EMULATED_REDUCTION(__reduce_min_sync, kReduceMin)
MSSTS_EMULATED_REDUCTION(__reduce_max_sync, kReduceMax)
#undef MSSTS_EMULATED_REDUCTION
#undef MSSTS_SITE
#undef MSSTS_HERE

// Atomics: no other thread runs meanwhile.

#define MSSTS_EMULATED_ATOMIC(name, result) \
  template <typename T>                     \
  T name(T* target, T operand) {            \
    const T old = *target;                  \
    *target = static_cast<T>(result);       \
    return old;                             \
  }
MSSTS_EMULATED_ATOMIC(atomicAdd, old + operand)
MSSTS_EMULATED_ATOMIC(atomicMax, old < operand ? operand : old)
MSSTS_EMULATED_ATOMIC(atomicMin, operand < old ? operand : old)
MSSTS_EMULATED_ATOMIC(atomicOr, old | operand)
MSSTS_EMULATED_ATOMIC(atomicXor, old ^ operand)
MSSTS_EMULATED_ATOMIC(atomicExch, operand)
#undef MSSTS_EMULATED_ATOMIC
template <typename T>
T atomicCAS(T* target, T expected, T wanted) {
  const T old = *target;
  if (old == expected) *target = wanted;
  return old;
}
inline __half2 atomicAdd(__half2* target, __half2 operand) {
  const __half2 old = *target;
  *target = __floats2half2_rn(float(old.x) + float(operand.x), float(old.y) + float(operand.y));
  return old;
}
inline __nv_bfloat162 atomicAdd(__nv_bfloat162* target, __nv_bfloat162 operand) {
  const __nv_bfloat162 old = *target;
  *target = __floats2bfloat162_rn(float(old.x) + float(operand.x), float(old.y) + float(operand.y));
  return old;
}

// Loads and stores with a cache hint

#define MSSTS_EMULATED_LOAD(name) \
  template <typename T>           \
  T name(const T* source) {       \
    return *source;               \
  }
MSSTS_EMULATED_LOAD(__ldg)
MSSTS_EMULATED_LOAD(__ldcs)
MSSTS_EMULATED_LOAD(__ldcg)
MSSTS_EMULATED_LOAD(__ldca)
MSSTS_EMULATED_LOAD(__ldlu)
#undef MSSTS_EMULATED_LOAD
template <typename T>
void __stcs(T* target, T value) {
  *target = value;
}
template <typename T>
void __stcg(T* target, T value) {
  *target = value;
}

// Arithmetic

using std::max;
using std::min;
inline float __expf(float x) { return expf(x); }
inline float __exp2f(float x) { return exp2f(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline double __dmul_rn(double x, double y) { return x * y; }
inline double __dadd_rn(double x, double y) { return x + y; }
inline double __dsub_rn(double x, double y) { return x - y; }
inline double __ddiv_rn(double x, double y) { return x / y; }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

namespace mssts::emulation {
// PTX's cvt: out of range becomes the nearest integer, NaN becomes 0.
inline int saturated(float integral) {
  if (!(integral == integral)) return 0;
  if (integral >= 2147483648.0f) return 2147483647;
  return integral <= -2147483648.0f ? -2147483647 - 1 : static_cast<int>(integral);
}
}  // namespace mssts::emulation

inline int __float2int_rd(float x) { return mssts::emulation::saturated(floorf(x)); }
inline int __float2int_ru(float x) { return mssts::emulation::saturated(ceilf(x)); }
inline int __float2int_rn(float x) { return mssts::emulation::saturated(nearbyintf(x)); }
inline int __float2int_rz(float x) { return mssts::emulation::saturated(truncf(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline int __float_as_int(float x) { return mssts::emulation::bits<int>(x); }
inline unsigned __float_as_uint(float x) { return mssts::emulation::bits<unsigned>(x); }
inline float __int_as_float(int x) { return mssts::emulation::bits<float>(x); }
inline float __uint_as_float(unsigned x) { return mssts::emulation::bits<float>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned x, unsigned y) {
  return static_cast<unsigned>(static_cast<unsigned long long>(x) * y >> 32);
}
inline int __mulhi(int x, int y) { return static_cast<int>(static_cast<long long>(x) * y >> 32); }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed |= ((x >> bit) & 1u) << (31 - bit);
  return reversed;
}

#endif  // MSSTS_EMULATION_CUDA_EMULATION_H

// What the kernels need beyond CUDA C++: wide loads, the tensor cores' product, vector reductions. Inline PTX lives
// here alone, each with a plain equivalent for the emulation.
#ifndef MSSTS_CUDA_DEVICE_CUH
#define MSSTS_CUDA_DEVICE_CUH

#include <cstdint>
#include <type_traits>

#include "launch.h"

namespace mssts {

constexpr unsigned kWarp = 0xffffffffu;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// Two numbers of a 32-bit word, the first in the low half.
template <typename T>
__device__ __forceinline__ float2 unpack(unsigned word);
template <>
__device__ __forceinline__ float2 unpack<__half>(unsigned word) {
  return make_float2(__half2float(__ushort_as_half(static_cast<unsigned short>(word & 0xffffu))),
                     __half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16))));
}
template <>
__device__ __forceinline__ float2 unpack<__nv_bfloat16>(unsigned word) {
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}
template <typename T>
__device__ __forceinline__ unsigned pack(float low, float high);
template <>
__device__ __forceinline__ unsigned pack<__half>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&pair);
}
template <>
__device__ __forceinline__ unsigned pack<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&pair);
}

// 2^x and 1/x by the special function unit: a few units in the last place; subnormal numbers are zero.
__device__ __forceinline__ float fast_exp2(float x) {
#ifdef MSSTS_EMULATION
  return exp2f(x);
#else
  asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
#endif
}
__device__ __forceinline__ float fast_reciprocal(float x) {
#ifdef MSSTS_EMULATION
  return 1.0f / x;
#else
  asm("rcp.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
#endif
}
constexpr float kLog2E = 1.44269504f;

// The same pointer, of which the compiler knows nothing: a sum with it stays one multiply-add of 32 by 32 to 64 bits,
// and is not spread over the sums that it came from.
template <typename T>
__device__ __forceinline__ T* opaque(T* pointer) {
#ifndef MSSTS_EMULATION
  asm("" : "+l"(pointer));
#endif
  return pointer;
}

// V numbers in one access: 1 of any alignment, or 4 or 8 aligned to their size. Through the read-only cache.
template <typename T, int V>
struct Wide;
template <typename T>
struct Wide<T, 1> {
  static __device__ __forceinline__ void load(const T* from, float (&x)[1]) { x[0] = to_float(__ldg(from)); }
  static __device__ __forceinline__ void store(T* to, const float (&x)[1]) { *to = from_float<T>(x[0]); }
};
template <>
struct Wide<float, 4> {
  static __device__ __forceinline__ void load(const float* from, float (&x)[4]) {
    const float4 word = __ldg(reinterpret_cast<const float4*>(from));
    x[0] = word.x, x[1] = word.y, x[2] = word.z, x[3] = word.w;
  }
  static __device__ __forceinline__ void store(float* to, const float (&x)[4]) {
    *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
  }
};
template <typename T>
struct Wide<T, 4> {
  static __device__ __forceinline__ void load(const T* from, float (&x)[4]) {
    const uint2 word = __ldg(reinterpret_cast<const uint2*>(from));
    const float2 low = unpack<T>(word.x), high = unpack<T>(word.y);
    x[0] = low.x, x[1] = low.y, x[2] = high.x, x[3] = high.y;
  }
  static __device__ __forceinline__ void store(T* to, const float (&x)[4]) {
    *reinterpret_cast<uint2*>(to) = make_uint2(pack<T>(x[0], x[1]), pack<T>(x[2], x[3]));
  }
};
template <typename T>
struct Wide<T, 8> {
  static __device__ __forceinline__ void load(const T* from, float (&x)[8]) {
    const uint4 word = __ldg(reinterpret_cast<const uint4*>(from));
    const float2 a = unpack<T>(word.x), b = unpack<T>(word.y), c = unpack<T>(word.z), d = unpack<T>(word.w);
    x[0] = a.x, x[1] = a.y, x[2] = b.x, x[3] = b.y, x[4] = c.x, x[5] = c.y, x[6] = d.x, x[7] = d.y;
  }
  static __device__ __forceinline__ void store(T* to, const float (&x)[8]) {
    *reinterpret_cast<uint4*>(to) =
        make_uint4(pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(x[4], x[5]), pack<T>(x[6], x[7]));
  }
};

// One 16-bit half of word, in the low or the high half; the other half is zero.
enum Place : unsigned { kLowToLow = 0x4410u, kLowToHigh = 0x1044u, kHighToLow = 0x4432u, kHighToHigh = 0x3244u };
__device__ __forceinline__ unsigned place_half(unsigned word, unsigned where) {
#ifdef MSSTS_EMULATION
  const unsigned half = where == kHighToLow || where == kHighToHigh ? word >> 16 : word & 0xffffu;
  return where == kLowToHigh || where == kHighToHigh ? half << 16 : half;
#else
  return __byte_perm(word, 0u, where);
#endif
}

// The lower, or the upper, halves of two words, low's first.
__device__ __forceinline__ unsigned join_halves(unsigned low, unsigned high, bool upper) {
#ifdef MSSTS_EMULATION
  return upper ? low >> 16 | (high & 0xffff0000u) : (low & 0xffffu) | high << 16;
#else
  return __byte_perm(low, high, upper ? 0x7632u : 0x5410u);
#endif
}

// PTX's mma.m16n8k8 by a whole warp: c += a b, products exact, sums in fp32. Two 16-bit numbers a word. Of lane 4g + t,
// a holds a[g][2t, 2t+1] and a[g+8][2t, 2t+1], b holds b[2t, 2t+1][g], c holds c[g][2t, 2t+1] and c[g+8][2t, 2t+1].
template <typename T>
__device__ __forceinline__ void mma_m16n8k8(float (&c)[4], const unsigned (&a)[2], unsigned b) {
#ifdef MSSTS_EMULATION
  emulation::mma_m16n8k8<T>(c, a, b);
#else
  if constexpr (std::is_same<T, __half>::value) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b));
  } else {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b));
  }
#endif
}

// Adds to V numbers of global memory without reading them; 4 are aligned to 16 bytes.
template <int V>
__device__ __forceinline__ void add_to(float* to, const float (&x)[V]) {
#if !defined(MSSTS_EMULATION) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (V == 4) {
    asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(__cvta_generic_to_global(to)), "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3])
                 : "memory");
  } else
#endif
  {
#pragma unroll
    for (int i = 0; i < V; ++i) atomicAdd(to + i, x[i]);
  }
}

}  // namespace mssts

#endif  // MSSTS_CUDA_DEVICE_CUH

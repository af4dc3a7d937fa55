// Sixteen bytes of a token as a lane holds them: packed as stored, unpacked to fp32 where they are used.
#ifndef MSSTS_CUDA_TEMPORAL_ATTN_STORAGE_CUH
#define MSSTS_CUDA_TEMPORAL_ATTN_STORAGE_CUH

#include "launch.h"

namespace mssts::temporal {

template <typename T>
struct Storage;

template <>
struct Storage<float> {
  static constexpr int kLane = 4;  // channels of a lane
  using Bits = unsigned;
  static __device__ __forceinline__ void unpack(unsigned word, float* x) { x[0] = __uint_as_float(word); }
  static __device__ __forceinline__ unsigned pack(const float* x) { return __float_as_uint(x[0]); }
};

template <>
struct Storage<__half> {
  static constexpr int kLane = 8;
  using Bits = unsigned short;
  static __device__ __forceinline__ void unpack(unsigned word, float* x) {
    const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&word));
    x[0] = pair.x;
    x[1] = pair.y;
  }
  static __device__ __forceinline__ unsigned pack(const float* x) {
    const __half2 pair = __floats2half2_rn(x[0], x[1]);
    return *reinterpret_cast<const unsigned*>(&pair);
  }
};

template <>
struct Storage<__nv_bfloat16> {
  static constexpr int kLane = 8;
  using Bits = unsigned short;
  static __device__ __forceinline__ void unpack(unsigned word, float* x) {
    x[0] = __uint_as_float(word << 16);
    x[1] = __uint_as_float(word & 0xffff0000u);
  }
  static __device__ __forceinline__ unsigned pack(const float* x) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(x[0], x[1]);
    return *reinterpret_cast<const unsigned*>(&pair);
  }
};

// The channels of one lane of one token.
template <typename T>
struct Packed {
  static constexpr int kLane = Storage<T>::kLane;
  static constexpr int kPerWord = kLane / 4;
  unsigned word[4];

  __device__ __forceinline__ void unpack(float (&x)[kLane]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) Storage<T>::unpack(word[i], x + i * kPerWord);
  }

  static __device__ __forceinline__ Packed zero() { return {{0, 0, 0, 0}}; }

  // The first `channels` (any number, also below zero) of kLane at `from`; zeros behind them. kVectors: `channels` is
  // at least kLane or at most 0, and the address a multiple of 16.
  template <bool kVectors>
  static __device__ __forceinline__ Packed load(const T* from, int channels) {
    Packed packed = zero();
    if constexpr (kVectors) {
      if (channels > 0) {
        const uint4 words = __ldg(reinterpret_cast<const uint4*>(from));
        packed = {{words.x, words.y, words.z, words.w}};
      }
    } else {
      using Bits = typename Storage<T>::Bits;
#pragma unroll
      for (int i = 0; i < kLane; ++i) {
        if (i >= channels) continue;
        const unsigned bits = __ldg(reinterpret_cast<const Bits*>(from) + i);
        packed.word[i / kPerWord] |= bits << (i % kPerWord * 16);
      }
    }
    return packed;
  }
};

// Writes the first `channels` of x; load's conditions.
template <typename T, bool kVectors>
__device__ __forceinline__ void store(T* to, const float (&x)[Storage<T>::kLane], int channels) {
  constexpr int kLane = Storage<T>::kLane, kPerWord = kLane / 4;
  unsigned word[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) word[i] = Storage<T>::pack(x + i * kPerWord);
  if constexpr (kVectors) {
    if (channels > 0) *reinterpret_cast<uint4*>(to) = make_uint4(word[0], word[1], word[2], word[3]);
  } else {
    using Bits = typename Storage<T>::Bits;
#pragma unroll
    for (int i = 0; i < kLane; ++i) {
      if (i < channels) reinterpret_cast<Bits*>(to)[i] = static_cast<Bits>(word[i / kPerWord] >> (i % kPerWord * 16));
    }
  }
}

// One element, for the kernels that take any size.
template <typename T>
__device__ __forceinline__ float load_one(const T* from) {
  const unsigned bits = __ldg(reinterpret_cast<const typename Storage<T>::Bits*>(from));
  float x[2];
  Storage<T>::unpack(bits, x);
  return x[0];
}

template <typename T>
__device__ __forceinline__ void store_one(T* to, float value) {
  const float x[2] = {value, 0.0f};
  *reinterpret_cast<typename Storage<T>::Bits*>(to) = static_cast<typename Storage<T>::Bits>(Storage<T>::pack(x));
}

}  // namespace mssts::temporal

#endif  // MSSTS_CUDA_TEMPORAL_ATTN_STORAGE_CUH

// __half and __nv_bfloat16 for the host: storage and conversions, rounded to nearest even as CUDA does. No arithmetic
// but what atomicAdd needs: the kernels compute in fp32.
#ifndef MSSTS_EMULATION_SIXTEEN_BIT_H
#define MSSTS_EMULATION_SIXTEEN_BIT_H

#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace mssts::emulation {

template <typename To, typename From>
inline To bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

inline uint16_t half_bits(float value) {
  const uint32_t word = bits<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((word >> 16) & 0x8000u);
  const uint32_t magnitude = word & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fffu;                                 // NaN: CUDA's canonical one
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and more round to infinity
  if (magnitude < 0x38800000u) {
    // Subnormal halves are multiples of 2^-24; adding 0.5 lines that bit up with fp32's last one, and rounds.
    const float shifted = bits<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (bits<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

inline float half_value(uint16_t word) {
  const uint32_t sign = static_cast<uint32_t>(word & 0x8000u) << 16;
  const uint32_t magnitude = word & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // 2^112 makes up for the difference of the exponents' biases, of subnormals too.
  const float value = bits<float>(magnitude << 13) * 5.192296858534827628530496329220096e33f;
  return bits<float>(bits<uint32_t>(value) | sign);
}

inline uint16_t bfloat16_bits(float value) {
  const uint32_t word = bits<uint32_t>(value);
  if ((word & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
  return static_cast<uint16_t>((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
}

inline float bfloat16_value(uint16_t word) { return bits<float>(static_cast<uint32_t>(word) << 16); }

}  // namespace mssts::emulation

struct alignas(2) __half_raw {
  unsigned short x;
};
struct alignas(2) __half {
  uint16_t word;
  __half() = default;
  explicit __half(float value) : word(mssts::emulation::half_bits(value)) {}
  explicit operator float() const { return mssts::emulation::half_value(word); }
};
struct alignas(4) __half2 {
  __half x, y;
};
struct alignas(2) __nv_bfloat16 {
  uint16_t word;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float value) : word(mssts::emulation::bfloat16_bits(value)) {}
  explicit operator float() const { return mssts::emulation::bfloat16_value(word); }
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
using half = __half;
using half2 = __half2;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

inline float __half2float(__half value) { return float(value); }
inline __half __float2half(float value) { return __half(value); }
inline __half __float2half_rn(float value) { return __half(value); }
inline float2 __half22float2(__half2 value) { return {float(value.x), float(value.y)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline __half2 __float22half2_rn(float2 value) { return {__half(value.x), __half(value.y)}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __half2half2(__half value) { return {value, value}; }
inline __half2 __float2half2_rn(float value) { return {__half(value), __half(value)}; }
inline __half __low2half(__half2 value) { return value.x; }
inline __half __high2half(__half2 value) { return value.y; }
inline float __low2float(__half2 value) { return float(value.x); }
inline float __high2float(__half2 value) { return float(value.y); }
inline unsigned short __half_as_ushort(__half value) { return value.word; }
inline __half __ushort_as_half(unsigned short word) { return mssts::emulation::bits<__half>(word); }

inline float __bfloat162float(__nv_bfloat16 value) { return float(value); }
inline __nv_bfloat16 __float2bfloat16(float value) { return __nv_bfloat16(value); }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return __nv_bfloat16(value); }
inline float2 __bfloat1622float2(__nv_bfloat162 value) { return {float(value.x), float(value.y)}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__nv_bfloat16(x), __nv_bfloat16(y)}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 value) { return {__nv_bfloat16(value.x), __nv_bfloat16(value.y)}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 value) { return {value, value}; }
inline __nv_bfloat162 __float2bfloat162_rn(float value) { return {__nv_bfloat16(value), __nv_bfloat16(value)}; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 value) { return value.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 value) { return value.y; }
inline float __low2float(__nv_bfloat162 value) { return float(value.x); }
inline float __high2float(__nv_bfloat162 value) { return float(value.y); }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.word; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short word) { return mssts::emulation::bits<__nv_bfloat16>(word); }

#endif  // MSSTS_EMULATION_SIXTEEN_BIT_H

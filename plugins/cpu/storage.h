// How numbers lie in memory, and one number at a time between there and the type of the arithmetic.
#ifndef MSSTS_CPU_STORAGE_H
#define MSSTS_CPU_STORAGE_H

#include <cstdint>
#include <cstring>

namespace mssts {
namespace {  // each instruction set compiles its own copy

struct Half {
  uint16_t bits;
};

struct BFloat {
  uint16_t bits;
};

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline float load_one(const float* from) { return *from; }
inline double load_one(const double* from) { return *from; }
inline float load_one(const BFloat* from) { return bit_cast<float>(uint32_t{from->bits} << 16); }

inline float load_one(const Half* from) {
  const uint32_t sign = uint32_t{from->bits & 0x8000u} << 16;
  const uint32_t rest = from->bits & 0x7fffu;
  // Exponents shift from a bias of 15 to one of 127 by a multiplication, which normalises subnormals too.
  uint32_t bits = bit_cast<uint32_t>(bit_cast<float>(rest << 13) * 0x1p112f);
  if (rest >= 0x7c00u) bits = 0x7f800000u | (rest << 13);
  return bit_cast<float>(sign | bits);
}

inline void store_one(float* to, float x) { *to = x; }
inline void store_one(double* to, double x) { *to = x; }

// Rounds to nearest, ties to even; a NaN stays one.
inline void store_one(BFloat* to, float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to->bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded);
}

inline void store_one(Half* to, float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t rest = bits & 0x7fffffffu;
  uint32_t half;
  if (rest > 0x7f800000u) {
    half = 0x7e00u;
  } else if (rest >= 0x477ff000u) {  // 65520 and more round to infinity
    half = 0x7c00u;
  } else if (rest < 0x38800000u) {  // subnormal: the addition rounds at the right bit
    half = bit_cast<uint32_t>(bit_cast<float>(rest) + 0.5f) - 0x3f000000u;
  } else {
    half = (rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1u)) >> 13;
  }
  to->bits = static_cast<uint16_t>(sign | half);
}

}  // namespace
}  // namespace mssts

#endif

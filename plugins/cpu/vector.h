// Vectors of kLanes floats for the instruction set that this file is compiled for.
//
// Everything is in unnamed namespaces, and nothing of the standard library's templates is used where this is included:
// a function that the linker may share between files must not have been compiled for a processor that is not there.
#ifndef MSSTS_CPU_VECTOR_H
#define MSSTS_CPU_VECTOR_H

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

#include "storage.h"

#define MSSTS_INLINE __attribute__((always_inline)) inline
#define MSSTS_UNROLL _Pragma("GCC unroll 16")

namespace mssts {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t Int __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Unsigned __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Short __attribute__((vector_size(kLanes * 2)));

MSSTS_INLINE Vec splat(float x) { return x - Vec{}; }
MSSTS_INLINE Int splat(int32_t x) { return x - Int{}; }

// ---------------------------------------------------------------------------------------------------- memory

template <class V, class T>
MSSTS_INLINE V load_as(const T* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

MSSTS_INLINE Vec load(const float* from) { return load_as<Vec>(from); }
MSSTS_INLINE Int load(const int32_t* from) { return load_as<Int>(from); }
MSSTS_INLINE Vec load(const BFloat* from) {
  return (Vec)(__builtin_convertvector(load_as<Short>(from), Unsigned) << 16);
}
MSSTS_INLINE void store(float* to, Vec x) { std::memcpy(to, &x, sizeof x); }
MSSTS_INLINE void store(int32_t* to, Int x) { std::memcpy(to, &x, sizeof x); }
MSSTS_INLINE void store(BFloat* to, Vec x) {
  const Unsigned bits = (Unsigned)x;
  const Unsigned rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Unsigned nan = (bits >> 16) | 0x40u;
  const Short s = __builtin_convertvector((x == x) ? rounded : nan, Short);
  std::memcpy(to, &s, sizeof s);
}

#if defined(__AVX512F__)
MSSTS_INLINE Vec load(const Half* from) { return (Vec)_mm512_cvtph_ps(load_as<__m256i>(from)); }
MSSTS_INLINE void store(Half* to, Vec x) {
  const __m256i h = _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(to, &h, sizeof h);
}
#elif defined(__AVX2__)
MSSTS_INLINE Vec load(const Half* from) { return (Vec)_mm256_cvtph_ps(load_as<__m128i>(from)); }
MSSTS_INLINE void store(Half* to, Vec x) {
  const __m128i h = _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(to, &h, sizeof h);
}
#else
MSSTS_INLINE Vec load(const Half* from) {
  Vec x;
  for (int i = 0; i < kLanes; ++i) x[i] = load_one(from + i);
  return x;
}
MSSTS_INLINE void store(Half* to, Vec x) {
  for (int i = 0; i < kLanes; ++i) store_one(to + i, x[i]);
}
#endif

// The first `count` < kLanes elements, zero after them; what follows in memory is not read.
template <class Storage>
MSSTS_INLINE Vec load_part(const Storage* from, int count) {
  Storage buffer[kLanes] = {};
  for (int i = 0; i < count; ++i) buffer[i] = from[i];
  return load(buffer);
}
template <class Storage>
MSSTS_INLINE void store_part(Storage* to, Vec x, int count) {
  Storage buffer[kLanes];
  store(buffer, x);
  for (int i = 0; i < count; ++i) to[i] = buffer[i];
}
#if defined(__AVX512F__)
MSSTS_INLINE Vec load_part(const float* from, int count) {
  return (Vec)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1u), from);
}
MSSTS_INLINE void store_part(float* to, Vec x, int count) {
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1u), (__m512)x);
}
#endif

// ---------------------------------------------------------------------------------------------------- lanes

template <int... kFrom>
MSSTS_INLINE Vec shuffle(Vec a, Vec b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, kFrom...);
#else
  return __builtin_shuffle(a, b, Int{kFrom...});
#endif
}

// In each 128-bit lane, zip: (a0 b0 a1 b1) and (a2 b2 a3 b3); pair: (a0 a1 b0 b1) and (a2 a3 b2 b3). Over all lanes,
// even and odd: every other element of a, then of b; interleave: (a0 b0 a1 ...), as two vectors.

#if defined(__AVX512F__)
typedef __mmask16 Mask;
MSSTS_INLINE Mask less(Vec a, Vec b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ); }
MSSTS_INLINE Vec select(Mask m, Vec a, Vec b) { return (Vec)_mm512_mask_blend_ps(m, (__m512)b, (__m512)a); }
MSSTS_INLINE Int select(Mask m, Int a, Int b) { return (Int)_mm512_mask_blend_epi32(m, (__m512i)b, (__m512i)a); }
MSSTS_INLINE Vec floor(Vec x) { return (Vec)_mm512_floor_ps((__m512)x); }
// The larger, `b` if either is NaN; and the smaller.
MSSTS_INLINE Vec larger(Vec a, Vec b) { return (Vec)_mm512_max_ps((__m512)a, (__m512)b); }
MSSTS_INLINE Vec smaller(Vec a, Vec b) { return (Vec)_mm512_min_ps((__m512)a, (__m512)b); }
MSSTS_INLINE Vec pick(Vec table, Int index) { return (Vec)_mm512_permutexvar_ps((__m512i)index, (__m512)table); }

MSSTS_INLINE Vec zip_low(Vec a, Vec b) { return (Vec)_mm512_unpacklo_ps((__m512)a, (__m512)b); }
MSSTS_INLINE Vec zip_high(Vec a, Vec b) { return (Vec)_mm512_unpackhi_ps((__m512)a, (__m512)b); }
MSSTS_INLINE Vec pair_low(Vec a, Vec b) { return (Vec)_mm512_unpacklo_pd((__m512d)a, (__m512d)b); }
MSSTS_INLINE Vec pair_high(Vec a, Vec b) { return (Vec)_mm512_unpackhi_pd((__m512d)a, (__m512d)b); }
MSSTS_INLINE Vec swap_halves(Vec x) { return (Vec)_mm512_shuffle_f32x4((__m512)x, (__m512)x, 0x4e); }
MSSTS_INLINE Vec swap_lanes(Vec x) { return (Vec)_mm512_shuffle_f32x4((__m512)x, (__m512)x, 0xb1); }
MSSTS_INLINE Vec swap_pairs(Vec x) { return (Vec)_mm512_permute_ps((__m512)x, 0x4e); }
MSSTS_INLINE Vec swap_neighbours(Vec x) { return (Vec)_mm512_permute_ps((__m512)x, 0xb1); }
MSSTS_INLINE Vec even(Vec a, Vec b) { return shuffle<0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30>(a, b); }
MSSTS_INLINE Vec odd(Vec a, Vec b) { return shuffle<1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31>(a, b); }
MSSTS_INLINE Vec interleave_low(Vec a, Vec b) {
  return shuffle<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(a, b);
}
MSSTS_INLINE Vec interleave_high(Vec a, Vec b) {
  return shuffle<8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31>(a, b);
}
#else
typedef Int Mask;
MSSTS_INLINE Mask less(Vec a, Vec b) { return a < b; }
MSSTS_INLINE Vec select(Mask m, Vec a, Vec b) { return m ? a : b; }
MSSTS_INLINE Int select(Mask m, Int a, Int b) { return m ? a : b; }
MSSTS_INLINE Vec larger(Vec a, Vec b) { return a > b ? a : b; }
MSSTS_INLINE Vec smaller(Vec a, Vec b) { return a < b ? a : b; }
#if defined(__AVX2__)
MSSTS_INLINE Vec floor(Vec x) { return (Vec)_mm256_floor_ps((__m256)x); }
MSSTS_INLINE Vec pick(Vec table, Int index) { return (Vec)_mm256_permutevar8x32_ps((__m256)table, (__m256i)index); }
MSSTS_INLINE Vec zip_low(Vec a, Vec b) { return (Vec)_mm256_unpacklo_ps((__m256)a, (__m256)b); }
MSSTS_INLINE Vec zip_high(Vec a, Vec b) { return (Vec)_mm256_unpackhi_ps((__m256)a, (__m256)b); }
MSSTS_INLINE Vec pair_low(Vec a, Vec b) { return shuffle<0, 1, 8, 9, 4, 5, 12, 13>(a, b); }
MSSTS_INLINE Vec pair_high(Vec a, Vec b) { return shuffle<2, 3, 10, 11, 6, 7, 14, 15>(a, b); }
MSSTS_INLINE Vec swap_lanes(Vec x) { return shuffle<4, 5, 6, 7, 0, 1, 2, 3>(x, x); }
MSSTS_INLINE Vec swap_pairs(Vec x) { return shuffle<2, 3, 0, 1, 6, 7, 4, 5>(x, x); }
MSSTS_INLINE Vec swap_neighbours(Vec x) { return shuffle<1, 0, 3, 2, 5, 4, 7, 6>(x, x); }
MSSTS_INLINE Vec even(Vec a, Vec b) { return shuffle<0, 2, 4, 6, 8, 10, 12, 14>(a, b); }
MSSTS_INLINE Vec odd(Vec a, Vec b) { return shuffle<1, 3, 5, 7, 9, 11, 13, 15>(a, b); }
MSSTS_INLINE Vec interleave_low(Vec a, Vec b) { return shuffle<0, 8, 1, 9, 2, 10, 3, 11>(a, b); }
MSSTS_INLINE Vec interleave_high(Vec a, Vec b) { return shuffle<4, 12, 5, 13, 6, 14, 7, 15>(a, b); }
#else
// For |x| < 2^31; NaN for NaN.
MSSTS_INLINE Vec floor(Vec x) {
  Vec down = __builtin_convertvector(__builtin_convertvector(x == x ? x : Vec{}, Int), Vec);
  down = down > x ? down - 1.0f : down;
  return x == x ? down : x;
}
MSSTS_INLINE Vec pick(Vec table, Int index) {
  Vec x;
  for (int i = 0; i < kLanes; ++i) x[i] = table[index[i] & (kLanes - 1)];
  return x;
}
MSSTS_INLINE Vec zip_low(Vec a, Vec b) { return shuffle<0, 4, 1, 5>(a, b); }
MSSTS_INLINE Vec zip_high(Vec a, Vec b) { return shuffle<2, 6, 3, 7>(a, b); }
MSSTS_INLINE Vec pair_low(Vec a, Vec b) { return shuffle<0, 1, 4, 5>(a, b); }
MSSTS_INLINE Vec pair_high(Vec a, Vec b) { return shuffle<2, 3, 6, 7>(a, b); }
MSSTS_INLINE Vec swap_pairs(Vec x) { return shuffle<2, 3, 0, 1>(x, x); }
MSSTS_INLINE Vec swap_neighbours(Vec x) { return shuffle<1, 0, 3, 2>(x, x); }
MSSTS_INLINE Vec even(Vec a, Vec b) { return shuffle<0, 2, 4, 6>(a, b); }
MSSTS_INLINE Vec odd(Vec a, Vec b) { return shuffle<1, 3, 5, 7>(a, b); }
MSSTS_INLINE Vec interleave_low(Vec a, Vec b) { return zip_low(a, b); }
MSSTS_INLINE Vec interleave_high(Vec a, Vec b) { return zip_high(a, b); }
#endif
#endif

// Rows to columns: r[i] lane j becomes r[j] lane i.
MSSTS_INLINE void transpose(Vec (&r)[kLanes]) {
  Vec a[kLanes];
  MSSTS_UNROLL
  for (int i = 0; i < kLanes; i += 4) {
    const Vec low01 = zip_low(r[i], r[i + 1]), high01 = zip_high(r[i], r[i + 1]);
    const Vec low23 = zip_low(r[i + 2], r[i + 3]), high23 = zip_high(r[i + 2], r[i + 3]);
    a[i] = pair_low(low01, low23);
    a[i + 1] = pair_high(low01, low23);
    a[i + 2] = pair_low(high01, high23);
    a[i + 3] = pair_high(high01, high23);
  }
  // a[4g + c] holds, in its 128-bit lane k, column 4k + c of rows 4g to 4g + 3.
#if defined(__AVX512F__)
  MSSTS_UNROLL
  for (int c = 0; c < 4; ++c) {
    const __m512 low01 = _mm512_shuffle_f32x4((__m512)a[c], (__m512)a[4 + c], 0x44);
    const __m512 high01 = _mm512_shuffle_f32x4((__m512)a[c], (__m512)a[4 + c], 0xee);
    const __m512 low23 = _mm512_shuffle_f32x4((__m512)a[8 + c], (__m512)a[12 + c], 0x44);
    const __m512 high23 = _mm512_shuffle_f32x4((__m512)a[8 + c], (__m512)a[12 + c], 0xee);
    r[c] = (Vec)_mm512_shuffle_f32x4(low01, low23, 0x88);
    r[4 + c] = (Vec)_mm512_shuffle_f32x4(low01, low23, 0xdd);
    r[8 + c] = (Vec)_mm512_shuffle_f32x4(high01, high23, 0x88);
    r[12 + c] = (Vec)_mm512_shuffle_f32x4(high01, high23, 0xdd);
  }
#elif defined(__AVX2__)
  MSSTS_UNROLL
  for (int c = 0; c < 4; ++c) {
    r[c] = shuffle<0, 1, 2, 3, 8, 9, 10, 11>(a[c], a[4 + c]);
    r[4 + c] = shuffle<4, 5, 6, 7, 12, 13, 14, 15>(a[c], a[4 + c]);
  }
#else
  for (int c = 0; c < 4; ++c) r[c] = a[c];
#endif
}

// Four neighbouring numbers of each of kLanes / 4 places, `step` apart.
MSSTS_INLINE Vec load_quads(const float* from, int64_t step) {
#if defined(__AVX512F__)
  __m512 x = _mm512_castps128_ps512(_mm_loadu_ps(from));
  x = _mm512_insertf32x4(x, _mm_loadu_ps(from + step), 1);
  x = _mm512_insertf32x4(x, _mm_loadu_ps(from + 2 * step), 2);
  return (Vec)_mm512_insertf32x4(x, _mm_loadu_ps(from + 3 * step), 3);
#elif defined(__AVX2__)
  return (Vec)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(from)), _mm_loadu_ps(from + step), 1);
#else
  (void)step;
  return load(from);
#endif
}

// In each 128-bit lane, element i is the sum of that lane of r[i].
MSSTS_INLINE Vec sums_of_quads(const Vec* r) {
  const Vec x = zip_low(r[0], r[1]) + zip_high(r[0], r[1]), y = zip_low(r[2], r[3]) + zip_high(r[2], r[3]);
  return pair_low(x, y) + pair_high(x, y);
}

// Lane i is the sum of the lanes of r[i].
MSSTS_INLINE Vec sums_of(const Vec (&r)[kLanes]) {
  Vec a[kLanes / 4];
  MSSTS_UNROLL
  for (int g = 0; g < kLanes / 4; ++g) {
    a[g] = sums_of_quads(r + 4 * g);
  }
#if defined(__AVX512F__)
  const __m512 a0 = (__m512)a[0], a1 = (__m512)a[1], a2 = (__m512)a[2], a3 = (__m512)a[3];
  const Vec low = (Vec)_mm512_shuffle_f32x4(a0, a1, 0x88) + (Vec)_mm512_shuffle_f32x4(a0, a1, 0xdd);
  const Vec high = (Vec)_mm512_shuffle_f32x4(a2, a3, 0x88) + (Vec)_mm512_shuffle_f32x4(a2, a3, 0xdd);
  return (Vec)_mm512_shuffle_f32x4((__m512)low, (__m512)high, 0x88) +
         (Vec)_mm512_shuffle_f32x4((__m512)low, (__m512)high, 0xdd);
#elif defined(__AVX2__)
  return shuffle<0, 1, 2, 3, 8, 9, 10, 11>(a[0], a[1]) + shuffle<4, 5, 6, 7, 12, 13, 14, 15>(a[0], a[1]);
#else
  return a[0];
#endif
}

// Every lane the sum of all lanes; and the largest.
MSSTS_INLINE Vec sum_across(Vec x) {
#if defined(__AVX512F__)
  x = x + swap_halves(x);
#endif
#if defined(__AVX2__)
  x = x + swap_lanes(x);
#endif
  x = x + swap_pairs(x);
  return x + swap_neighbours(x);
}
MSSTS_INLINE Vec largest_across(Vec x) {
#if defined(__AVX512F__)
  x = larger(x, swap_halves(x));
#endif
#if defined(__AVX2__)
  x = larger(x, swap_lanes(x));
#endif
  x = larger(x, swap_pairs(x));
  return larger(x, swap_neighbours(x));
}

// e^x for x <= 0, within 2 units of the last place; below -87, where fp32 loses its precision, 0. NaN for NaN.
MSSTS_INLINE Vec exp_of_negative(Vec x) {
  // x = n ln 2 + r. Adding 1.5 * 2^23 rounds to an integer, which the low bits then hold.
  const Vec shifted = x * 1.44269504f + 12582912.0f;
  const Vec n = shifted - 12582912.0f;
  const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  // (e^r - 1 - r) / r^2, fitted for the least relative error of e^r on |r| <= ln 2 / 2.
  const Vec p =
      ((((r * 0x1.9f0896p-13f + 0x1.6d8d06p-10f) * r + 0x1.111270p-7f) * r + 0x1.55548ep-5f) * r + 0x1.555554p-3f) * r +
      0.5f;
  const Vec power = (Vec)(((Unsigned)shifted + 127u) << 23);
  const Vec y = (p * (r * r) + r + 1.0f) * power;
  return select(less(x, splat(-87.0f)), Vec{}, y);
}

}  // namespace
}  // namespace mssts

#endif

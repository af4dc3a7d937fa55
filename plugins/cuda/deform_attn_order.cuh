// The order in which the forward takes the queries of an encoder: tiles of 8x8 of a level, so that a block's samples
// overlap in both directions and what they read stays in the L1 cache.
#ifndef MSSTS_CUDA_DEFORM_ATTN_ORDER_CUH
#define MSSTS_CUDA_DEFORM_ATTN_ORDER_CUH

#include "deform_attn_points.cuh"

namespace mssts {

constexpr unsigned kMostTiled = 1u << 20;  // tokens: fp32 divides them exactly

// a / b and what is left, for a < 2^20.
__device__ __forceinline__ uint2 divide(unsigned a, unsigned b) {
  const unsigned quotient =
      static_cast<unsigned>(__float2int_rz((static_cast<float>(a) + 0.5f) * fast_reciprocal(static_cast<float>(b))));
  return make_uint2(quotient, a - quotient * b);
}

// The query at `index` of a level that begins at `start`: bands of 8 rows, each in tiles of 8 columns, each row by row.
__device__ __forceinline__ unsigned query_of_level(unsigned index, unsigned start, unsigned width, unsigned height) {
  const uint2 band = divide(index - start, 8 * width);
  const unsigned rows = min(8u, height - 8 * band.x);
  const uint2 tile = divide(band.y, 8 * rows);
  const uint2 row = divide(tile.y, min(8u, width - 8 * tile.x));
  return start + (8 * band.x + row.x) * width + 8 * tile.x + row.y;
}

// A permutation of the queries; where they are not the tokens of the levels, the identity.
__device__ __forceinline__ unsigned query_in_tiles(const DeformArguments& call, const Level* levels, unsigned index) {
  if (call.queries != call.tokens || call.tokens > kMostTiled) return index;
#pragma unroll 1
  for (int l = 0; l < call.levels; ++l) {
    const Level level = levels[l];
    const unsigned width = static_cast<unsigned>(level.width), height = static_cast<unsigned>(level.height);
    if (level.factor == 1.0f && index - level.start < width * height) {
      return query_of_level(index, level.start, width, height);
    }
  }
  return index;
}

// The same by a whole warp, each four lanes with one index, where lane 4g + l has level l of four.
__device__ __forceinline__ unsigned query_in_tiles(const DeformArguments& call, const Level& level, unsigned index) {
  if (call.queries != call.tokens || call.tokens > kMostTiled) return index;
  const unsigned width = static_cast<unsigned>(level.width), height = static_cast<unsigned>(level.height);
  const bool mine = level.factor == 1.0f && index - level.start < width * height;
  const unsigned query = mine ? query_of_level(index, level.start, width, height) : 0;
  // One lane of the four has it, or none.
  unsigned found = query + (mine ? 1 : 0);
  found += __shfl_xor_sync(kWarp, found, 1);
  found += __shfl_xor_sync(kWarp, found, 2);
  return found == 0 ? index : found - 1;
}

}  // namespace mssts

#endif  // MSSTS_CUDA_DEFORM_ATTN_ORDER_CUH

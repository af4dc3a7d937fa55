// Where the points of MSDeformAttn lie: levels, softmax, locations and their four corners.
#ifndef MSSTS_CUDA_DEFORM_ATTN_POINTS_CUH
#define MSSTS_CUDA_DEFORM_ATTN_POINTS_CUH

#include "device.cuh"

namespace mssts {

// A call as kernels take it. Letters as in mssts/kernels.h. Of host checks: S < 2^31, N*S*M and N*Q*M < 2^32 - 1.
struct DeformArguments {
  unsigned batch, tokens, queries;
  int heads, channels, levels, points, coordinates;
  bool wide_shapes;  // int64
  const void* value;
  const void* shapes;
  const float* reference;
  const void* offsets;
  const void* logits;
  void* out;
};

struct __align__(16) Level {
  int height, width;  // at least 1
  unsigned start;
  float factor;  // of its points' weights: 1, or 0 for a level without tokens, or NaN for one that does not fit the S
                 // tokens
};

// The table of levels, by all threads of the block. The shapes lie in device memory, so nobody has checked them.
__device__ inline void read_levels(const DeformArguments& call, Level* levels) {
#pragma unroll 1
  for (int level = static_cast<int>(threadIdx.x); level < call.levels; level += static_cast<int>(blockDim.x)) {
    const long long tokens = call.tokens;
    long long start = 0, height = 0, width = 0;
    bool broken = false;
#pragma unroll 1
    for (int i = 0; i <= level; ++i) {
      start += height * width;
      if (call.wide_shapes) {
        const int64_t* shapes = static_cast<const int64_t*>(call.shapes);
        height = __ldg(shapes + 2 * i), width = __ldg(shapes + 2 * i + 1);
      } else {
        const int32_t* shapes = static_cast<const int32_t*>(call.shapes);
        height = __ldg(shapes + 2 * i), width = __ldg(shapes + 2 * i + 1);
      }
      if (height == 0 || width == 0) height = width = 0;
      // fp32 counts pixels up to 2^24.
      const long long longest = min(tokens, 1LL << 24);
      broken =
          broken || height < 0 || width < 0 || height > longest || width > longest || start + height * width > tokens;
      if (broken) height = width = 0;
    }
    // Points of a level without tokens have no share, or NaN, of a token that is there.
    const bool some = height > 0;
    levels[level] = {some ? static_cast<int>(height) : 1, some ? static_cast<int>(width) : 1,
                     some ? static_cast<unsigned>(start) : 0u,
                     broken ? NAN
                     : some ? 1.0f
                            : 0.0f};
  }
  __syncthreads();
}

// The same table of four levels without shared memory: lane 4g + l gets level l.
__device__ __forceinline__ Level level_of_lane(const DeformArguments& call, int l) {
  long long height, width;
  if (call.wide_shapes) {
    const int64_t* const shapes = static_cast<const int64_t*>(call.shapes) + 2 * l;
    height = __ldg(shapes), width = __ldg(shapes + 1);
  } else {
    const int32_t* const shapes = static_cast<const int32_t*>(call.shapes) + 2 * l;
    height = __ldg(shapes), width = __ldg(shapes + 1);
  }
  if (height == 0 || width == 0) height = width = 0;
  // What does not fit counts as one token more than there are: it, and all levels after it, end past the last token.
  const unsigned too_many = call.tokens + 1, longest = min(call.tokens, 1u << 24);
  unsigned area = too_many;
  if (static_cast<unsigned long long>(height) <= longest && static_cast<unsigned long long>(width) <= longest) {
    const unsigned long long product =
        static_cast<unsigned long long>(static_cast<unsigned>(height)) * static_cast<unsigned>(width);
    area = product > call.tokens ? too_many : static_cast<unsigned>(product);
  }
  unsigned end = area;
#pragma unroll
  for (int lanes = 1; lanes < 4; lanes *= 2) {
    const unsigned before = __shfl_up_sync(kWarp, end, lanes, 4);
    if (l >= lanes) end = min(end + before, too_many);
  }
  const bool broken = end > call.tokens, some = !broken && area > 0;
  return {some ? static_cast<int>(height) : 1, some ? static_cast<int>(width) : 1, some ? end - area : 0u,
          broken ? NAN
          : some ? 1.0f
                 : 0.0f};
}

// The largest of an item's logits and 1 / sum(exp(logit - largest)). Lanes of a group of G share an item.
struct Softmax {
  float largest, inverse_sum;
  __device__ __forceinline__ float weight(float logit) const {
    return fast_exp2((logit - largest) * kLog2E) * inverse_sum;
  }
};

template <int G, typename T>
__device__ __forceinline__ Softmax softmax_of(const T* logits, int count, int member) {
  // fmaxf drops a NaN; its exponential brings it back.
  float largest = -INFINITY;
  for (int k = member; k < count; k += G) largest = fmaxf(largest, to_float(__ldg(logits + k)));
#pragma unroll
  for (int lanes = G / 2; lanes > 0; lanes /= 2) largest = fmaxf(largest, __shfl_xor_sync(kWarp, largest, lanes));
  float sum = 0.0f;
  for (int k = member; k < count; k += G) sum += fast_exp2((to_float(__ldg(logits + k)) - largest) * kLog2E);
#pragma unroll
  for (int lanes = G / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kWarp, sum, lanes);
  return {largest, fast_reciprocal(sum)};
}

// The same where a lane's logits are few enough to keep: they become weights.
template <int G, int Count>
__device__ __forceinline__ void normalize(float (&logits)[Count]) {
  float largest = logits[0], sum = 0.0f;
#pragma unroll
  for (int i = 1; i < Count; ++i) largest = fmaxf(largest, logits[i]);
#pragma unroll
  for (int lanes = G / 2; lanes > 0; lanes /= 2) largest = fmaxf(largest, __shfl_xor_sync(kWarp, largest, lanes));
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    logits[i] = fast_exp2((logits[i] - largest) * kLog2E);
    sum += logits[i];
  }
#pragma unroll
  for (int lanes = G / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kWarp, sum, lanes);
  const float inverse_sum = fast_reciprocal(sum);
#pragma unroll
  for (int i = 0; i < Count; ++i) logits[i] *= inverse_sum;
}

// Pair: offsets are aligned to two elements; of references below, too.
template <bool Pair, typename T>
__device__ __forceinline__ float2 offset_at(const T* offsets, size_t point) {
  if constexpr (!Pair) {
    return make_float2(to_float(__ldg(offsets + 2 * point)), to_float(__ldg(offsets + 2 * point + 1)));
  } else if constexpr (sizeof(T) == 4) {
    return __ldg(reinterpret_cast<const float2*>(offsets) + point);
  } else {
    return unpack<T>(__ldg(reinterpret_cast<const unsigned*>(offsets) + point));
  }
}

struct Reference {
  float x, y, w, h;
};

template <bool Pair>
__device__ __forceinline__ Reference reference_at(const float* from, int coordinates) {
  Reference point{0.0f, 0.0f, 0.0f, 0.0f};
  if constexpr (Pair) {
    const float2 centre = __ldg(reinterpret_cast<const float2*>(from));
    point.x = centre.x, point.y = centre.y;
    if (coordinates == 4) {
      const float2 size = __ldg(reinterpret_cast<const float2*>(from) + 1);
      point.w = size.x, point.h = size.y;
    }
  } else {
    point.x = __ldg(from), point.y = __ldg(from + 1);
    if (coordinates == 4) point.w = __ldg(from + 2), point.h = __ldg(from + 3);
  }
  return point;
}

// Pixels by which an offset of 1 moves a point.
__device__ __forceinline__ float2 reach_of(const Reference& reference, const Level& level, int coordinates,
                                           float half_of_points) {
  return coordinates == 2 ? make_float2(1.0f, 1.0f)
                          : make_float2(reference.w * half_of_points * static_cast<float>(level.width),
                                        reference.h * half_of_points * static_cast<float>(level.height));
}

// In pixels: (0, 0) is the centre of the first.
__device__ __forceinline__ float2 location_of(const Reference& reference, float2 offset, const Level& level,
                                              int coordinates, float half_of_points) {
  const float2 reach = reach_of(reference, level, coordinates, half_of_points);
  return make_float2(fmaf(offset.x, reach.x, fmaf(reference.x, static_cast<float>(level.width), -0.5f)),
                     fmaf(offset.y, reach.y, fmaf(reference.y, static_cast<float>(level.height), -0.5f)));
}

// The cell of a location, and where in it that lies. Its corners are numbered left, right of the upper row, then of the
// lower; those outside the level have the nearest token inside.
struct Cell {
  int x0, x1;
  unsigned row0, row1;  // tokens where the two rows begin
  float x, y;           // in [0, 1)
  // Whether they are inside. At and beyond -1 the right and the lower ones have no share, but seem to be inside ...
  bool left, right, upper, lower;
  bool near_left, near_top;  // ... and this is false.
  bool nan;

  __device__ __forceinline__ bool inside(int corner) const {
    return ((corner & 1) ? right && near_left : left) && ((corner & 2) ? lower && near_top : upper);
  }
  __device__ __forceinline__ unsigned token(int corner) const {
    return ((corner & 2) ? row1 : row0) + static_cast<unsigned>((corner & 1) ? x1 : x0);
  }
  // Of all four corners: zero outside, NaN for a NaN.
  __device__ __forceinline__ float4 shares(float scale) const {
    scale = nan ? NAN : scale;
    const float x_left = left ? 1.0f - x : 0.0f, x_right = right ? x : 0.0f;
    const float y_upper = (upper ? 1.0f - y : 0.0f) * scale, y_lower = (lower ? y : 0.0f) * scale;
    return make_float4(y_upper * x_left, y_upper * x_right, y_lower * x_left, y_lower * x_right);
  }
};

__device__ __forceinline__ Cell cell_of(float2 location, const Level& level) {
  Cell cell;
  cell.nan = location.x != location.x || location.y != location.y;
  // Clamped as floats, so that no conversion overflows: at -1 and at the size all corners are outside, or have no
  // share. fmaxf makes -1 of a NaN.
  const float x = fminf(fmaxf(location.x, -1.0f), static_cast<float>(level.width));
  const float y = fminf(fmaxf(location.y, -1.0f), static_cast<float>(level.height));
  cell.near_left = location.x > -1.0f, cell.near_top = location.y > -1.0f;
  const int column = __float2int_rd(x), row = __float2int_rd(y);
  cell.x = x - static_cast<float>(column), cell.y = y - static_cast<float>(row);
  const unsigned width = static_cast<unsigned>(level.width), height = static_cast<unsigned>(level.height);
  cell.left = static_cast<unsigned>(column) < width, cell.right = static_cast<unsigned>(column + 1) < width;
  cell.upper = static_cast<unsigned>(row) < height, cell.lower = static_cast<unsigned>(row + 1) < height;
  cell.x0 = min(max(column, 0), level.width - 1), cell.x1 = min(column + 1, level.width - 1);
  const int y0 = min(max(row, 0), level.height - 1), y1 = min(row + 1, level.height - 1);
  cell.row0 = level.start + static_cast<unsigned>(y0) * width;
  cell.row1 = level.start + static_cast<unsigned>(y1) * width;
  return cell;
}

}  // namespace mssts

#endif  // MSSTS_CUDA_DEFORM_ATTN_POINTS_CUH

// The forward kernels of MSDeformAttn. An item is one head of one query; a warp's items are neighbouring queries of one
// head and frame, so that what they read overlaps.
#ifndef MSSTS_CUDA_DEFORM_ATTN_FORWARD_CUH
#define MSSTS_CUDA_DEFORM_ATTN_FORWARD_CUH

#include "deform_attn_points.cuh"

namespace mssts {

// The queries of a warp.
struct WarpItems {
  unsigned frame, head, first;
  bool any;
};

__device__ __forceinline__ WarpItems items_of_warp(const DeformArguments& call, unsigned items) {
  const unsigned warps = blockDim.x / 32;
  const unsigned long long warp = static_cast<unsigned long long>(blockIdx.x) * warps + threadIdx.x / 32;
  const unsigned chunks = (call.queries + items - 1) / items;
  const unsigned slices = call.batch * static_cast<unsigned>(call.heads);
  WarpItems mine;
  mine.any = warp < static_cast<unsigned long long>(chunks) * slices;
  const unsigned index = static_cast<unsigned>(warp), slice = index / chunks;
  mine.first = (index - slice * chunks) * items;
  mine.frame = slice / static_cast<unsigned>(call.heads);
  mine.head = slice - mine.frame * static_cast<unsigned>(call.heads);
  return mine;
}

// One chunk of 8 channels of one item, by one thread, reading only what lies inside: NaN and infinity spread no further
// than the definition says.
template <typename T>
__device__ inline void forward_exactly(const DeformArguments& call, const Level* levels, size_t frame, unsigned head,
                                       size_t item, unsigned query, int chunk) {
  const int points = call.levels * call.points;
  const T* logits = static_cast<const T*>(call.logits) + item * points;
  const T* offsets = static_cast<const T*>(call.offsets) + item * points * 2;
  const size_t token_stride = static_cast<size_t>(call.heads) * call.channels;
  const T* value = static_cast<const T*>(call.value) + frame * call.tokens * token_stride +
                   static_cast<size_t>(head) * call.channels + 8 * chunk;
  const float half_of_points = 0.5f / static_cast<float>(call.points);
  const Softmax softmax = softmax_of<1>(logits, points, 0);
  float sum[8] = {};
#pragma unroll 1
  for (int k = 0; k < points; ++k) {
    const int l = k / call.points;
    const Level level = levels[l];
    const Reference reference = reference_at<true>(
        call.reference + ((frame * call.queries + query) * call.levels + l) * call.coordinates, call.coordinates);
    const Cell cell =
        cell_of(location_of(reference, offset_at<true>(offsets, k), level, call.coordinates, half_of_points), level);
    const float scale = level.factor * softmax.weight(to_float(__ldg(logits + k)));
    const float4 shares = cell.shares(scale);
    const float share[4] = {shares.x, shares.y, shares.z, shares.w};
    if (cell.nan || scale != scale) {
#pragma unroll
      for (int i = 0; i < 8; ++i) sum[i] = NAN;
    }
#pragma unroll 1
    for (int corner = 0; corner < 4; ++corner) {
      if (!cell.inside(corner) || level.factor == 0.0f) continue;
      float x[8];
      Wide<T, 8>::load(value + cell.token(corner) * token_stride, x);
      const float by = corner < 2 ? (corner == 0 ? share[0] : share[1]) : (corner == 2 ? share[2] : share[3]);
#pragma unroll
      for (int i = 0; i < 8; ++i) sum[i] = fmaf(by, x[i], sum[i]);
    }
  }
  Wide<T, 8>::store(static_cast<T*>(call.out) + item * call.channels + 8 * chunk, sum);
}

// 16-bit value, D = 32 or 64, S <= 65536, everything aligned: the sum over corners is a product on the tensor cores.
//
// A lane loads 8 channels of one corner, lanes of a quad the four corners of a point. In the product's matrix b, that
// is a column for each (item, 8 channels), and a row for each (corner, channel parity); matrix a has four rows an item:
// even and odd channels (the other parity's weights are zero), each with the weights' high and low 16-bit parts, which
// keep some 22 bits of a weight (16 in bf16). Products are exact and summed in fp32. Zero weights make NaN of what is
// not finite: such warps are computed again, exactly.
//
// L, P and R are Levels, Points and Coordinates, or, where those are 0, what the call says.
template <typename T, int D, int Levels, int Points, int Coordinates>
__global__ void __launch_bounds__(256, 4) deform_forward_tensor(const DeformArguments call) {
  constexpr int kChunks = D / 8, kTogether = 8 / kChunks, kItems = 8;
  MSSTS_DYNAMIC_SHARED(unsigned char, shared);
  Level* levels = reinterpret_cast<Level*>(shared);
  read_levels(call, levels);

  const int points = Levels > 0 ? Levels * Points : call.levels * call.points;
  const int rounds = (points + 3) / 4;
  const int level_points = Levels > 0 ? Points : call.points;
  const int level_count = Levels > 0 ? Levels : call.levels;
  const int lane = static_cast<int>(threadIdx.x % 32);
  // Of each corner its token (low half) and its weight (high half): the weights' high parts, then their low parts.
  unsigned* const high = reinterpret_cast<unsigned*>(levels + level_count) + (threadIdx.x / 32) * (rounds * 256);
  unsigned* const low = high + rounds * 128;

  const WarpItems mine = items_of_warp(call, kItems);
  if (!mine.any) return;
  const size_t frame_queries = static_cast<size_t>(mine.frame) * call.queries;
  const unsigned heads = static_cast<unsigned>(call.heads);
  {
    // Four lanes prepare an item, each every fourth point.
    const int item = lane / 4, member = lane % 4;
    const unsigned query = min(mine.first + item, call.queries - 1);
    const size_t index = (frame_queries + query) * heads + mine.head;
    const T* const logits = static_cast<const T*>(call.logits) + index * points;
    const T* const offsets = static_cast<const T*>(call.offsets) + index * points * 2;
    const int coordinates = Levels > 0 ? Coordinates : call.coordinates;
    const float* const references = opaque(call.reference + (frame_queries + query) * level_count * coordinates);
    const float half_of_points = 0.5f / static_cast<float>(level_points);
    float weight[Levels > 0 ? Levels * Points / 4 : 1];
    Softmax softmax;
    if constexpr (Levels > 0) {
#pragma unroll
      for (int round = 0; round < rounds; ++round) weight[round] = to_float(__ldg(logits + 4 * round + member));
      normalize<4>(weight);
    } else {
      softmax = softmax_of<4>(logits, points, member);
    }
#pragma unroll
    for (int round = 0; round < rounds; ++round) {
      const int k = 4 * round + member;
      const bool real = Levels > 0 || k < points;
      const int l = real ? (Levels > 0 && Points == 4 ? round : k / level_points) : 0;
      const Level level = levels[l];
      float4 shares = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      unsigned token[4] = {};
      if (real) {
        const Reference reference = reference_at<true>(references + l * coordinates, coordinates);
        const Cell cell =
            cell_of(location_of(reference, offset_at<true>(offsets, k), level, coordinates, half_of_points), level);
        shares = cell.shares(
            level.factor * (Levels > 0 ? weight[Levels > 0 ? round : 0] : softmax.weight(to_float(__ldg(logits + k)))));
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) token[corner] = cell.token(corner);
      }
      const unsigned high01 = pack<T>(shares.x, shares.y), high23 = pack<T>(shares.z, shares.w);
      const float2 rounded01 = unpack<T>(high01), rounded23 = unpack<T>(high23);
      const unsigned low01 = pack<T>(shares.x - rounded01.x, shares.y - rounded01.y);
      const unsigned low23 = pack<T>(shares.z - rounded23.x, shares.w - rounded23.y);
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        // Rotated, so that lanes meet in no bank.
        const int place = 128 * round + 16 * item + 4 * ((corner + item / 2) & 3) + member;
        high[place] = join_halves(token[corner], corner < 2 ? high01 : high23, corner & 1);
        low[place] = join_halves(token[corner], corner < 2 ? low01 : low23, corner & 1);
      }
    }
  }
  __syncwarp();

  const int g = lane / 4, t = lane % 4;
  const int row = g % kChunks;  // of its item's rows in a: bit 0 is the parity, bit 1 the part of the weight
  const unsigned where = row >= 4 ? kNowhere : (row & 1) ? kToHigh : kToLow;
  const unsigned* const words = (row & 2) ? low : high;
  const unsigned token_bytes = heads * (D * sizeof(T));
  const char* const value =
      opaque(static_cast<const char*>(call.value) + static_cast<size_t>(mine.frame) * call.tokens * token_bytes +
             mine.head * (D * sizeof(T)) + (g % kChunks) * 16);
  char* const out =
      opaque(static_cast<char*>(call.out) + ((frame_queries + mine.first) * heads + mine.head) * (D * sizeof(T)));
  const int left = static_cast<int>(call.queries - mine.first);
  bool finite = true;
#pragma unroll 1
  for (int pair = 0; pair < kItems / kTogether; ++pair) {
    const int item = pair * kTogether + g / kChunks;
    const int place = 16 * item + 4 * ((t + item / 2) & 3);
    float sum[2][4] = {};
#pragma unroll
    for (int round = 0; round < rounds; ++round) {
      const uint4 word4 = *reinterpret_cast<const uint4*>(words + 128 * round + place);
      const unsigned word[4] = {word4.x, word4.y, word4.z, word4.w};
      uint4 x[4];
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        x[p] = __ldg(reinterpret_cast<const uint4*>(value + static_cast<uint64_t>(word[p] & 0xffffu) * token_bytes));
      }
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const unsigned weight = place_high_half(word[p], where);
        multiply_add<T>(sum[0], weight, x[p].x, x[p].y);
        multiply_add<T>(sum[1], weight, x[p].z, x[p].w);
      }
    }
    // sum[r / 2][2 (r % 2) + c] is channel 2r + parity of the item and chunk of column 2t + c. Half of the lanes have
    // columns of their own row's item. First the weights' parts meet, each lane keeping one column ...
    const bool second = (row & 2) != 0, odd = (row & 1) != 0;
    float channel[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const float first_column = sum[r / 2][2 * (r % 2)], second_column = sum[r / 2][2 * (r % 2) + 1];
      channel[r] =
          (second ? second_column : first_column) + __shfl_xor_sync(kWarp, second ? first_column : second_column, 8);
    }
    // ... then the parities, each lane keeping 4 channels of that column's 8.
    const unsigned first_two = pack<T>(channel[0], channel[1]), last_two = pack<T>(channel[2], channel[3]);
    const unsigned got = __shfl_xor_sync(kWarp, odd ? first_two : last_two, 4);
    const unsigned even_channels = odd ? got : first_two, odd_channels = odd ? last_two : got;
    const int column = 2 * t + (second ? 1 : 0);
    const bool own = row < 4 && column / kChunks == g / kChunks && item < left;
    if (own) {
      const float total = (channel[0] + channel[1]) + (channel[2] + channel[3]);
      finite = finite && fabsf(total) <= 3.0e38f;
      char* const to = out + static_cast<uint64_t>(static_cast<unsigned>(item)) * token_bytes +
                       ((column % kChunks) * 8 + (odd ? 4 : 0)) * sizeof(T);
      *reinterpret_cast<uint2*>(to) = make_uint2((even_channels & 0xffffu) | (odd_channels << 16),
                                                 (even_channels >> 16) | (odd_channels & 0xffff0000u));
    }
  }
  if (__ballot_sync(kWarp, !finite) != 0) {
    __syncwarp();
    // What it needs is computed again: kept, it would take registers of the loop above.
    const WarpItems again = items_of_warp(call, kItems);
    const unsigned query = again.first + lane / 4;
    if (query >= call.queries) return;
    const size_t item = (static_cast<size_t>(again.frame) * call.queries + query) * heads + again.head;
#pragma unroll 1
    for (int chunk = lane % 4; chunk < kChunks; chunk += 4) {
      forward_exactly<T>(call, levels, again.frame, again.head, item, query, chunk);
    }
  }
}

// Any sizes: G lanes share an item, each V channels at a time; a point's corners are prepared by one lane for the
// group. V > 1 wants everything aligned, and D a multiple of V.
template <typename T, int V, int G>
__global__ void __launch_bounds__(256) deform_forward_vector(const DeformArguments call) {
  constexpr int kItems = 32 / G;
  constexpr bool kAligned = V > 1;
  MSSTS_DYNAMIC_SHARED(unsigned char, shared);
  MSSTS_SHARED(uint4, all_rows, [256]);
  MSSTS_SHARED(float4, all_shares, [256]);
  Level* levels = reinterpret_cast<Level*>(shared);
  read_levels(call, levels);
  const WarpItems mine = items_of_warp(call, kItems);
  if (!mine.any) return;

  const int lane = static_cast<int>(threadIdx.x % 32), member = lane % G, slot = static_cast<int>(threadIdx.x) - member;
  const int points = call.levels * call.points;
  const unsigned heads = static_cast<unsigned>(call.heads);
  const unsigned query_or_past = mine.first + lane / G;
  const unsigned query = min(query_or_past, call.queries - 1);
  const size_t frame_query = static_cast<size_t>(mine.frame) * call.queries + query;
  const size_t index = frame_query * heads + mine.head;
  const T* const logits = static_cast<const T*>(call.logits) + index * points;
  const T* const offsets = static_cast<const T*>(call.offsets) + index * points * 2;
  const float half_of_points = 0.5f / static_cast<float>(call.points);
  const Softmax softmax = softmax_of<G>(logits, points, member);
  const T* const value = static_cast<const T*>(call.value) +
                         (static_cast<size_t>(mine.frame) * call.tokens * heads + mine.head) * call.channels;
  const unsigned token_bytes = heads * static_cast<unsigned>(call.channels * sizeof(T));

#pragma unroll 1
  for (int first_channel = 0; first_channel < call.channels; first_channel += V * G) {
    const int channel = first_channel + V * member;
    const bool has_channels = channel < call.channels;
    const char* const channels = opaque(reinterpret_cast<const char*>(value + channel));
    float sum[V] = {};
#pragma unroll 1
    for (int first = 0; first < points; first += G) {
      const int k = first + member;
      uint4 rows = make_uint4(0, 0, 0, 0);
      float4 shares = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (k < points) {
        const int l = k / call.points;
        const Level level = levels[l];
        const Reference reference = reference_at<kAligned>(
            call.reference + (frame_query * call.levels + l) * call.coordinates, call.coordinates);
        const Cell cell = cell_of(
            location_of(reference, offset_at<kAligned>(offsets, k), level, call.coordinates, half_of_points), level);
        rows = make_uint4(cell.token(0), cell.token(1), cell.token(2), cell.token(3));
        shares = cell.shares(level.factor * softmax.weight(to_float(__ldg(logits + k))));
      }
      __syncwarp();
      all_rows[threadIdx.x] = rows;
      all_shares[threadIdx.x] = shares;
      __syncwarp();
      const int count = min(G, points - first);
      if (has_channels) {
#pragma unroll 4
        for (int p = 0; p < count; ++p) {
          const uint4 row4 = all_rows[slot + p];
          const float4 share4 = all_shares[slot + p];
          const unsigned row[4] = {row4.x, row4.y, row4.z, row4.w};
          const float share[4] = {share4.x, share4.y, share4.z, share4.w};
          float x[4][V];
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) {
#pragma unroll
            for (int i = 0; i < V; ++i) x[corner][i] = 0.0f;
            // A corner outside has no share, whatever the token that stands for it holds.
            if (share[corner] != 0.0f) {
              Wide<T, V>::load(reinterpret_cast<const T*>(channels + static_cast<uint64_t>(row[corner]) * token_bytes),
                               x[corner]);
            }
          }
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) {
#pragma unroll
            for (int i = 0; i < V; ++i) sum[i] = fmaf(share[corner], x[corner][i], sum[i]);
          }
        }
      }
    }
    if (has_channels && query_or_past < call.queries) {
      Wide<T, V>::store(static_cast<T*>(call.out) + index * call.channels + channel, sum);
    }
  }
}

}  // namespace mssts

#endif  // MSSTS_CUDA_DEFORM_ATTN_FORWARD_CUH

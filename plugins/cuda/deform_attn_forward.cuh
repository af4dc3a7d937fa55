// The forward kernels of MSDeformAttn. An item is one head of one query; a warp's items, and a block's, are
// neighbouring queries of one head and frame, so that what they read overlaps.
#ifndef MSSTS_CUDA_DEFORM_ATTN_FORWARD_CUH
#define MSSTS_CUDA_DEFORM_ATTN_FORWARD_CUH

#include "deform_attn_order.cuh"
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

// Blocks on a multiprocessor of calls of other sizes than the model's: before sm_90 a fourth would spill.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kBlocksOfAnySizes = 3;
#else
constexpr int kBlocksOfAnySizes = 4;
#endif

// 16-bit value, D = 32 or 64, everything aligned: the sum over corners is a product on the tensor cores.
//
// A lane loads 8 channels of one corner, lanes of a quad the four corners of a point. That is matrix a of two products:
// rows for each (item, 8 channels) and pair of channels, columns for each (corner, channel parity). Matrix b has four
// columns an item: even and odd channels (the other parity's weights are zero), each with the weights' high and low
// 16-bit parts, which keep some 22 bits of a weight (16 in bf16). Products are exact and summed in fp32. Zero weights
// make NaN of what is not finite: such warps are computed again, exactly.
//
// Levels, Points and Coordinates are 4, 4 and 2 or 4, or 0: what the call says. A block has one head of one frame.
template <typename T, int D, int Levels, int Points, int Coordinates>
__global__ void __launch_bounds__(256, Levels > 0 ? 4 : kBlocksOfAnySizes)
    deform_forward_tensor(const DeformArguments call) {
  constexpr int kChunks = D / 8, kTogether = 8 / kChunks, kItems = 8;
  constexpr bool kFixed = Levels > 0;
  static_assert(!kFixed || (Levels == 4 && Points == 4), "a lane of four takes one level of four points");
  MSSTS_DYNAMIC_SHARED(uint4, shared);
  const int points = kFixed ? Levels * Points : call.levels * call.points;
  const int rounds = (points + 3) / 4;
  const int level_points = kFixed ? Points : call.points;
  const int lane = static_cast<int>(threadIdx.x % 32), item_of_lane = lane / 4, member = lane % 4;
  Level* const levels = reinterpret_cast<Level*>(shared);
  if constexpr (!kFixed) read_levels(call, levels);

  const unsigned frame = blockIdx.z, head = blockIdx.y, heads = static_cast<unsigned>(call.heads);
  const unsigned first = (blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32) * kItems;
  if (first >= call.queries) return;
  // Of each round of 4 points, each item and corner: the points' tokens, then their weights (low half: the high part).
  uint4* const tokens = shared + (kFixed ? 0 : call.levels) + (threadIdx.x / 32) * (rounds * 64);
  uint4* const weights = tokens + rounds * 32;
  unsigned row;  // of this lane's item in tensors [N, Q, ...]
  {
    // Four lanes prepare an item, each every fourth round.
    const unsigned index = min(first + item_of_lane, call.queries - 1);
    Level level{};
    unsigned query;
    if constexpr (kFixed) {
      level = level_of_lane(call, member);
      query = query_in_tiles(call, level, index);
    } else {
      query = query_in_tiles(call, levels, index);
    }
    row = frame * call.queries + query;
    const T* const logits = static_cast<const T*>(call.logits) + static_cast<size_t>(row * heads + head) * points;
    const T* const offsets = static_cast<const T*>(call.offsets) + static_cast<size_t>(row * heads + head) * points * 2;
    const int coordinates = kFixed ? Coordinates : call.coordinates;
    const float* const references =
        call.reference + static_cast<size_t>(row) * (kFixed ? Levels : call.levels) * coordinates;
    const float half_of_points = 0.5f / static_cast<float>(level_points);
    float weight[4] = {};
    unsigned offset[4] = {};
    Reference reference{};
    Softmax softmax{};
    if constexpr (kFixed) {
      const uint2 logit = __ldg(reinterpret_cast<const uint2*>(logits) + member);
      const uint4 moves = __ldg(reinterpret_cast<const uint4*>(offsets) + member);
      reference = reference_at<true>(references + member * Coordinates, Coordinates);
      offset[0] = moves.x, offset[1] = moves.y, offset[2] = moves.z, offset[3] = moves.w;
      const float2 low = unpack<T>(logit.x), high = unpack<T>(logit.y);
      weight[0] = low.x, weight[1] = low.y, weight[2] = high.x, weight[3] = high.y;
      normalize<4>(weight);
    } else {
      softmax = softmax_of<4>(logits, points, member);
    }
#pragma unroll 1
    for (int round = member; round < rounds; round += 4) {
      unsigned token[4][4], share[4][4];  // [corner][point]
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const int k = 4 * round + p;
        const bool real = kFixed || k < points;
        float2 move;
        if constexpr (kFixed) {
          move = unpack<T>(offset[p]);
        } else {
          const int l = real ? k / level_points : 0;
          level = levels[l];
          reference = reference_at<true>(references + l * coordinates, coordinates);
          weight[p] = real ? softmax.weight(to_float(__ldg(logits + k))) : 0.0f;
          move = real ? offset_at<true>(offsets, k) : make_float2(0.0f, 0.0f);
        }
        const Cell cell = cell_of(location_of(reference, move, level, coordinates, half_of_points), level);
        const float4 shares = real ? cell.shares(level.factor * weight[p]) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        const unsigned high01 = pack<T>(shares.x, shares.y), high23 = pack<T>(shares.z, shares.w);
        const float2 rounded01 = unpack<T>(high01), rounded23 = unpack<T>(high23);
        const unsigned low01 = pack<T>(shares.x - rounded01.x, shares.y - rounded01.y);
        const unsigned low23 = pack<T>(shares.z - rounded23.x, shares.w - rounded23.y);
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          token[corner][p] = cell.token(corner);
          share[corner][p] = join_halves(corner < 2 ? high01 : high23, corner < 2 ? low01 : low23, corner & 1);
        }
      }
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        // Swapped, so that lanes meet in no bank.
        const int place = 32 * round + 4 * item_of_lane + (corner ^ (round & 3));
        tokens[place] = make_uint4(token[corner][0], token[corner][1], token[corner][2], token[corner][3]);
        weights[place] = make_uint4(share[corner][0], share[corner][1], share[corner][2], share[corner][3]);
      }
    }
  }
  __syncwarp();

  const int g = lane / 4, t = lane % 4;
  const unsigned where = (g & 2) ? ((g & 1) ? kLowToHigh : kHighToHigh) : ((g & 1) ? kLowToLow : kHighToLow);
  const unsigned token_bytes = heads * (D * sizeof(T));
  const char* const value =
      opaque(static_cast<const char*>(call.value) + static_cast<size_t>(frame) * call.tokens * token_bytes +
             head * (D * sizeof(T)) + (g % kChunks) * 16);
  const bool odd = (t & 1) != 0;
  char* const out = opaque(static_cast<char*>(call.out) + head * (D * sizeof(T)) + (g % kChunks) * 16 + (odd ? 8 : 0));
  // Half of the lanes have sums over their own row's item.
  const bool own_column = t / 2 == g / kChunks;
  const unsigned left = call.queries - first;
  bool finite = true;
#pragma unroll 1
  for (int pair = 0; pair < kItems / kTogether; ++pair) {
    const int item = pair * kTogether + g / kChunks;
    const int own_place = 4 * item + t;
    float sum[2][4] = {};
#pragma unroll
    for (int round = 0; round < rounds; ++round) {
      const int place = 32 * round + (own_place ^ (round & 3));
      const uint4 token4 = tokens[place], weight4 = weights[place];
      const unsigned token[4] = {token4.x, token4.y, token4.z, token4.w};
      const unsigned weight[4] = {weight4.x, weight4.y, weight4.z, weight4.w};
      uint4 x[4];
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        x[p] = __ldg(reinterpret_cast<const uint4*>(value + static_cast<uint64_t>(token[p]) * token_bytes));
      }
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const unsigned b = place_half(weight[p], where);
        mma_m16n8k8<T>(sum[0], {x[p].x, x[p].y}, b);
        mma_m16n8k8<T>(sum[1], {x[p].z, x[p].w}, b);
      }
    }
    // sum[j][2r] + sum[j][2r + 1], the weights' two parts, is channel 2(2j + r) + parity, the parity being t's. Lanes
    // of a pair exchange parities, and each keeps 4 channels of 8.
    float channel[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) channel[r] = sum[r / 2][2 * (r % 2)] + sum[r / 2][2 * (r % 2) + 1];
    const unsigned first_two = pack<T>(channel[0], channel[1]), last_two = pack<T>(channel[2], channel[3]);
    const unsigned got = __shfl_xor_sync(kWarp, odd ? first_two : last_two, 1);
    const unsigned even_channels = odd ? got : first_two, odd_channels = odd ? last_two : got;
    const unsigned row_of_item = __shfl_sync(kWarp, row, 4 * item);
    if (own_column && static_cast<unsigned>(item) < left) {
      const float total = (channel[0] + channel[1]) + (channel[2] + channel[3]);
      finite = finite && fabsf(total) <= 3.0e38f;
      *reinterpret_cast<uint2*>(out + static_cast<uint64_t>(row_of_item) * token_bytes) =
          make_uint2(join_halves(even_channels, odd_channels, false), join_halves(even_channels, odd_channels, true));
    }
  }
  if (__ballot_sync(kWarp, !finite) != 0) {
    // What it needs is computed again: kept, it would take registers of the loop above.
    Level* table = levels;
    if constexpr (kFixed) {
      table = reinterpret_cast<Level*>(tokens);
      const Level level = level_of_lane(call, member);
      if (lane < 4) table[lane] = level;
    }
    __syncwarp();
    if (static_cast<unsigned>(item_of_lane) >= left) return;
    const unsigned query = row - frame * call.queries;
#pragma unroll 1
    for (int chunk = member; chunk < kChunks; chunk += 4) {
      forward_exactly<T>(call, table, frame, head, static_cast<size_t>(row) * heads + head, query, chunk);
    }
  }
}

// Any sizes: G lanes share an item, each V channels at a time; a point's corners are prepared by one lane for the
// group. V > 1 wants everything aligned, and D a multiple of V.
template <typename T, int V, int G>
__global__ void __launch_bounds__(256, sizeof(T) == 4 ? 5 : 1) deform_forward_vector(const DeformArguments call) {
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
  const unsigned index_or_past = mine.first + lane / G;
  const unsigned query = query_in_tiles(call, levels, min(index_or_past, call.queries - 1));
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
    if (has_channels && index_or_past < call.queries) {
      Wide<T, V>::store(static_cast<T*>(call.out) + index * call.channels + channel, sum);
    }
  }
}

}  // namespace mssts

#endif  // MSSTS_CUDA_DEFORM_ATTN_FORWARD_CUH

// The backward kernels of MSDeformAttn. An item is one head of one query; a warp's items are neighbouring heads, whose
// updates of grad_value never meet, then neighbouring queries.
//
// All updates go to L2 (red). Sums of the coarse levels in shared memory, flushed by three blocks a head and frame,
// were weighed by `mssts bench gpu-model` (reductions, fp16, offsets of 2 pixels): levels 2 and 3 would leave 714 of
// 1,216 MB of the L2's reductions, but shared memory has no fp32 addition, only a loop around a compare-and-swap: 63.1
// instructions a point instead of 54.5, on 120 of 132 multiprocessors, 232 us of issue instead of 182. That is no gain
// while the L2 adds at its rate of loads (221 us at 5.5 TB/s), and one below 5.2 TB/s. What it does add at is not
// known without a GPU: `lts__t_sectors_op_red` of bench/gpu_session.sh and the backward's time give it.
#ifndef MSSTS_CUDA_DEFORM_ATTN_BACKWARD_CUH
#define MSSTS_CUDA_DEFORM_ATTN_BACKWARD_CUH

#include "deform_attn_points.cuh"

namespace mssts {

// Where the gradients go; null where not wanted.
struct DeformGradients {
  const void* out;  // what came in
  float* value;     // [N, S, M, D], zeros before: sums in fp32, or, deterministic, ...
  // ... in units of 2^-fixed_point_shift, whose sums do not depend on their order; [N, S, M] 1 where one was not finite
  unsigned long long* fixed_value;
  unsigned char* broken_value;
  const unsigned* largest;  // the bits of the largest finite |grad_out|
  float* reference;         // [N, Q, M, L, R]: of each head
  void* offsets;
  void* logits;
};

// No sum of grad_value exceeds Q * largest: the shares of one query and head sum up to 1. They get 61 bits and a sign.
__device__ __forceinline__ int fixed_point_shift(unsigned largest, unsigned queries) {
  const int exponent = static_cast<int>(largest >> 23) - 126;  // largest < 2^exponent
  return max(min(61 - (32 - __clz(static_cast<int>(queries))) - exponent, 126), -126);
}
__device__ __forceinline__ float power_of_two(int exponent) { return __int_as_float((exponent + 127) << 23); }

template <typename T>
__global__ void __launch_bounds__(256) deform_largest(const T* grad_out, unsigned long long count, unsigned* largest) {
  const unsigned long long step = static_cast<unsigned long long>(gridDim.x) * blockDim.x;
  unsigned mine = 0;
  for (unsigned long long i = static_cast<unsigned long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    const unsigned bits = __float_as_uint(to_float(__ldg(grad_out + i))) & 0x7fffffffu;
    if (bits < 0x7f800000u) mine = max(mine, bits);
  }
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) mine = max(mine, __shfl_xor_sync(kWarp, mine, lanes));
  if (threadIdx.x % 32 == 0 && mine > 0) atomicMax(largest, mine);
}

// V at a time, where V divides the count and 4 are aligned.
template <typename T, int V>
__global__ void __launch_bounds__(256) deform_round(const float* sums, unsigned long long count, T* grad_value) {
  const unsigned long long step = static_cast<unsigned long long>(gridDim.x) * blockDim.x * V;
  for (unsigned long long i = (static_cast<unsigned long long>(blockIdx.x) * blockDim.x + threadIdx.x) * V; i < count;
       i += step) {
    float x[V];
    Wide<float, V>::load(sums + i, x);
    Wide<T, V>::store(grad_value + i, x);
  }
}

template <typename T>
__global__ void __launch_bounds__(256) deform_round_fixed(const DeformGradients gradients, unsigned queries,
                                                          int channels, unsigned long long count, T* grad_value) {
  const unsigned long long step = static_cast<unsigned long long>(gridDim.x) * blockDim.x;
  const float unit = power_of_two(-fixed_point_shift(*gradients.largest, queries));
  for (unsigned long long i = static_cast<unsigned long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    const float sum = static_cast<float>(static_cast<long long>(gradients.fixed_value[i])) * unit;
    grad_value[i] = from_float<T>(gradients.broken_value[i / static_cast<unsigned>(channels)] ? NAN : sum);
  }
}

// [N, Q, M, L, R] to [N, Q, L, R]; `inner` is L*R.
__global__ void __launch_bounds__(256)
    deform_sum_heads(const float* parts, unsigned long long count, int heads, int inner, float* grad_reference) {
  const unsigned long long step = static_cast<unsigned long long>(gridDim.x) * blockDim.x;
  for (unsigned long long i = static_cast<unsigned long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    const unsigned long long query = i / static_cast<unsigned>(inner), place = i - query * static_cast<unsigned>(inner);
    float sum = 0.0f;
    for (int head = 0; head < heads; ++head) sum += parts[(query * heads + head) * inner + place];
    grad_reference[i] = sum;
  }
}

// x to V numbers of one token and head, in fixed point.
template <int V>
__device__ __forceinline__ void add_fixed(unsigned long long* to, unsigned char* broken, const float (&x)[V],
                                          float scale) {
  bool finite = true;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const bool fits = fabsf(x[i]) <= 3.4e38f;
    finite = finite && fits;
    atomicAdd(to + i, static_cast<unsigned long long>(static_cast<long long>(fits ? x[i] * scale : 0.0f)));
  }
  if (!finite) *broken = 1;
}

// The most blocks of a multiprocessor whose registers spill nothing (CUDA 13.0). The loop over a level's points for
// grad_reference stays rolled for the same reason.
template <int V, bool Model, bool Fixed>
constexpr int backward_blocks() {
  if (Model && !Fixed) return 4;
  return V == 1 && Fixed && kArchitecture >= 1000 ? 2 : 3;
}

// G lanes share an item, each V channels at a time; V > 1 wants everything aligned and D a multiple of V. A round is G
// points: each lane prepares one, all lanes take the points in turn (dot products of grad_out with the corners' tokens;
// updates of grad_value), each lane finishes its point.
//
// Model: the call is of four levels of four points, D is V G, and grad_value is wanted: else all of these are what the
// call says. Fixed: grad_value is wanted, and its sums are in fixed point; else they are in fp32.
template <typename T, int V, int G, bool Model, bool Fixed>
__global__ void __launch_bounds__(256, (backward_blocks<V, Model, Fixed>()))
    deform_backward(const DeformArguments call, const DeformGradients gradients) {
  constexpr int kItems = 32 / G;
  constexpr bool kAligned = V > 1;
  constexpr unsigned kOutside = 0xffffffffu;
  MSSTS_DYNAMIC_SHARED(unsigned char, shared);
  MSSTS_SHARED(uint4, all_rows, [256]);
  MSSTS_SHARED(float4, all_shares, [256]);
  MSSTS_SHARED(float4, all_dots, [256]);
  Level* levels = reinterpret_cast<Level*>(shared);
  read_levels(call, levels);

  const int level_count = Model ? 4 : call.levels, level_points = Model ? 4 : call.points;
  const int points = level_count * level_points, channels = Model ? V * G : call.channels;
  const int lane = static_cast<int>(threadIdx.x % 32), member = lane % G, slot = static_cast<int>(threadIdx.x) - member;
  // Of each point of the warp's items: its sample's product with grad_out, and its gradient (x, y) times the level's
  // size.
  float* const samples = reinterpret_cast<float*>(levels + level_count) + (threadIdx.x / 32) * (3 * kItems * points);
  float* const slopes = samples + kItems * points;
  const unsigned heads = static_cast<unsigned>(call.heads);
  const unsigned long long items = static_cast<unsigned long long>(call.batch) * call.queries * heads;
  const unsigned long long warp = static_cast<unsigned long long>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (warp * kItems >= items) return;
  const bool active = warp * kItems + lane / G < items;
  const unsigned index = static_cast<unsigned>(active ? warp * kItems + lane / G : items - 1);
  const unsigned frame_query = index / heads, head = index - frame_query * heads, frame = frame_query / call.queries;

  const T* const logits = static_cast<const T*>(call.logits) + static_cast<size_t>(index) * points;
  const T* const offsets = static_cast<const T*>(call.offsets) + static_cast<size_t>(index) * points * 2;
  const float* const references = call.reference + static_cast<size_t>(frame_query) * level_count * call.coordinates;
  const T* const grad_out = static_cast<const T*>(gradients.out) + static_cast<size_t>(index) * channels;
  const float half_of_points = 0.5f / static_cast<float>(level_points);
  const Softmax softmax = softmax_of<G>(logits, points, member);
  const size_t slice = static_cast<size_t>(frame) * call.tokens * heads + head;  // in rows of D
  const T* const value = static_cast<const T*>(call.value) + slice * channels;
  const bool one_pass = channels <= V * G;
  // Of a token, in bytes, from this lane's channels on.
  const unsigned token_bytes = heads * static_cast<unsigned>(channels * sizeof(T));
  using Sum = std::conditional_t<Fixed, unsigned long long, float>;
  Sum* sums;
  if constexpr (Fixed) {
    sums = gradients.fixed_value;
  } else {
    sums = gradients.value;
  }
  const unsigned sum_bytes = heads * static_cast<unsigned>(channels * sizeof(Sum));
  const char* const own_tokens = opaque(reinterpret_cast<const char*>(value + V * member));
  char* const own_sums = opaque(reinterpret_cast<char*>(sums + slice * channels + V * member));
  unsigned char* const own_broken = gradients.broken_value + slice;  // of Fixed alone
  float own_grad[V] = {};
  if (V * member < channels) Wide<T, V>::load(grad_out + V * member, own_grad);
  float scale = 0.0f;
  if constexpr (Fixed) scale = power_of_two(fixed_point_shift(__ldg(gradients.largest), call.queries));

#pragma unroll 1
  for (int first = 0; first < points; first += G) {
    const int k = first + member;
    const bool own = k < points;
    uint4 rows = make_uint4(kOutside, kOutside, kOutside, kOutside);
    float4 shares = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float weight = 0.0f, x = 0.0f, y = 0.0f;
    float2 size = make_float2(1.0f, 1.0f), reach = make_float2(1.0f, 1.0f);
    if (own) {
      const int l = k / level_points;
      const Level level = levels[l];
      const Reference reference = reference_at<kAligned>(references + l * call.coordinates, call.coordinates);
      const Cell cell = cell_of(
          location_of(reference, offset_at<kAligned>(offsets, k), level, call.coordinates, half_of_points), level);
      weight = level.factor * softmax.weight(to_float(__ldg(logits + k)));
      shares = cell.shares(weight);
      size = make_float2(static_cast<float>(level.width), static_cast<float>(level.height));
      reach = reach_of(reference, level, call.coordinates, half_of_points);
      x = cell.nan ? NAN : cell.x, y = cell.nan ? NAN : cell.y;
      if (active && !cell.nan && level.factor == 1.0f) {
        rows = make_uint4(cell.inside(0) ? cell.token(0) : kOutside, cell.inside(1) ? cell.token(1) : kOutside,
                          cell.inside(2) ? cell.token(2) : kOutside, cell.inside(3) ? cell.token(3) : kOutside);
      }
    }
    __syncwarp();
    all_rows[threadIdx.x] = rows;
    all_shares[threadIdx.x] = shares;
    __syncwarp();

    const int count = min(G, points - first);
#pragma unroll 1
    for (int p = 0; p < count; ++p) {
      const uint4 row4 = all_rows[slot + p];
      const float4 share4 = all_shares[slot + p];
      const unsigned row[4] = {row4.x, row4.y, row4.z, row4.w};
      const float share[4] = {share4.x, share4.y, share4.z, share4.w};
      float dot[4] = {};
      if constexpr (Model) {
        float token[4][V];
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
#pragma unroll
          for (int i = 0; i < V; ++i) token[corner][i] = 0.0f;
          if (row[corner] != kOutside) {
            Wide<T, V>::load(reinterpret_cast<const T*>(own_tokens + static_cast<uint64_t>(row[corner]) * token_bytes),
                             token[corner]);
          }
        }
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          float part[V];
#pragma unroll
          for (int i = 0; i < V; ++i) {
            dot[corner] = fmaf(own_grad[i], token[corner][i], dot[corner]);
            part[i] = share[corner] * own_grad[i];
          }
          if (row[corner] == kOutside) continue;
          Sum* const to = reinterpret_cast<Sum*>(own_sums + static_cast<uint64_t>(row[corner]) * sum_bytes);
          if constexpr (Fixed) {
            add_fixed<V>(to, own_broken + static_cast<uint64_t>(row[corner]) * heads, part, scale);
          } else {
            add_to<V>(to, part);
          }
        }
      } else {
#pragma unroll 1
        for (int channel = V * member; channel < channels; channel += V * G) {
          float grad[V];
#pragma unroll
          for (int i = 0; i < V; ++i) grad[i] = own_grad[i];
          if (!one_pass) Wide<T, V>::load(grad_out + channel, grad);
          float token[4][V];
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) {
#pragma unroll
            for (int i = 0; i < V; ++i) token[corner][i] = 0.0f;
            if (row[corner] != kOutside) {
              Wide<T, V>::load(value + (static_cast<size_t>(row[corner]) * heads) * channels + channel, token[corner]);
            }
          }
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) {
            if (row[corner] == kOutside) continue;
#pragma unroll
            for (int i = 0; i < V; ++i) dot[corner] = fmaf(grad[i], token[corner][i], dot[corner]);
            float part[V];
#pragma unroll
            for (int i = 0; i < V; ++i) part[i] = share[corner] * grad[i];
            const size_t to = static_cast<size_t>(row[corner]) * heads;
            if constexpr (Fixed) {
              add_fixed<V>(sums + (slice + to) * channels + channel, own_broken + to, part, scale);
            } else {
              if (sums != nullptr) add_to<V>(sums + (slice + to) * channels + channel, part);
            }
          }
        }
      }
      // The sums over the group, a corner to each lane of four.
      const bool right = (member & 1) != 0, lower = (member & 2) != 0;
      const float upper_sum = (right ? dot[1] : dot[0]) + __shfl_xor_sync(kWarp, right ? dot[0] : dot[1], 1);
      const float lower_sum = (right ? dot[3] : dot[2]) + __shfl_xor_sync(kWarp, right ? dot[2] : dot[3], 1);
      float sum = (lower ? lower_sum : upper_sum) + __shfl_xor_sync(kWarp, lower ? upper_sum : lower_sum, 2);
#pragma unroll
      for (int lanes = 4; lanes < G; lanes *= 2) sum += __shfl_xor_sync(kWarp, sum, lanes);
      if (member < 4) reinterpret_cast<float*>(all_dots + slot + p)[member] = sum;
    }
    __syncwarp();

    if (own) {
      const float4 dot = all_dots[threadIdx.x];
      const float upper = dot.x + x * (dot.y - dot.x), lower = dot.z + x * (dot.w - dot.z);
      const float slope_x = ((dot.y - dot.x) + y * ((dot.w - dot.z) - (dot.y - dot.x))) * weight;
      const float slope_y = (lower - upper) * weight;
      samples[k * kItems + lane / G] = upper + y * (lower - upper);
      slopes[2 * (k * kItems + lane / G)] = slope_x * size.x;
      slopes[2 * (k * kItems + lane / G) + 1] = slope_y * size.y;
      if (active && gradients.offsets != nullptr) {
        T* const to = static_cast<T*>(gradients.offsets) + (static_cast<size_t>(index) * points + k) * 2;
        to[0] = from_float<T>(slope_x * reach.x);
        to[1] = from_float<T>(slope_y * reach.y);
      }
    }
  }
  __syncwarp();

  if (gradients.logits != nullptr) {
    float mean = 0.0f;
    for (int k = member; k < points; k += G) {
      mean += softmax.weight(to_float(__ldg(logits + k))) * samples[k * kItems + lane / G];
    }
#pragma unroll
    for (int lanes = G / 2; lanes > 0; lanes /= 2) mean += __shfl_xor_sync(kWarp, mean, lanes);
    T* const to = static_cast<T*>(gradients.logits) + static_cast<size_t>(index) * points;
    for (int k = member; active && k < points; k += G) {
      to[k] = from_float<T>(softmax.weight(to_float(__ldg(logits + k))) * (samples[k * kItems + lane / G] - mean));
    }
  }
  if (gradients.reference != nullptr && active) {
    for (int l = member; l < level_count; l += G) {
      float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 1
      for (int k = l * level_points; k < (l + 1) * level_points; ++k) {
        const float slope_x = slopes[2 * (k * kItems + lane / G)], slope_y = slopes[2 * (k * kItems + lane / G) + 1];
        sum.x += slope_x, sum.y += slope_y;
        if (call.coordinates == 4) {
          const float2 offset = offset_at<kAligned>(offsets, k);
          sum.z += slope_x * (offset.x * half_of_points), sum.w += slope_y * (offset.y * half_of_points);
        }
      }
      float* const to = gradients.reference + (static_cast<size_t>(index) * level_count + l) * call.coordinates;
      to[0] = sum.x, to[1] = sum.y;
      if (call.coordinates == 4) to[2] = sum.z, to[3] = sum.w;
    }
  }
}

}  // namespace mssts

#endif  // MSSTS_CUDA_DEFORM_ATTN_BACKWARD_CUH

// Gradients of SplitTemporalAttn, the fast path: as in temporal_attn.cuh a group of lanes owns one (location, head),
// and with it all of that pair's gradients. Weights are recomputed: with weights w_tu = softmax_u(s q_t·k_u) and d_tu =
// grad_t·v_u,
//   delta_t = sum_u w_tu d_tu,  e_tu = s w_tu (d_tu - delta_t),
//   grad_v_u = sum_t w_tu grad_t,  grad_k_u = sum_t e_tu q_t,  grad_q_t = sum_u e_tu k_u.
// A first pass over the keys gives the softmax and delta, a second, whose tokens the caches hold, the gradients.
#ifndef MSSTS_CUDA_TEMPORAL_ATTN_BACKWARD_CUH
#define MSSTS_CUDA_TEMPORAL_ATTN_BACKWARD_CUH

#include "temporal_attn.cuh"

namespace mssts::temporal {

// The gradients of keys and values that several passes over the queries add up: fp32 in shared memory, each thread its
// own.
template <typename T>
struct KeySums {
  static constexpr int kLane = Storage<T>::kLane;
  float4* sums;  // [2 * keys, kLane / 4, threads]

  __device__ __forceinline__ float4& at(int key, bool value, int part) const {
    const int row = (2 * key + (value ? 1 : 0)) * (kLane / 4) + part;
    return sums[row * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)];
  }
  // Adds what was kept to x, and keeps the sum.
  __device__ __forceinline__ void add(int key, bool value, bool first, float (&x)[kLane]) const {
#pragma unroll
    for (int part = 0; part < kLane / 4; ++part) {
      float4& kept = at(key, value, part);
      float* own = x + 4 * part;
      if (!first) {
        const float4 before = kept;
        own[0] += before.x;
        own[1] += before.y;
        own[2] += before.z;
        own[3] += before.w;
      }
      kept = make_float4(own[0], own[1], own[2], own[3]);
    }
  }
};

// sums[c] = sum over t of factors[t] * rows[t][c].
template <int kRows, typename T>
__device__ __forceinline__ void combine_rows(float (&sums)[Storage<T>::kLane], const float (&factors)[kRows],
                                             const Packed<T> (&rows)[kRows]) {
#pragma unroll
  for (int c = 0; c < Storage<T>::kLane; ++c) sums[c] = 0.0f;
#pragma unroll
  for (int t = 0; t < kRows; ++t) {
    float row[Storage<T>::kLane];
    rows[t].unpack(row);
#pragma unroll
    for (int c = 0; c < Storage<T>::kLane; ++c) sums[c] = fmaf(factors[t], row[c], sums[c]);
  }
}

// As least_forward_blocks.
template <typename T, int kFrames, bool kVectors, bool kMany>
constexpr int least_backward_blocks() {
  if (!kVectors) return 0;
  if (kFrames == 1) return std::is_same<T, __half>::value && kArchitecture >= 1000 ? 12 : 0;
  if (kFrames == 5 && std::is_same<T, float>::value) return 6;
  return kMany && std::is_same<T, __nv_bfloat16>::value && kArchitecture == 900 ? 6 : 0;
}

// kMany: more than kFrames queries; the launch then gives shared memory for KeySums.
template <typename T, int kFrames, int kKeys, bool kVectors, bool kMany>
__global__ void __launch_bounds__(64, (least_backward_blocks<T, kFrames, kVectors, kMany>()))
    temporal_attn_backward_kernel(const TemporalAttn<T> call) {
  constexpr int kLane = Storage<T>::kLane;
  MSSTS_DYNAMIC_SHARED(float4, shared);
  const KeySums<T> key_sums{shared};
  const Place<T> place(call);
  const float scale = rsqrtf(static_cast<float>(call.channels));
  for (int first_query = 0; first_query < call.query_frames; first_query += kFrames) {
    const bool last = first_query + kFrames >= call.query_frames;
    Packed<T> query[kFrames], grad_out[kFrames];
    load_frames<kVectors>(query, call.query, place, first_query, call.query_frames);
    load_frames<kVectors>(grad_out, call.grad_out, place, first_query, call.query_frames);

    Softmax softmax[kFrames];
    float delta[kFrames] = {};
    for (int first_key = 0; first_key < call.key_frames; first_key += kKeys) {
      Packed<T> key[kKeys], value[kKeys];
      load_frames<kVectors>(key, call.key, place, first_key, call.key_frames);
      load_frames<kVectors>(value, call.value, place, first_key, call.key_frames);
      float weights[kFrames][kKeys], slopes[kFrames][kKeys];
      multiply(weights, query, key, call.lanes);
      multiply(slopes, grad_out, value, call.lanes);
      scale_scores(weights, scale * kLog2E, first_key, call.key_frames);
#pragma unroll
      for (int t = 0; t < kFrames; ++t) {
        delta[t] *= softmax[t].add(weights[t]);
#pragma unroll
        for (int u = 0; u < kKeys; ++u) delta[t] = fmaf(weights[t][u], slopes[t][u], delta[t]);
      }
    }
    float share[kFrames], grad_query[kFrames][kLane] = {};
#pragma unroll
    for (int t = 0; t < kFrames; ++t) {
      // Queries behind the last one are zeros, and so are their gradients: their weights are of no consequence.
      share[t] = 1.0f / softmax[t].sum;
      delta[t] *= share[t];
    }

#pragma unroll 1
    for (int u = 0; u < call.key_frames; ++u) {
      Packed<T> key[1], value[1];
      load_frames<kVectors>(key, call.key, place, u, call.key_frames);
      load_frames<kVectors>(value, call.value, place, u, call.key_frames);
      float scores[kFrames][1], slopes[kFrames][1], weights[kFrames], errors[kFrames];
      multiply(scores, query, key, call.lanes);
      multiply(slopes, grad_out, value, call.lanes);
      float key_channels[kLane];
      key[0].unpack(key_channels);
#pragma unroll
      for (int t = 0; t < kFrames; ++t) {
        weights[t] = exp2f(scores[t][0] * (scale * kLog2E) - softmax[t].origin()) * share[t];
        errors[t] = weights[t] * (slopes[t][0] - delta[t]) * scale;
#pragma unroll
        for (int c = 0; c < kLane; ++c) grad_query[t][c] = fmaf(errors[t], key_channels[c], grad_query[t][c]);
      }
      float sums[kLane];
      if (call.grad_key.data != nullptr) {
        combine_rows(sums, errors, query);
        if constexpr (kMany) key_sums.add(u, false, first_query == 0, sums);
        if (last) store<T, kVectors>(place.at(call.grad_key, u), sums, place.channels);
      }
      if (call.grad_value.data != nullptr) {
        combine_rows(sums, weights, grad_out);
        if constexpr (kMany) key_sums.add(u, true, first_query == 0, sums);
        if (last) store<T, kVectors>(place.at(call.grad_value, u), sums, place.channels);
      }
    }
    if (call.grad_query.data == nullptr) continue;
#pragma unroll
    for (int t = 0; t < kFrames; ++t) {
      if (first_query + t >= call.query_frames) continue;
      store<T, kVectors>(place.at(call.grad_query, first_query + t), grad_query[t], place.channels);
    }
  }
}

}  // namespace mssts::temporal

#endif  // MSSTS_CUDA_TEMPORAL_ATTN_BACKWARD_CUH

// SplitTemporalAttn, the fast path: heads of at most 32 lanes of 16 bytes.
//
// A group of `lanes` neighbouring lanes owns one (location, head): a lane holds 16 bytes of each token, so that a warp
// reads whole tokens of neighbouring locations, each of them once. Queries stay in registers, keys pass by in chunks,
// the softmax follows online. Nothing is shared between groups: no atomics, and the same bits on every run.
#ifndef MSSTS_CUDA_TEMPORAL_ATTN_CUH
#define MSSTS_CUDA_TEMPORAL_ATTN_CUH

#include <type_traits>

#include "temporal_attn_storage.cuh"

namespace mssts::temporal {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr float kLog2E = 1.4426950408889634f;

// One input or output of [frames, locations, C] of the clip at hand; strides in elements.
template <typename T>
struct Tokens {
  T* data;
  int64_t clip, frame, location;
};

template <typename T>
struct TemporalAttn {
  Tokens<const T> query, key, value, grad_out;
  Tokens<T> out, grad_query, grad_key, grad_value;
  int64_t locations;
  int query_frames, key_frames, heads, channels;
  int lanes;               // of a group: a power of two, at most 32, lanes * kLane >= channels
  int heads_of_block;      // one of gridDim.y parts of the heads
  int locations_of_block;  // (location, head) pairs fill the block but for its last lanes
};

// What a thread works on. The lanes that are left over have no channels: they read and write nothing, but take part in
// shuffles.
template <typename T>
struct Place {
  int64_t location, clip;
  int channel;   // of the token
  int channels;  // left from there in the head; <= 0: none

  __device__ __forceinline__ explicit Place(const TemporalAttn<T>& call) {
    const int pair = static_cast<int>(threadIdx.x) / call.lanes;
    const int lane = static_cast<int>(threadIdx.x) % call.lanes;
    const int local = pair / call.heads_of_block;
    const int head = static_cast<int>(blockIdx.y) * call.heads_of_block + pair % call.heads_of_block;
    clip = blockIdx.z;
    location = static_cast<int64_t>(blockIdx.x) * call.locations_of_block + local;
    const bool works = local < call.locations_of_block && location < call.locations && head < call.heads;
    channel = head * call.channels + lane * Storage<T>::kLane;
    channels = works ? call.channels - lane * Storage<T>::kLane : 0;
  }

  template <typename Element>
  __device__ __forceinline__ Element* at(const Tokens<Element>& tokens, int frame) const {
    return tokens.data + (clip * tokens.clip + frame * tokens.frame + location * tokens.location + channel);
  }
};

// Frames [first, first + kCount) of a tensor, zeros from `frames` on.
template <bool kVectors, int kCount, typename T>
__device__ __forceinline__ void load_frames(Packed<T> (&packed)[kCount], const Tokens<const T>& tokens,
                                            const Place<T>& place, int first, int frames) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int channels = first + i < frames ? place.channels : 0;
    packed[i] = Packed<T>::template load<kVectors>(place.at(tokens, first + i), channels);
  }
}

// sums[t][u] = row t · column u over the channels of the head, known to all lanes of the group.
template <int kRows, int kColumns, typename T>
__device__ __forceinline__ void multiply(float (&sums)[kRows][kColumns], const Packed<T> (&rows)[kRows],
                                         const Packed<T> (&columns)[kColumns], int lanes) {
  constexpr int kLane = Storage<T>::kLane;
#pragma unroll
  for (int u = 0; u < kColumns; ++u) {
    float column[kLane];
    columns[u].unpack(column);
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      float row[kLane];
      rows[t].unpack(row);
      float sum = 0.0f;
#pragma unroll
      for (int c = 0; c < kLane; ++c) sum = fmaf(row[c], column[c], sum);
      sums[t][u] = sum;
    }
  }
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
#pragma unroll
    for (int u = 0; u < kColumns; ++u) {
#pragma unroll
      for (int t = 0; t < kRows; ++t) sums[t][u] += __shfl_xor_sync(kAllLanes, sums[t][u], distance);
    }
  }
}

// The softmax of one query over the keys so far, in powers of two. fmaxf drops a NaN; its power brings it back.
struct Softmax {
  float top = -INFINITY;
  float sum = 0.0f;

  // -inf - -inf would be NaN where no key has counted yet.
  __device__ __forceinline__ float origin() const { return top == -INFINITY ? 0.0f : top; }
  // Takes further scores (-inf: no key), turns them into weights relative to the new top, and returns what the former
  // weights have to be multiplied with.
  template <int kKeys>
  __device__ __forceinline__ float add(float (&scores)[kKeys]) {
    const float before = top;
#pragma unroll
    for (int u = 0; u < kKeys; ++u) top = fmaxf(top, scores[u]);
    const float factor = exp2f(before - origin());
    sum *= factor;
#pragma unroll
    for (int u = 0; u < kKeys; ++u) {
      scores[u] = exp2f(scores[u] - origin());
      sum += scores[u];
    }
    return factor;
  }
};

// Scores of chunk `first` in powers of two, from plain products; -inf behind the last key.
template <int kRows, int kKeys>
__device__ __forceinline__ void scale_scores(float (&scores)[kRows][kKeys], float scale, int first, int keys) {
#pragma unroll
  for (int t = 0; t < kRows; ++t) {
#pragma unroll
    for (int u = 0; u < kKeys; ++u) scores[t][u] = first + u < keys ? scores[t][u] * scale : -INFINITY;
  }
}

// The least blocks of a multiprocessor that a kernel's registers have to leave room for; 0: as ptxas finds best. It is
// given where ptxas (CUDA 13.0) would spill a few bytes for the sake of more blocks, and is the most without a spill.
template <typename T, int kFrames, bool kVectors>
constexpr int least_forward_blocks() {
  if (!kVectors || sizeof(T) == 4) return 0;
  if (kFrames == 5) return 6;
  return kFrames == 1 && std::is_same<T, __half>::value && kArchitecture < 900 ? 14 : 0;
}

// kFrames queries at a time; more of them take further passes over the keys, which the caches then hold.
template <typename T, int kFrames, int kKeys, bool kVectors>
__global__ void __launch_bounds__(64, (least_forward_blocks<T, kFrames, kVectors>()))
    temporal_attn_forward_kernel(const TemporalAttn<T> call) {
  constexpr int kLane = Storage<T>::kLane;
  const Place<T> place(call);
  const float scale = kLog2E * rsqrtf(static_cast<float>(call.channels));
  for (int first_query = 0; first_query < call.query_frames; first_query += kFrames) {
    Packed<T> query[kFrames];
    load_frames<kVectors>(query, call.query, place, first_query, call.query_frames);
    float out[kFrames][kLane] = {};
    Softmax softmax[kFrames];
    for (int first_key = 0; first_key < call.key_frames; first_key += kKeys) {
      Packed<T> key[kKeys], value[kKeys];
      load_frames<kVectors>(key, call.key, place, first_key, call.key_frames);
      load_frames<kVectors>(value, call.value, place, first_key, call.key_frames);
      float weights[kFrames][kKeys];
      multiply(weights, query, key, call.lanes);
      scale_scores(weights, scale, first_key, call.key_frames);
#pragma unroll
      for (int t = 0; t < kFrames; ++t) {
        const float factor = softmax[t].add(weights[t]);
#pragma unroll
        for (int c = 0; c < kLane; ++c) out[t][c] *= factor;
      }
#pragma unroll
      for (int u = 0; u < kKeys; ++u) {
        float channels[kLane];
        value[u].unpack(channels);
#pragma unroll
        for (int t = 0; t < kFrames; ++t) {
#pragma unroll
          for (int c = 0; c < kLane; ++c) out[t][c] = fmaf(weights[t][u], channels[c], out[t][c]);
        }
      }
    }
#pragma unroll
    for (int t = 0; t < kFrames; ++t) {
      if (first_query + t >= call.query_frames) continue;
      const float share = 1.0f / softmax[t].sum;
#pragma unroll
      for (int c = 0; c < kLane; ++c) out[t][c] *= share;
      store<T, kVectors>(place.at(call.out, first_query + t), out[t], place.channels);
    }
  }
}

}  // namespace mssts::temporal

#endif  // MSSTS_CUDA_TEMPORAL_ATTN_CUH

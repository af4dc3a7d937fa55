// SplitTemporalAttn of any size, for what the fast path leaves: heads wider than 32 lanes, or gradients of so many keys
// that shared memory cannot hold their sums. A warp computes one output token's piece of 32 * kWide channels of a head,
// and reads what it needs as often as it needs it.
#ifndef MSSTS_CUDA_TEMPORAL_ATTN_WIDE_CUH
#define MSSTS_CUDA_TEMPORAL_ATTN_WIDE_CUH

#include "temporal_attn.cuh"

namespace mssts::temporal {

constexpr int kWide = 8;  // channels of a lane, 32 apart
constexpr int kWarpsOfBlock = 4;

// The warp's task: a frame of queries or keys, a location, a head, a piece of its channels.
template <typename T>
struct WideTask {
  const TemporalAttn<T>& call;
  int64_t clip, location;
  int frame, head, first_channel;
  bool works;

  __device__ __forceinline__ WideTask(const TemporalAttn<T>& of, int frames) : call(of), clip(blockIdx.z) {
    const int pieces = (of.channels + 32 * kWide - 1) / (32 * kWide);
    int64_t rest = static_cast<int64_t>(blockIdx.x) * kWarpsOfBlock + threadIdx.x / 32;
    first_channel = static_cast<int>(rest % pieces) * 32 * kWide;
    rest /= pieces;
    head = static_cast<int>(rest % of.heads);
    rest /= of.heads;
    location = rest % of.locations;
    rest /= of.locations;
    works = rest < frames;
    frame = static_cast<int>(rest);
  }
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x % 32); }
  // The channel of the head that this lane's i-th number is of.
  __device__ __forceinline__ int channel(int i) const { return first_channel + 32 * i + lane(); }

  // Channel 0 of the head.
  template <typename Element>
  __device__ __forceinline__ Element* at(const Tokens<Element>& tokens, int of_frame) const {
    return tokens.data + (clip * tokens.clip + of_frame * tokens.frame + location * tokens.location +
                          static_cast<int64_t>(head) * call.channels);
  }
  __device__ __forceinline__ float product(const T* one, const T* other) const {
    float sum = 0.0f;
    for (int c = lane(); c < call.channels; c += 32) sum = fmaf(load_one(one + c), load_one(other + c), sum);
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(kAllLanes, sum, distance);
    return sum;
  }
  __device__ __forceinline__ float scale() const { return rsqrtf(static_cast<float>(call.channels)); }
  // In powers of two.
  __device__ __forceinline__ float score(int query, int key) const {
    return product(at(call.query, query), at(call.key, key)) * (scale() * kLog2E);
  }
  __device__ __forceinline__ float slope(int query, int key) const {
    return product(at(call.grad_out, query), at(call.value, key));
  }
  // sums += factor * the token's channels.
  __device__ __forceinline__ void accumulate(float (&sums)[kWide], float factor, const T* token) const {
#pragma unroll
    for (int i = 0; i < kWide; ++i) {
      if (channel(i) < call.channels) sums[i] = fmaf(factor, load_one(token + channel(i)), sums[i]);
    }
  }
  __device__ __forceinline__ void write(T* token, const float (&sums)[kWide]) const {
#pragma unroll
    for (int i = 0; i < kWide; ++i) {
      if (channel(i) < call.channels) store_one(token + channel(i), sums[i]);
    }
  }
};

template <typename T>
__global__ void __launch_bounds__(32 * kWarpsOfBlock) temporal_attn_forward_wide_kernel(const TemporalAttn<T> call) {
  const WideTask<T> task(call, call.query_frames);
  if (!task.works) return;  // the whole warp
  Softmax softmax;
  float out[kWide] = {};
  for (int u = 0; u < call.key_frames; ++u) {
    float weight[1] = {task.score(task.frame, u)};
    const float factor = softmax.add(weight);
#pragma unroll
    for (int i = 0; i < kWide; ++i) out[i] *= factor;
    task.accumulate(out, weight[0], task.at(call.value, u));
  }
#pragma unroll
  for (int i = 0; i < kWide; ++i) out[i] /= softmax.sum;
  task.write(task.at(call.out, task.frame), out);
}

// What the second pass over the keys of a query needs of the first.
template <typename T>
struct WideRow {
  Softmax softmax;
  float delta = 0.0f;

  __device__ __forceinline__ WideRow(const WideTask<T>& task, int query) {
    for (int u = 0; u < task.call.key_frames; ++u) {
      float weight[1] = {task.score(query, u)};
      delta *= softmax.add(weight);
      delta = fmaf(weight[0], task.slope(query, u), delta);
    }
    delta /= softmax.sum;
  }
  __device__ __forceinline__ float weight(const WideTask<T>& task, int query, int key) const {
    return exp2f(task.score(query, key) - softmax.origin()) / softmax.sum;
  }
};

template <typename T>
__global__ void __launch_bounds__(32 * kWarpsOfBlock, kArchitecture < 1000 ? 7 : 0)  // see least_forward_blocks
    temporal_attn_grad_query_wide_kernel(const TemporalAttn<T> call) {
  const WideTask<T> task(call, call.query_frames);
  if (!task.works) return;
  const WideRow<T> row(task, task.frame);
  float sums[kWide] = {};
  for (int u = 0; u < call.key_frames; ++u) {
    const float error = row.weight(task, task.frame, u) * (task.slope(task.frame, u) - row.delta) * task.scale();
    task.accumulate(sums, error, task.at(call.key, u));
  }
  task.write(task.at(call.grad_query, task.frame), sums);
}

// Of one key frame: the gradients of key and value.
template <typename T>
__global__ void __launch_bounds__(32 * kWarpsOfBlock) temporal_attn_grad_key_wide_kernel(const TemporalAttn<T> call) {
  const WideTask<T> task(call, call.key_frames);
  if (!task.works) return;
  float key_sums[kWide] = {}, value_sums[kWide] = {};
  for (int t = 0; t < call.query_frames; ++t) {
    const WideRow<T> row(task, t);
    const float weight = row.weight(task, t, task.frame);
    const float error = weight * (task.slope(t, task.frame) - row.delta) * task.scale();
    task.accumulate(key_sums, error, task.at(call.query, t));
    task.accumulate(value_sums, weight, task.at(call.grad_out, t));
  }
  if (call.grad_key.data != nullptr) task.write(task.at(call.grad_key, task.frame), key_sums);
  if (call.grad_value.data != nullptr) task.write(task.at(call.grad_value, task.frame), value_sums);
}

}  // namespace mssts::temporal

#endif  // MSSTS_CUDA_TEMPORAL_ATTN_WIDE_CUH

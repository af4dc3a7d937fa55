// Split temporal attention, one number at a time, in float64.
#include <algorithm>
#include <cmath>
#include <limits>

#include "parallel.h"
#include "scalar.h"
#include "scratch.h"
#include "storage.h"

namespace mssts {
namespace {

constexpr int64_t kSequencesATask = 256;

template <class Storage>
using RealOf = decltype(load_one(static_cast<const Storage*>(nullptr)));

// One head of one location: where its tokens are.
template <class Storage>
struct Sequence {
  const mssts_temporal_attn& c;
  int64_t b, s, m;

  const Storage* at(const void* data, const int64_t* strides, int64_t frame) const {
    return static_cast<const Storage*>(data) + b * strides[0] + frame * strides[1] + s * strides[2] + m * c.channels;
  }
  const Storage* query(int64_t t) const { return at(c.query, c.query_strides, t); }
  const Storage* key(int64_t u) const { return at(c.key, c.key_strides, u); }
  const Storage* value(int64_t u) const { return at(c.value, c.value_strides, u); }
  // In a dense tensor of that many frames.
  int64_t dense(int64_t frames, int64_t frame) const {
    return (((b * frames + frame) * c.locations + s) * c.heads + m) * c.channels;
  }
};

template <class Storage>
RealOf<Storage> dot(const Storage* a, const Storage* b, int64_t D) {
  RealOf<Storage> sum = 0;
  for (int64_t d = 0; d < D; ++d) sum += load_one(a + d) * load_one(b + d);
  return sum;
}

// The weights of query t, [U].
template <class Storage>
void attend(const Sequence<Storage>& sequence, int64_t t, RealOf<Storage>* weights) {
  using Real = RealOf<Storage>;
  const int64_t U = sequence.c.key_frames, D = sequence.c.channels;
  const Real scale = 1 / std::sqrt(static_cast<Real>(D));
  Real most = -std::numeric_limits<Real>::infinity(), sum = 0;
  for (int64_t u = 0; u < U; ++u) {
    weights[u] = dot(sequence.query(t), sequence.key(u), D) * scale;
    most = weights[u] > most ? weights[u] : most;
  }
  for (int64_t u = 0; u < U; ++u) sum += weights[u] = std::exp(weights[u] - most);
  for (int64_t u = 0; u < U; ++u) weights[u] /= sum;
}

template <class Storage>
void forward_sequence(const Sequence<Storage>& sequence, RealOf<Storage>* weights) {
  const mssts_temporal_attn& c = sequence.c;
  for (int64_t t = 0; t < c.query_frames; ++t) {
    attend(sequence, t, weights);
    Storage* out = static_cast<Storage*>(c.out) + sequence.dense(c.query_frames, t);
    for (int64_t d = 0; d < c.channels; ++d) {
      RealOf<Storage> sum = 0;
      for (int64_t u = 0; u < c.key_frames; ++u) sum += weights[u] * load_one(sequence.value(u) + d);
      store_one(out + d, sum);
    }
  }
}

// `memory` holds weights [T, U] and the gradients of the scores, [T, U].
template <class Storage>
void backward_sequence(const Sequence<Storage>& sequence, RealOf<Storage>* memory) {
  using Real = RealOf<Storage>;
  const mssts_temporal_attn& c = sequence.c;
  const int64_t T = c.query_frames, U = c.key_frames, D = c.channels;
  const Real scale = 1 / std::sqrt(static_cast<Real>(D));
  const Storage* grad_out = static_cast<const Storage*>(c.grad_out);
  Real* weights = memory;
  Real* grads = memory + T * U;
  for (int64_t t = 0; t < T; ++t) {
    attend(sequence, t, weights + t * U);
    Real mean = 0;
    for (int64_t u = 0; u < U; ++u) {
      grads[t * U + u] = dot(grad_out + sequence.dense(T, t), sequence.value(u), D);
      mean += weights[t * U + u] * grads[t * U + u];
    }
    for (int64_t u = 0; u < U; ++u) grads[t * U + u] = weights[t * U + u] * (grads[t * U + u] - mean) * scale;
  }
  for (int64_t t = 0; t < T && c.grad_query != nullptr; ++t) {
    for (int64_t d = 0; d < D; ++d) {
      Real sum = 0;
      for (int64_t u = 0; u < U; ++u) sum += grads[t * U + u] * load_one(sequence.key(u) + d);
      store_one(static_cast<Storage*>(c.grad_query) + sequence.dense(T, t) + d, sum);
    }
  }
  for (int64_t u = 0; u < U; ++u) {
    for (int64_t d = 0; d < D; ++d) {
      Real key = 0, value = 0;
      for (int64_t t = 0; t < T; ++t) {
        key += grads[t * U + u] * load_one(sequence.query(t) + d);
        value += weights[t * U + u] * load_one(grad_out + sequence.dense(T, t) + d);
      }
      const int64_t to = sequence.dense(U, u) + d;
      if (c.grad_key != nullptr) store_one(static_cast<Storage*>(c.grad_key) + to, key);
      if (c.grad_value != nullptr) store_one(static_cast<Storage*>(c.grad_value) + to, value);
    }
  }
}

template <class Storage>
void run(const mssts_temporal_attn& call, const mssts_executor* executor, bool backward) {
  using Real = RealOf<Storage>;
  const int64_t sequences = call.batch * call.locations * call.heads;
  const int64_t weights = int64_t{call.key_frames} * (backward ? 2 * int64_t{call.query_frames} : 1);
  Scratch scratch(thread_count(executor), static_cast<size_t>(weights) * sizeof(Real));
  parallel_for(executor, (sequences + kSequencesATask - 1) / kSequencesATask, [&](int64_t task) {
    const Scratch::Block block(scratch);
    Real* memory = static_cast<Real*>(block.data());
    const int64_t end = std::min(sequences, (task + 1) * kSequencesATask);
    for (int64_t i = task * kSequencesATask; i < end; ++i) {
      const int64_t bs = i / call.heads;
      const Sequence<Storage> sequence{call, bs / call.locations, bs % call.locations, i % call.heads};
      backward ? backward_sequence(sequence, memory) : forward_sequence(sequence, memory);
    }
  });
}

}  // namespace

mssts_status temporal_attn_scalar(const mssts_temporal_attn& call, bool backward, const mssts_executor* executor) {
  run<double>(call, executor, backward);
  return MSSTS_OK;
}

}  // namespace mssts

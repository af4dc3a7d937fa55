// Split temporal attention: kLanes locations at a time, one a lane, so that nothing is summed across lanes.

namespace mssts {
namespace {

// Locations a task has; a multiple of any kLanes.
constexpr int64_t kLocationsATask = 128;

// Which tokens of a tensor the lanes are: those of `count` neighbouring locations, the last one repeated after them.
struct Tokens {
  int64_t stride;  // elements from one location to the next
  int count;
};

// Channels of the lanes' tokens, transposed: to[d] lane i is from[i * stride + d].
template <class Storage>
MSSTS_INLINE void load_tokens(const Storage* from, const Tokens& tokens, int64_t channels, Vec* to) {
  for (int64_t d = 0; d < channels; d += kLanes) {
    const int64_t left = channels - d;
    Vec rows[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const Storage* at = from + (i < tokens.count ? i : tokens.count - 1) * tokens.stride + d;
      rows[i] = left >= kLanes ? load(at) : load_part(at, static_cast<int>(left));
    }
    transpose(rows);
    for (int i = 0; i < kLanes && i < left; ++i) to[d + i] = rows[i];
  }
}

template <class Storage>
MSSTS_INLINE void store_tokens(Storage* to, const Tokens& tokens, int64_t channels, const Vec* from) {
  for (int64_t d = 0; d < channels; d += kLanes) {
    const int64_t left = channels - d;
    Vec rows[kLanes];
    for (int i = 0; i < kLanes; ++i) rows[i] = i < left ? from[d + i] : Vec{};
    transpose(rows);
    for (int i = 0; i < tokens.count; ++i) {
      Storage* at = to + i * tokens.stride + d;
      if (left >= kLanes) {
        store(at, rows[i]);
      } else {
        store_part(at, rows[i], static_cast<int>(left));
      }
    }
  }
}

// to[i] = <a, b[i]> for kCount rows b of `channels` vectors.
template <int kCount>
MSSTS_INLINE void dots(const Vec* a, const Vec* b, int64_t channels, Vec* to) {
  Vec sums[kCount] = {};
  for (int64_t d = 0; d < channels; ++d) {
    for (int i = 0; i < kCount; ++i) sums[i] += a[d] * b[i * channels + d];
  }
  for (int i = 0; i < kCount; ++i) to[i] = sums[i];
}

MSSTS_INLINE void all_dots(const Vec* a, const Vec* b, int64_t rows, int64_t channels, Vec* to) {
  int64_t i = 0;
  for (; rows - i >= 5; i += 5) dots<5>(a, b + i * channels, channels, to + i);
  for (; i < rows; ++i) dots<1>(a, b + i * channels, channels, to + i);
}

// to[d] = sum of weights[i * step] * rows[i][d].
template <int kCount>
MSSTS_INLINE void mix_some(const Vec* weights, int64_t step, const Vec* rows, int64_t count, int64_t channels,
                           Vec* to) {
  Vec sums[kCount] = {};
  for (int64_t i = 0; i < count; ++i) {
    for (int d = 0; d < kCount; ++d) sums[d] += weights[i * step] * rows[i * channels + d];
  }
  for (int d = 0; d < kCount; ++d) to[d] = sums[d];
}

MSSTS_INLINE void mix(const Vec* weights, int64_t step, const Vec* rows, int64_t count, int64_t channels, Vec* to) {
  int64_t d = 0;
  for (; channels - d >= 8; d += 8) mix_some<8>(weights, step, rows + d, count, channels, to + d);
  for (; d < channels; ++d) mix_some<1>(weights, step, rows + d, count, channels, to + d);
}

// Scores to weights, in place.
MSSTS_INLINE void softmax(Vec* scores, int64_t count, float scale) {
  Vec most = splat(-__builtin_inff()), sum = {};
  for (int64_t u = 0; u < count; ++u) {
    scores[u] *= scale;
    most = larger(scores[u], most);
  }
  for (int64_t u = 0; u < count; ++u) sum += scores[u] = exp_of_negative(scores[u] - most);
  const Vec normal = 1.0f / sum;
  for (int64_t u = 0; u < count; ++u) scores[u] *= normal;
}

template <class Storage>
struct Temporal {
  const mssts_temporal_attn& c;
  int64_t T, U, D;
  float scale;

  // Of the first of the lanes' locations.
  struct Place {
    int64_t b, s, m;
    int count;
  };

  void load_all(const void* data, const int64_t* strides, int64_t frames, const Place& at, Vec* to) const {
    const Storage* from = static_cast<const Storage*>(data) + at.b * strides[0] + at.s * strides[2] + at.m * D;
    for (int64_t f = 0; f < frames; ++f) {
      load_tokens(from + f * strides[1], Tokens{strides[2], at.count}, D, to + f * D);
    }
  }

  int64_t dense(int64_t frames, int64_t frame, const Place& at) const {
    return (((at.b * frames + frame) * c.locations + at.s) * c.heads + at.m) * D;
  }

  void store_dense(void* data, int64_t frames, int64_t frame, const Place& at, const Vec* from) const {
    store_tokens(static_cast<Storage*>(data) + dense(frames, frame, at), Tokens{c.heads * D, at.count}, D, from);
  }

  void forward(const Place& at, void* memory) const {
    Vec* query = static_cast<Vec*>(memory);
    Vec* key = query + T * D;
    Vec* value = key + U * D;
    Vec* weights = value + U * D;
    Vec* out = weights + U;
    load_all(c.query, c.query_strides, T, at, query);
    load_all(c.key, c.key_strides, U, at, key);
    load_all(c.value, c.value_strides, U, at, value);
    for (int64_t t = 0; t < T; ++t) {
      all_dots(query + t * D, key, U, D, weights);
      softmax(weights, U, scale);
      mix(weights, 1, value, U, D, out);
      store_dense(c.out, T, t, at, out);
    }
  }

  void backward(const Place& at, void* memory) const {
    Vec* query = static_cast<Vec*>(memory);
    Vec* key = query + T * D;
    Vec* value = key + U * D;
    Vec* grad_out = value + U * D;
    Vec* weights = grad_out + T * D;  // [T, U]
    Vec* grads = weights + T * U;     // of the scores, [T, U]
    Vec* result = grads + T * U;
    const int64_t strides[3] = {T * c.locations * c.heads * D, c.locations * c.heads * D, c.heads * D};
    load_all(c.query, c.query_strides, T, at, query);
    load_all(c.key, c.key_strides, U, at, key);
    load_all(c.value, c.value_strides, U, at, value);
    load_all(c.grad_out, strides, T, at, grad_out);
    for (int64_t t = 0; t < T; ++t) {
      Vec* weight = weights + t * U;
      Vec* grad = grads + t * U;
      all_dots(query + t * D, key, U, D, weight);
      softmax(weight, U, scale);
      all_dots(grad_out + t * D, value, U, D, grad);
      Vec mean = {};
      for (int64_t u = 0; u < U; ++u) mean += weight[u] * grad[u];
      for (int64_t u = 0; u < U; ++u) grad[u] = weight[u] * (grad[u] - mean) * scale;
      if (c.grad_query == nullptr) continue;
      mix(grad, 1, key, U, D, result);
      store_dense(c.grad_query, T, t, at, result);
    }
    for (int64_t u = 0; u < U; ++u) {
      if (c.grad_key != nullptr) {
        mix(grads + u, U, query, T, D, result);
        store_dense(c.grad_key, U, u, at, result);
      }
      if (c.grad_value != nullptr) {
        mix(weights + u, U, grad_out, T, D, result);
        store_dense(c.grad_value, U, u, at, result);
      }
    }
  }

  void run(bool is_backward, const mssts_executor* executor) const {
    const int64_t vectors = is_backward ? (2 * T + 2 * U + 1) * D + 2 * T * U : (T + 2 * U + 1) * D + U;
    const int64_t blocks = (c.locations + kLocationsATask - 1) / kLocationsATask;
    if (c.batch * blocks == 0) return;
    Scratch scratch(thread_count(executor), static_cast<size_t>(vectors) * sizeof(Vec));
    parallel_for(executor, c.batch * blocks, [&](int64_t task) {
      const Scratch::Block block(scratch);
      const int64_t begin = task % blocks * kLocationsATask;
      const int64_t end = begin + kLocationsATask < c.locations ? begin + kLocationsATask : c.locations;
      for (int64_t s = begin; s < end; s += kLanes) {
        const int count = static_cast<int>(end - s < kLanes ? end - s : kLanes);
        for (int64_t m = 0; m < c.heads; ++m) {
          const Place at{task / blocks, s, m, count};
          is_backward ? backward(at, block.data()) : forward(at, block.data());
        }
      }
    });
  }
};

}  // namespace
}  // namespace mssts

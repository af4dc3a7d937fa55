// Split temporal attention where a head has 16 or 32 channels: kBlock locations at a time. Scores are computed from
// vectors of quads, four channels of each of kHeads heads, so that little is summed across lanes; values are read, and
// outputs written, as they lie in memory.

namespace mssts {
namespace {

constexpr int kBlock = 4;  // locations; as many as the channels of a quad
constexpr int kHeads = kLanes / 4;
// Locations between the one at work and the one that is fetched into the cache: there are more streams in memory than
// the hardware follows by itself.
constexpr int64_t kAhead = kBlock;

MSSTS_INLINE const float* as_floats(const float* from, float*, int64_t) { return from; }
template <class Storage>
MSSTS_INLINE const float* as_floats(const Storage* from, float* buffer, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) store(buffer + i, load(from + i));
  return buffer;
}

// Channels of kHeads heads of a token; to[j] has channels 4j to 4j + 3 of each.
template <int kQuads, class Storage>
MSSTS_INLINE void load_heads(const Storage* from, Vec* to) {
  float buffer[kQuads * kLanes];
  const float* floats = as_floats(from, buffer, kQuads * kLanes);
  MSSTS_UNROLL
  for (int j = 0; j < kQuads; ++j) to[j] = load_quads(floats + 4 * j, 4 * kQuads);
}

// Frames of a location, of kHeads heads; `stride` in elements.
template <class Storage>
struct Frames {
  Storage* first;
  int64_t stride, count;

  Storage* at(int64_t f) const { return first + f * stride; }
};

// to[(t * U + u) * kBlock] = <a[t], b[u]> of each head, still in four parts. `rows` has space for all of a.
template <int kQuads, class Storage>
MSSTS_INLINE void dots_of_frames(const Frames<const Storage>& a, const Frames<const Storage>& b, Vec* rows, Vec* to) {
  for (int64_t t = 0; t < a.count; ++t) load_heads<kQuads>(a.at(t), rows + t * kQuads);
  for (int64_t u = 0; u < b.count; ++u) {
    Vec other[kQuads];
    load_heads<kQuads>(b.at(u), other);
    for (int64_t t = 0; t < a.count; ++t) {
      const Vec* row = rows + t * kQuads;
      Vec sum = row[0] * other[0];
      MSSTS_UNROLL
      for (int j = 1; j < kQuads; ++j) sum += row[j] * other[j];
      to[(t * b.count + u) * kBlock] = sum;
    }
  }
}

// to[i] = sum over j of weights[i * step_to + j * step_from] * from[j], for kCount of `to` and the channels of
// a head.
template <int kCount, int64_t kChannels, class Storage>
MSSTS_INLINE void mix_frames(const float* weights, int64_t step_to, int64_t step_from,
                             const Frames<const Storage>& from, const Frames<Storage>& to) {
  constexpr int kVectors = kChannels / kLanes < 2 ? 1 : 2;
  for (int64_t d = 0; d < kChannels; d += kVectors * kLanes) {
    Vec sums[kCount][kVectors] = {};
    for (int64_t j = 0; j < from.count; ++j) {
      Vec x[kVectors];
      MSSTS_UNROLL
      for (int k = 0; k < kVectors; ++k) x[k] = load(from.at(j) + d + k * kLanes);
      MSSTS_UNROLL
      for (int i = 0; i < kCount; ++i) {
        const Vec weight = splat(weights[i * step_to + j * step_from]);
        MSSTS_UNROLL
        for (int k = 0; k < kVectors; ++k) sums[i][k] += weight * x[k];
      }
    }
    MSSTS_UNROLL
    for (int i = 0; i < kCount; ++i) {
      MSSTS_UNROLL
      for (int k = 0; k < kVectors; ++k) store(to.at(i) + d + k * kLanes, sums[i][k]);
    }
  }
}

template <int64_t kChannels, class Storage>
MSSTS_INLINE void mix_all_frames(const float* weights, int64_t step_to, int64_t step_from,
                                 const Frames<const Storage>& from, const Frames<Storage>& to) {
  int64_t i = 0;
  for (; to.count - i >= 5; i += 5) {
    mix_frames<5, kChannels>(weights + i * step_to, step_to, step_from, from, Frames<Storage>{to.at(i), to.stride, 5});
  }
  for (; i < to.count; ++i) {
    mix_frames<1, kChannels>(weights + i * step_to, step_to, step_from, from, Frames<Storage>{to.at(i), to.stride, 1});
  }
}

template <class Storage, int kQuads>
struct TemporalByQuads {
  const mssts_temporal_attn& c;
  int64_t T, U;
  float scale;

  static constexpr int64_t kChannels = 4 * kQuads;

  using Read = Frames<const Storage>;
  using Written = Frames<Storage>;

  // The first head of a group of them at location s of clip b.
  Read strided(const void* data, const int64_t* strides, int64_t frames, int64_t b, int64_t s, int64_t m) const {
    const Storage* from = static_cast<const Storage*>(data) + b * strides[0] + s * strides[2] + m * kChannels;
    return Read{from, strides[1], frames};
  }
  int64_t dense_offset(int64_t frames, int64_t b, int64_t s, int64_t m) const {
    return ((b * frames * c.locations + s) * c.heads + m) * kChannels;
  }
  int64_t dense_stride() const { return c.locations * c.heads * kChannels; }
  Read dense(const void* data, int64_t frames, int64_t b, int64_t s, int64_t m) const {
    return Read{static_cast<const Storage*>(data) + dense_offset(frames, b, s, m), dense_stride(), frames};
  }
  Written dense(void* data, int64_t frames, int64_t b, int64_t s, int64_t m) const {
    return Written{static_cast<Storage*>(data) + dense_offset(frames, b, s, m), dense_stride(), frames};
  }

  Read query(int64_t b, int64_t s, int64_t m) const { return strided(c.query, c.query_strides, T, b, s, m); }
  Read key(int64_t b, int64_t s, int64_t m) const { return strided(c.key, c.key_strides, U, b, s, m); }
  Read value(int64_t b, int64_t s, int64_t m) const { return strided(c.value, c.value_strides, U, b, s, m); }
  Read grad_out(int64_t b, int64_t s, int64_t m) const { return dense(c.grad_out, T, b, s, m); }

  void fetch(const Read& frames) const {
    const int64_t bytes = kHeads * kChannels * static_cast<int64_t>(sizeof(Storage));
    for (int64_t f = 0; f < frames.count; ++f) {
      const char* from = reinterpret_cast<const char*>(frames.at(f));
      for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 3);
    }
  }

  // The parts' sums: to[t * U + u], whose lane 4h + s is that of head h and location s.
  void sum_parts(const Vec* parts, Vec* to) const {
    for (int64_t i = 0; i < T * U; ++i) to[i] = sums_of_quads(parts + i * kBlock);
  }

  // Scratch: rows of quads [T, kQuads], parts [T, U, kBlock], weights [T, U], and gradients of the scores [T, U].
  int64_t vectors(bool is_backward) const { return T * kQuads + T * U * (kBlock + (is_backward ? 2 : 1)); }

  // Locations s to s + count of clip b, heads m to m + kHeads; those before `end` may be fetched.
  void forward(int64_t b, int64_t s, int count, int64_t m, int64_t end, Vec* memory) const {
    Vec* parts = memory + T * kQuads;
    Vec* weights = parts + T * U * kBlock;
    for (int i = 0; i < kBlock; ++i) {
      const int64_t at = s + (i < count ? i : count - 1);
      dots_of_frames<kQuads>(query(b, at, m), key(b, at, m), memory, parts + i);
      if (at + kAhead < end) {
        fetch(query(b, at + kAhead, m));
        fetch(key(b, at + kAhead, m));
        fetch(value(b, at + kAhead, m));
      }
    }
    sum_parts(parts, weights);
    for (int64_t t = 0; t < T; ++t) softmax(weights + t * U, U, scale);
    for (int i = 0; i < count; ++i) {
      for (int h = 0; h < kHeads; ++h) {
        const float* weight = reinterpret_cast<const float*>(weights) + 4 * h + i;
        mix_all_frames<kChannels>(weight, U * kLanes, kLanes, value(b, s + i, m + h), dense(c.out, T, b, s + i, m + h));
      }
    }
  }

  void backward(int64_t b, int64_t s, int count, int64_t m, int64_t end, Vec* memory) const {
    Vec* parts = memory + T * kQuads;
    Vec* weights = parts + T * U * kBlock;
    Vec* grads = weights + T * U;
    for (int i = 0; i < kBlock; ++i) {
      const int64_t at = s + (i < count ? i : count - 1);
      dots_of_frames<kQuads>(query(b, at, m), key(b, at, m), memory, parts + i);
      if (at + kAhead < end) {
        fetch(query(b, at + kAhead, m));
        fetch(key(b, at + kAhead, m));
      }
    }
    sum_parts(parts, weights);
    for (int i = 0; i < kBlock; ++i) {
      const int64_t at = s + (i < count ? i : count - 1);
      dots_of_frames<kQuads>(grad_out(b, at, m), value(b, at, m), memory, parts + i);
      if (at + kAhead < end) {
        fetch(grad_out(b, at + kAhead, m));
        fetch(value(b, at + kAhead, m));
      }
    }
    sum_parts(parts, grads);
    for (int64_t t = 0; t < T; ++t) {
      Vec* weight = weights + t * U;
      Vec* grad = grads + t * U;
      softmax(weight, U, scale);
      Vec mean = {};
      for (int64_t u = 0; u < U; ++u) mean += weight[u] * grad[u];
      for (int64_t u = 0; u < U; ++u) grad[u] = weight[u] * (grad[u] - mean) * scale;
    }
    for (int i = 0; i < count; ++i) {
      for (int h = 0; h < kHeads; ++h) {
        const int64_t at = s + i, head = m + h;
        const float* weight = reinterpret_cast<const float*>(weights) + 4 * h + i;
        const float* grad = reinterpret_cast<const float*>(grads) + 4 * h + i;
        if (c.grad_query != nullptr) {
          mix_all_frames<kChannels>(grad, U * kLanes, kLanes, key(b, at, head), dense(c.grad_query, T, b, at, head));
        }
        if (c.grad_key != nullptr) {
          mix_all_frames<kChannels>(grad, kLanes, U * kLanes, query(b, at, head), dense(c.grad_key, U, b, at, head));
        }
        if (c.grad_value != nullptr) {
          mix_all_frames<kChannels>(weight, kLanes, U * kLanes, grad_out(b, at, head),
                                    dense(c.grad_value, U, b, at, head));
        }
      }
    }
  }

  void run(bool is_backward, const mssts_executor* executor) const {
    const int64_t blocks = (c.locations + kLocationsATask - 1) / kLocationsATask;
    if (c.batch * blocks == 0) return;
    Scratch scratch(thread_count(executor), static_cast<size_t>(vectors(is_backward)) * sizeof(Vec));
    parallel_for(executor, c.batch * blocks, [&](int64_t task) {
      const Scratch::Block block(scratch);
      Vec* memory = static_cast<Vec*>(block.data());
      const int64_t b = task / blocks, begin = task % blocks * kLocationsATask;
      const int64_t end = begin + kLocationsATask < c.locations ? begin + kLocationsATask : c.locations;
      for (int64_t s = begin; s < end; s += kBlock) {
        const int count = static_cast<int>(end - s < kBlock ? end - s : kBlock);
        for (int64_t m = 0; m < c.heads; m += kHeads) {
          is_backward ? backward(b, s, count, m, end, memory) : forward(b, s, count, m, end, memory);
        }
      }
    });
  }
};

template <class Storage>
void temporal_attn_as(const mssts_temporal_attn& call, bool backward, const mssts_executor* executor) {
  const int64_t T = call.query_frames, U = call.key_frames;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(call.channels));
  const bool whole = call.heads % kHeads == 0;
  if (whole && call.channels == 16) return TemporalByQuads<Storage, 4>{call, T, U, scale}.run(backward, executor);
  if (whole && call.channels == 32) return TemporalByQuads<Storage, 8>{call, T, U, scale}.run(backward, executor);
  Temporal<Storage>{call, T, U, call.channels, scale}.run(backward, executor);
}

}  // namespace
}  // namespace mssts

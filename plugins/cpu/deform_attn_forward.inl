// Forward of multi-scale deformable attention. Each query's result does not depend on how the work is divided.

namespace mssts {
namespace {

// Queries a task of the path without slices has.
constexpr int64_t kQueriesATask = 16;
// More tasks than threads, so that none waits long for the last one.
constexpr int64_t kTasksAThread = 4;

// out [kVectors] = sum of the points' samples, of the kVectors vectors of channels that `slice` points to.
template <int kVectors, class Slice>
MSSTS_INLINE void sample_slice(const PointTable& table, const Points& points, const Slice* slice, int64_t row,
                               Vec (&out)[kVectors]) {
  // Sums wait for one another: four chains of them for few vectors, two for many.
  constexpr int kChains = kVectors <= 2 ? 4 : 2;
  Vec sums[kChains][kVectors] = {};
  int64_t j = 0;
  for (int64_t l = 0; l < table.levels; ++l) {
    const int64_t below = table.level[l].line() * row;
    for (const int64_t end = j + table.points; j < end; ++j) {
      const Slice* at = slice + static_cast<int64_t>(points.row[0][j]) * row;
      const Slice* corner[4] = {at, at + row, at + below, at + below + row};
      MSSTS_UNROLL
      for (int c = 0; c < 4; ++c) {
        const Vec share = splat(points.share[c][j]);
        Vec x[kVectors];
        load_row(corner[c], x);
        MSSTS_UNROLL
        for (int k = 0; k < kVectors; ++k) sums[c % kChains][k] += share * x[k];
      }
    }
  }
  MSSTS_UNROLL
  for (int k = 0; k < kVectors; ++k) {
    out[k] = sums[0][k];
    for (int chain = 1; chain < kChains; ++chain) out[k] += sums[chain][k];
  }
}

// Stores up to `channels` - `from` of the elements.
template <int kVectors, class Storage>
MSSTS_INLINE void store_channels(Storage* out, const Vec (&x)[kVectors], int64_t from, int64_t channels) {
  MSSTS_UNROLL
  for (int k = 0; k < kVectors; ++k) {
    const int64_t left = channels - from - k * kLanes;
    if (left >= kLanes) {
      store(out + from + k * kLanes, x[k]);
    } else if (left > 0) {
      store_part(out + from + k * kLanes, x[k], static_cast<int>(left));
    }
  }
}

// Calls body(integral constant, first channel) for chunks of 4, 2 or 1 vectors that cover `row` channels.
template <int kVectors>
struct Chunk {
  static constexpr int kCount = kVectors;
};
template <class Body>
MSSTS_INLINE void for_chunks(int64_t row, const Body& body) {
  int64_t d = 0;
  for (; row - d >= 4 * kLanes; d += 4 * kLanes) body(Chunk<4>(), d);
  if (row - d >= 2 * kLanes) {
    body(Chunk<2>(), d);
    d += 2 * kLanes;
  }
  if (row - d >= kLanes) body(Chunk<1>(), d);
}

template <class Slice>
constexpr int kFloatsIn = 1;
template <>
constexpr int kFloatsIn<Pair> = 2;
template <class Storage>
constexpr bool kIsBFloat = false;
template <>
constexpr bool kIsBFloat<BFloat> = true;

template <class Storage>
struct DeformForward {
  const mssts_deform_attn& call;
  PointTable table;
  int64_t row;  // floats of a row of a slice: D padded to whole vectors

  const Storage* value_of(int64_t n, int64_t m) const {
    return static_cast<const Storage*>(call.value) + (n * call.tokens * call.heads + m) * call.channels;
  }

  template <For kFor, int kGroups>
  MSSTS_INLINE void locate_query(int64_t nq, int64_t m, const Points& points) const {
    const float* reference = static_cast<const float*>(call.reference) + nq * call.levels * call.coordinates;
    const int64_t first = (nq * call.heads + m) * table.all;
    locate<kFor, kGroups>(table, call.coordinates, reference, static_cast<const Storage*>(call.offsets) + 2 * first,
                          static_cast<const Storage*>(call.logits) + first, points);
  }

  // Queries [begin, end) of frame n, head m. kVectors: vectors of floats of a row; 0: any number.
  template <int kGroups, int kVectors, class Slice = float>
  void with_slice(int64_t n, int64_t m, int64_t begin, int64_t end, void* memory) const {
    Layout layout{static_cast<char*>(memory)};
    Points points[kBatch];
    for (Points& p : points) p = Points::lay_out(&layout, table.padded);
    constexpr int kElements = kVectors * kLanes / kFloatsIn<Slice>;
    const int64_t elements = kVectors != 0 ? kElements : row;
    Slice* slice = layout.take<Slice>(table.rows * elements);
    pack_slice(table, value_of(n, m), int64_t{call.heads} * call.channels, call.channels, elements, slice);
    const int64_t last = n * call.queries + end;
    for (int64_t nq = n * call.queries + begin; nq < last; nq += kBatch) {
      const int count = static_cast<int>(last - nq < kBatch ? last - nq : kBatch);
      for (int i = 0; i < count; ++i) locate_query<For::kSlice, kGroups>(nq + i, m, points[i]);
      for (int i = 0; i < count; ++i) {
        Storage* out = static_cast<Storage*>(call.out) + ((nq + i) * call.heads + m) * call.channels;
        if constexpr (kVectors != 0) {
          Vec sums[kVectors];
          sample_slice(table, points[i], slice, kElements, sums);
          store_channels(out, sums, 0, call.channels);
        } else {
          for_chunks(row, [&](auto chunk, int64_t d) {
            Vec sums[decltype(chunk)::kCount];
            sample_slice(table, points[i], slice + d, row, sums);
            store_channels(out, sums, d, call.channels);
          });
        }
      }
    }
  }

  // The same of floats, or of pairs where the channels are pairs of vectors.
  template <int kGroups, int kVectors>
  void with_vectors(int64_t n, int64_t m, int64_t begin, int64_t end, void* memory) const {
    if constexpr (kIsBFloat<Storage>) {
      if (call.channels == row) {
        with_slice<kGroups, kVectors, Pair>(n, m, begin, end, memory);
        return;
      }
    }
    with_slice<kGroups, kVectors>(n, m, begin, end, memory);
  }

  // kVectors vectors of channels of one query, straight from the tokens. kWhole: the channels fill all of them.
  template <int kVectors, bool kWhole>
  MSSTS_INLINE void sample_tokens(const Points& points, const Storage* value, const Storage* zeros, int64_t d,
                                  Storage* out) const {
    const int64_t stride = int64_t{call.heads} * call.channels;
    const int64_t left = call.channels - d;
    Vec sums[2][kVectors] = {};
    for (int64_t j = 0; j < table.all; ++j) {
      MSSTS_UNROLL
      for (int c = 0; c < 4; ++c) {
        const int64_t token = points.row[c][j];
        const Storage* at = token < 0 ? zeros : value + token * stride + d;
        const Vec share = splat(points.share[c][j]);
        MSSTS_UNROLL
        for (int k = 0; k < kVectors; ++k) {
          const int64_t rest = left - k * kLanes;
          const Vec x = kWhole || rest >= kLanes ? load(at + k * kLanes)
                                                 : load_part(at + k * kLanes, static_cast<int>(rest > 0 ? rest : 0));
          sums[c % 2][k] += share * x;
        }
      }
    }
    Vec x[kVectors];
    for (int k = 0; k < kVectors; ++k) x[k] = sums[0][k] + sums[1][k];
    store_channels(out, x, d, call.channels);
  }

  // Queries [begin, end) of frame n, all heads.
  template <int kGroups>
  void with_tokens(int64_t n, int64_t begin, int64_t end, void* memory) const {
    Layout layout{static_cast<char*>(memory)};
    const Points points = Points::lay_out(&layout, table.padded);
    Storage* zeros = layout.take<Storage>(4 * kLanes);
    __builtin_memset(zeros, 0, 4 * kLanes * sizeof(Storage));
    for (int64_t nq = n * call.queries + begin; nq < n * call.queries + end; ++nq) {
      for (int64_t m = 0; m < call.heads; ++m) {
        locate_query<For::kTokens, kGroups>(nq, m, points);
        Storage* out = static_cast<Storage*>(call.out) + (nq * call.heads + m) * call.channels;
        const Storage* value = value_of(n, m);
        for_chunks(row, [&](auto chunk, int64_t d) {
          constexpr int kVectors = decltype(chunk)::kCount;
          if (call.channels - d >= kVectors * kLanes) {
            sample_tokens<kVectors, true>(points, value, zeros, d, out);
          } else {
            sample_tokens<kVectors, false>(points, value, zeros, d, out);
          }
        });
      }
    }
  }

  template <int kGroups>
  void run(const mssts_executor* executor) const {
    const int64_t N = call.batch, M = call.heads, Q = call.queries;
    const int threads = thread_count(executor);
    Layout size{nullptr};
    Points::lay_out(&size, table.padded);
    // Copying a frame pays if it is then read often enough.
    if (kRowsAPoint * Q * table.all < table.rows) {
      Scratch scratch(threads, size.bytes + 4 * kLanes * sizeof(Storage));
      const int64_t blocks = (Q + kQueriesATask - 1) / kQueriesATask;
      parallel_for(executor, N * blocks, [&](int64_t task) {
        const Scratch::Block block(scratch);
        const int64_t begin = task % blocks * kQueriesATask, end = begin + kQueriesATask;
        with_tokens<kGroups>(task / blocks, begin, end < Q ? end : Q, block.data());
      });
      return;
    }
    // Several tasks share a slice only where there are too few slices, as each of them copies it.
    int64_t blocks = (kTasksAThread * threads + N * M - 1) / (N * M);
    const int64_t most = kRowsAPoint * Q * table.all / table.rows;
    blocks = blocks < most ? blocks : most;
    const int64_t queries = (Q + blocks - 1) / blocks;
    for (int i = 1; i < kBatch; ++i) Points::lay_out(&size, table.padded);
    size.take<float>(table.rows * row);
    Scratch scratch(threads, size.bytes);
    parallel_for(executor, N * M * blocks, [&](int64_t task) {
      const Scratch::Block block(scratch);
      const int64_t nm = task / blocks, begin = task % blocks * queries, end = begin + queries;
      const int64_t n = nm / M, m = nm % M, stop = end < Q ? end : Q;
      if (row == kLanes) {
        with_slice<kGroups, 1>(n, m, begin, stop, block.data());
      } else if (row == 2 * kLanes) {
        with_vectors<kGroups, 2>(n, m, begin, stop, block.data());
      } else if (row == 4 * kLanes) {
        with_vectors<kGroups, 4>(n, m, begin, stop, block.data());
      } else {
        with_slice<kGroups, 0>(n, m, begin, stop, block.data());
      }
    });
  }

  // Rows copied for a point. Two are about as many as pay: copying them reads memory in order, while the four rows of a
  // point lie anywhere (R50's decoder, 300 queries, on an AMD EPYC: 2.5 ms with a copy of each frame, 5 without).
  static constexpr int64_t kRowsAPoint = 2;
  // Queries located before the first of them is sampled: their long chains of arithmetic then overlap.
  static constexpr int kBatch = 8;
};

template <class Storage>
void deform_attn_forward_as(const mssts_deform_attn& call, const Level* levels, const mssts_executor* executor) {
  if (call.batch == 0 || call.queries == 0) return;
  Layout size{nullptr};
  PointTable::lay_out(&size, call);
  Scratch memory(1, size.bytes);
  const Scratch::Block block(memory);
  Layout layout{static_cast<char*>(block.data())};
  PointTable table = PointTable::lay_out(&layout, call);
  table.fill(levels, call.coordinates);
  const int64_t row = (call.channels + kLanes - 1) / kLanes * kLanes;
  const DeformForward<Storage> forward{call, table, row};
  if (table.all == 16) {
    forward.template run<16 / kLanes>(executor);
  } else {
    forward.template run<0>(executor);
  }
}

}  // namespace
}  // namespace mssts

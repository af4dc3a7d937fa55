// Backward of multi-scale deformable attention: one task for each frame and head, which has that slice of value and of
// its gradient to itself. So nothing is added atomically, and the result is the same for any number of threads.

namespace mssts {
namespace {

// For kVectors vectors of channels of one query: adds <corner, grad> to dots [4][padded], and grad times the corner's
// share to the slice of gradients. Each where its pointer is not NULL.
template <int kVectors, bool kDots, bool kScatter>
MSSTS_INLINE void visit_corners(const PointTable& table, const Points& points, const Vec* grad, const float* slice,
                                float* grad_slice, int64_t row, float* const* dots) {
  for (int64_t j = 0; j < table.all; j += kLanes) {
    const int count = static_cast<int>(table.all - j < kLanes ? table.all - j : kLanes);
    for (int c = 0; c < 4; ++c) {
      Vec products[kLanes];
      for (int i = 0; i < count; ++i) {
        const int64_t below = c / 2 * static_cast<int64_t>(table.line[j + i]);
        const int64_t at = (points.row[0][j + i] + below + c % 2) * row;
        const Vec share = splat(points.share[c][j + i]);
        Vec product = {};
        MSSTS_UNROLL
        for (int k = 0; k < kVectors; ++k) {
          if (kDots) product += load(slice + at + k * kLanes) * grad[k];
          if (kScatter) {
            float* to = grad_slice + at + k * kLanes;
            store(to, load(to) + share * grad[k]);
          }
        }
        if (kDots) products[i] = product;
      }
      if (!kDots) continue;
      for (int i = count; i < kLanes; ++i) products[i] = Vec{};
      store(dots[c] + j, load(dots[c] + j) + sums_of(products));
    }
  }
}

// The channels of one row, zero after the last.
template <class Storage>
MSSTS_INLINE void load_channels(const Storage* from, int64_t channels, Vec* to) {
  const int64_t whole = channels / kLanes;
  for (int64_t k = 0; k < whole; ++k) to[k] = load(from + k * kLanes);
  if (channels % kLanes != 0) to[whole] = load_part(from + whole * kLanes, static_cast<int>(channels % kLanes));
}

// `count` numbers to memory, whole vectors where they are.
template <class Storage>
MSSTS_INLINE void store_numbers(Storage* to, const float* from, int64_t count) {
  int64_t i = 0;
  for (; count - i >= kLanes; i += kLanes) store(to + i, load(from + i));
  for (; i < count; ++i) store_one(to + i, from[i]);
}

template <class Storage>
struct DeformBackward {
  const mssts_deform_attn& call;
  PointTable table;
  int64_t row;
  float* grad_reference;  // of each head, [N, Q, M, L, R]; NULL if not wanted

  struct Memory {
    Points points;
    Vec* grad;  // [row / kLanes]
    float* dots[4];
    float* grad_x;  // of the pixel
    float* grad_y;
    float* grad_logits;
    float* grad_offsets;  // [2 * padded]
    float* slice;
    float* grad_slice;

    static Memory lay_out(Layout* layout, const PointTable& table, int64_t row, bool slice, bool grad_slice) {
      Memory m{};
      m.points = Points::lay_out(layout, table.padded);
      m.grad = layout->take<Vec>(row / kLanes);
      for (float*& array : m.dots) array = layout->take<float>(table.padded);
      m.grad_x = layout->take<float>(table.padded);
      m.grad_y = layout->take<float>(table.padded);
      m.grad_logits = layout->take<float>(table.padded);
      m.grad_offsets = layout->take<float>(2 * table.padded);
      m.slice = layout->take<float>(slice ? table.rows * row : 0);
      m.grad_slice = layout->take<float>(grad_slice ? table.rows * row : 0);
      return m;
    }
  };

  bool wants_points() const {
    return call.grad_offsets != nullptr || call.grad_logits != nullptr || call.grad_reference != nullptr;
  }
  bool wants_value() const { return call.grad_value != nullptr; }

  template <int kVectors>
  MSSTS_INLINE void visit(const Memory& memory, int64_t d) const {
    const Points& p = memory.points;
    const Vec* grad = memory.grad + d / kLanes;
    const float* slice = memory.slice + d;
    float* grad_slice = memory.grad_slice + d;
    if (wants_points() && wants_value()) {
      visit_corners<kVectors, true, true>(table, p, grad, slice, grad_slice, row, memory.dots);
    } else if (wants_points()) {
      visit_corners<kVectors, true, false>(table, p, grad, slice, nullptr, row, memory.dots);
    } else {
      visit_corners<kVectors, false, true>(table, p, grad, nullptr, grad_slice, row, memory.dots);
    }
  }

  // From the dots to the gradients of the points of one query and head.
  void store_points(int64_t nqm, const Memory& memory) const {
    const Points& p = memory.points;
    Vec mean = {};
    for (int64_t j = 0; j < table.padded; j += kLanes) {
      const Vec x = load(p.x + j), y = load(p.y + j), weight = load(p.weight + j);
      const Vec d0 = load(memory.dots[0] + j), d1 = load(memory.dots[1] + j);
      const Vec d2 = load(memory.dots[2] + j), d3 = load(memory.dots[3] + j);
      const Vec across = (1.0f - y) * (d1 - d0) + y * (d3 - d2), down = (1.0f - x) * (d2 - d0) + x * (d3 - d1);
      const Vec sample = (1.0f - y) * ((1.0f - x) * d0 + x * d1) + y * ((1.0f - x) * d2 + x * d3);
      // A point outside does not move the output, whatever the gradient; one whose place is NaN makes it NaN.
      const Mask in = less(Vec{}, load(p.inside + j));
      const Vec broken = (x + y) * 0.0f;
      const Vec gx = select(in, weight * across, broken), gy = select(in, weight * down, broken);
      store(memory.grad_x + j, gx);
      store(memory.grad_y + j, gy);
      const Vec ox = gx * load(p.slope_x + j), oy = gy * load(p.slope_y + j);
      store(memory.grad_offsets + 2 * j, interleave_low(ox, oy));
      store(memory.grad_offsets + 2 * j + kLanes, interleave_high(ox, oy));
      store(memory.grad_logits + j, sample);
      mean += weight * sample;
    }
    mean = sum_across(mean);
    for (int64_t j = 0; j < table.padded; j += kLanes) {
      store(memory.grad_logits + j, load(p.weight + j) * (load(memory.grad_logits + j) - mean));
    }
    if (call.grad_offsets != nullptr) {
      store_numbers(static_cast<Storage*>(call.grad_offsets) + nqm * table.all * 2, memory.grad_offsets, 2 * table.all);
    }
    if (call.grad_logits != nullptr) {
      store_numbers(static_cast<Storage*>(call.grad_logits) + nqm * table.all, memory.grad_logits, table.all);
    }
    if (grad_reference != nullptr) add_reference(nqm, memory);
  }

  void add_reference(int64_t nqm, const Memory& memory) const {
    const int64_t R = call.coordinates;
    float* to = grad_reference + nqm * table.levels * R;
    const float half = 0.5f / static_cast<float>(table.points);
    for (int64_t l = 0, j = 0; l < table.levels; ++l, to += R) {
      float x = 0, y = 0, w = 0, h = 0;
      const float width = static_cast<float>(table.level[l].width), height = static_cast<float>(table.level[l].height);
      for (const int64_t end = j + table.points; j < end; ++j) {
        x += memory.grad_x[j];
        y += memory.grad_y[j];
        // 0 * infinity would be NaN for an infinite offset.
        if (memory.grad_x[j] != 0) w += memory.grad_x[j] * memory.points.offset_x[j];
        if (memory.grad_y[j] != 0) h += memory.grad_y[j] * memory.points.offset_y[j];
      }
      to[0] = x * width;
      to[1] = y * height;
      if (R == 4) {
        to[2] = w * width * half;
        to[3] = h * height * half;
      }
    }
  }

  template <int kGroups>
  void slice(int64_t n, int64_t m, void* data) const {
    Layout layout{static_cast<char*>(data)};
    const Memory memory = Memory::lay_out(&layout, table, row, wants_points(), wants_value());
    const int64_t M = call.heads, D = call.channels, Q = call.queries, stride = M * D;
    const int64_t first = (n * call.tokens * M + m) * D;
    if (wants_points()) {
      pack_slice(table, static_cast<const Storage*>(call.value) + first, stride, D, row, memory.slice);
    }
    if (wants_value()) __builtin_memset(memory.grad_slice, 0, static_cast<size_t>(table.rows * row) * sizeof(float));
    for (int64_t nq = n * Q; nq < (n + 1) * Q; ++nq) {
      const int64_t nqm = nq * M + m;
      const float* reference = static_cast<const float*>(call.reference) + nq * table.levels * call.coordinates;
      locate<For::kBackward, kGroups>(table, call.coordinates, reference,
                                      static_cast<const Storage*>(call.offsets) + 2 * nqm * table.all,
                                      static_cast<const Storage*>(call.logits) + nqm * table.all, memory.points);
      load_channels(static_cast<const Storage*>(call.grad_out) + nqm * D, D, memory.grad);
      for (float* dots : memory.dots) {
        for (int64_t j = 0; j < table.padded; j += kLanes) store(dots + j, Vec{});
      }
      for_chunks(row, [&](auto chunk, int64_t d) { visit<decltype(chunk)::kCount>(memory, d); });
      if (wants_points()) store_points(nqm, memory);
    }
    if (!wants_value()) return;
    Storage* to = static_cast<Storage*>(call.grad_value) + first;
    for (int64_t l = 0; l < table.levels; ++l) {
      const PaddedLevel& level = table.level[l];
      const float* from = memory.grad_slice + level.first() * row;
      for (int64_t y = 0; y < level.height; ++y, from += row) {
        for (int64_t x = 0; x < level.width; ++x, from += row, to += stride) store_numbers(to, from, D);
      }
    }
  }

  // The heads' shares of the gradient of the reference, summed in their order.
  void sum_reference(const mssts_executor* executor) const {
    constexpr int64_t kQueries = 256;
    const int64_t queries = call.batch * call.queries, numbers = table.levels * call.coordinates;
    parallel_for(executor, (queries + kQueries - 1) / kQueries, [&](int64_t task) {
      const int64_t end = (task + 1) * kQueries < queries ? (task + 1) * kQueries : queries;
      for (int64_t nq = task * kQueries; nq < end; ++nq) {
        for (int64_t i = 0; i < numbers; ++i) {
          float sum = 0;
          for (int64_t m = 0; m < call.heads; ++m) sum += grad_reference[(nq * call.heads + m) * numbers + i];
          static_cast<float*>(call.grad_reference)[nq * numbers + i] = sum;
        }
      }
    });
  }

  void run(const mssts_executor* executor) const {
    if (!wants_points() && !wants_value()) return;
    Layout size{nullptr};
    Memory::lay_out(&size, table, row, wants_points(), wants_value());
    const int64_t tasks = call.batch * call.heads;
    const int threads = thread_count(executor);
    Scratch scratch(threads < tasks ? threads : static_cast<int>(tasks > 0 ? tasks : 1), size.bytes);
    parallel_for(executor, tasks, [&](int64_t nm) {
      const Scratch::Block block(scratch);
      const int64_t n = nm / call.heads, m = nm % call.heads;
      if (table.all == 16) {
        slice<16 / kLanes>(n, m, block.data());
      } else {
        slice<0>(n, m, block.data());
      }
    });
    if (grad_reference != nullptr) sum_reference(executor);
  }
};

template <class Storage>
void deform_attn_backward_as(const mssts_deform_attn& call, const Level* levels, const mssts_executor* executor) {
  Layout size{nullptr};
  PointTable::lay_out(&size, call);
  const int64_t numbers = call.grad_reference == nullptr
                              ? 0
                              : call.batch * call.queries * call.heads * call.levels * int64_t{call.coordinates};
  size.take<float>(numbers);
  Scratch memory(1, size.bytes);
  const Scratch::Block block(memory);
  Layout layout{static_cast<char*>(block.data())};
  PointTable table = PointTable::lay_out(&layout, call);
  float* grad_reference = layout.take<float>(numbers);
  table.fill(levels, call.coordinates);
  const int64_t row = (call.channels + kLanes - 1) / kLanes * kLanes;
  DeformBackward<Storage>{call, table, row, numbers > 0 ? grad_reference : nullptr}.run(executor);
}

}  // namespace
}  // namespace mssts

// Where the points of a query lie and what they weigh, kLanes points at a time.

namespace mssts {
namespace {

// Lays arrays out one after the other, each aligned; with no memory it only counts.
struct Layout {
  char* memory;
  size_t bytes = 0;

  template <class T>
  T* take(int64_t count) {
    T* array = reinterpret_cast<T*>(memory + bytes);
    bytes +=
        (static_cast<size_t>(count) * sizeof(T) + Scratch::kAlignment - 1) / Scratch::kAlignment * Scratch::kAlignment;
    return memory == nullptr ? nullptr : array;
  }
};

// A level in a slice, which is the values of one frame and head, rows of `row` floats each, with zeros around each
// level: the column after a line is also the one before the next line, one line is above and two are below. So all four
// corners of any point are rows of the slice, and none is tested for being outside.
struct PaddedLevel {
  int64_t height, width, start;
  int64_t begin;  // its first row in the slice

  int64_t line() const { return width + 1; }
  int64_t rows() const { return (height + 3) * line() + 1; }
  int64_t first() const { return begin + 1 + line(); }               // of the pixel (0, 0)
  int64_t nothing() const { return first() + height * line() - 1; }  // all four corners are zeros
};

// What the points of all queries share: arrays over the L*P points, padded to whole vectors.
struct PointTable {
  int64_t levels, points, all, padded, rows;  // L, P, L*P, its padding, rows of a slice
  const PaddedLevel* level;
  float* width;
  float* height;
  int32_t* line;   // rows from a pixel to the one below
  int32_t* first;  // row of the pixel (0, 0)
  int32_t* nothing;
  int32_t* token;      // of the pixel (0, 0)
  int32_t* reference;  // index in a query's reference

  static PointTable lay_out(Layout* layout, const mssts_deform_attn& call) {
    PointTable t{};
    t.levels = call.levels;
    t.points = call.points;
    t.all = t.levels * t.points;
    t.padded = (t.all + kLanes - 1) / kLanes * kLanes;
    t.level = layout->take<PaddedLevel>(t.levels);
    t.width = layout->take<float>(t.padded);
    t.height = layout->take<float>(t.padded);
    int32_t** const arrays[] = {&t.line, &t.first, &t.nothing, &t.token, &t.reference};
    for (int32_t** array : arrays) *array = layout->take<int32_t>(t.padded);
    return t;
  }

  void fill(const Level* from, int32_t coordinates) {
    PaddedLevel* to = const_cast<PaddedLevel*>(level);
    rows = 0;
    for (int64_t l = 0; l < levels; ++l) {
      to[l] = {from[l].height, from[l].width, from[l].start, rows};
      rows += to[l].rows();
    }
    for (int64_t j = 0; j < padded; ++j) {
      const int64_t l = (j < all ? j : all - 1) / points;
      width[j] = static_cast<float>(level[l].width);
      height[j] = static_cast<float>(level[l].height);
      line[j] = static_cast<int32_t>(level[l].line());
      first[j] = static_cast<int32_t>(level[l].first());
      nothing[j] = static_cast<int32_t>(level[l].nothing());
      token[j] = static_cast<int32_t>(level[l].start);
      reference[j] = static_cast<int32_t>(l * coordinates);
    }
  }
};

// The points of one query and head: arrays over the padded L*P.
struct Points {
  float* share[4];  // softmax weight times bilinear weight of the corners (0, 0), (0, 1), (1, 0), (1, 1) as (y, x)
  int32_t* row[4];  // forward from a slice and backward: [0] alone, the slice's row; else the four tokens, -1 outside
  // Backward only:
  float* weight;
  float* x;  // where between the corners
  float* y;
  float* slope_x;  // d(pixel) / d(offset)
  float* slope_y;
  float* offset_x;
  float* offset_y;
  float* inside;  // 1 or 0
  float* buffer;  // [2 * padded], for inputs that are no whole number of vectors

  static Points lay_out(Layout* layout, int64_t padded) {
    Points p{};
    for (float*& array : p.share) array = layout->take<float>(padded);
    for (int32_t*& array : p.row) array = layout->take<int32_t>(padded);
    float** const arrays[] = {&p.weight, &p.x, &p.y, &p.slope_x, &p.slope_y, &p.offset_x, &p.offset_y, &p.inside};
    for (float** array : arrays) *array = layout->take<float>(padded);
    p.buffer = layout->take<float>(2 * padded);
    return p;
  }
};

enum class For { kSlice, kTokens, kBackward };

// One coordinate of the reference of kLanes points. A query's whole reference fits one vector where `small`.
MSSTS_INLINE Vec reference_of(const float* reference, int count, bool small, Int index) {
  if (small) return pick(count == kLanes ? load(reference) : load_part(reference, count), index);
  Vec x;
  for (int i = 0; i < kLanes; ++i) x[i] = reference[index[i]];
  return x;
}

// Locates the points of one query and head. kGroups vectors hold the L*P points, exactly; 0: any number of points.
template <For kFor, int kGroups, class Storage>
MSSTS_INLINE void locate(const PointTable& table, int coordinates, const float* reference, const Storage* offsets,
                         const Storage* logits, const Points& to) {
  const int64_t groups = kGroups != 0 ? kGroups : table.padded / kLanes;
  const bool whole = kGroups != 0 || table.padded == table.all;
  const int64_t numbers = table.levels * coordinates;
  const bool small = numbers <= kLanes;

  // Softmax, into weight. Lanes after the last point weigh nothing.
  if (!whole) {
    for (int64_t j = 0; j < table.padded; ++j) {
      to.weight[j] = j < table.all ? load_one(logits + j) : -__builtin_inff();
    }
  }
  Vec most = splat(-__builtin_inff()), sum = {};
  for (int64_t g = 0; g < groups; ++g) {
    most = larger(whole ? load(logits + g * kLanes) : load(to.weight + g * kLanes), most);
  }
  most = largest_across(most);
  for (int64_t g = 0; g < groups; ++g) {
    const Vec logit = whole ? load(logits + g * kLanes) : load(to.weight + g * kLanes);
    const Vec e = exp_of_negative(logit - most);
    store(to.weight + g * kLanes, e);
    sum += e;
  }
  const Vec normal = 1.0f / sum_across(sum);

  if (!whole) {
    for (int64_t j = 0; j < 2 * table.padded; ++j) to.buffer[j] = j < 2 * table.all ? load_one(offsets + j) : 0.0f;
  }
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t j = g * kLanes;
    const Vec a = whole ? load(offsets + 2 * j) : load(to.buffer + 2 * j);
    const Vec b = whole ? load(offsets + 2 * j + kLanes) : load(to.buffer + 2 * j + kLanes);
    const Vec offset_x = even(a, b), offset_y = odd(a, b);
    const Vec width = load(table.width + j), height = load(table.height + j);
    const Int index = load(table.reference + j);
    const int count = static_cast<int>(small ? numbers : 0);
    Vec slope_x = splat(1.0f), slope_y = splat(1.0f);
    Vec x = reference_of(reference, count, small, index) * width - 0.5f;
    Vec y = reference_of(reference, count, small, index + 1) * height - 0.5f;
    if (coordinates == 4) {
      const float half = 0.5f / static_cast<float>(table.points);
      slope_x = reference_of(reference, count, small, index + 2) * half * width;
      slope_y = reference_of(reference, count, small, index + 3) * half * height;
      x += offset_x * slope_x;
      y += offset_y * slope_y;
    } else {
      x += offset_x;
      y += offset_y;
    }
    const Vec outside = splat(-1.0f);
    const Mask inside = less(outside, x) & less(x, width) & less(outside, y) & less(y, height);
    // Clamped, as nothing else may become an integer or a share; a NaN stays one.
    x = smaller(width, larger(outside, x));
    y = smaller(height, larger(outside, y));
    const Vec x0 = floor(x), y0 = floor(y);
    const Vec fx = x - x0, fy = y - y0;
    const Int column = __builtin_convertvector(select(inside, x0, Vec{}), Int);
    const Int line = __builtin_convertvector(select(inside, y0, Vec{}), Int);
    const Vec weight = load(to.weight + j) * normal;
    const Vec above = weight * (1.0f - fy), below = weight * fy;
    store(to.share[0] + j, above * (1.0f - fx));
    store(to.share[1] + j, above * fx);
    store(to.share[2] + j, below * (1.0f - fx));
    store(to.share[3] + j, below * fx);
    if (kFor == For::kTokens) {
      const Int w = load(table.line + j) - 1, last = __builtin_convertvector(height, Int) - 1;
      const Int at = load(table.token + j) + line * w + column;
      const Int none = splat(-1);
      const Int left = column, right = column + 1, up = line, down = line + 1;
      const Int in = select(inside, none, Int{});
      const Int l = (left >= 0) & in, r = (right < w) & in, u = up >= 0, d = down <= last;
      store(to.row[0] + j, (u & l) ? at : none);
      store(to.row[1] + j, (u & r) ? at + 1 : none);
      store(to.row[2] + j, (d & l) ? at + w : none);
      store(to.row[3] + j, (d & r) ? at + w + 1 : none);
    } else {
      const Int at = load(table.first + j) + line * load(table.line + j) + column;
      store(to.row[0] + j, select(inside, at, load(table.nothing + j)));
    }
    if (kFor == For::kBackward) {
      store(to.weight + j, weight);
      store(to.x + j, fx);
      store(to.y + j, fy);
      store(to.slope_x + j, slope_x);
      store(to.slope_y + j, slope_y);
      store(to.offset_x + j, offset_x);
      store(to.offset_y + j, offset_y);
      store(to.inside + j, select(inside, splat(1.0f), Vec{}));
    }
  }
}

// A row of a slice is a whole number of vectors of floats, or of pairs: two vectors of BFloats, the first in the upper
// halves of the words. Pairs are half as many bytes to read, and become floats without a shuffle.
struct Pair {
  uint32_t bits;
};

template <class Storage>
MSSTS_INLINE void pack_row(const Storage* from, int64_t channels, float* to) {
  const int64_t whole = channels / kLanes * kLanes;
  for (int64_t d = 0; d < whole; d += kLanes) store(to + d, load(from + d));
  if (whole != channels) store(to + whole, load_part(from + whole, static_cast<int>(channels - whole)));
}

MSSTS_INLINE void pack_row(const BFloat* from, int64_t channels, Pair* to) {
  for (int64_t d = 0; d < channels; d += 2 * kLanes, to += kLanes) {
    const Unsigned upper = __builtin_convertvector(load_as<Short>(from + d), Unsigned);
    const Unsigned lower = __builtin_convertvector(load_as<Short>(from + d + kLanes), Unsigned);
    const Unsigned pairs = (upper << 16) | lower;
    std::memcpy(to, &pairs, sizeof pairs);
  }
}

template <int kVectors>
MSSTS_INLINE void load_row(const float* from, Vec (&x)[kVectors]) {
  MSSTS_UNROLL
  for (int k = 0; k < kVectors; ++k) x[k] = load(from + k * kLanes);
}

template <int kVectors>
MSSTS_INLINE void load_row(const Pair* from, Vec (&x)[kVectors]) {
  static_assert(kVectors % 2 == 0, "pairs of vectors");
  MSSTS_UNROLL
  for (int k = 0; k < kVectors; k += 2) {
    const Unsigned pairs = load_as<Unsigned>(from + k / 2 * kLanes);
    x[k] = (Vec)(pairs & 0xffff0000u);
    x[k + 1] = (Vec)(pairs << 16);
  }
}

// Copies the values of one frame and head into a slice, whose rows have `row` elements.
template <class Storage, class Slice>
void pack_slice(const PointTable& table, const Storage* value, int64_t stride, int64_t channels, int64_t row,
                Slice* slice) {
  for (int64_t l = 0; l < table.levels; ++l) {
    const PaddedLevel& level = table.level[l];
    Slice* to = slice + level.begin * row;
    const auto zeros = [&](int64_t rows) {
      __builtin_memset(to, 0, static_cast<size_t>(rows * row) * sizeof(Slice));
      to += rows * row;
    };
    const Storage* from = value + level.start * stride;
    zeros(level.line() + 1);
    for (int64_t y = 0; y < level.height; ++y) {
      for (int64_t x = 0; x < level.width; ++x, from += stride, to += row) pack_row(from, channels, to);
      zeros(1);
    }
    zeros(2 * level.line());
  }
}

}  // namespace
}  // namespace mssts

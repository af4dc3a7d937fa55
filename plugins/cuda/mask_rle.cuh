// Mask logits to COCO's compressed run lengths: what `_encode` of mssts/segmenters/postprocessing.py computes, to the
// byte.
//
// Down one column the interpolated logit is linear between two rows of logits, so it changes sign at most once between
// them, at a place that a division gives. Each such change toggles one bit of a map of the frame, column after column:
// two changes at one pixel cancel, in whatever order they come, and a run that leaves one column below and enters the
// next above is none. What is left of the map, read in order, are the ends of the runs. It needs one bit a pixel,
// however many runs there are, and no sorting.
#ifndef MSSTS_CUDA_MASK_RLE_CUH
#define MSSTS_CUDA_MASK_RLE_CUH

#include <cstdint>

#include "device.cuh"

namespace mssts::mask_rle {

constexpr int kColumnsOfBlock = 32;  // neighbours: their loads meet in the same lines
constexpr int kPartsOfColumn = 8;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kWordsOfThread = 4;  // one load of 16 bytes

// One side of the frame among its logits. Arithmetic is fp64, and each operation is rounded on its own, as numpy's are:
// a fused multiply-add would be another number.
struct Side {
  int64_t step;  // 2 * cell * pixels
  int pixels;
  int valid;
  int logits;  // that touch the valid part

  __device__ __forceinline__ double place(int64_t pixel) const {
    return __dsub_rn(__ddiv_rn(static_cast<double>((2 * pixel + 1) * valid), static_cast<double>(step)), 0.5);
  }
  __device__ __forceinline__ double clipped(int64_t pixel) const {
    return fmin(fmax(place(pixel), 0.0), static_cast<double>(logits - 1));
  }
  // Whether a pixel lies behind a crossing, and on it where `on`.
  __device__ __forceinline__ bool behind(int64_t pixel, double crossing, bool on) const {
    const double found = place(pixel);
    return on ? found >= crossing : found > crossing;
  }
  // The first pixel behind a crossing in [0, logits - 1]; `pixels` if there is none, or the crossing is NaN.
  __device__ __forceinline__ int first_behind(double crossing, bool on) const {
    // Outside of the outermost logits all pixels have their places.
    if (on && crossing <= 0.0) return 0;
    if (!on && !(crossing < static_cast<double>(logits - 1))) return pixels;
    if (!(crossing == crossing)) return pixels;
    // The inverse of place() is one pixel off at most.
    const double guess = ((crossing + 0.5) * static_cast<double>(step) / static_cast<double>(valid) - 1.0) * 0.5;
    int pixel = static_cast<int>(fmin(fmax(guess, 0.0), static_cast<double>(pixels)));
    while (pixel > 0 && behind(pixel - 1, crossing, on)) --pixel;
    while (pixel < pixels && !behind(pixel, crossing, on)) ++pixel;
    return pixel;
  }
};

struct Call {
  const float* logits;
  int64_t instance_stride, frame_stride, row_stride;
  unsigned frames;
  unsigned masks;
  Side rows, columns;
  int pixels;     // of a mask
  int64_t words;  // of a mask's map, a multiple of kWordsOfThread
  unsigned* map;  // [masks, words]
  int64_t* ends;  // [masks], lengths at first
  unsigned char* text;
  int64_t capacity;
};

// The logits on both sides of a column's pixels, in one row, and the sign of their mean.
struct Sample {
  float left = 0.0f, right = 0.0f;
  bool inside = false;
};

struct Column {
  int left, right;
  double share;  // of the right one

  __device__ __forceinline__ double mean(const Sample& at) const {
    return __dadd_rn(__dmul_rn(static_cast<double>(at.left), __dsub_rn(1.0, share)),
                     __dmul_rn(static_cast<double>(at.right), share));
  }
  __device__ __forceinline__ Sample read(const float* row) const {
    Sample found;
    found.left = __ldg(row + left), found.right = __ldg(row + right);
    const bool one = found.left > 0.0f, other = found.right > 0.0f;
    // fp64 only where signs differ, or an infinity may become NaN: it is slow on most GPUs.
    if (!one && !other) return found;
    const bool surely = one && other && found.left < INFINITY && found.right < INFINITY;
    found.inside = surely || mean(found) > 0.0;
    return found;
  }
};

__device__ __forceinline__ void toggle(unsigned* map, unsigned pixel) {
  atomicXor(map + pixel / 32, 1u << (pixel % 32));
}

// A thread takes a part of one column of pixels, of one mask after another.
__global__ void __launch_bounds__(kThreads) mark_changes(const Call call) {
  const int x = static_cast<int>(blockIdx.x) * kColumnsOfBlock + static_cast<int>(threadIdx.x);
  if (x >= call.columns.pixels) return;
  Column column;
  const double place = call.columns.clipped(x);
  column.left = min(static_cast<int>(place), max(call.columns.logits - 2, 0));
  column.right = min(column.left + 1, call.columns.logits - 1);
  column.share = __dsub_rn(place, static_cast<double>(column.left));

  // Edge r lies between rows r - 1 and r; rows before the first and after the last are outside.
  const int rows = call.rows.logits;
  const int part = (rows + kPartsOfColumn) / kPartsOfColumn;
  const int first = static_cast<int>(threadIdx.y) * part, last = min(first + part, rows + 1);
  const int top = x * call.rows.pixels;
  for (unsigned mask = blockIdx.y; mask < call.masks; mask += gridDim.y) {
    const float* logits =
        call.logits + mask / call.frames * call.instance_stride + mask % call.frames * call.frame_stride;
    unsigned* map = call.map + mask * call.words;
    Sample before;
    if (first > 0 && first < last) before = column.read(logits + (first - 1) * call.row_stride);
    for (int edge = first; edge < last; ++edge) {
      Sample after;
      if (edge < rows) after = column.read(logits + edge * call.row_stride);
      if (before.inside != after.inside) {
        int pixel = edge == 0 ? 0 : call.rows.pixels;
        if (edge > 0 && edge < rows) {
          const double upper = column.mean(before), lower = column.mean(after);
          const double crossing = __dadd_rn(edge - 1, __ddiv_rn(upper, __dsub_rn(upper, lower)));
          // A pixel whose value is exactly 0 is outside.
          pixel = call.rows.first_behind(crossing, before.inside);
        }
        if (top + pixel < call.pixels) toggle(map, static_cast<unsigned>(top + pixel));
      }
      before = after;
    }
  }
}

// The last three changes, the latest first, and how many there were, up to three.
struct History {
  int count = 0, last[3] = {0, 0, 0};

  __device__ __forceinline__ void add(int change) {
    last[2] = last[1], last[1] = last[0], last[0] = change;
    count = min(count + 1, 3);
  }
  // The number that COCO writes for the run which ends at a change: its length, less that of the run two before it,
  // from the fourth run on.
  __device__ __forceinline__ int number(int change) const {
    const int length = change - last[0];
    return count < 3 ? length : length - (last[1] - last[2]);
  }
};

// What was, and then what came after it.
__device__ __forceinline__ History joined(const History& was, const History& then) {
  History both;
  both.count = min(was.count + then.count, 3);
  both.last[0] = then.count > 0 ? then.last[0] : was.last[0];
  both.last[1] = then.count > 1 ? then.last[1] : then.count > 0 ? was.last[0] : was.last[1];
  both.last[2] = then.count > 2   ? then.last[2]
                 : then.count > 1 ? was.last[0]
                 : then.count > 0 ? was.last[1]
                                  : was.last[2];
  return both;
}

__device__ __forceinline__ History shifted_up(const History& x, int lanes) {
  History y;
  y.count = __shfl_up_sync(kWarp, x.count, lanes);
#pragma unroll
  for (int i = 0; i < 3; ++i) y.last[i] = __shfl_up_sync(kWarp, x.last[i], lanes);
  return y;
}

// Groups of 5 bits, the last of which has the sign.
__device__ __forceinline__ int groups_of(int number) { return (37 - __clz(number ^ (number >> 31))) / 5; }

__device__ __forceinline__ void write_number(unsigned char* text, int number) {
  for (int left = groups_of(number); left > 0; --left) {
    *text++ = static_cast<unsigned char>(48 + (number & 31) + (left > 1 ? 32 : 0));
    number >>= 5;
  }
}

// Calls visit(change) for the changes of a thread's words, in order.
template <typename Visit>
__device__ __forceinline__ void for_changes(const unsigned (&words)[kWordsOfThread], int first, const Visit& visit) {
#pragma unroll
  for (int i = 0; i < kWordsOfThread; ++i) {
    for (unsigned rest = words[i]; rest != 0; rest &= rest - 1)
      visit(first + 32 * i + __ffs(static_cast<int>(rest)) - 1);
  }
}

// A block reads the map of one mask. kWrites: it writes the text, else only its length.
template <bool kWrites>
__global__ void __launch_bounds__(kThreads) read_changes(const Call call) {
  MSSTS_SHARED(int4, histories, [kWarps]);
  MSSTS_SHARED(int, lengths, [kWarps]);
  const unsigned mask = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  unsigned char* text = nullptr;
  if (kWrites) {
    const int64_t begin = mask > 0 ? call.ends[mask - 1] : 0, end = call.ends[mask];
    if (begin == end || end > call.capacity) return;
    text = call.text + begin;
  }

  History carried;
  int64_t done = 0;
  const uint4* map = reinterpret_cast<const uint4*>(call.map + mask * call.words);
  const int quads = static_cast<int>(call.words / kWordsOfThread);
  for (int tile = 0; tile < quads; tile += kThreads) {
    const int own = tile + static_cast<int>(threadIdx.x);
    unsigned words[kWordsOfThread] = {};
    if (own < quads) {
      const uint4 word = map[own];
      words[0] = word.x, words[1] = word.y, words[2] = word.z, words[3] = word.w;
    }
    const bool any = (words[0] | words[1] | words[2] | words[3]) != 0;
    if (__syncthreads_or(any) == 0) continue;  // where no object is

    const int first = own * 32 * kWordsOfThread;
    History before;
    for_changes(words, first, [&](int change) { before.add(change); });
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const History earlier = shifted_up(before, distance);
      if (lane >= distance) before = joined(earlier, before);
    }
    if (lane == 31) histories[warp] = make_int4(before.count, before.last[0], before.last[1], before.last[2]);
    before = shifted_up(before, 1);
    if (lane == 0) before = History();
    __syncthreads();
    History earlier = carried;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) {
      if (i == warp) before = joined(earlier, before);
      const int4 found = histories[i];
      earlier = joined(earlier, History{found.x, {found.y, found.z, found.w}});
    }
    carried = earlier;

    int length = 0;
    History history = before;
    for_changes(words, first, [&](int change) {
      length += groups_of(history.number(change));
      history.add(change);
    });
    int end = length;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int add = __shfl_up_sync(kWarp, end, distance);
      if (lane >= distance) end += add;
    }
    if (lane == 31) lengths[warp] = end;
    __syncthreads();
    int64_t place = done;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) {
      if (i < warp) place += lengths[i];
      done += lengths[i];
    }
    if (kWrites) {
      unsigned char* to = text + place + end - length;
      for_changes(words, first, [&](int change) {
        const int number = before.number(change);
        write_number(to, number);
        to += groups_of(number);
        before.add(change);
      });
    }
  }
  if (threadIdx.x != 0) return;
  const int rest = carried.number(call.pixels);  // of the last run, to the end of the frame
  if (kWrites) {
    write_number(text + done, rest);
  } else {
    call.ends[mask] = carried.count == 0 ? 0 : done + groups_of(rest);
  }
}

// Lengths become ends, by one block.
__global__ void __launch_bounds__(kThreads) sum_lengths(const Call call) {
  MSSTS_SHARED(long long, sums, [kWarps]);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  long long carried = 0;
  for (int64_t tile = 0; tile < call.masks; tile += kThreads) {
    const int64_t own = tile + threadIdx.x;
    long long end = own < call.masks ? call.ends[own] : 0;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const long long add = __shfl_up_sync(kWarp, end, distance);
      if (lane >= distance) end += add;
    }
    if (lane == 31) sums[warp] = end;
    __syncthreads();
    end += carried;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) {
      if (i < warp) end += sums[i];
      carried += sums[i];
    }
    if (own < call.masks) call.ends[own] = end;
    __syncthreads();
  }
}

}  // namespace mssts::mask_rle

#endif  // MSSTS_CUDA_MASK_RLE_CUH

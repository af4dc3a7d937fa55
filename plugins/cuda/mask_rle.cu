#include "mask_rle.cuh"

#include <algorithm>

#include "common/error.h"
#include "common/validate.h"
#include "deform_attn.h"
#include "mask_rle.h"

namespace mssts {

namespace {

using mask_rle::Side;

constexpr unsigned kMostRows = 65535;  // of a grid's y
constexpr int64_t kMostMasks = 0x7fffffff;
constexpr int kMostValid = 1 << 24, kMostCell = 1 << 16;  // so that places of pixels are quotients of 64-bit numbers

struct Size {
  const char* name;
  int64_t value, least;
};

Side side(int pixels, int valid, int cell) {
  return {int64_t{2} * cell * pixels, pixels, valid, static_cast<int>((int64_t{valid} + cell - 1) / cell)};
}

int64_t pixels_of(const mssts_mask_rle& call) { return int64_t{call.height} * call.width; }

int64_t words_of(const mssts_mask_rle& call) {
  constexpr int64_t kBits = 32 * mask_rle::kWordsOfThread;
  return (pixels_of(call) + kBits - 1) / kBits * mask_rle::kWordsOfThread;
}

mssts_status validate_sizes(const mssts_mask_rle& c) {
  for (const Size& size : {Size{"instances", c.instances, 0}, Size{"frames", c.frames, 0}, Size{"rows", c.rows, 1},
                           Size{"columns", c.columns, 1}, Size{"valid_height", c.valid_height, 1},
                           Size{"valid_width", c.valid_width, 1}, Size{"cell", c.cell, 1}, Size{"height", c.height, 1},
                           Size{"width", c.width, 1}, Size{"capacity", c.capacity, 0}}) {
    if (size.value < size.least) {
      return fail(MSSTS_INVALID, "%s is %lld, expected at least %lld", size.name, static_cast<long long>(size.value),
                  static_cast<long long>(size.least));
    }
  }
  const Side rows = side(c.height, c.valid_height, c.cell), columns = side(c.width, c.valid_width, c.cell);
  if (rows.logits > c.rows || columns.logits > c.columns) {
    return fail(MSSTS_INVALID, "%d x %d logits do not cover a valid part of %d x %d pixels", c.rows, c.columns,
                c.valid_height, c.valid_width);
  }
  const int64_t masks = elements({c.instances, c.frames});
  // Places of pixels are 32-bit numbers, with room for a tile of the map beyond them.
  if (std::max(c.valid_height, c.valid_width) > kMostValid || c.cell > kMostCell ||
      pixels_of(c) > INT32_MAX - 32 * mask_rle::kWordsOfThread * mask_rle::kThreads || masks < 0 ||
      masks > kMostMasks || elements({masks, words_of(c)}) < 0) {
    return fail(MSSTS_UNSUPPORTED, "%lld masks of %d x %d pixels are more than the CUDA kernels count; split them",
                static_cast<long long>(masks), c.height, c.width);
  }
  return MSSTS_OK;
}

}  // namespace

mssts_status validate_mask_rle(const mssts_mask_rle* call, bool tensors) {
  if (call == nullptr) return fail(MSSTS_INVALID, "the call is NULL, expected a mssts_mask_rle");
  const mssts_status status = validate_sizes(*call);
  if (status != MSSTS_OK || !tensors || call->instances == 0 || call->frames == 0) return status;
  struct {
    const char* name;
    const void* data;
    bool needed;
    size_t alignment;
  } const pointers[] = {{"logits", call->logits, true, 4},
                        {"ends", call->ends, true, 8},
                        {"text", call->text, call->capacity > 0, 1},
                        {"workspace", call->workspace, true, 16}};
  for (const auto& pointer : pointers) {
    if (pointer.needed && pointer.data == nullptr) return fail(MSSTS_INVALID, "%s is NULL", pointer.name);
    if (reinterpret_cast<uintptr_t>(pointer.data) % pointer.alignment != 0) {
      return fail(MSSTS_INVALID, "%s is not aligned to %d bytes", pointer.name, static_cast<int>(pointer.alignment));
    }
  }
  return MSSTS_OK;
}

int64_t mask_rle_workspace(const mssts_mask_rle& call) { return call.instances * call.frames * words_of(call) * 4; }

mssts_status launch_mask_rle(const mssts_mask_rle& c, cudaStream_t stream) {
  mask_rle::Call call{};
  call.logits = c.logits;
  call.instance_stride = c.strides[0], call.frame_stride = c.strides[1], call.row_stride = c.strides[2];
  call.frames = static_cast<unsigned>(c.frames);
  call.masks = static_cast<unsigned>(c.instances * c.frames);
  if (call.masks == 0) return MSSTS_OK;
  call.rows = side(c.height, c.valid_height, c.cell);
  call.columns = side(c.width, c.valid_width, c.cell);
  call.pixels = static_cast<int>(pixels_of(c));
  call.words = words_of(c);
  call.map = static_cast<unsigned*>(c.workspace);
  call.ends = c.ends;
  call.text = reinterpret_cast<unsigned char*>(c.text);
  call.capacity = c.capacity;

  const dim3 block(mask_rle::kColumnsOfBlock, mask_rle::kPartsOfColumn);
  const dim3 grid(static_cast<unsigned>((c.width + mask_rle::kColumnsOfBlock - 1) / mask_rle::kColumnsOfBlock),
                  std::min(call.masks, kMostRows));
  const cudaError_t cleared = cudaMemsetAsync(call.map, 0, static_cast<size_t>(mask_rle_workspace(c)), stream);
  if (cleared == cudaSuccess) {
    MSSTS_LAUNCH(mask_rle::mark_changes, grid, block, 0, stream, call);
    MSSTS_LAUNCH(mask_rle::read_changes<false>, call.masks, mask_rle::kThreads, 0, stream, call);
    MSSTS_LAUNCH(mask_rle::sum_lengths, 1, mask_rle::kThreads, 0, stream, call);
    MSSTS_LAUNCH(mask_rle::read_changes<true>, call.masks, mask_rle::kThreads, 0, stream, call);
  }
  return check_launch("the encoding of masks");
}

}  // namespace mssts

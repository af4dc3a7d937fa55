// What the launches of MSDeformAttn's two directions share.
#ifndef MSSTS_CUDA_DEFORM_ATTN_LAUNCH_H
#define MSSTS_CUDA_DEFORM_ATTN_LAUNCH_H

#include <cstddef>
#include <cstdint>

#include "common/dtype.h"
#include "deform_attn.h"
#include "deform_attn_points.cuh"

namespace mssts {

constexpr int kMostWarps = 8;                   // of a block
constexpr size_t kMostShared = 48 * 1024;       // that a block may have without asking
constexpr size_t kStagingBytes = 256 * 3 * 16;  // static, at most

inline DeformArguments arguments_of(const mssts_deform_attn& call) {
  DeformArguments arguments;
  arguments.batch = static_cast<unsigned>(call.batch);
  arguments.tokens = static_cast<unsigned>(call.tokens);
  arguments.queries = static_cast<unsigned>(call.queries);
  arguments.heads = call.heads;
  arguments.channels = call.channels;
  arguments.levels = call.levels;
  arguments.points = call.points;
  arguments.coordinates = call.coordinates;
  arguments.wide_shapes = call.shapes_dtype == MSSTS_INT64;
  arguments.value = call.value;
  arguments.shapes = call.shapes;
  arguments.reference = static_cast<const float*>(call.reference);
  arguments.offsets = call.offsets;
  arguments.logits = call.logits;
  arguments.out = call.out;
  return arguments;
}

inline bool aligned(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

// What kernels with V > 1 want of the inputs but value.
inline bool pairs_aligned(const mssts_deform_attn& call) {
  return aligned(call.offsets, 2 * bytes_of(call.dtype)) && aligned(call.reference, 8);
}

// As many warps as fit, at most kMostWarps; 0 where not even one does.
inline int warps_that_fit(size_t bytes_of_block, size_t bytes_of_warp) {
  int warps = kMostWarps;
  while (warps > 0 && bytes_of_block + warps * bytes_of_warp > kMostShared) --warps;
  return warps;
}

inline unsigned blocks_of(uint64_t warps, int warps_of_block) {
  return static_cast<unsigned>((warps + warps_of_block - 1) / warps_of_block);
}

}  // namespace mssts

#endif  // MSSTS_CUDA_DEFORM_ATTN_LAUNCH_H

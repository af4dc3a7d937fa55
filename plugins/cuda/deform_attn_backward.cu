// The launches and the workspace of MSDeformAttn's backward.
#include "deform_attn_backward.cuh"

#include <algorithm>

#include "common/error.h"
#include "deform_attn_launch.h"

namespace mssts {
namespace {

// Of the kernels that walk over `count` numbers, 256 at a time.
unsigned grid_stride_blocks(uint64_t count) {
  constexpr uint64_t kMost = 1024;
  return static_cast<unsigned>(std::max<uint64_t>(1, std::min(kMost, (count + 255) / 256)));
}

// What lies where in the workspace, each part 256-byte aligned: sums of grad_value (fp32 where the dtype has 16 bits,
// 64-bit integers where deterministic), the latter's marks and scale, and grad_reference of each head.
struct Workspace {
  size_t sums = 0, sums_bytes = 0;
  size_t broken = 0, broken_bytes = 0;
  size_t largest = 0;
  size_t reference = 0;
  size_t bytes = 0;

  explicit Workspace(const mssts_deform_attn& call) {
    const size_t rows = static_cast<size_t>(call.batch) * call.tokens * call.heads;
    const size_t value = rows * call.channels;
    if (call.grad_value != nullptr) {
      const bool fixed = (call.flags & MSSTS_DETERMINISTIC) != 0;
      sums_bytes = fixed ? value * 8 : call.dtype == MSSTS_FLOAT32 ? 0 : value * 4;
      sums = take(sums_bytes);
      broken_bytes = fixed ? rows : 0;
      broken = take(broken_bytes);
      largest = take(fixed ? sizeof(unsigned) : 0);
    }
    if (call.grad_reference != nullptr) {
      reference =
          take(static_cast<size_t>(call.batch) * call.queries * call.heads * call.levels * call.coordinates * 4);
    }
  }

 private:
  size_t take(size_t size) {
    const size_t begin = bytes;
    bytes += (size + 255) / 256 * 256;
    return begin;
  }
};

using Kernel = void (*)(DeformArguments, DeformGradients);

struct Choice {
  Kernel kernel;
  int items;  // of a warp
};

template <typename T, bool Fixed>
Choice choose(const mssts_deform_attn& call) {
  const bool wide = call.channels % 4 == 0 && aligned(call.value, 4 * sizeof(T)) &&
                    aligned(call.grad_out, 4 * sizeof(T)) && aligned(call.grad_value, 4 * sizeof(T)) &&
                    pairs_aligned(call);
  const size_t eight_items = static_cast<size_t>(call.levels) * call.points * 8 * 12;
  if (!wide || eight_items > kMostShared / 4) return {deform_backward<T, 1, 32, false, Fixed>, 1};
  if (call.channels <= 16) return {deform_backward<T, 4, 4, false, Fixed>, 8};
  const bool model = call.channels == 32 && call.levels == 4 && call.points == 4 && call.grad_value != nullptr;
  return {model ? deform_backward<T, 4, 8, true, Fixed> : deform_backward<T, 4, 8, false, Fixed>, 4};
}

template <typename T>
mssts_status launch(const mssts_deform_attn& call, cudaStream_t stream) {
  const bool fixed = call.grad_value != nullptr && (call.flags & MSSTS_DETERMINISTIC) != 0;
  const Choice choice = fixed ? choose<T, true>(call) : choose<T, false>(call);
  const size_t table = sizeof(Level) * call.levels;
  const size_t bytes_of_warp = static_cast<size_t>(call.levels) * call.points * choice.items * 3 * sizeof(float);
  const int warps = warps_that_fit(table + kStagingBytes, bytes_of_warp);
  if (warps == 0) {
    return fail(MSSTS_UNSUPPORTED, "%d levels of %d points are more than the CUDA backward has room for", call.levels,
                call.points);
  }
  const Workspace space(call);
  char* const workspace = static_cast<char*>(call.workspace);
  const uint64_t values = static_cast<uint64_t>(call.batch) * call.tokens * call.heads * call.channels;
  const uint64_t items = static_cast<uint64_t>(call.batch) * call.queries * call.heads;

  DeformGradients gradients{};
  gradients.out = call.grad_out;
  gradients.offsets = call.grad_offsets;
  gradients.logits = call.grad_logits;
  if (call.grad_reference != nullptr) gradients.reference = reinterpret_cast<float*>(workspace + space.reference);
  if (fixed) {
    gradients.fixed_value = reinterpret_cast<unsigned long long*>(workspace + space.sums);
    gradients.broken_value = reinterpret_cast<unsigned char*>(workspace + space.broken);
    unsigned* const largest = reinterpret_cast<unsigned*>(workspace + space.largest);
    gradients.largest = largest;
    cudaMemsetAsync(gradients.fixed_value, 0, space.sums_bytes, stream);
    cudaMemsetAsync(gradients.broken_value, 0, space.broken_bytes, stream);
    cudaMemsetAsync(largest, 0, sizeof *largest, stream);
    MSSTS_LAUNCH(deform_largest<T>, grid_stride_blocks(items * call.channels), 256, 0, stream,
                 static_cast<const T*>(call.grad_out), items * call.channels, largest);
  } else if (call.grad_value != nullptr) {
    gradients.value =
        sizeof(T) == 4 ? static_cast<float*>(call.grad_value) : reinterpret_cast<float*>(workspace + space.sums);
    cudaMemsetAsync(gradients.value, 0, values * sizeof(float), stream);
  }

  const unsigned blocks = blocks_of((items + choice.items - 1) / choice.items, warps);
  MSSTS_LAUNCH(choice.kernel, blocks, 32 * warps, table + warps * bytes_of_warp, stream, arguments_of(call), gradients);

  if (fixed) {
    MSSTS_LAUNCH(deform_round_fixed<T>, grid_stride_blocks(values), 256, 0, stream, gradients,
                 static_cast<unsigned>(call.queries), call.channels, values, static_cast<T*>(call.grad_value));
  } else if (call.grad_value != nullptr && sizeof(T) == 2) {
    T* const rounded = static_cast<T*>(call.grad_value);
    if (values % 4 == 0 && aligned(rounded, 4 * sizeof(T))) {
      MSSTS_LAUNCH((deform_round<T, 4>), grid_stride_blocks(values / 4), 256, 0, stream, gradients.value, values,
                   rounded);
    } else {
      MSSTS_LAUNCH((deform_round<T, 1>), grid_stride_blocks(values), 256, 0, stream, gradients.value, values, rounded);
    }
  }
  if (call.grad_reference != nullptr) {
    const int inner = call.levels * call.coordinates;
    const uint64_t numbers = static_cast<uint64_t>(call.batch) * call.queries * inner;
    MSSTS_LAUNCH(deform_sum_heads, grid_stride_blocks(numbers), 256, 0, stream, gradients.reference, numbers,
                 call.heads, inner, static_cast<float*>(call.grad_reference));
  }
  return check_launch("the backward of deformable attention");
}

void zero(void* pointer, uint64_t elements, size_t bytes, cudaStream_t stream) {
  if (pointer != nullptr && elements > 0) cudaMemsetAsync(pointer, 0, elements * bytes, stream);
}

}  // namespace

int64_t deform_workspace(const mssts_deform_attn& call) {
  if (call.batch == 0 || call.queries == 0 || call.tokens == 0) return 0;
  return static_cast<int64_t>(Workspace(call).bytes);
}

mssts_status launch_deform_backward(const mssts_deform_attn& call, cudaStream_t stream) {
  if (call.batch == 0 || call.queries == 0 || call.tokens == 0) {
    const size_t bytes = bytes_of(call.dtype);
    const uint64_t queries = static_cast<uint64_t>(call.batch) * call.queries;
    const uint64_t points = queries * call.heads * call.levels * call.points;
    zero(call.grad_value, static_cast<uint64_t>(call.batch) * call.tokens * call.heads * call.channels, bytes, stream);
    zero(call.grad_offsets, points * 2, bytes, stream);
    zero(call.grad_logits, points, bytes, stream);
    zero(call.grad_reference, queries * call.levels * call.coordinates, sizeof(float), stream);
    return check_launch("the backward of deformable attention");
  }
  if (call.dtype == MSSTS_FLOAT32) return launch<float>(call, stream);
  return call.dtype == MSSTS_FLOAT16 ? launch<__half>(call, stream) : launch<__nv_bfloat16>(call, stream);
}

}  // namespace mssts

// Which forward kernel a call of MSDeformAttn gets.
#include "deform_attn_forward.cuh"

#include <cstdlib>
#include <cstring>

#include "common/error.h"
#include "deform_attn_launch.h"

namespace mssts {
namespace {

constexpr int kMostGrid = 65535;  // in its second and third dimension

using Kernel = void (*)(DeformArguments);

struct Choice {
  Kernel kernel = nullptr;
  unsigned items = 0;  // of a warp
  size_t bytes_of_block = 0, static_bytes = 0;
  size_t bytes_of_warp = 0;
  bool by_slice = false;  // the grid is (blocks of a frame's queries, heads, frames)
};

// The model's levels and points, with what a lane loads at once aligned.
bool is_models(const mssts_deform_attn& call) {
  return call.levels == 4 && call.points == 4 && aligned(call.offsets, 16) && aligned(call.logits, 8);
}

template <typename T>
Kernel tensor_kernel(const mssts_deform_attn& call) {
  if (call.channels == 64) return deform_forward_tensor<T, 64, 0, 0, 0>;
  if (!is_models(call)) return deform_forward_tensor<T, 32, 0, 0, 0>;
  return call.coordinates == 2 ? deform_forward_tensor<T, 32, 4, 4, 2> : deform_forward_tensor<T, 32, 4, 4, 4>;
}

// For comparison, and should the tensor kernel ever err on some GPU: MSSTS_CUDA_PATH=fma in the environment at the
// first call has the vector kernel compute everything, as the flag does for one call.
bool without_tensor_cores(const mssts_deform_attn& call) {
  static const bool always = [] {
    const char* path = std::getenv("MSSTS_CUDA_PATH");
    return path != nullptr && std::strcmp(path, "fma") == 0;
  }();
  return always || (call.flags & MSSTS_NO_TENSOR_CORES) != 0;
}

// Words on the tensor kernel's limits are in deform_attn_forward.cuh.
template <typename T>
bool choose_tensor(const mssts_deform_attn& call, Choice* choice) {
  if constexpr (sizeof(T) == 4) {
    return false;
  } else {
    if ((call.channels != 32 && call.channels != 64) || call.tokens > 1 << 30) return false;
    if (call.heads > kMostGrid || call.batch > kMostGrid || without_tensor_cores(call)) return false;
    if (!aligned(call.value, 16) || !aligned(call.out, 16) || !pairs_aligned(call)) return false;
    Choice tensor;
    tensor.kernel = tensor_kernel<T>(call);
    tensor.items = 8;
    tensor.by_slice = true;
    tensor.bytes_of_block = call.channels == 32 && is_models(call) ? 0 : sizeof(Level) * call.levels;
    tensor.bytes_of_warp = static_cast<size_t>((call.levels * call.points + 3) / 4) * 256 * sizeof(unsigned);
    if (warps_that_fit(tensor.bytes_of_block, tensor.bytes_of_warp) == 0) return false;
    *choice = tensor;
    return true;
  }
}

template <typename T, int V, int G>
Choice vector_choice(const mssts_deform_attn& call) {
  return {deform_forward_vector<T, V, G>, 32 / G, sizeof(Level) * call.levels, 256 * 32, 0, false};
}

template <typename T>
Choice choose_vector(const mssts_deform_attn& call) {
  constexpr int kWide = 16 / sizeof(T);
  if (call.channels % kWide != 0 || !aligned(call.value, 16) || !aligned(call.out, 16) || !pairs_aligned(call)) {
    return vector_choice<T, 1, 32>(call);
  }
  const int chunks = call.channels / kWide;
  return chunks <= 4 ? vector_choice<T, kWide, 4>(call) : vector_choice<T, kWide, 8>(call);
}

template <typename T>
mssts_status launch(const mssts_deform_attn& call, cudaStream_t stream) {
  Choice choice;
  if (!choose_tensor<T>(call, &choice)) choice = choose_vector<T>(call);
  const int warps = warps_that_fit(choice.bytes_of_block + choice.static_bytes, choice.bytes_of_warp);
  if (warps == 0) return fail(MSSTS_UNSUPPORTED, "%d levels are more than the CUDA kernels have room for", call.levels);
  const uint64_t chunks = (static_cast<uint64_t>(call.queries) + choice.items - 1) / choice.items;
  const uint64_t slices = static_cast<uint64_t>(call.batch) * call.heads;
  const dim3 grid = choice.by_slice ? dim3(blocks_of(chunks, warps), static_cast<unsigned>(call.heads),
                                           static_cast<unsigned>(call.batch))
                                    : dim3(blocks_of(chunks * slices, warps));
  MSSTS_LAUNCH(choice.kernel, grid, 32 * warps, choice.bytes_of_block + warps * choice.bytes_of_warp, stream,
               arguments_of(call));
  return check_launch("the forward of deformable attention");
}

}  // namespace

mssts_status launch_deform_forward(const mssts_deform_attn& call, cudaStream_t stream) {
  if (call.batch == 0 || call.queries == 0) return MSSTS_OK;
  if (call.tokens == 0) {
    // No token, no sample.
    const size_t elements = static_cast<size_t>(call.batch) * call.queries * call.heads * call.channels;
    cudaMemsetAsync(call.out, 0, elements * bytes_of(call.dtype), stream);
    return check_launch("the forward of deformable attention");
  }
  if (call.dtype == MSSTS_FLOAT32) return launch<float>(call, stream);
  return call.dtype == MSSTS_FLOAT16 ? launch<__half>(call, stream) : launch<__nv_bfloat16>(call, stream);
}

}  // namespace mssts

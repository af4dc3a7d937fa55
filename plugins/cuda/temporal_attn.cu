#include "temporal_attn.h"

#include <algorithm>

#include "common/error.h"
#include "temporal_attn_backward.cuh"
#include "temporal_attn_wide.cuh"

namespace mssts {
namespace temporal {
namespace {

constexpr int kThreads = 64;  // small blocks: the locations of one clip then fill every multiprocessor evenly
constexpr int64_t kMostBlocks = 0x7fffffff;
constexpr int kMostRows = 65535;  // of a grid's y and z
constexpr int kUsualShared = 48 * 1024;
constexpr int kMostShared = 96 * 1024;  // what every GPU from sm_80 on gives a block that asks for it

// How a call is cut into blocks; 0 lanes: the fast path cannot take it.
struct Cut {
  int lanes = 0;
  int heads_of_block = 0;
  int locations_of_block = 0;
  unsigned threads = 0;
  int64_t blocks = 0;  // of locations
  int parts = 0;       // of heads
};

Cut cut_of(const mssts_temporal_attn& call, int channels_of_lane, int most_threads = kThreads) {
  Cut cut;
  int lanes = 1;
  while (lanes < 32 && lanes * channels_of_lane < call.channels) lanes *= 2;
  if (static_cast<int64_t>(lanes) * channels_of_lane < call.channels) return cut;
  cut.lanes = lanes;
  cut.heads_of_block = std::min(call.heads, most_threads / lanes);
  cut.locations_of_block = most_threads / lanes / cut.heads_of_block;
  // Whole warps, all of whose lanes stay to the end: shuffles then need no mask.
  cut.threads = static_cast<unsigned>((lanes * cut.heads_of_block * cut.locations_of_block + 31) / 32 * 32);
  cut.blocks = (call.locations + cut.locations_of_block - 1) / cut.locations_of_block;
  cut.parts = (call.heads + cut.heads_of_block - 1) / cut.heads_of_block;
  return cut;
}

// Queries that a pass takes: few passes first, few idle rows then.
int frames_of_pass(int frames) {
  const int passes = (frames + 7) / 8;
  const int wanted = (frames + passes - 1) / passes;
  for (const int size : {1, 2, 5}) {
    if (wanted <= size) return size;
  }
  return 8;
}

// Keys that are loaded at once: 5, or 4 where that leaves fewer places idle.
bool keys_by_four(int frames) { return (frames + 3) / 4 * 4 < (frames + 4) / 5 * 5; }

template <typename Element, typename Pointer>
Tokens<Element> strided(Pointer* data, const int64_t (&strides)[3]) {
  return {static_cast<Element*>(data), strides[0], strides[1], strides[2]};
}

template <typename Element, typename Pointer>
Tokens<Element> dense(Pointer* data, int64_t frames, int64_t locations, int64_t width) {
  return {static_cast<Element*>(data), frames * locations * width, locations * width, width};
}

// Whether all tokens begin at multiples of 16 bytes, and heads are whole lanes.
template <typename T>
bool vectors_fit(const TemporalAttn<T>& view) {
  constexpr int kLane = Storage<T>::kLane;
  const auto fits = [](const auto& tokens) {
    return reinterpret_cast<uintptr_t>(tokens.data) % 16 == 0 && tokens.clip % kLane == 0 &&
           tokens.frame % kLane == 0 && tokens.location % kLane == 0;
  };
  return view.channels % kLane == 0 && fits(view.query) && fits(view.key) && fits(view.value) && fits(view.out) &&
         fits(view.grad_out) && fits(view.grad_query) && fits(view.grad_key) && fits(view.grad_value);
}

template <typename T>
TemporalAttn<T> view_of(const mssts_temporal_attn& call, const Cut& cut) {
  const int64_t T_ = call.query_frames, U = call.key_frames, S = call.locations;
  const int64_t C = static_cast<int64_t>(call.heads) * call.channels;
  TemporalAttn<T> view{};
  view.query = strided<const T>(call.query, call.query_strides);
  view.key = strided<const T>(call.key, call.key_strides);
  view.value = strided<const T>(call.value, call.value_strides);
  view.grad_out = dense<const T>(call.grad_out, T_, S, C);
  view.out = dense<T>(call.out, T_, S, C);
  view.grad_query = dense<T>(call.grad_query, T_, S, C);
  view.grad_key = dense<T>(call.grad_key, U, S, C);
  view.grad_value = dense<T>(call.grad_value, U, S, C);
  view.locations = S;
  view.query_frames = call.query_frames;
  view.key_frames = call.key_frames;
  view.heads = call.heads;
  view.channels = call.channels;
  view.lanes = cut.lanes;
  view.heads_of_block = cut.heads_of_block;
  view.locations_of_block = cut.locations_of_block;
  return view;
}

template <typename T>
void skip_clips(TemporalAttn<T>& view, int64_t clips) {
  const auto skip = [clips](auto& tokens) {
    if (tokens.data != nullptr) tokens.data += clips * tokens.clip;
  };
  skip(view.query), skip(view.key), skip(view.value), skip(view.grad_out);
  skip(view.out), skip(view.grad_query), skip(view.grad_key), skip(view.grad_value);
}

// launch(view, clips) for at most kMostRows clips at a time.
template <typename T, typename Launch>
void for_clips(TemporalAttn<T> view, int64_t batch, const Launch& launch) {
  for (int64_t done = 0; done < batch; done += kMostRows) {
    launch(view, static_cast<unsigned>(std::min<int64_t>(kMostRows, batch - done)));
    skip_clips(view, kMostRows);
  }
}

template <typename T>
void forward_by(int frames, bool by_four, bool vectors, dim3 grid, unsigned threads, cudaStream_t stream,
                const TemporalAttn<T>& view) {
  if (!vectors) {
    MSSTS_LAUNCH((temporal_attn_forward_kernel<T, 5, 5, false>), grid, threads, 0, stream, view);
  } else if (frames == 1) {
    MSSTS_LAUNCH((temporal_attn_forward_kernel<T, 1, 5, true>), grid, threads, 0, stream, view);
  } else if (frames == 2) {
    MSSTS_LAUNCH((temporal_attn_forward_kernel<T, 2, 5, true>), grid, threads, 0, stream, view);
  } else if (frames == 5 && by_four) {
    MSSTS_LAUNCH((temporal_attn_forward_kernel<T, 5, 4, true>), grid, threads, 0, stream, view);
  } else if (frames == 5) {
    MSSTS_LAUNCH((temporal_attn_forward_kernel<T, 5, 5, true>), grid, threads, 0, stream, view);
  } else {
    MSSTS_LAUNCH((temporal_attn_forward_kernel<T, 8, 4, true>), grid, threads, 0, stream, view);
  }
}

template <typename T, bool kVectors>
void backward_in_passes(dim3 grid, unsigned threads, size_t shared_bytes, cudaStream_t stream,
                        const TemporalAttn<T>& view) {
  const auto kernel = temporal_attn_backward_kernel<T, 5, 5, kVectors, true>;
  if (shared_bytes > kUsualShared) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  }
  MSSTS_LAUNCH(kernel, grid, threads, shared_bytes, stream, view);
}

template <typename T>
void backward_by(int frames, bool vectors, dim3 grid, unsigned threads, cudaStream_t stream,
                 const TemporalAttn<T>& view) {
  if (!vectors) {
    MSSTS_LAUNCH((temporal_attn_backward_kernel<T, 5, 5, false, false>), grid, threads, 0, stream, view);
  } else if (frames == 1) {
    MSSTS_LAUNCH((temporal_attn_backward_kernel<T, 1, 5, true, false>), grid, threads, 0, stream, view);
  } else if (frames == 2) {
    MSSTS_LAUNCH((temporal_attn_backward_kernel<T, 2, 5, true, false>), grid, threads, 0, stream, view);
  } else {
    MSSTS_LAUNCH((temporal_attn_backward_kernel<T, 5, 5, true, false>), grid, threads, 0, stream, view);
  }
}

int64_t wide_blocks(const mssts_temporal_attn& call, int frames) {
  const int64_t pieces = (call.channels + 32 * kWide - 1) / (32 * kWide);
  return (call.locations * frames * call.heads * pieces + kWarpsOfBlock - 1) / kWarpsOfBlock;
}

mssts_status too_large(const mssts_temporal_attn& call) {
  return fail(MSSTS_UNSUPPORTED, "%lld locations of %d heads are more than the CUDA kernels launch at once; split them",
              static_cast<long long>(call.locations), call.heads);
}

template <typename T>
mssts_status forward(const mssts_temporal_attn& call, cudaStream_t stream) {
  const Cut cut = cut_of(call, Storage<T>::kLane);
  const TemporalAttn<T> view = view_of<T>(call, cut);
  if (cut.lanes == 0 || cut.parts > kMostRows) {
    const int64_t blocks = wide_blocks(call, call.query_frames);
    if (blocks > kMostBlocks) return too_large(call);
    for_clips(view, call.batch, [&](const TemporalAttn<T>& clips_view, unsigned clips) {
      MSSTS_LAUNCH(temporal_attn_forward_wide_kernel<T>, dim3(static_cast<unsigned>(blocks), 1, clips),
                   32 * kWarpsOfBlock, 0, stream, clips_view);
    });
    return MSSTS_OK;
  }
  if (cut.blocks > kMostBlocks) return too_large(call);
  const bool vectors = vectors_fit(view), by_four = keys_by_four(call.key_frames);
  const int frames = frames_of_pass(call.query_frames);
  for_clips(view, call.batch, [&](const TemporalAttn<T>& clips_view, unsigned clips) {
    const dim3 grid(static_cast<unsigned>(cut.blocks), static_cast<unsigned>(cut.parts), clips);
    forward_by(frames, by_four, vectors, grid, cut.threads, stream, clips_view);
  });
  return MSSTS_OK;
}

template <typename T>
mssts_status backward(const mssts_temporal_attn& call, cudaStream_t stream) {
  const bool many = call.query_frames > 5;
  const int64_t sums_of_thread = many ? int64_t{2} * call.key_frames * Storage<T>::kLane * 4 : 0;  // KeySums
  const Cut cut = cut_of(call, Storage<T>::kLane, sums_of_thread * kThreads > kUsualShared ? 32 : kThreads);
  const TemporalAttn<T> view = view_of<T>(call, cut);
  const int64_t sums_bytes = sums_of_thread * cut.threads;
  if (cut.lanes == 0 || cut.parts > kMostRows || sums_bytes > kMostShared) {
    const int64_t query_blocks = wide_blocks(call, call.query_frames), key_blocks = wide_blocks(call, call.key_frames);
    if (std::max(query_blocks, key_blocks) > kMostBlocks) return too_large(call);
    for_clips(view, call.batch, [&](const TemporalAttn<T>& clips_view, unsigned clips) {
      if (call.grad_query != nullptr) {
        MSSTS_LAUNCH(temporal_attn_grad_query_wide_kernel<T>, dim3(static_cast<unsigned>(query_blocks), 1, clips),
                     32 * kWarpsOfBlock, 0, stream, clips_view);
      }
      if (call.grad_key != nullptr || call.grad_value != nullptr) {
        MSSTS_LAUNCH(temporal_attn_grad_key_wide_kernel<T>, dim3(static_cast<unsigned>(key_blocks), 1, clips),
                     32 * kWarpsOfBlock, 0, stream, clips_view);
      }
    });
    return MSSTS_OK;
  }
  if (cut.blocks > kMostBlocks) return too_large(call);
  const bool vectors = vectors_fit(view);
  for_clips(view, call.batch, [&](const TemporalAttn<T>& clips_view, unsigned clips) {
    const dim3 grid(static_cast<unsigned>(cut.blocks), static_cast<unsigned>(cut.parts), clips);
    if (!many) {
      backward_by(call.query_frames, vectors, grid, cut.threads, stream, clips_view);
    } else if (vectors) {
      backward_in_passes<T, true>(grid, cut.threads, static_cast<size_t>(sums_bytes), stream, clips_view);
    } else {
      backward_in_passes<T, false>(grid, cut.threads, static_cast<size_t>(sums_bytes), stream, clips_view);
    }
  });
  return MSSTS_OK;
}

bool is_empty(const mssts_temporal_attn& call) {
  return call.batch == 0 || call.locations == 0 || call.heads == 0 || call.channels == 0;
}

}  // namespace
}  // namespace temporal

mssts_status launch_temporal_forward(const mssts_temporal_attn& call, cudaStream_t stream) {
  if (temporal::is_empty(call) || call.query_frames == 0) return MSSTS_OK;
  switch (call.dtype) {
    case MSSTS_FLOAT32: return temporal::forward<float>(call, stream);
    case MSSTS_FLOAT16: return temporal::forward<__half>(call, stream);
    case MSSTS_BFLOAT16: return temporal::forward<__nv_bfloat16>(call, stream);
    default: return MSSTS_UNSUPPORTED;
  }
}

mssts_status launch_temporal_backward(const mssts_temporal_attn& call, cudaStream_t stream) {
  if (temporal::is_empty(call)) return MSSTS_OK;
  if (call.query_frames == 0) {
    const size_t element = call.dtype == MSSTS_FLOAT32 ? 4 : 2;
    const size_t bytes = element * static_cast<size_t>(call.batch * call.key_frames * call.locations * call.heads) *
                         static_cast<size_t>(call.channels);
    for (void* gradient : {call.grad_key, call.grad_value}) {
      if (gradient != nullptr) cudaMemsetAsync(gradient, 0, bytes, stream);
    }
    return MSSTS_OK;
  }
  switch (call.dtype) {
    case MSSTS_FLOAT32: return temporal::backward<float>(call, stream);
    case MSSTS_FLOAT16: return temporal::backward<__half>(call, stream);
    case MSSTS_BFLOAT16: return temporal::backward<__nv_bfloat16>(call, stream);
    default: return MSSTS_UNSUPPORTED;
  }
}

}  // namespace mssts

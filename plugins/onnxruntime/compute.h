// One execution of a node: its tensors, checked, as a call of the C ABI. Throws Failure.
#ifndef MSSTS_ONNXRUNTIME_COMPUTE_H
#define MSSTS_ONNXRUNTIME_COMPUTE_H

#include <mssts/kernels.h>

#include <array>
#include <string>

#include "api.h"
#include "common/node.h"
#include "session_threads.h"

namespace mssts::ort {

enum class Device { kCpu, kCuda };

// What is settled when a session creates the kernel of a node.
struct Kernel {
  const OrtApi& api;
  Device device;
  int32_t dtype;         // an mssts_dtype
  int32_t shapes_dtype;  // MSDeformAttn alone
  int64_t heads;         // SplitTemporalAttn alone, and:
  Channels channels;
};

inline void check_status(const Node& node, int status) {
  if (status == MSSTS_OK) return;
  const OrtErrorCode code = status == MSSTS_INVALID       ? ORT_INVALID_ARGUMENT
                            : status == MSSTS_UNSUPPORTED ? ORT_NOT_IMPLEMENTED
                                                          : ORT_FAIL;
  throw Failure(code, std::string(node.op) + ": " + mssts_last_error());
}

// Calls cpu(call, executor) with the session's threads, or cuda(call, stream) with the session's stream.
template <typename Call, typename Cpu, typename Cuda>
void launch(const Node& node, const Kernel& kernel, OrtKernelContext* context, const Call& call, Cpu cpu, Cuda cuda) {
  if (kernel.device == Device::kCpu) {
    SessionThreads threads(kernel.api, context);
    const mssts_executor executor = threads.executor();
    const int status = cpu(&call, &executor);
    threads.check_run();
    check_status(node, status);
  } else {
    void* stream = nullptr;
    check(kernel.api.KernelContext_GetGPUComputeStream(context, &stream));
    check_status(node, cuda(&call, stream));
  }
}

#ifdef MSSTS_WITH_CUDA
constexpr auto kCudaDeformAttn = &mssts_cuda_deform_attn_forward;
constexpr auto kCudaTemporalAttn = &mssts_cuda_temporal_attn_forward;
#else
// Never called: without the CUDA kernels, none for a GPU is registered.
constexpr auto kCudaDeformAttn = [](const mssts_deform_attn*, void*) -> int { return MSSTS_UNSUPPORTED; };
constexpr auto kCudaTemporalAttn = [](const mssts_temporal_attn*, void*) -> int { return MSSTS_UNSUPPORTED; };
#endif

inline void check_node(const Node& node, const std::string& wrong) {
  if (!wrong.empty()) throw Failure(ORT_INVALID_ARGUMENT, std::string(node.op) + ": " + wrong);
}

struct Inputs {
  Letters sizes;
  std::array<const void*, 5> data{};
  std::array<int64_t, 5> widths{};  // of the tensors' last dimension
};

inline Inputs inputs_of(const Node& node, const Kernel& kernel, const OrtKernelContext* context) {
  Inputs inputs;
  for (size_t i = 0; i < static_cast<size_t>(node.input_count); ++i) {
    Tensor tensor = input(kernel.api, context, i);
    inputs.widths[i] = tensor.sizes.empty() ? 0 : tensor.sizes.back();
    check_node(node, kernel.channels.take(static_cast<int32_t>(i), &tensor.sizes));
    check_node(node, inputs.sizes.bind(node.tensors[i], tensor.sizes));
    inputs.data[i] = tensor.data;
  }
  return inputs;
}

inline void compute_deform_attn(const Kernel& kernel, OrtKernelContext* context) {
  const Inputs inputs = inputs_of(kDeformAttn, kernel, context);
  const Letters& sizes = inputs.sizes;
  check_node(kDeformAttn, deform_attn_error(sizes));
  void* out = output(kernel.api, context, {sizes['N'], sizes['Q'], sizes['M'] * sizes['D']});
  const mssts_deform_attn call = deform_attn_call(sizes, kernel.dtype, kernel.shapes_dtype, inputs.data.data(), out);
  launch(kDeformAttn, kernel, context, call, &mssts_cpu_deform_attn_forward, kCudaDeformAttn);
}

inline void compute_temporal_attn(const Kernel& kernel, OrtKernelContext* context) {
  const Inputs inputs = inputs_of(kTemporalAttn, kernel, context);
  const Letters& sizes = inputs.sizes;
  check_node(kTemporalAttn, temporal_attn_error(sizes, kernel.heads));
  void* out = output(kernel.api, context, {sizes['B'], sizes['T'], sizes['S'], sizes['C']});
  const mssts_temporal_attn call = temporal_attn_call(sizes, kernel.heads, kernel.dtype, kernel.channels,
                                                      inputs.widths.data(), inputs.data.data(), out);
  launch(kTemporalAttn, kernel, context, call, &mssts_cpu_temporal_attn_forward, kCudaTemporalAttn);
}

}  // namespace mssts::ort

#endif  // MSSTS_ONNXRUNTIME_COMPUTE_H

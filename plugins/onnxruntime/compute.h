/* One execution of a node: its tensors, checked, as a call of the C ABI. Throws Failure. */
#ifndef MSSTS_ONNXRUNTIME_COMPUTE_H
#define MSSTS_ONNXRUNTIME_COMPUTE_H

#include <mssts/kernels.h>

#include <string>
#include <vector>

#include "letters.h"
#include "runtime.h"
#include "session_threads.h"

namespace mssts::ort {

enum class Device { kCpu, kCuda };

/* What is settled when a session creates the kernel of a node. */
struct Kernel {
  const OrtApi& api;
  Device device;
  int32_t dtype;         // an mssts_dtype
  int32_t shapes_dtype;  // MSDeformAttn alone
  int64_t heads;         // SplitTemporalAttn alone
};

inline void CheckStatus(const char* op, int status) {
  if (status == MSSTS_OK) return;
  const OrtErrorCode code = status == MSSTS_INVALID       ? ORT_INVALID_ARGUMENT
                            : status == MSSTS_UNSUPPORTED ? ORT_NOT_IMPLEMENTED
                                                          : ORT_FAIL;
  throw Failure(code, std::string(op) + ": " + mssts_last_error());
}

/* Calls cpu(call, executor) with the session's threads, or cuda(call, stream) with the session's stream. */
template <typename Call, typename Cpu, typename Cuda>
void Launch(const char* op, const Kernel& kernel, OrtKernelContext* context, const Call& call, Cpu cpu, Cuda cuda) {
  if (kernel.device == Device::kCpu) {
    SessionThreads threads(kernel.api, context);
    const mssts_executor executor = threads.Executor();
    const int status = cpu(&call, &executor);
    threads.CheckRun();
    CheckStatus(op, status);
  } else {
    void* stream = nullptr;
    Check(kernel.api.KernelContext_GetGPUComputeStream(context, &stream));
    CheckStatus(op, cuda(&call, stream));
  }
}

#ifdef MSSTS_WITH_CUDA
constexpr auto kCudaDeformAttn = &mssts_cuda_deform_attn_forward;
constexpr auto kCudaTemporalAttn = &mssts_cuda_temporal_attn_forward;
#else
// Never called: without the CUDA half no kernel for a GPU is registered.
constexpr auto kCudaDeformAttn = [](const mssts_deform_attn*, void*) -> int { return MSSTS_UNSUPPORTED; };
constexpr auto kCudaTemporalAttn = [](const mssts_temporal_attn*, void*) -> int { return MSSTS_UNSUPPORTED; };
#endif

inline void ComputeDeformAttn(const Kernel& kernel, OrtKernelContext* context) {
  constexpr const char* kOp = "MSDeformAttn";
  const OrtApi& api = kernel.api;
  const Tensor value = Input(api, context, 0);
  const Tensor shapes = Input(api, context, 1);
  const Tensor reference = Input(api, context, 2);
  const Tensor offsets = Input(api, context, 3);
  const Tensor logits = Input(api, context, 4);
  Letters sizes(kOp);
  sizes.Match("value", "NSMD", value.sizes);
  sizes.Match("shapes", "L2", shapes.sizes);
  sizes.Match("reference", "NQLR", reference.sizes);
  sizes.Match("offsets", "NQMLP2", offsets.sizes);
  sizes.Match("logits", "NQMLP", logits.sizes);

  mssts_deform_attn call{};
  call.batch = sizes['N'];
  call.tokens = sizes['S'];
  call.queries = sizes['Q'];
  call.heads = sizes.Small('M');
  call.channels = sizes.Small('D');
  call.levels = sizes.Small('L');
  call.points = sizes.Small('P');
  call.coordinates = sizes.Small('R');
  call.dtype = kernel.dtype;
  call.shapes_dtype = kernel.shapes_dtype;
  call.value = value.data;
  call.shapes = shapes.data;
  call.reference = reference.data;
  call.offsets = offsets.data;
  call.logits = logits.data;
  call.out = Output(api, context, {sizes['N'], sizes['Q'], sizes['M'] * sizes['D']});
  Launch(kOp, kernel, context, call, &mssts_cpu_deform_attn_forward, kCudaDeformAttn);
}

inline void ComputeTemporalAttn(const Kernel& kernel, OrtKernelContext* context) {
  constexpr const char* kOp = "SplitTemporalAttn";
  const OrtApi& api = kernel.api;
  const Tensor query = Input(api, context, 0);
  const Tensor key = Input(api, context, 1);
  const Tensor value = Input(api, context, 2);
  Letters sizes(kOp);
  sizes.Match("query", "BTSC", query.sizes);
  sizes.Match("key", "BUSC", key.sizes);
  sizes.Match("value", "BUSC", value.sizes);
  const int64_t S = sizes['S'], C = sizes['C'];
  if (C % kernel.heads != 0) {
    throw Failure(ORT_INVALID_ARGUMENT, std::string(kOp) + ": the " + std::to_string(C) +
                                            " channels of query are no multiple of heads=" +
                                            std::to_string(kernel.heads));
  }

  mssts_temporal_attn call{};
  call.batch = sizes['B'];
  call.locations = S;
  call.query_frames = sizes.Small('T');
  call.key_frames = sizes.Small('U');
  call.heads = static_cast<int32_t>(kernel.heads);
  call.channels = static_cast<int32_t>(sizes.Small('C') / kernel.heads);
  call.dtype = kernel.dtype;
  const auto dense = [S, C](int64_t (&strides)[3], int64_t frames) {
    strides[0] = frames * S * C;
    strides[1] = S * C;
    strides[2] = C;
  };
  dense(call.query_strides, sizes['T']);
  dense(call.key_strides, sizes['U']);
  dense(call.value_strides, sizes['U']);
  call.query = query.data;
  call.key = key.data;
  call.value = value.data;
  call.out = Output(api, context, query.sizes);
  Launch(kOp, kernel, context, call, &mssts_cpu_temporal_attn_forward, kCudaTemporalAttn);
}

}  // namespace mssts::ort

#endif  // MSSTS_ONNXRUNTIME_COMPUTE_H

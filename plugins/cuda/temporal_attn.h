// Host side of SplitTemporalAttn on CUDA: chooses the kernels of a checked call (api.cu checks it) and launches
// them.
#ifndef MSSTS_CUDA_TEMPORAL_ATTN_H
#define MSSTS_CUDA_TEMPORAL_ATTN_H

#include "launch.h"
#include "mssts/kernels.h"

namespace mssts {

// Take a valid call of fp32, fp16 or bf16 with at least one key frame; an empty one launches nothing. What the launches
// themselves say is left to check_launch(). MSSTS_UNSUPPORTED: another dtype, or more blocks than a grid has.
mssts_status launch_temporal_forward(const mssts_temporal_attn& call, cudaStream_t stream);
mssts_status launch_temporal_backward(const mssts_temporal_attn& call, cudaStream_t stream);

}  // namespace mssts

#endif  // MSSTS_CUDA_TEMPORAL_ATTN_H

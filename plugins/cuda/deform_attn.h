// MSDeformAttn on a GPU, for checked calls (api.cu checks them).
#ifndef MSSTS_CUDA_DEFORM_ATTN_H
#define MSSTS_CUDA_DEFORM_ATTN_H

#include "launch.h"
#include "mssts/kernels.h"

namespace mssts {

mssts_status launch_deform_forward(const mssts_deform_attn& call, cudaStream_t stream);
mssts_status launch_deform_backward(const mssts_deform_attn& call, cudaStream_t stream);
int64_t deform_workspace(const mssts_deform_attn& call);

// MSSTS_OK, or what cudaGetLastError says of the launches of `what`.
mssts_status check_launch(const char* what);

}  // namespace mssts

#endif  // MSSTS_CUDA_DEFORM_ATTN_H

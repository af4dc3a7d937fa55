// Host side of mask encoding on CUDA: checks a call, then launches its kernels.
#ifndef MSSTS_CUDA_MASK_RLE_H
#define MSSTS_CUDA_MASK_RLE_H

#include "launch.h"
#include "mssts/kernels.h"

namespace mssts {

// The sizes of a call, and its pointers too where `tensors` says so.
mssts_status validate_mask_rle(const mssts_mask_rle* call, bool tensors);
// Of a call whose sizes are valid, in bytes.
int64_t mask_rle_workspace(const mssts_mask_rle& call);
mssts_status launch_mask_rle(const mssts_mask_rle& call, cudaStream_t stream);

}  // namespace mssts

#endif  // MSSTS_CUDA_MASK_RLE_H

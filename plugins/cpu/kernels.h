// The kernels behind the C ABI. The calls have been validated.
#ifndef MSSTS_CPU_KERNELS_H
#define MSSTS_CPU_KERNELS_H

#include <vector>

#include "mssts/kernels.h"
#include "validate.h"

namespace mssts {

// One number at a time: for float64, whose use is to check the others, and for sizes beyond those of the fast kernels.
mssts_status deform_attn_forward_scalar(const mssts_deform_attn& call, const std::vector<Level>& levels,
                                        const mssts_executor* executor);
mssts_status deform_attn_backward_scalar(const mssts_deform_attn& call, const std::vector<Level>& levels,
                                         const mssts_executor* executor);
mssts_status temporal_attn_scalar(const mssts_temporal_attn& call, bool backward, const mssts_executor* executor);

}  // namespace mssts

#endif

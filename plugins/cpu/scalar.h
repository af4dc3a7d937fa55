// The kernels that compute one number at a time. The calls have been validated.
#ifndef MSSTS_CPU_SCALAR_H
#define MSSTS_CPU_SCALAR_H

#include <vector>

#include "isa.h"
#include "mssts/kernels.h"

namespace mssts {

// For float64, which checks the others, and for sizes beyond those of the fast kernels.
mssts_status deform_attn_forward_scalar(const mssts_deform_attn& call, const std::vector<Level>& levels,
                                        const mssts_executor* executor);
mssts_status deform_attn_backward_scalar(const mssts_deform_attn& call, const std::vector<Level>& levels,
                                         const mssts_executor* executor);
mssts_status temporal_attn_scalar(const mssts_temporal_attn& call, bool backward, const mssts_executor* executor);

}  // namespace mssts

#endif

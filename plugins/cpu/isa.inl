// The kernels for one instruction set. Included once for each, with MSSTS_ISA its namespace and the target's flags on.
// MSSTS_FLOAT32_ONLY is for the sanitizers' test, whose compiler takes minutes for all types.
#include "isa.h"
#include "parallel.h"
#include "scratch.h"
#include "vector.h"
// These need the ones above.
#include "deform_attn_points.inl"

#include "deform_attn_forward.inl"

#include "deform_attn_backward.inl"

#include "temporal_attn.inl"
// This one needs it.
#include "temporal_attn_quads.inl"

namespace mssts {
namespace MSSTS_ISA {

void deform_attn_forward(const mssts_deform_attn& call, const Level* levels, const mssts_executor* executor) {
  if (call.dtype == MSSTS_FLOAT32) deform_attn_forward_as<float>(call, levels, executor);
#ifndef MSSTS_FLOAT32_ONLY
  if (call.dtype == MSSTS_FLOAT16) deform_attn_forward_as<Half>(call, levels, executor);
  if (call.dtype == MSSTS_BFLOAT16) deform_attn_forward_as<BFloat>(call, levels, executor);
#endif
}

void deform_attn_backward(const mssts_deform_attn& call, const Level* levels, const mssts_executor* executor) {
  if (call.dtype == MSSTS_FLOAT32) deform_attn_backward_as<float>(call, levels, executor);
#ifndef MSSTS_FLOAT32_ONLY
  if (call.dtype == MSSTS_FLOAT16) deform_attn_backward_as<Half>(call, levels, executor);
  if (call.dtype == MSSTS_BFLOAT16) deform_attn_backward_as<BFloat>(call, levels, executor);
#endif
}

void temporal_attn(const mssts_temporal_attn& call, bool backward, const mssts_executor* executor) {
  if (call.dtype == MSSTS_FLOAT32) temporal_attn_as<float>(call, backward, executor);
#ifndef MSSTS_FLOAT32_ONLY
  if (call.dtype == MSSTS_FLOAT16) temporal_attn_as<Half>(call, backward, executor);
  if (call.dtype == MSSTS_BFLOAT16) temporal_attn_as<BFloat>(call, backward, executor);
#endif
}

extern const Isa kernels;
const Isa kernels = {deform_attn_forward, deform_attn_backward, temporal_attn};

}  // namespace MSSTS_ISA
}  // namespace mssts

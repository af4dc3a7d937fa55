// The kernels of one instruction set, for float32, float16 and bfloat16. They throw std::bad_alloc.
#ifndef MSSTS_CPU_ISA_H
#define MSSTS_CPU_ISA_H

#include <cstdint>

#include "mssts/kernels.h"

namespace mssts {

struct Level {
  int64_t height, width;
  int64_t start;  // its first token
};

struct Isa {
  void (*deform_attn_forward)(const mssts_deform_attn& call, const Level* levels, const mssts_executor* executor);
  void (*deform_attn_backward)(const mssts_deform_attn& call, const Level* levels, const mssts_executor* executor);
  void (*temporal_attn)(const mssts_temporal_attn& call, bool backward, const mssts_executor* executor);
};

// The best that the machine has, no better than what MSSTS_CPU_ISA names; chosen at the first call.
const Isa& isa();
const char* isa_name();

}  // namespace mssts

#endif

// What every call must satisfy before a kernel looks at its pointers. Anything but MSSTS_OK has left a message.
#ifndef MSSTS_COMMON_VALIDATE_H
#define MSSTS_COMMON_VALIDATE_H

#include <cstdint>
#include <initializer_list>

#include "common/error.h"
#include "mssts/kernels.h"

namespace mssts {

// What the kernels of a device support: float64 beside float32, float16 and bfloat16; tensors that are not aligned to
// their elements.
struct Support {
  bool float64;
  bool any_alignment;
};
constexpr Support kCpuSupport{true, true};
constexpr Support kCudaSupport{false, false};

// The sizes and types of a call.
mssts_status validate_sizes(const mssts_deform_attn* call, const Support& support);
// The tensors of a call whose sizes are valid. `workspace` is in bytes.
mssts_status validate_tensors(const mssts_deform_attn& call, bool backward, int64_t workspace, const Support& support);

// Sizes, types and tensors.
mssts_status validate(const mssts_temporal_attn* call, bool backward, const Support& support);

// The product of sizes, or -1 if its bytes as 64-bit numbers would not fit 63 bits.
int64_t elements(std::initializer_list<int64_t> sizes);

}  // namespace mssts

#endif  // MSSTS_COMMON_VALIDATE_H

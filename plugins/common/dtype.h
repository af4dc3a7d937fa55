// The size of an element.
#ifndef MSSTS_COMMON_DTYPE_H
#define MSSTS_COMMON_DTYPE_H

#include <cstddef>
#include <cstdint>

#include "mssts/kernels.h"

namespace mssts {

inline size_t bytes_of(int32_t dtype) {
  if (dtype == MSSTS_FLOAT64 || dtype == MSSTS_INT64) return 8;
  return dtype == MSSTS_FLOAT32 || dtype == MSSTS_INT32 ? 4 : 2;
}

}  // namespace mssts

#endif  // MSSTS_COMMON_DTYPE_H

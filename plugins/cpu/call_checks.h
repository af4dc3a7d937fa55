// What the checks of a call have in common, on whatever device it runs.
#ifndef MSSTS_CPU_CALL_CHECKS_H
#define MSSTS_CPU_CALL_CHECKS_H

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "error.h"

namespace mssts {

struct Size {
  const char* name;
  int64_t value;
  int64_t least;
};

inline mssts_status check_sizes(std::initializer_list<Size> sizes) {
  for (const Size& size : sizes) {
    if (size.value < size.least) {
      return fail(MSSTS_INVALID, "%s is %lld, expected at least %lld", size.name, static_cast<long long>(size.value),
                  static_cast<long long>(size.least));
    }
  }
  return MSSTS_OK;
}

// The product, or -1 if its bytes as 64-bit numbers would not fit 63 bits.
inline int64_t elements(std::initializer_list<int64_t> sizes) {
  int64_t product = 8;
  for (int64_t size : sizes) {
    if (size == 0) return 0;
  }
  for (int64_t size : sizes) {
    if (__builtin_mul_overflow(product, size, &product)) return -1;
  }
  return product / 8;
}

struct Tensor {
  const char* name;
  const void* data;
  int64_t elements;
  bool wanted;
  size_t alignment = 1;  // in bytes
};

inline mssts_status check_tensors(std::initializer_list<Tensor> tensors) {
  for (const Tensor& tensor : tensors) {
    if (tensor.elements < 0) return fail(MSSTS_INVALID, "%s has more elements than 64 bits can address", tensor.name);
  }
  for (const Tensor& tensor : tensors) {
    if (tensor.wanted && tensor.data == nullptr && tensor.elements > 0) {
      return fail(MSSTS_INVALID, "%s is NULL, expected %lld elements", tensor.name,
                  static_cast<long long>(tensor.elements));
    }
    if (reinterpret_cast<uintptr_t>(tensor.data) % tensor.alignment != 0) {
      return fail(MSSTS_INVALID, "%s is not aligned to its elements of %d bytes", tensor.name,
                  static_cast<int>(tensor.alignment));
    }
  }
  return MSSTS_OK;
}

}  // namespace mssts

#endif

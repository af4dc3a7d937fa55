// What the ops need of ONNX Runtime's C API, with failures as exceptions until a callback's border.
//
// Only the C header is used and nothing of libonnxruntime is linked: the runtime hands its own OrtApi over, so one
// library serves every ONNX Runtime from 1.21 on.
#ifndef MSSTS_ONNXRUNTIME_API_H
#define MSSTS_ONNXRUNTIME_API_H

#include <onnxruntime_c_api.h>

#include <array>
#include <cstdint>
#include <exception>
#include <string>
#include <utility>
#include <vector>

namespace mssts::ort {

// The API asked for, whatever the headers' own version: newer headers do not raise what a user's runtime must be.
constexpr uint32_t kApiVersion = 21;
static_assert(ORT_API_VERSION >= kApiVersion, "the headers of ONNX Runtime 1.21 or newer are needed");

// A failed call of the API, which carries its status, or our own failure, which carries only a message.
class Failure : public std::exception {
 public:
  explicit Failure(OrtStatus* status) : status_(status) {}
  Failure(OrtErrorCode code, std::string message) : code_(code), message_(std::move(message)) {}

  // The status to hand to ONNX Runtime, which then owns it.
  OrtStatus* status(const OrtApi& api) const {
    return status_ != nullptr ? status_ : api.CreateStatus(code_, message_.c_str());
  }

 private:
  OrtStatus* status_ = nullptr;
  OrtErrorCode code_ = ORT_FAIL;
  std::string message_;
};

inline void check(OrtStatus* status) {
  if (status != nullptr) throw Failure(status);
}

// Runs what may throw and returns what a callback returns: null, or a status.
template <typename Function>
OrtStatus* guarded(const OrtApi& api, Function&& function) noexcept {
  try {
    function();
    return nullptr;
  } catch (const Failure& failure) {
    return failure.status(api);
  } catch (const std::exception& error) {
    return api.CreateStatus(ORT_FAIL, error.what());
  }
}

// A dense tensor of an OrtValue, on the device of the execution provider.
struct Tensor {
  const void* data;
  std::vector<int64_t> sizes;
};

inline std::vector<int64_t> sizes_of(const OrtApi& api, const OrtTensorTypeAndShapeInfo* info) {
  size_t rank = 0;
  check(api.GetDimensionsCount(info, &rank));
  std::vector<int64_t> sizes(rank);
  check(api.GetDimensions(info, sizes.data(), rank));
  return sizes;
}

// Integers of a node's attribute; false where it has none of that name.
template <size_t kCount>
bool integers(const OrtApi& api, const OrtKernelInfo* info, const char* name, std::array<int64_t, kCount>* found) {
  size_t count = 0;
  if (OrtStatus* status = api.KernelInfoGetAttributeArray_int64(info, name, nullptr, &count)) {
    api.ReleaseStatus(status);
    return false;
  }
  if (count != kCount) {
    throw Failure(ORT_INVALID_ARGUMENT, std::string("attribute ") + name + " has " + std::to_string(count) +
                                            " integers, expected " + std::to_string(kCount));
  }
  check(api.KernelInfoGetAttributeArray_int64(info, name, found->data(), &count));
  return true;
}

inline Tensor input(const OrtApi& api, const OrtKernelContext* context, size_t index) {
  const OrtValue* value = nullptr;
  check(api.KernelContext_GetInput(context, index, &value));
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api.GetTensorTypeAndShape(value, &info));
  Tensor tensor{};
  try {
    tensor.sizes = sizes_of(api, info);
  } catch (...) {
    api.ReleaseTensorTypeAndShapeInfo(info);
    throw;
  }
  api.ReleaseTensorTypeAndShapeInfo(info);
  void* data = nullptr;
  check(api.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  tensor.data = data;
  return tensor;
}

inline void* output(const OrtApi& api, OrtKernelContext* context, const std::vector<int64_t>& sizes) {
  OrtValue* value = nullptr;
  check(api.KernelContext_GetOutput(context, 0, sizes.data(), sizes.size(), &value));
  void* data = nullptr;
  check(api.GetTensorMutableData(value, &data));
  return data;
}

}  // namespace mssts::ort

#endif  // MSSTS_ONNXRUNTIME_API_H

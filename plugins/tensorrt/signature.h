/* The tensors of an op: names, sizes by letter, types; and what is wrong with those that TensorRT offers.
 *
 * A size is -1 where it is not known yet (while a network with dynamic shapes is built); such a size fits anything. */
#ifndef MSSTS_TENSORRT_SIGNATURE_H
#define MSSTS_TENSORRT_SIGNATURE_H

#include <NvInferRuntime.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace mssts::trt {

enum class Role {
  kData,     // fp32, fp16 or bf16, as the first tensor of this role
  kFloat32,  // fp32
  kIndex,    // INT32 or INT64
};

struct TensorSpec {
  const char* name;
  const char* letters;  // one for each dimension, as in "NSMD"; a digit stands for itself
  Role role;
};

struct Signature {
  const char* op;
  std::vector<TensorSpec> inputs;
  TensorSpec output;

  int32_t input_count() const { return static_cast<int32_t>(inputs.size()); }
  /* The tensor at a position of TensorRT's numbering: the inputs, then the output. */
  const TensorSpec& at(int32_t position) const { return position < input_count() ? inputs[position] : output; }
};

using Sizes = std::vector<int64_t>;

Sizes sizes_of(const nvinfer1::Dims& dims);
Sizes sizes_of(const nvinfer1::DimsExprs& dims);
std::string text_of(const Sizes& sizes);
const char* text_of(nvinfer1::DataType type);

/* The size of each letter, collected tensor by tensor. */
class Letters {
 public:
  /* "" where `sizes` agree with the tensor's letters and with what is known, else why not. */
  std::string bind(const TensorSpec& tensor, const Sizes& sizes);
  int64_t operator[](char letter) const { return size_.at(static_cast<unsigned char>(letter)); }

 private:
  static constexpr size_t kCount = 128;
  static std::array<int64_t, kCount> unknown() {
    std::array<int64_t, kCount> sizes{};
    sizes.fill(-1);
    return sizes;
  }

  std::array<int64_t, kCount> size_ = unknown();
  std::array<const char*, kCount> from_{};  // the tensor that told the size
};

/* "" where the type at `position` is allowed beside those before it, else why not. `types` has `position` + 1 of
 * them. */
std::string type_error(const Signature& signature, int32_t position, const std::vector<nvinfer1::DataType>& types);

}  // namespace mssts::trt

#endif  // MSSTS_TENSORRT_SIGNATURE_H

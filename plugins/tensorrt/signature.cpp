#include "signature.h"

#include <cctype>

namespace mssts::trt {

using nvinfer1::DataType;

Sizes sizes_of(const nvinfer1::Dims& dims) {
  return dims.nbDims < 0 ? Sizes{} : Sizes(dims.d, dims.d + dims.nbDims);
}

Sizes sizes_of(const nvinfer1::DimsExprs& dims) {
  Sizes sizes;
  for (int32_t i = 0; i < dims.nbDims; ++i) {
    sizes.push_back(dims.d[i]->isConstant() ? dims.d[i]->getConstantValue() : -1);
  }
  return sizes;
}

std::string text_of(const Sizes& sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) {
    text += (i == 0 ? "" : ",") + (sizes[i] < 0 ? std::string("?") : std::to_string(sizes[i]));
  }
  return text + "]";
}

const char* text_of(DataType type) {
  switch (type) {
    case DataType::kFLOAT: return "FP32";
    case DataType::kHALF: return "FP16";
    case DataType::kBF16: return "BF16";
    case DataType::kINT8: return "INT8";
    case DataType::kINT32: return "INT32";
    case DataType::kINT64: return "INT64";
    case DataType::kBOOL: return "BOOL";
    case DataType::kUINT8: return "UINT8";
    case DataType::kFP8: return "FP8";
    default: return "another type";
  }
}

std::string Letters::bind(const TensorSpec& tensor, const Sizes& sizes) {
  const std::string letters = tensor.letters;
  std::string expected = "[";
  for (size_t i = 0; i < letters.size(); ++i) expected += (i == 0 ? "" : ",") + std::string(1, letters[i]);
  const std::string prefix = std::string(tensor.name) + " is " + text_of(sizes) + ", expected " + expected + "]";
  if (sizes.size() != letters.size()) return prefix;
  for (size_t i = 0; i < letters.size(); ++i) {
    const auto letter = static_cast<unsigned char>(letters[i]);
    if (sizes[i] < 0) continue;
    if (std::isdigit(letter)) {
      if (sizes[i] != letter - '0') return prefix;
    } else if (size_[letter] < 0) {
      size_[letter] = sizes[i];
      from_[letter] = tensor.name;
    } else if (size_[letter] != sizes[i]) {
      return prefix + " with " + letters[i] + " = " + std::to_string(size_[letter]) + " as in " + from_[letter];
    }
  }
  return "";
}

std::string type_error(const Signature& signature, int32_t position, const std::vector<DataType>& types) {
  const TensorSpec& tensor = signature.at(position);
  const DataType type = types.at(static_cast<size_t>(position));
  const std::string is = std::string(tensor.name) + " is " + text_of(type) + ", expected ";
  switch (tensor.role) {
    case Role::kFloat32: return type == DataType::kFLOAT ? "" : is + "FP32";
    case Role::kIndex: return type == DataType::kINT32 || type == DataType::kINT64 ? "" : is + "INT32 or INT64";
    case Role::kData: break;
  }
  for (int32_t i = 0; i < position; ++i) {
    if (signature.at(i).role != Role::kData) continue;
    const DataType first = types.at(static_cast<size_t>(i));
    return type == first ? "" : is + text_of(first) + " as " + signature.at(i).name;
  }
  const bool known = type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
  return known ? "" : is + "FP32, FP16 or BF16";
}

}  // namespace mssts::trt

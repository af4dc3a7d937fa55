#include "tensors.h"

namespace mssts::trt {

using nvinfer1::DataType;

namespace {

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

}  // namespace

Sizes sizes_of(const nvinfer1::Dims& dims) { return dims.nbDims < 0 ? Sizes{} : Sizes(dims.d, dims.d + dims.nbDims); }

Sizes sizes_of(const nvinfer1::DimsExprs& dims) {
  Sizes sizes;
  for (int32_t i = 0; i < dims.nbDims; ++i) {
    sizes.push_back(dims.d[i]->isConstant() ? dims.d[i]->getConstantValue() : -1);
  }
  return sizes;
}

int32_t dtype_of(DataType type) {
  switch (type) {
    case DataType::kFLOAT: return MSSTS_FLOAT32;
    case DataType::kHALF: return MSSTS_FLOAT16;
    case DataType::kBF16: return MSSTS_BFLOAT16;
    case DataType::kINT32: return MSSTS_INT32;
    case DataType::kINT64: return MSSTS_INT64;
    default: return -1;
  }
}

std::string type_error(const Node& node, int32_t position, const std::vector<DataType>& types) {
  const TensorSpec& tensor = node.tensors[position];
  const DataType type = types.at(static_cast<size_t>(position));
  const std::string is = std::string(tensor.name) + " is " + text_of(type) + ", expected ";
  switch (tensor.role) {
    case Role::kReference: return type == DataType::kFLOAT ? "" : is + "FP32";
    case Role::kIndex: return type == DataType::kINT32 || type == DataType::kINT64 ? "" : is + "INT32 or INT64";
    case Role::kData: break;
  }
  for (int32_t i = 0; i < position; ++i) {
    if (node.tensors[i].role != Role::kData) continue;
    const DataType first = types.at(static_cast<size_t>(i));
    return type == first ? "" : is + text_of(first) + " as " + node.tensors[i].name;
  }
  const bool known = type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
  return known ? "" : is + "FP32, FP16 or BF16";
}

}  // namespace mssts::trt

// The tensors that TensorRT offers to a node: their sizes and types.
#ifndef MSSTS_TENSORRT_TENSORS_H
#define MSSTS_TENSORRT_TENSORS_H

#include <NvInferRuntime.h>

#include <cstdint>
#include <string>
#include <vector>

#include "common/node.h"

namespace mssts::trt {

Sizes sizes_of(const nvinfer1::Dims& dims);
Sizes sizes_of(const nvinfer1::DimsExprs& dims);

// The mssts_dtype of a type that a node may have; -1 for another.
int32_t dtype_of(nvinfer1::DataType type);

// "" where the type at `position` is allowed beside those before it, else why not. `types` has `position` + 1 of them.
std::string type_error(const Node& node, int32_t position, const std::vector<nvinfer1::DataType>& types);

}  // namespace mssts::trt

#endif  // MSSTS_TENSORRT_TENSORS_H

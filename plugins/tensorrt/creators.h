// The plugins of this library.
#ifndef MSSTS_TENSORRT_CREATORS_H
#define MSSTS_TENSORRT_CREATORS_H

#include <NvInferRuntime.h>

#include <array>

namespace mssts::trt {

// The version and the namespace of the ONNX nodes (mssts/ops/exporting.py).
constexpr const char* kVersion = "1";
constexpr const char* kNamespace = "";

// Made at the first use and never destroyed: a registry may outlive this library's statics.
nvinfer1::IPluginCreatorV3One& deform_attn_creator();
nvinfer1::IPluginCreatorV3One& temporal_attn_creator();

inline std::array<nvinfer1::IPluginCreatorInterface*, 2> creators() {
  return {&deform_attn_creator(), &temporal_attn_creator()};
}

}  // namespace mssts::trt

#endif  // MSSTS_TENSORRT_CREATORS_H

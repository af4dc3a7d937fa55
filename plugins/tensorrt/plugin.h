// What the two plugins share: an IPluginV3 without state beyond its attributes, one output, dense tensors.
#ifndef MSSTS_TENSORRT_PLUGIN_H
#define MSSTS_TENSORRT_PLUGIN_H

#include <NvInferRuntime.h>

#include <string>

#include "creators.h"
#include "mssts/kernels.h"
#include "registry.h"
#include "tensors.h"

#ifndef MSSTS_KERNELS_HASH
#error "MSSTS_KERNELS_HASH is the hash of the kernels' sources and compiler (CMakeLists.txt)"
#endif

namespace mssts::trt {

class Plugin : public nvinfer1::IPluginV3,
               public nvinfer1::IPluginV3OneCore,
               public nvinfer1::IPluginV3OneBuild,
               public nvinfer1::IPluginV3OneRuntime {
 public:
  using PluginTensorDesc = nvinfer1::PluginTensorDesc;
  using DynamicPluginTensorDesc = nvinfer1::DynamicPluginTensorDesc;
  using DimsExprs = nvinfer1::DimsExprs;
  using DataType = nvinfer1::DataType;

  // IPluginV3
  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;

  // IPluginV3OneCore
  const char* getPluginName() const noexcept override { return node_.op; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  // IPluginV3OneBuild
  int32_t getNbOutputs() const noexcept override { return 1; }
  int32_t getOutputDataTypes(DataType* outputs, int32_t output_count, const DataType* inputs,
                             int32_t input_count) const noexcept override;
  int32_t getOutputShapes(const DimsExprs* inputs, int32_t input_count, const DimsExprs* shape_inputs,
                          int32_t shape_input_count, DimsExprs* outputs, int32_t output_count,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors, int32_t input_count,
                                 int32_t output_count) noexcept override;
  int32_t configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                          const DynamicPluginTensorDesc* outputs, int32_t output_count) noexcept override;
  size_t getWorkspaceSize(const DynamicPluginTensorDesc*, int32_t, const DynamicPluginTensorDesc*,
                          int32_t) const noexcept override {
    return 0;
  }
  char const* getTimingCacheID() noexcept override { return identity_.c_str(); }
  char const* getMetadataString() noexcept override { return identity_.c_str(); }

  // IPluginV3OneRuntime
  int32_t setTactic(int32_t tactic) noexcept override;
  int32_t onShapeChange(const PluginTensorDesc* inputs, int32_t input_count, const PluginTensorDesc* outputs,
                        int32_t output_count) noexcept override;
  int32_t enqueue(const PluginTensorDesc* inputs, const PluginTensorDesc* outputs, const void* const* input_data,
                  void* const* output_data, void* workspace, cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }

 protected:
  static constexpr int32_t kMostInputs = 5;

  // `identity` tells the attributes; with the hash of the kernels it is the timing cache's id: two plugins that share
  // it run equally fast.
  Plugin(const Node& node, std::string identity) : node_(node), identity_(std::move(identity)) {
    identity_ += " kernels=" MSSTS_KERNELS_HASH;
  }
  Plugin(const Plugin&) = default;

  // Makes the sizes of an input those of the part that the node takes; "" or what is wrong.
  virtual std::string take_part(int32_t, Sizes*) const { return ""; }
  // What is wrong with the sizes beyond its letters; "" if nothing.
  virtual std::string size_error(const Letters& letters, const Sizes& output) const = 0;
  virtual DimsExprs output_shape(const DimsExprs* inputs, nvinfer1::IExprBuilder& builder) const = 0;
  // Keeps the call of these sizes and types, so that enqueue has only to set its pointers.
  virtual void prepare(const Letters& letters, const PluginTensorDesc* inputs) = 0;
  // Runs the kernel of the prepared call: a mssts_status.
  virtual int launch(const void* const* input_data, void* output_data, void* stream) = 0;

  bool reject(Severity severity, const std::string& message) const noexcept;

 private:
  bool counts_fit(int32_t inputs, int32_t outputs) const;
  // Binds the part of a tensor; "" or what is wrong.
  std::string bind(Letters& letters, int32_t position, Sizes sizes) const;
  // Logs what is wrong with types, formats and sizes of a whole set of tensors; true if nothing.
  bool accepts(const PluginTensorDesc* const* tensors) const;
  // Whether the prepared call is of these sizes and types. It allocates nothing.
  bool is_prepared(const PluginTensorDesc* inputs) const noexcept;
  void prepare_for(const PluginTensorDesc* inputs);

  const Node& node_;
  std::string identity_;
  bool prepared_ = false;
  nvinfer1::Dims prepared_dims_[kMostInputs] = {};
  DataType prepared_types_[kMostInputs] = {};
};

}  // namespace mssts::trt

#endif  // MSSTS_TENSORRT_PLUGIN_H

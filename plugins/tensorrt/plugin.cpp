#include "plugin.h"

#include <algorithm>
#include <vector>

namespace mssts::trt {

using nvinfer1::PluginCapabilityType;
using nvinfer1::TensorFormat;

bool Plugin::reject(Severity severity, const std::string& message) const noexcept {
  log(severity, std::string("mssts ") + node_.op + ": " + message);
  return false;
}

bool Plugin::counts_fit(int32_t inputs, int32_t outputs) const {
  if (inputs == node_.input_count && outputs == 1) return true;
  std::string names;
  for (int32_t i = 0; i < node_.input_count; ++i) names += (i == 0 ? "" : ", ") + std::string(node_.tensors[i].name);
  return reject(Severity::kERROR, "has " + std::to_string(inputs) + " inputs and " + std::to_string(outputs) +
                                      " outputs, expected " + std::to_string(node_.input_count) + " (" + names +
                                      ") and 1");
}

std::string Plugin::bind(Letters& letters, int32_t position, Sizes sizes) const {
  const std::string wrong = position < node_.input_count ? take_part(position, &sizes) : "";
  return wrong.empty() ? letters.bind(node_.tensors[position], sizes) : wrong;
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
  switch (type) {
    case PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

int32_t Plugin::getOutputDataTypes(DataType* outputs, int32_t output_count, const DataType* inputs,
                                   int32_t input_count) const noexcept {
  return guarded(node_.op, int32_t{-1}, [&]() -> int32_t {
    if (!counts_fit(input_count, output_count)) return -1;
    const std::vector<DataType> types(inputs, inputs + input_count);
    for (int32_t i = 0; i < input_count; ++i) {
      const std::string wrong = type_error(node_, i, types);
      if (!wrong.empty()) return reject(Severity::kERROR, wrong) ? 0 : -1;
    }
    outputs[0] = inputs[0];  // value or query: the first data tensor of both ops
    return 0;
  });
}

int32_t Plugin::getOutputShapes(const DimsExprs* inputs, int32_t input_count, const DimsExprs*, int32_t,
                                DimsExprs* outputs, int32_t output_count, nvinfer1::IExprBuilder& builder) noexcept {
  return guarded(node_.op, int32_t{-1}, [&]() -> int32_t {
    if (!counts_fit(input_count, output_count)) return -1;
    Letters letters;
    std::string wrong;
    for (int32_t i = 0; i < input_count && wrong.empty(); ++i) {
      wrong = bind(letters, i, sizes_of(inputs[i]));
    }
    if (wrong.empty()) {
      outputs[0] = output_shape(inputs, builder);
      wrong = size_error(letters, sizes_of(outputs[0]));
    }
    return wrong.empty() || reject(Severity::kERROR, wrong) ? 0 : -1;
  });
}

bool Plugin::supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors, int32_t input_count,
                                       int32_t output_count) noexcept {
  return guarded(node_.op, false, [&] {
    if (!counts_fit(input_count, output_count)) return false;
    if (position < 0 || position > input_count) {
      return reject(Severity::kERROR,
                    "asked for tensor " + std::to_string(position) + " of " + std::to_string(input_count + 1));
    }
    // The builder tries types and formats by asking: a no is no error, and only a verbose log tells it.
    if (tensors[position].desc.format != TensorFormat::kLINEAR) {
      return reject(Severity::kVERBOSE, std::string(node_.tensors[position].name) + " must have linear format");
    }
    std::vector<DataType> types;
    for (int32_t i = 0; i <= position; ++i) types.push_back(tensors[i].desc.type);
    const std::string wrong = type_error(node_, position, types);
    return wrong.empty() || reject(Severity::kVERBOSE, wrong);
  });
}

bool Plugin::accepts(const PluginTensorDesc* const* tensors) const {
  Letters letters;
  std::vector<DataType> types;
  for (int32_t i = 0; i <= node_.input_count; ++i) {
    const TensorSpec& tensor = node_.tensors[i];
    types.push_back(tensors[i]->type);
    std::string wrong = type_error(node_, i, types);
    if (wrong.empty() && tensors[i]->format != TensorFormat::kLINEAR) {
      wrong = std::string(tensor.name) + " must have linear format";
    }
    if (wrong.empty()) wrong = bind(letters, i, sizes_of(tensors[i]->dims));
    if (!wrong.empty()) return reject(Severity::kERROR, wrong);
  }
  const std::string wrong = size_error(letters, sizes_of(tensors[node_.input_count]->dims));
  return wrong.empty() || reject(Severity::kERROR, wrong);
}

int32_t Plugin::configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t input_count,
                                const DynamicPluginTensorDesc* outputs, int32_t output_count) noexcept {
  return guarded(node_.op, int32_t{-1}, [&]() -> int32_t {
    if (!counts_fit(input_count, output_count)) return -1;
    // Sizes that are fixed in the network. The bounds of the others are each tensor's own and need not agree.
    std::vector<const PluginTensorDesc*> tensors;
    for (int32_t i = 0; i < input_count; ++i) tensors.push_back(&inputs[i].desc);
    tensors.push_back(&outputs[0].desc);
    return accepts(tensors.data()) ? 0 : -1;
  });
}

int32_t Plugin::setTactic(int32_t tactic) noexcept {
  if (tactic == 0) return 0;
  return guarded(node_.op, int32_t{-1}, [&]() -> int32_t {
    return reject(Severity::kERROR, "has no tactic " + std::to_string(tactic) + ", only 0") ? 0 : -1;
  });
}

int32_t Plugin::onShapeChange(const PluginTensorDesc* inputs, int32_t input_count, const PluginTensorDesc* outputs,
                              int32_t output_count) noexcept {
  return guarded(node_.op, int32_t{-1}, [&]() -> int32_t {
    if (!counts_fit(input_count, output_count)) return -1;
    std::vector<const PluginTensorDesc*> tensors;
    for (int32_t i = 0; i < input_count; ++i) tensors.push_back(&inputs[i]);
    tensors.push_back(&outputs[0]);
    if (!accepts(tensors.data())) return -1;
    prepare_for(inputs);
    return 0;
  });
}

bool Plugin::is_prepared(const PluginTensorDesc* inputs) const noexcept {
  for (int32_t i = 0; i < node_.input_count; ++i) {
    const nvinfer1::Dims& now = inputs[i].dims;
    const nvinfer1::Dims& then = prepared_dims_[i];
    if (inputs[i].type != prepared_types_[i] || now.nbDims != then.nbDims) return false;
    if (!std::equal(now.d, now.d + now.nbDims, then.d)) return false;
  }
  return prepared_;
}

void Plugin::prepare_for(const PluginTensorDesc* inputs) {
  Letters letters;
  for (int32_t i = 0; i < node_.input_count; ++i) {
    bind(letters, i, sizes_of(inputs[i].dims));
    prepared_dims_[i] = inputs[i].dims;
    prepared_types_[i] = inputs[i].type;
  }
  prepare(letters, inputs);
  prepared_ = true;
}

int32_t Plugin::enqueue(const PluginTensorDesc* inputs, const PluginTensorDesc*, const void* const* input_data,
                        void* const* output_data, void*, cudaStream_t stream) noexcept {
  return guarded(node_.op, int32_t{-1}, [&]() -> int32_t {
    if (!is_prepared(inputs)) prepare_for(inputs);  // else by onShapeChange, which has checked them
    const int status = launch(input_data, output_data[0], stream);
    if (status == MSSTS_OK) return 0;
    reject(Severity::kERROR, mssts_last_error());
    return status;
  });
}

}  // namespace mssts::trt

// SplitTemporalAttn: query [B,T,S,C], key [B,U,S,C], value [B,U,S,C] → out [B,T,S,C]; attribute heads.
#include <cstdint>
#include <stdexcept>

#include "creators.h"
#include "plugin.h"

namespace mssts::trt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

class TemporalAttn final : public Plugin {
 public:
  explicit TemporalAttn(int32_t heads)
      : Plugin(kTemporalAttn, "mssts SplitTemporalAttn heads=" + std::to_string(heads)), heads_(heads) {}
  // The fields of a copy point to its own attributes.
  TemporalAttn(const TemporalAttn& other) : Plugin(other), heads_(other.heads_), call_(other.call_) {}

  nvinfer1::IPluginV3* clone() noexcept override {
    return guarded(kTemporalAttn.op, static_cast<nvinfer1::IPluginV3*>(nullptr),
                   [this] { return new TemporalAttn(*this); });
  }

  PluginFieldCollection const* getFieldsToSerialize() noexcept override { return &fields_; }

 protected:
  std::string size_error(const Letters& letters, const Sizes&) const override {
    return temporal_attn_error(letters, heads_);
  }

  DimsExprs output_shape(const DimsExprs* inputs, nvinfer1::IExprBuilder&) const override { return inputs[0]; }

  void prepare(const Letters& letters, const PluginTensorDesc* inputs) override {
    constexpr const void* kNone[kMostInputs] = {};
    call_ = temporal_attn_call(letters, heads_, dtype_of(inputs[0].type), kNone, nullptr);
  }

  int launch(const void* const* input_data, void* output_data, void* stream) override {
    call_.query = input_data[0];
    call_.key = input_data[1];
    call_.value = input_data[2];
    call_.out = output_data;
    return mssts_cuda_temporal_attn_forward(&call_, stream);
  }

 private:
  int32_t heads_;
  PluginField field_{"heads", &heads_, PluginFieldType::kINT32, 1};
  PluginFieldCollection fields_{1, &field_};
  mssts_temporal_attn call_{};
};

// The attribute of an ONNX node or of a serialised plugin. plugin_version and plugin_namespace stand beside it.
int32_t heads_of(const PluginFieldCollection* fields) {
  const int32_t count = fields == nullptr ? 0 : fields->nbFields;
  for (int32_t i = 0; i < count; ++i) {
    const PluginField& field = fields->fields[i];
    if (field.name == nullptr || std::string(field.name) != "heads") continue;
    int64_t heads = 0;
    if (field.data != nullptr && field.length == 1 && field.type == PluginFieldType::kINT32) {
      heads = *static_cast<const int32_t*>(field.data);
    } else if (field.data != nullptr && field.length == 1 && field.type == PluginFieldType::kINT64) {
      heads = *static_cast<const int64_t*>(field.data);
    } else {
      throw std::invalid_argument("attribute heads must be one integer");
    }
    const std::string wrong = heads_error(heads);
    if (!wrong.empty()) throw std::invalid_argument(wrong);
    return static_cast<int32_t>(heads);
  }
  throw std::invalid_argument("attribute heads is missing");
}

class TemporalAttnCreator final : public nvinfer1::IPluginCreatorV3One {
 public:
  nvinfer1::IPluginV3* createPlugin(const char*, const PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase) noexcept override {
    return guarded(kTemporalAttn.op, static_cast<nvinfer1::IPluginV3*>(nullptr),
                   [fields] { return new TemporalAttn(heads_of(fields)); });
  }
  PluginFieldCollection const* getFieldNames() noexcept override { return &fields_; }
  const char* getPluginName() const noexcept override { return kTemporalAttn.op; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

 private:
  PluginField field_{"heads", nullptr, PluginFieldType::kINT32, 1};
  PluginFieldCollection fields_{1, &field_};
};

}  // namespace

nvinfer1::IPluginCreatorV3One& temporal_attn_creator() {
  static auto* creator = new TemporalAttnCreator();
  return *creator;
}

}  // namespace mssts::trt

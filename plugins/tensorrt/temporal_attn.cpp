/* SplitTemporalAttn: query [B,T,S,C], key [B,U,S,C], value [B,U,S,C] → out [B,T,S,C]; attribute heads. */
#include <cstdint>
#include <limits>
#include <stdexcept>

#include "creators.h"
#include "plugin.h"

namespace mssts::trt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

enum Input { kQuery, kKey, kValue };

const Signature kSignature{
    "SplitTemporalAttn",
    {{"query", "BTSC", Role::kData}, {"key", "BUSC", Role::kData}, {"value", "BUSC", Role::kData}},
    {"out", "BTSC", Role::kData}};

class TemporalAttn final : public Plugin {
 public:
  explicit TemporalAttn(int32_t heads)
      : Plugin("mssts SplitTemporalAttn kernels=1 heads=" + std::to_string(heads)), heads_(heads) {}
  // The fields of a copy point to its own attributes.
  TemporalAttn(const TemporalAttn& other) : Plugin(other), heads_(other.heads_) {}

  const Signature& signature() const noexcept override { return kSignature; }

  nvinfer1::IPluginV3* clone() noexcept override {
    return guarded(kSignature.op, static_cast<nvinfer1::IPluginV3*>(nullptr),
                   [this] { return new TemporalAttn(*this); });
  }

  PluginFieldCollection const* getFieldsToSerialize() noexcept override { return &fields_; }

 protected:
  std::string size_error(const Letters& letters, const Sizes&) const override {
    const int64_t channels = letters['C'];
    if (channels >= 0 && (channels == 0 || channels % heads_ != 0)) {
      return "query has C = " + std::to_string(channels) + " channels, expected a multiple of heads = " +
             std::to_string(heads_);
    }
    for (const char letter : {'T', 'U', 'C'}) {
      if (letters[letter] == 0 || letters[letter] > std::numeric_limits<int32_t>::max()) {
        return std::string(1, letter) + " is " + std::to_string(letters[letter]) + ", expected 1 or more";
      }
    }
    return "";
  }

  DimsExprs output_shape(const DimsExprs* inputs, nvinfer1::IExprBuilder&) const override { return inputs[kQuery]; }

  int launch(const Letters& letters, const PluginTensorDesc* inputs, const void* const* input_data, void* output_data,
             void* stream) const override {
    const int64_t channels = letters['C'];
    const int64_t locations = letters['S'];
    mssts_temporal_attn call{};
    call.batch = letters['B'];
    call.locations = locations;
    call.query_frames = static_cast<int32_t>(letters['T']);
    call.key_frames = static_cast<int32_t>(letters['U']);
    call.heads = heads_;
    call.channels = static_cast<int32_t>(channels / heads_);
    call.dtype = dtype_of(inputs[kQuery].type);
    set_dense(call.query_strides, letters['T'], locations, channels);
    set_dense(call.key_strides, letters['U'], locations, channels);
    set_dense(call.value_strides, letters['U'], locations, channels);
    call.query = input_data[kQuery];
    call.key = input_data[kKey];
    call.value = input_data[kValue];
    call.out = output_data;
    return mssts_cuda_temporal_attn_forward(&call, stream);
  }

 private:
  static void set_dense(int64_t (&strides)[3], int64_t frames, int64_t locations, int64_t channels) {
    strides[0] = frames * locations * channels;
    strides[1] = locations * channels;
    strides[2] = channels;
  }

  int32_t heads_;
  PluginField field_{"heads", &heads_, PluginFieldType::kINT32, 1};
  PluginFieldCollection fields_{1, &field_};
};

/* The attribute of an ONNX node or of a serialised plugin. plugin_version and plugin_namespace stand beside it. */
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
    if (heads < 1 || heads > std::numeric_limits<int32_t>::max()) {
      throw std::invalid_argument("attribute heads is " + std::to_string(heads) + ", expected 1 or more");
    }
    return static_cast<int32_t>(heads);
  }
  throw std::invalid_argument("attribute heads is missing");
}

class TemporalAttnCreator final : public nvinfer1::IPluginCreatorV3One {
 public:
  nvinfer1::IPluginV3* createPlugin(const char*, const PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase) noexcept override {
    return guarded(kSignature.op, static_cast<nvinfer1::IPluginV3*>(nullptr),
                   [fields] { return new TemporalAttn(heads_of(fields)); });
  }
  PluginFieldCollection const* getFieldNames() noexcept override { return &fields_; }
  const char* getPluginName() const noexcept override { return kSignature.op; }
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

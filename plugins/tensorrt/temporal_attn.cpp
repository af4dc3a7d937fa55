// SplitTemporalAttn: query [B,T,S,C], key [B,U,S,C], value [B,U,S,C] → out [B,T,S,C]; attribute heads. Each input may
// be a part of a wider tensor, its channels those from attribute starts to attribute ends.
#include <algorithm>
#include <array>
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

std::string identity_of(int32_t heads, const Channels& channels) {
  std::string identity = "mssts SplitTemporalAttn heads=" + std::to_string(heads);
  for (size_t i = 0; i < 3 && !channels.all(); ++i) {
    identity += (i == 0 ? " channels=" : ",") + std::to_string(channels.starts[i]) + ":" +
                (channels.ends[i] == Channels::kLast ? "" : std::to_string(channels.ends[i]));
  }
  return identity;
}

class TemporalAttn final : public Plugin {
 public:
  TemporalAttn(int32_t heads, const Channels& channels)
      : Plugin(kTemporalAttn, identity_of(heads, channels)), heads_(heads), channels_(channels) {
    std::transform(channels.starts.begin(), channels.starts.end(), starts_.begin(), narrow);
    std::transform(channels.ends.begin(), channels.ends.end(), ends_.begin(), narrow);
  }
  // The fields of a copy point to its own attributes.
  TemporalAttn(const TemporalAttn& other)
      : Plugin(other),
        heads_(other.heads_),
        channels_(other.channels_),
        starts_(other.starts_),
        ends_(other.ends_),
        offsets_(other.offsets_),
        call_(other.call_) {}

  nvinfer1::IPluginV3* clone() noexcept override {
    return guarded(kTemporalAttn.op, static_cast<nvinfer1::IPluginV3*>(nullptr),
                   [this] { return new TemporalAttn(*this); });
  }

  PluginFieldCollection const* getFieldsToSerialize() noexcept override { return &collection_; }

 protected:
  std::string take_part(int32_t input, Sizes* sizes) const override { return channels_.take(input, sizes); }

  std::string size_error(const Letters& letters, const Sizes&) const override {
    return temporal_attn_error(letters, heads_);
  }

  DimsExprs output_shape(const DimsExprs* inputs, nvinfer1::IExprBuilder& builder) const override {
    DimsExprs out_BTSC = inputs[0];
    const int64_t start = channels_.starts[0], end = channels_.ends[0];
    if (end != Channels::kLast) {
      out_BTSC.d[3] = builder.constant(end - start);
    } else if (start != 0) {
      out_BTSC.d[3] = builder.operation(nvinfer1::DimensionOperation::kSUB, *inputs[0].d[3], *builder.constant(start));
    }
    return out_BTSC;
  }

  void prepare(const Letters& letters, const PluginTensorDesc* inputs) override {
    constexpr const void* kNone[kMostInputs] = {};
    const int32_t dtype = dtype_of(inputs[0].type);
    int64_t widths[3];
    for (int32_t i = 0; i < 3; ++i) {
      widths[i] = inputs[i].dims.d[3];
      offsets_[static_cast<size_t>(i)] = channels_.offset(i, dtype);
    }
    call_ = temporal_attn_call(letters, heads_, dtype, channels_, widths, kNone, nullptr);
  }

  int launch(const void* const* input_data, void* output_data, void* stream) override {
    call_.query = static_cast<const char*>(input_data[0]) + offsets_[0];
    call_.key = static_cast<const char*>(input_data[1]) + offsets_[1];
    call_.value = static_cast<const char*>(input_data[2]) + offsets_[2];
    call_.out = output_data;
    return mssts_cuda_temporal_attn_forward(&call_, stream);
  }

 private:
  static int32_t narrow(int64_t channel) {
    return static_cast<int32_t>(std::min<int64_t>(channel, std::numeric_limits<int32_t>::max()));
  }

  int32_t heads_;
  Channels channels_;
  std::array<int32_t, 3> starts_{}, ends_{};  // as fields; the greatest number is the end of all channels
  PluginField fields_[3] = {{"heads", &heads_, PluginFieldType::kINT32, 1},
                            {"starts", starts_.data(), PluginFieldType::kINT32, 3},
                            {"ends", ends_.data(), PluginFieldType::kINT32, 3}};
  PluginFieldCollection collection_{channels_.all() ? 1 : 3, fields_};
  std::array<int64_t, 3> offsets_{};  // of the inputs, in bytes
  mssts_temporal_attn call_{};
};

// The integers of an attribute of an ONNX node or of a serialised plugin; false where it has none of that name.
// plugin_version and plugin_namespace stand beside it.
template <size_t kCount>
bool read(const PluginFieldCollection* fields, const char* name, const char* expected,
          std::array<int64_t, kCount>* found) {
  const int32_t count = fields == nullptr ? 0 : fields->nbFields;
  for (int32_t i = 0; i < count; ++i) {
    const PluginField& field = fields->fields[i];
    if (field.name == nullptr || std::string(field.name) != name) continue;
    if (field.data != nullptr && field.length == kCount && field.type == PluginFieldType::kINT32) {
      std::copy_n(static_cast<const int32_t*>(field.data), kCount, found->begin());
    } else if (field.data != nullptr && field.length == kCount && field.type == PluginFieldType::kINT64) {
      std::copy_n(static_cast<const int64_t*>(field.data), kCount, found->begin());
    } else {
      throw std::invalid_argument(std::string("attribute ") + name + " must be " + expected);
    }
    return true;
  }
  return false;
}

TemporalAttn* plugin_of(const PluginFieldCollection* fields) {
  std::array<int64_t, 1> heads{};
  if (!read(fields, "heads", "one integer", &heads)) throw std::invalid_argument("attribute heads is missing");
  std::string wrong = heads_error(heads[0]);
  Channels channels;
  read(fields, "starts", "three integers", &channels.starts);
  read(fields, "ends", "three integers", &channels.ends);
  for (int64_t& end : channels.ends) {
    if (end >= std::numeric_limits<int32_t>::max()) end = Channels::kLast;
  }
  if (wrong.empty()) wrong = channels.error();
  if (!wrong.empty()) throw std::invalid_argument(wrong);
  return new TemporalAttn(static_cast<int32_t>(heads[0]), channels);
}

class TemporalAttnCreator final : public nvinfer1::IPluginCreatorV3One {
 public:
  nvinfer1::IPluginV3* createPlugin(const char*, const PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase) noexcept override {
    return guarded(kTemporalAttn.op, static_cast<nvinfer1::IPluginV3*>(nullptr),
                   [fields] { return plugin_of(fields); });
  }
  PluginFieldCollection const* getFieldNames() noexcept override { return &collection_; }
  const char* getPluginName() const noexcept override { return kTemporalAttn.op; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

 private:
  PluginField fields_[3] = {{"heads", nullptr, PluginFieldType::kINT32, 1},
                            {"starts", nullptr, PluginFieldType::kINT32, 3},
                            {"ends", nullptr, PluginFieldType::kINT32, 3}};
  PluginFieldCollection collection_{3, fields_};
};

}  // namespace

nvinfer1::IPluginCreatorV3One& temporal_attn_creator() {
  static auto* creator = new TemporalAttnCreator();
  return *creator;
}

}  // namespace mssts::trt

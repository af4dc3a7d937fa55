// MSDeformAttn: value [N,S,M,D], shapes [L,2], reference [N,Q,L,2 or 4], offsets [N,Q,M,L,P,2], logits [N,Q,M,L,P]
// → out [N,Q,M*D].
#include <cstdint>

#include "creators.h"
#include "plugin.h"

namespace mssts::trt {
namespace {

using nvinfer1::PluginFieldCollection;

enum Input { kValue, kShapes, kReference, kOffsets, kLogits };

class DeformAttn final : public Plugin {
 public:
  DeformAttn() : Plugin(kDeformAttn, "mssts MSDeformAttn") {}

  nvinfer1::IPluginV3* clone() noexcept override {
    return guarded(kDeformAttn.op, static_cast<nvinfer1::IPluginV3*>(nullptr),
                   [this] { return new DeformAttn(*this); });
  }

  PluginFieldCollection const* getFieldsToSerialize() noexcept override {
    static constexpr PluginFieldCollection kNone{};
    return &kNone;
  }

 protected:
  std::string size_error(const Letters& letters, const Sizes& out_NQC) const override {
    const std::string wrong = deform_attn_error(letters);
    if (!wrong.empty()) return wrong;
    if (letters['M'] > 0 && letters['D'] > 0 && out_NQC.at(2) >= 0 && out_NQC[2] != letters['M'] * letters['D']) {
      return "out is " + text_of(out_NQC) +
             ", expected [N,Q,M*D] with M*D = " + std::to_string(letters['M'] * letters['D']);
    }
    return "";
  }

  DimsExprs output_shape(const DimsExprs* inputs, nvinfer1::IExprBuilder& builder) const override {
    DimsExprs out_NQC{};
    out_NQC.nbDims = 3;
    out_NQC.d[0] = inputs[kValue].d[0];
    out_NQC.d[1] = inputs[kOffsets].d[1];
    out_NQC.d[2] = builder.operation(nvinfer1::DimensionOperation::kPROD, *inputs[kValue].d[2], *inputs[kValue].d[3]);
    return out_NQC;
  }

  void prepare(const Letters& letters, const PluginTensorDesc* inputs) override {
    constexpr const void* kNone[kMostInputs] = {};
    call_ = deform_attn_call(letters, dtype_of(inputs[kValue].type), dtype_of(inputs[kShapes].type), kNone, nullptr);
  }

  int launch(const void* const* input_data, void* output_data, void* stream) override {
    call_.value = input_data[kValue];
    call_.shapes = input_data[kShapes];
    call_.reference = input_data[kReference];
    call_.offsets = input_data[kOffsets];
    call_.logits = input_data[kLogits];
    call_.out = output_data;
    return mssts_cuda_deform_attn_forward(&call_, stream);
  }

 private:
  mssts_deform_attn call_{};
};

class DeformAttnCreator final : public nvinfer1::IPluginCreatorV3One {
 public:
  nvinfer1::IPluginV3* createPlugin(const char*, const PluginFieldCollection*,
                                    nvinfer1::TensorRTPhase) noexcept override {
    return guarded(kDeformAttn.op, static_cast<nvinfer1::IPluginV3*>(nullptr), [] { return new DeformAttn(); });
  }
  PluginFieldCollection const* getFieldNames() noexcept override {
    static constexpr PluginFieldCollection kNone{};
    return &kNone;
  }
  const char* getPluginName() const noexcept override { return kDeformAttn.op; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }
};

}  // namespace

nvinfer1::IPluginCreatorV3One& deform_attn_creator() {
  static auto* creator = new DeformAttnCreator();
  return *creator;
}

}  // namespace mssts::trt

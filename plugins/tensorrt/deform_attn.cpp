/* MSDeformAttn: value [N,S,M,D], shapes [L,2], reference [N,Q,L,2 or 4], offsets [N,Q,M,L,P,2], logits [N,Q,M,L,P]
 * → out [N,Q,M*D]. */
#include <cstdint>
#include <limits>

#include "creators.h"
#include "plugin.h"

namespace mssts::trt {
namespace {

using nvinfer1::PluginFieldCollection;

enum Input { kValue, kShapes, kReference, kOffsets, kLogits };

const Signature kSignature{"MSDeformAttn",
                           {{"value", "NSMD", Role::kData},
                            {"shapes", "L2", Role::kIndex},
                            {"reference", "NQLR", Role::kFloat32},
                            {"offsets", "NQMLP2", Role::kData},
                            {"logits", "NQMLP", Role::kData}},
                           {"out", "NQC", Role::kData}};

class DeformAttn final : public Plugin {
 public:
  DeformAttn() : Plugin("mssts MSDeformAttn kernels=1") {}

  const Signature& signature() const noexcept override { return kSignature; }

  nvinfer1::IPluginV3* clone() noexcept override {
    return guarded(kSignature.op, static_cast<nvinfer1::IPluginV3*>(nullptr), [this] { return new DeformAttn(*this); });
  }

  PluginFieldCollection const* getFieldsToSerialize() noexcept override {
    static constexpr PluginFieldCollection kNone{};
    return &kNone;
  }

 protected:
  std::string size_error(const Letters& letters, const Sizes& out_NQC) const override {
    if (letters['R'] >= 0 && letters['R'] != 2 && letters['R'] != 4) {
      return "reference has " + std::to_string(letters['R']) + " coordinates, expected 2 or 4";
    }
    for (const char letter : {'M', 'D', 'L', 'P'}) {
      if (letters[letter] == 0 || letters[letter] > std::numeric_limits<int32_t>::max()) {
        return std::string(1, letter) + " is " + std::to_string(letters[letter]) + ", expected 1 or more";
      }
    }
    if (letters['M'] > 0 && letters['D'] > 0 && out_NQC.at(2) >= 0 && out_NQC[2] != letters['M'] * letters['D']) {
      return "out is " + text_of(out_NQC) + ", expected [N,Q,M*D] with M*D = " +
             std::to_string(letters['M'] * letters['D']);
    }
    return "";
  }

  DimsExprs output_shape(const DimsExprs* inputs, nvinfer1::IExprBuilder& builder) const override {
    DimsExprs out_NQC{};
    out_NQC.nbDims = 3;
    out_NQC.d[0] = inputs[kValue].d[0];
    out_NQC.d[1] = inputs[kOffsets].d[1];
    out_NQC.d[2] =
        builder.operation(nvinfer1::DimensionOperation::kPROD, *inputs[kValue].d[2], *inputs[kValue].d[3]);
    return out_NQC;
  }

  int launch(const Letters& letters, const PluginTensorDesc* inputs, const void* const* input_data, void* output_data,
             void* stream) const override {
    mssts_deform_attn call{};
    call.batch = letters['N'];
    call.tokens = letters['S'];
    call.queries = letters['Q'];
    call.heads = static_cast<int32_t>(letters['M']);
    call.channels = static_cast<int32_t>(letters['D']);
    call.levels = static_cast<int32_t>(letters['L']);
    call.points = static_cast<int32_t>(letters['P']);
    call.coordinates = static_cast<int32_t>(letters['R']);
    call.dtype = dtype_of(inputs[kValue].type);
    call.shapes_dtype = dtype_of(inputs[kShapes].type);
    call.value = input_data[kValue];
    call.shapes = input_data[kShapes];
    call.reference = input_data[kReference];
    call.offsets = input_data[kOffsets];
    call.logits = input_data[kLogits];
    call.out = output_data;
    return mssts_cuda_deform_attn_forward(&call, stream);
  }
};

class DeformAttnCreator final : public nvinfer1::IPluginCreatorV3One {
 public:
  nvinfer1::IPluginV3* createPlugin(const char*, const PluginFieldCollection*,
                                    nvinfer1::TensorRTPhase) noexcept override {
    return guarded(kSignature.op, static_cast<nvinfer1::IPluginV3*>(nullptr), [] { return new DeformAttn(); });
  }
  PluginFieldCollection const* getFieldNames() noexcept override {
    static constexpr PluginFieldCollection kNone{};
    return &kNone;
  }
  const char* getPluginName() const noexcept override { return kSignature.op; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }
};

}  // namespace

nvinfer1::IPluginCreatorV3One& deform_attn_creator() {
  static auto* creator = new DeformAttnCreator();
  return *creator;
}

}  // namespace mssts::trt

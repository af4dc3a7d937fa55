// The binding for OpenVINO: the two nodes of the ONNX domain `mssts` as operations of the CPU plugin. It calls the CPU
// kernels through the C ABI, on OpenVINO's own threads.
#include <mssts/kernels.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/core/parallel.hpp>
#include <openvino/frontend/onnx/extension/conversion.hpp>
#include <openvino/frontend/onnx/node_context.hpp>
#include <openvino/op/op.hpp>

#include "common/node.h"

namespace mssts {
namespace {

// The kernels' tasks on the threads of the arena that the inference runs in.
void run_in_arena(void*, int64_t tasks, void (*task)(void*, int64_t), void* argument) {
  tbb::parallel_for(int64_t{0}, tasks, [=](int64_t index) { task(argument, index); });
}

mssts_executor executor() { return {parallel_get_max_threads(), run_in_arena, nullptr}; }

int32_t dtype_of(const ov::element::Type& type) {
  if (type == ov::element::f32) return MSSTS_FLOAT32;
  if (type == ov::element::f16) return MSSTS_FLOAT16;
  if (type == ov::element::bf16) return MSSTS_BFLOAT16;
  if (type == ov::element::f64) return MSSTS_FLOAT64;
  OPENVINO_THROW("mssts: no kernel for the type ", type);
}

void check(int status) { OPENVINO_ASSERT(status == MSSTS_OK, "mssts: ", mssts_last_error()); }

void check_node(const Node& node, const std::string& wrong) {
  OPENVINO_ASSERT(wrong.empty(), "mssts: ", node.op, ": ", wrong);
}

// Takes the sizes of an input.
void bind(const Node& node, size_t input, Sizes sizes, const Channels& channels, Letters* letters) {
  check_node(node, channels.take(static_cast<int32_t>(input), &sizes));
  check_node(node, letters->bind(node.tensors[input], sizes));
}

// The sizes that are known before a model runs. They are checked then, because OpenVINO's `infer` drops all errors of
// an inference on one thread.
Letters known_sizes(const Node& node, const ov::Node& op, const Channels& channels = {}) {
  Letters letters;
  for (size_t i = 0; i < op.get_input_size(); ++i) {
    const ov::PartialShape& shape = op.get_input_partial_shape(i);
    if (shape.rank().is_dynamic()) continue;
    Sizes sizes;
    for (const ov::Dimension& size : shape) sizes.push_back(size.is_static() ? size.get_length() : -1);
    bind(node, i, std::move(sizes), channels, &letters);
  }
  return letters;
}

struct Inputs {
  Letters sizes;
  std::array<const void*, 5> data{};
  std::array<int64_t, 5> widths{};  // of the tensors' last dimension
};

Inputs inputs_of(const Node& node, const ov::TensorVector& tensors, const Channels& channels = {}) {
  Inputs inputs;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const ov::Shape& shape = tensors[i].get_shape();
    Sizes sizes(shape.begin(), shape.end());
    inputs.widths[i] = sizes.empty() ? 0 : sizes.back();
    bind(node, i, std::move(sizes), channels, &inputs.sizes);
    inputs.data[i] = tensors[i].data();
  }
  return inputs;
}

// value [N,S,M,D], shapes [L,2] int32 or int64 (h, w), reference [N,Q,L,R] fp32, offsets [N,Q,M,L,P,2],
// logits [N,Q,M,L,P] → [N,Q,M·D].
class MSDeformAttn : public ov::op::Op {
 public:
  OPENVINO_OP("MSDeformAttn", "mssts");
  MSDeformAttn() = default;
  explicit MSDeformAttn(const ov::OutputVector& inputs) : Op(inputs) { constructor_validate_and_infer_types(); }

  void validate_and_infer_types() override {
    NODE_VALIDATION_CHECK(this, get_input_size() == 5, "MSDeformAttn takes 5 inputs");
    check_node(kDeformAttn, deform_attn_error(known_sizes(kDeformAttn, *this)));
    const ov::PartialShape& value = get_input_partial_shape(0);
    const ov::PartialShape& offsets = get_input_partial_shape(3);
    ov::PartialShape out = ov::PartialShape::dynamic(3);
    if (value.rank().is_static() && offsets.rank().is_static()) {
      out = {value[0], offsets[1], value[2] * value[3]};
    }
    set_output_type(0, get_input_element_type(0), out);
  }

  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    return std::make_shared<MSDeformAttn>(inputs);
  }

  bool visit_attributes(ov::AttributeVisitor&) override { return true; }
  bool has_evaluate() const override { return true; }

  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    const auto [sizes, data, widths] = inputs_of(kDeformAttn, inputs);
    check_node(kDeformAttn, deform_attn_error(sizes));
    const ov::Shape& value = inputs[0].get_shape();
    outputs[0].set_shape({value[0], inputs[3].get_shape()[1], value[2] * value[3]});
    const int32_t shapes_dtype = inputs[1].get_element_type() == ov::element::i32 ? MSSTS_INT32 : MSSTS_INT64;
    const mssts_deform_attn call =
        deform_attn_call(sizes, dtype_of(inputs[0].get_element_type()), shapes_dtype, data.data(), outputs[0].data());
    const mssts_executor threads = executor();
    check(mssts_cpu_deform_attn_forward(&call, &threads));
    return true;
  }
};

// query [B,T,S,C], key and value [B,U,S,C] → [B,T,S,C]; each is a part of its tensor's channels.
class SplitTemporalAttn : public ov::op::Op {
 public:
  OPENVINO_OP("SplitTemporalAttn", "mssts");
  SplitTemporalAttn() = default;
  SplitTemporalAttn(const ov::OutputVector& inputs, int64_t heads, std::vector<int64_t> starts,
                    std::vector<int64_t> ends)
      : Op(inputs), heads_(heads), starts_(std::move(starts)), ends_(std::move(ends)) {
    constructor_validate_and_infer_types();
  }

  void validate_and_infer_types() override {
    NODE_VALIDATION_CHECK(this, get_input_size() == 3 && heads_ > 0, "SplitTemporalAttn takes 3 inputs and `heads`");
    NODE_VALIDATION_CHECK(this, starts_.size() == 3 && ends_.size() == 3, "attributes starts and ends have 3 integers");
    const std::string wrong = channels().error();
    NODE_VALIDATION_CHECK(this, wrong.empty(), wrong);
    check_node(kTemporalAttn, temporal_attn_error(known_sizes(kTemporalAttn, *this, channels()), heads_));
    ov::PartialShape out = get_input_partial_shape(0);
    if (out.rank().is_static()) {
      if (ends_[0] != Channels::kLast) {
        out[3] = ends_[0] - starts_[0];
      } else if (starts_[0] != 0) {
        out[3] = out[3].is_static() ? ov::Dimension(out[3].get_length() - starts_[0]) : ov::Dimension::dynamic();
      }
    }
    set_output_type(0, get_input_element_type(0), out);
  }

  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    return std::make_shared<SplitTemporalAttn>(inputs, heads_, starts_, ends_);
  }

  bool visit_attributes(ov::AttributeVisitor& visitor) override {
    visitor.on_attribute("heads", heads_);
    visitor.on_attribute("starts", starts_);
    visitor.on_attribute("ends", ends_);
    return true;
  }
  bool has_evaluate() const override { return true; }

  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    const Channels parts = channels();
    const auto [sizes, data, widths] = inputs_of(kTemporalAttn, inputs, parts);
    check_node(kTemporalAttn, temporal_attn_error(sizes, heads_));
    ov::Shape out = inputs[0].get_shape();
    out[3] = static_cast<size_t>(sizes['C']);
    outputs[0].set_shape(out);
    mssts_temporal_attn call = temporal_attn_call(sizes, heads_, dtype_of(inputs[0].get_element_type()), parts,
                                                  widths.data(), data.data(), outputs[0].data());
    set_strides(call.query_strides, inputs[0]);
    set_strides(call.key_strides, inputs[1]);
    set_strides(call.value_strides, inputs[2]);
    const mssts_executor threads = executor();
    check(mssts_cpu_temporal_attn_forward(&call, &threads));
    return true;
  }

 private:
  Channels channels() const {
    Channels channels;
    std::copy_n(starts_.begin(), 3, channels.starts.begin());
    std::copy_n(ends_.begin(), 3, channels.ends.begin());
    return channels;
  }

  // OpenVINO gives bytes of all four dimensions; the kernel wants elements of the first three.
  static void set_strides(int64_t (&strides)[3], const ov::Tensor& tensor) {
    const ov::Strides bytes = tensor.get_strides();
    for (int i = 0; i < 3; ++i) strides[i] = static_cast<int64_t>(bytes[i] / tensor.get_element_type().size());
  }

  int64_t heads_ = 0;
  std::vector<int64_t> starts_{0, 0, 0}, ends_{Channels::kLast, Channels::kLast, Channels::kLast};
};

using ov::frontend::NodeContext;

ov::OutputVector deformable(const NodeContext& node) {
  ov::OutputVector inputs;
  for (int i = 0; i < 5; ++i) inputs.push_back(node.get_input(i));
  return std::make_shared<MSDeformAttn>(inputs)->outputs();
}

ov::OutputVector temporal(const NodeContext& node) {
  const ov::OutputVector inputs{node.get_input(0), node.get_input(1), node.get_input(2)};
  using Integers = std::vector<int64_t>;
  const auto starts = node.get_attribute<Integers>("starts", Integers{0, 0, 0});
  const auto ends = node.get_attribute<Integers>("ends", Integers{Channels::kLast, Channels::kLast, Channels::kLast});
  return std::make_shared<SplitTemporalAttn>(inputs, node.get_attribute<int64_t>("heads"), starts, ends)->outputs();
}

}  // namespace
}  // namespace mssts

using ov::frontend::onnx::ConversionExtension;

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>({
    std::make_shared<ov::OpExtension<mssts::MSDeformAttn>>(),
    std::make_shared<ov::OpExtension<mssts::SplitTemporalAttn>>(),
    std::make_shared<ConversionExtension>("MSDeformAttn", "mssts", mssts::deformable),
    std::make_shared<ConversionExtension>("SplitTemporalAttn", "mssts", mssts::temporal),
}));

// The output's shape from the inputs', for the runtime's planning of memory; nothing where the inputs do not tell.
#ifndef MSSTS_ONNXRUNTIME_SHAPE_INFERENCE_H
#define MSSTS_ONNXRUNTIME_SHAPE_INFERENCE_H

#include <string>
#include <vector>

#include "api.h"
#include "common/node.h"

namespace mssts::ort {

// A size known as a number, or by the graph's name for it (then the number is -1), or not at all.
struct SymbolicSize {
  int64_t number = -1;
  std::string name;
};

// The context's own; not to be released.
inline const OrtTensorTypeAndShapeInfo* input_info(const OrtApi& api, const OrtShapeInferContext* context,
                                                   size_t index) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api.ShapeInferContext_GetInputTypeShape(context, index, &info));
  return info;
}

inline std::vector<SymbolicSize> inferred_sizes(const OrtApi& api, const OrtShapeInferContext* context, size_t index) {
  const OrtTensorTypeAndShapeInfo* info = input_info(api, context, index);
  const std::vector<int64_t> numbers = sizes_of(api, info);
  std::vector<const char*> names(numbers.size(), nullptr);
  check(api.GetSymbolicDimensions(info, names.data(), names.size()));
  std::vector<SymbolicSize> sizes(numbers.size());
  for (size_t i = 0; i < sizes.size(); ++i) sizes[i] = {numbers[i], names[i] == nullptr ? "" : names[i]};
  return sizes;
}

// Declares the shape of the only output, and its type, the first input's: without one, a shape makes it float32. A size
// that is unknown and nameless leaves the shape undeclared: the runtime takes sizes of one name for equal, so none may
// be invented.
inline void declare_output(const OrtApi& api, OrtShapeInferContext* context, const std::vector<SymbolicSize>& sizes) {
  std::vector<int64_t> numbers;
  std::vector<const char*> names;
  for (const SymbolicSize& size : sizes) {
    if (size.number < 0 && size.name.empty()) return;
    numbers.push_back(size.number);
    names.push_back(size.number < 0 ? size.name.c_str() : "");
  }
  ONNXTensorElementDataType type{};
  check(api.GetTensorElementType(input_info(api, context, 0), &type));
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api.CreateTensorTypeAndShapeInfo(&info));
  OrtStatus* status = api.SetTensorElementType(info, type);
  if (status == nullptr) status = api.SetDimensions(info, numbers.data(), numbers.size());
  if (status == nullptr) status = api.SetSymbolicDimensions(info, names.data(), names.size());
  if (status == nullptr) status = api.ShapeInferContext_SetOutputTypeShape(context, 0, info);
  api.ReleaseTensorTypeAndShapeInfo(info);
  check(status);
}

// value [N,S,M,D], offsets [N,Q,M,L,P,2] → [N, Q, M*D]
inline void infer_deform_attn(const OrtApi& api, OrtShapeInferContext* context) {
  const auto value = inferred_sizes(api, context, 0), offsets = inferred_sizes(api, context, 3);
  if (value.size() != 4 || offsets.size() != 6) return;  // a shape that is unknown looks like a scalar's
  SymbolicSize channels;
  if (value[2].number >= 0 && value[3].number >= 0) channels.number = value[2].number * value[3].number;
  declare_output(api, context, {offsets[0], offsets[1], channels});
}

// The first integer of a node's attribute, or `otherwise` where it has none of that name.
inline int64_t first_integer(const OrtApi& api, const OrtShapeInferContext* context, const char* name,
                             int64_t otherwise) {
  const OrtOpAttr* attribute = nullptr;
  if (OrtStatus* status = api.ShapeInferContext_GetAttribute(context, name, &attribute)) {
    api.ReleaseStatus(status);
    return otherwise;
  }
  std::array<int64_t, 3> integers{};
  size_t bytes = 0;
  check(api.ReadOpAttr(attribute, ORT_OP_ATTR_INTS, integers.data(), sizeof integers, &bytes));
  return integers[0];
}

// query [B,T,S,C] → the same, but the channels of the query alone
inline void infer_temporal_attn(const OrtApi& api, OrtShapeInferContext* context) {
  auto query = inferred_sizes(api, context, 0);
  if (query.size() != 4) return;
  const int64_t end = first_integer(api, context, "ends", Channels::kLast);
  if (end != Channels::kLast) query[3] = {end - first_integer(api, context, "starts", 0), ""};
  declare_output(api, context, query);
}

}  // namespace mssts::ort

#endif  // MSSTS_ONNXRUNTIME_SHAPE_INFERENCE_H

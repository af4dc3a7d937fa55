// ONNX Runtime's binding to the kernels: a custom-op library with the ops of the ONNX domain `mssts`.
//
// A node whose element types no registered kernel has makes the whole model invalid, function body or not, so there is
// one op a combination of types: each float type for the CPU; for CUDA all but float64, which ONNX Runtime then places
// on the CPU.
#include <mssts/kernels.h>
#include <onnxruntime_c_api.h>

#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <string>

#include "api.h"
#include "common/node.h"
#include "compute.h"
#include "shape_inference.h"

namespace mssts::ort {
namespace {

constexpr const char* kDomain = "mssts";

struct FloatType {
  int32_t dtype;  // mssts_dtype
  ONNXTensorElementDataType onnx;
  ONNXTensorElementDataType reference;  // of MSDeformAttn's reference points
  const char* name;
  bool on_cuda;
};

constexpr FloatType kFloatTypes[] = {
    {MSSTS_FLOAT32, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, "float32", true},
    {MSSTS_FLOAT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, "float16", true},
    {MSSTS_BFLOAT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, "bfloat16", true},
    {MSSTS_FLOAT64, ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, "float64", false},
};

struct IndexType {
  int32_t dtype;
  ONNXTensorElementDataType onnx;
};

constexpr IndexType kIndexTypes[] = {
    {MSSTS_INT64, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64},
    {MSSTS_INT32, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32},
};

// Kernels that sessions created on this thread since it was last asked: "MSDeformAttn cpu float32\n" for each node.
thread_local std::string created_kernels;

// One op for one device and one combination of types. ONNX Runtime keeps the pointer and calls back through it.
struct Op : OrtCustomOp {
  Op(const OrtApi& api, const Node& node, Device device, const FloatType& floats, const IndexType& shapes);

  ONNXTensorElementDataType type_of(const TensorSpec& tensor) const {
    switch (tensor.role) {
      case Role::kIndex: return shapes->onnx;
      case Role::kReference: return floats->reference;
      case Role::kData: break;
    }
    return floats->onnx;
  }
  void create(const OrtKernelInfo* info, void** kernel) const;

  const OrtApi& api;
  const Node& node;
  Device device;
  const FloatType* floats;
  const IndexType* shapes;
};

// A node's kernel.
struct Instance {
  Kernel kernel;
  void (*compute)(const Kernel&, OrtKernelContext*);
};

void Op::create(const OrtKernelInfo* info, void** kernel) const {
  int64_t heads = 1;
  Channels channels;
  if (&node == &kTemporalAttn) {
    check(api.KernelInfoGetAttribute_int64(info, "heads", &heads));
    check_node(node, heads_error(heads));
    integers(api, info, "starts", &channels.starts);
    integers(api, info, "ends", &channels.ends);
    check_node(node, channels.error());
  }
  const auto compute = &node == &kDeformAttn ? &compute_deform_attn : &compute_temporal_attn;
  created_kernels += std::string(node.op) + (device == Device::kCpu ? " cpu " : " cuda ") + floats->name + "\n";
  *kernel = new Instance{{api, device, floats->dtype, shapes->dtype, heads, channels}, compute};
}

const Op& op_of(const OrtCustomOp* op) { return *static_cast<const Op*>(op); }

Op::Op(const OrtApi& api_, const Node& node_, Device device_, const FloatType& floats_, const IndexType& shapes_)
    : OrtCustomOp{}, api(api_), node(node_), device(device_), floats(&floats_), shapes(&shapes_) {
  version = kApiVersion;
  GetName = [](const OrtCustomOp* op) { return op_of(op).node.op; };
  GetExecutionProviderType = [](const OrtCustomOp* op) {
    return op_of(op).device == Device::kCpu ? "CPUExecutionProvider" : "CUDAExecutionProvider";
  };
  GetInputTypeCount = [](const OrtCustomOp* op) { return static_cast<size_t>(op_of(op).node.input_count); };
  GetInputType = [](const OrtCustomOp* op, size_t index) { return op_of(op).type_of(op_of(op).node.tensors[index]); };
  GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  GetOutputTypeCount = [](const OrtCustomOp*) { return size_t{1}; };
  GetOutputType = [](const OrtCustomOp* op, size_t) { return op_of(op).floats->onnx; };
  GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  GetStartVersion = [](const OrtCustomOp*) { return 1; };
  CreateKernelV2 = [](const OrtCustomOp* op, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
    return guarded(op_of(op).api, [&] { op_of(op).create(info, kernel); });
  };
  KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    const auto& instance = *static_cast<const Instance*>(kernel);
    return guarded(instance.kernel.api, [&] { instance.compute(instance.kernel, context); });
  };
  KernelDestroy = [](void* kernel) { delete static_cast<Instance*>(kernel); };
  InferOutputShapeFn = [](const OrtCustomOp* op, OrtShapeInferContext* context) {
    const auto infer = &op_of(op).node == &kDeformAttn ? &infer_deform_attn : &infer_temporal_attn;
    return guarded(op_of(op).api, [&] { infer(op_of(op).api, context); });
  };
}

// The domain as one ONNX Runtime knows it. ONNX Runtime keeps pointers to it as long as there are sessions, so it is
// never freed; the library is linked to stay loaded (-z nodelete), and makes it once a runtime and process.
class Domain {
 public:
  static OrtCustomOpDomain* of(const OrtApi& api) {
    static std::mutex mutex;
    static auto* domains = new std::deque<Domain>;
    const std::lock_guard<std::mutex> lock(mutex);
    for (const Domain& domain : *domains) {
      if (domain.api_ == &api) return domain.domain_;
    }
    domains->emplace_back(api);
    try {
      domains->back().fill();
    } catch (...) {
      domains->pop_back();
      throw;
    }
    return domains->back().domain_;
  }

  explicit Domain(const OrtApi& api) : api_(&api) {}

 private:
  void fill() {
    for (const FloatType& floats : kFloatTypes) {
      add(Device::kCpu, floats);
#ifdef MSSTS_WITH_CUDA
      if (floats.on_cuda) add(Device::kCuda, floats);
#endif
    }
    check(api_->CreateCustomOpDomain(kDomain, &domain_));
    for (const Op& op : ops_) check(api_->CustomOpDomain_Add(domain_, &op));
  }

  void add(Device device, const FloatType& floats) {
    for (const IndexType& shapes : kIndexTypes) ops_.emplace_back(*api_, kDeformAttn, device, floats, shapes);
    ops_.emplace_back(*api_, kTemporalAttn, device, floats, kIndexTypes[0]);
  }

  const OrtApi* api_;
  std::deque<Op> ops_;  // whose elements never move
  OrtCustomOpDomain* domain_ = nullptr;
};

}  // namespace
}  // namespace mssts::ort

// What ONNX Runtime calls after loading the library.
extern "C" MSSTS_API OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace mssts::ort;
  const OrtApi* api = base->GetApi(kApiVersion);
  if (api == nullptr) {
    const auto message =
        std::string("the mssts kernels need ONNX Runtime 1.21 or newer; this is ") + base->GetVersionString();
    return base->GetApi(1)->CreateStatus(ORT_NOT_IMPLEMENTED, message.c_str());
  }
  return guarded(*api, [&] { check(api->AddCustomOpDomain(options, Domain::of(*api))); });
}

// Tells which kernels the sessions created on this thread got since the last call, a line a node: op, device, dtype.
// A session creates its kernels on the thread that makes it. Valid until the next call on this thread.
extern "C" MSSTS_API const char* mssts_onnxruntime_created(void) {
  thread_local std::string taken;
  taken.swap(mssts::ort::created_kernels);
  mssts::ort::created_kernels.clear();
  return taken.c_str();
}

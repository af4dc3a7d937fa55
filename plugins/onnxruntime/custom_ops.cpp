/* ONNX Runtime's door to the kernels: a custom-op library with the ops of the ONNX domain `mssts`.
 *
 * A node whose element types no registered kernel has makes the whole model invalid, function body or not, so there is
 * one op a combination of types: each float type for the CPU; for CUDA all but float64, which ONNX Runtime then places
 * on the CPU.
 */
#include <mssts/kernels.h>
#include <onnxruntime_c_api.h>

#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <string>

#include "compute.h"
#include "runtime.h"
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

/* Kernels that sessions created on this thread since it was last asked: "MSDeformAttn cpu float32\n" for each node. */
thread_local std::string created_kernels;

/* One op for one device and one combination of types. ONNX Runtime keeps the pointer and calls back through it. */
struct Op : OrtCustomOp {
  enum class Kind { kDeformAttn, kTemporalAttn };

  Op(const OrtApi& api, Kind kind, Device device, const FloatType& floats, const IndexType& shapes);

  const char* Name() const { return kind == Kind::kDeformAttn ? "MSDeformAttn" : "SplitTemporalAttn"; }
  size_t Inputs() const { return kind == Kind::kDeformAttn ? 5 : 3; }
  ONNXTensorElementDataType InputType(size_t index) const {
    if (kind == Kind::kDeformAttn && index == 1) return shapes->onnx;
    if (kind == Kind::kDeformAttn && index == 2) return floats->reference;
    return floats->onnx;
  }
  void Create(const OrtKernelInfo* info, void** kernel) const;

  const OrtApi& api;
  Kind kind;
  Device device;
  const FloatType* floats;
  const IndexType* shapes;
};

/* A node's kernel. */
struct Instance {
  Kernel kernel;
  void (*compute)(const Kernel&, OrtKernelContext*);
};

void Op::Create(const OrtKernelInfo* info, void** kernel) const {
  int64_t heads = 1;
  if (kind == Kind::kTemporalAttn) {
    Check(api.KernelInfoGetAttribute_int64(info, "heads", &heads));
    if (heads < 1 || heads > INT32_MAX) {
      throw Failure(ORT_INVALID_ARGUMENT,
                    std::string(Name()) + ": heads is " + std::to_string(heads) + "; expected 1 or more");
    }
  }
  const auto compute = kind == Kind::kDeformAttn ? &ComputeDeformAttn : &ComputeTemporalAttn;
  created_kernels += std::string(Name()) + (device == Device::kCpu ? " cpu " : " cuda ") + floats->name + "\n";
  *kernel = new Instance{{api, device, floats->dtype, shapes->dtype, heads}, compute};
}

const Op& Of(const OrtCustomOp* op) { return *static_cast<const Op*>(op); }

Op::Op(const OrtApi& api_, Kind kind_, Device device_, const FloatType& floats_, const IndexType& shapes_)
    : OrtCustomOp{}, api(api_), kind(kind_), device(device_), floats(&floats_), shapes(&shapes_) {
  version = kApiVersion;
  GetName = [](const OrtCustomOp* op) { return Of(op).Name(); };
  GetExecutionProviderType = [](const OrtCustomOp* op) {
    return Of(op).device == Device::kCpu ? "CPUExecutionProvider" : "CUDAExecutionProvider";
  };
  GetInputTypeCount = [](const OrtCustomOp* op) { return Of(op).Inputs(); };
  GetInputType = [](const OrtCustomOp* op, size_t index) { return Of(op).InputType(index); };
  GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  GetOutputTypeCount = [](const OrtCustomOp*) { return size_t{1}; };
  GetOutputType = [](const OrtCustomOp* op, size_t) { return Of(op).floats->onnx; };
  GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  GetStartVersion = [](const OrtCustomOp*) { return 1; };
  CreateKernelV2 = [](const OrtCustomOp* op, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
    return Guarded(Of(op).api, [&] { Of(op).Create(info, kernel); });
  };
  KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    const auto& instance = *static_cast<const Instance*>(kernel);
    return Guarded(instance.kernel.api, [&] { instance.compute(instance.kernel, context); });
  };
  KernelDestroy = [](void* kernel) { delete static_cast<Instance*>(kernel); };
  InferOutputShapeFn = [](const OrtCustomOp* op, OrtShapeInferContext* context) {
    const auto infer = Of(op).kind == Kind::kDeformAttn ? &InferDeformAttn : &InferTemporalAttn;
    return Guarded(Of(op).api, [&] { infer(Of(op).api, context); });
  };
}

/* The domain as one ONNX Runtime knows it. ONNX Runtime keeps pointers to it as long as there are sessions, so it is
 * never freed; the library is linked to stay loaded (-z nodelete), and makes it once a runtime and process. */
class Domain {
 public:
  static OrtCustomOpDomain* Of(const OrtApi& api) {
    static std::mutex mutex;
    static auto* domains = new std::deque<Domain>;
    const std::lock_guard<std::mutex> lock(mutex);
    for (const Domain& domain : *domains) {
      if (domain.api_ == &api) return domain.domain_;
    }
    domains->emplace_back(api);
    try {
      domains->back().Fill();
    } catch (...) {
      domains->pop_back();
      throw;
    }
    return domains->back().domain_;
  }

  explicit Domain(const OrtApi& api) : api_(&api) {}

 private:
  void Fill() {
    for (const FloatType& floats : kFloatTypes) {
      Add(Device::kCpu, floats);
#ifdef MSSTS_WITH_CUDA
      if (floats.on_cuda) Add(Device::kCuda, floats);
#endif
    }
    Check(api_->CreateCustomOpDomain(kDomain, &domain_));
    for (const Op& op : ops_) Check(api_->CustomOpDomain_Add(domain_, &op));
  }

  void Add(Device device, const FloatType& floats) {
    for (const IndexType& shapes : kIndexTypes) ops_.emplace_back(*api_, Op::Kind::kDeformAttn, device, floats, shapes);
    ops_.emplace_back(*api_, Op::Kind::kTemporalAttn, device, floats, kIndexTypes[0]);
  }

  const OrtApi* api_;
  std::deque<Op> ops_;  // whose elements never move
  OrtCustomOpDomain* domain_ = nullptr;
};

}  // namespace
}  // namespace mssts::ort

/* What ONNX Runtime calls after loading the library. */
extern "C" MSSTS_API OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace mssts::ort;
  const OrtApi* api = base->GetApi(kApiVersion);
  if (api == nullptr) {
    const auto message = std::string("the mssts kernels need ONNX Runtime 1.21 or newer; this is ") +
                         base->GetVersionString();
    return base->GetApi(1)->CreateStatus(ORT_NOT_IMPLEMENTED, message.c_str());
  }
  return Guarded(*api, [&] { Check(api->AddCustomOpDomain(options, Domain::Of(*api))); });
}

/* Tells which kernels the sessions created on this thread got since the last call, a line a node: op, device, dtype.
 * A session creates its kernels on the thread that makes it. Valid until the next call on this thread. */
extern "C" MSSTS_API const char* mssts_onnxruntime_created(void) {
  thread_local std::string taken;
  taken.swap(mssts::ort::created_kernels);
  mssts::ort::created_kernels.clear();
  return taken.c_str();
}

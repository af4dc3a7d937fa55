// Self-registration, and the entry points of IPluginRegistry::loadLibrary.
//
// getPluginRegistry is looked up in the process when the library is loaded, rather than left to the linker as
// REGISTER_TENSORRT_PLUGIN does: Triton and trtexec open TensorRT and its plugins with RTLD_LOCAL, where an undefined
// getPluginRegistry resolves only through a dependency on one particular libnvinfer, and then not on the lean and the
// dispatch runtime. A lookup serves all three, tells a wrong major version, and fails with a message rather than in
// the loader.
#include "registry.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdio>
#include <vector>

#include "binding.h"
#include "creators.h"

namespace mssts::trt {
namespace {

using nvinfer1::ILogger;
using nvinfer1::ILoggerFinder;
using nvinfer1::IPluginRegistry;

constexpr int32_t kMajor = NV_TENSORRT_MAJOR;
constexpr const char* kRuntimes[] = {"libnvinfer.so.", "libnvinfer_lean.so.", "libnvinfer_dispatch.so."};

std::atomic<ILoggerFinder*> logger_finder{nullptr};

struct Runtime {
  IPluginRegistry* registry = nullptr;
  ILogger* (*logger)() = nullptr;
  int32_t major = 0;  // 0 where it does not say
};

Runtime runtime_of(void* handle) {
  Runtime found;
  const auto registry = reinterpret_cast<IPluginRegistry* (*)()>(dlsym(handle, "getPluginRegistry"));
  const auto major = reinterpret_cast<int32_t (*)()>(dlsym(handle, "getInferLibMajorVersion"));
  found.logger = reinterpret_cast<ILogger* (*)()>(dlsym(handle, "getLogger"));
  found.major = major == nullptr ? 0 : major();
  // The interfaces of another major version differ: its registry is not touched.
  found.registry = registry == nullptr || found.major != kMajor ? nullptr : registry();
  return found;
}

void add(std::vector<Runtime>& runtimes, const Runtime& runtime) {
  for (const Runtime& known : runtimes) {
    if (known.registry == runtime.registry) return;
  }
  if (runtime.registry != nullptr) runtimes.push_back(runtime);
}

// The runtimes that are loaded already, RTLD_LOCAL or not. A handle is never closed: a runtime that holds our creators
// and our library stay for the life of the process.
std::vector<Runtime> loaded_runtimes() {
  std::vector<Runtime> runtimes;
  for (const char* name : kRuntimes) {
    void* handle = dlopen((name + std::to_string(kMajor)).c_str(), RTLD_LAZY | RTLD_NOLOAD);
    if (handle != nullptr) add(runtimes, runtime_of(handle));
  }
  add(runtimes, runtime_of(RTLD_DEFAULT));  // linked statically into the program
  return runtimes;
}

// "TensorRT 10 (libnvinfer.so.10)" where this process has one of another major version, else "".
std::string other_runtime() {
  for (int32_t major = 8; major < kMajor + 4; ++major) {
    for (const char* name : kRuntimes) {
      const std::string file = name + std::to_string(major);
      void* handle = major == kMajor ? nullptr : dlopen(file.c_str(), RTLD_LAZY | RTLD_NOLOAD);
      if (handle == nullptr) continue;
      dlclose(handle);
      return "TensorRT " + std::to_string(major) + " (" + file + ")";
    }
  }
  return "";
}

// The runtimes to register with. With LD_PRELOAD this library comes before TensorRT and brings it along.
std::vector<Runtime> runtimes_to_register() {
  std::vector<Runtime> runtimes = loaded_runtimes();
  if (!runtimes.empty()) return runtimes;
  const std::string built = std::string("mssts: this library is built for TensorRT ") + std::to_string(kMajor);
  const std::string other = other_runtime();
  if (!other.empty()) {
    log(Severity::kERROR, built + ", but this process runs " + other + "; no plugin is registered; build plugins/ " +
                              "with TENSORRT_INCLUDE_DIR set to the headers of the TensorRT that runs");
    return runtimes;
  }
  std::string why;
  for (const char* name : kRuntimes) {
    const std::string file = name + std::to_string(kMajor);
    void* handle = dlopen(file.c_str(), RTLD_LAZY | RTLD_LOCAL);
    if (handle != nullptr) {
      add(runtimes, runtime_of(handle));
      return runtimes;
    }
    const char* reason = dlerror();
    if (why.empty() && reason != nullptr) why = reason;
  }
  log(Severity::kERROR, built + ", but none is loaded in this process and none is found (" + why +
                            "); no plugin is registered; load TensorRT first, or call " +
                            "mssts_register_tensorrt_plugins(NULL) after it");
  return runtimes;
}

bool register_with(IPluginRegistry& registry) {
  bool all = true;
  for (nvinfer1::IPluginCreatorInterface* creator : creators()) {
    const char* name = static_cast<nvinfer1::IPluginCreatorV3One*>(creator)->getPluginName();
    // A second copy of this library, as out of a plan that carries its plugins, leaves the first in place.
    if (registry.getCreator(name, kVersion, kNamespace) != nullptr) continue;
    if (registry.registerCreator(*creator, kNamespace)) continue;
    log(Severity::kERROR, std::string("mssts ") + name + ": TensorRT refused to register it");
    all = false;
  }
  return all;
}

int32_t register_everywhere() noexcept {
  return guarded("registration", int32_t{0}, [] {
    int32_t count = 0;
    for (const Runtime& runtime : runtimes_to_register()) count += register_with(*runtime.registry) ? 1 : 0;
    return count;
  });
}

const int32_t registered_at_load = register_everywhere();

ILogger* current_logger() {
  ILoggerFinder* finder = logger_finder.load();
  ILogger* logger = finder == nullptr ? nullptr : finder->findLogger();
  if (logger != nullptr) return logger;
  for (const Runtime& runtime : loaded_runtimes()) {
    logger = runtime.logger == nullptr ? nullptr : runtime.logger();
    if (logger != nullptr) return logger;
  }
  return nullptr;
}

}  // namespace

void log(Severity severity, const std::string& message) noexcept {
  try {
    if (ILogger* logger = current_logger()) {
      logger->log(severity, message.c_str());
      return;
    }
  } catch (...) {
    // A logger that throws must not hide the message.
  }
  if (severity <= Severity::kWARNING) std::fprintf(stderr, "%s\n", message.c_str());
}

}  // namespace mssts::trt

extern "C" {

MSSTS_API int32_t mssts_register_tensorrt_plugins(void* registry) {
  using namespace mssts::trt;
  if (registry == nullptr) return register_everywhere();
  return guarded("registration", int32_t{0},
                 [registry] { return register_with(*static_cast<nvinfer1::IPluginRegistry*>(registry)) ? 1 : 0; });
}

#define MSSTS_TEXT_(x) #x
#define MSSTS_TEXT(x) MSSTS_TEXT_(x)
MSSTS_API const char* mssts_tensorrt_build(void) {
  return "TensorRT " MSSTS_TEXT(NV_TENSORRT_MAJOR) "." MSSTS_TEXT(NV_TENSORRT_MINOR) "." MSSTS_TEXT(NV_TENSORRT_PATCH);
}

// IPluginRegistry::loadLibrary asks for the creators and registers them with its own registry: with the local one of a
// builder or a runtime, even where the global one has them (tried with TensorRT-RTX 1.7). The global one itself then
// says that they exist already, and keeps them. None is withdrawn here: others of the process use them.
MSSTS_API nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  using namespace mssts::trt;
  count = 0;
  return guarded("getCreators", static_cast<nvinfer1::IPluginCreatorInterface* const*>(nullptr), [&count] {
    static const auto all = creators();
    count = static_cast<int32_t>(all.size());
    return all.data();
  });
}

MSSTS_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { mssts::trt::logger_finder = finder; }

}  // extern "C"

// The TensorRT runtimes of this process (full, lean, dispatch): their registries and their loggers.
#ifndef MSSTS_TENSORRT_REGISTRY_H
#define MSSTS_TENSORRT_REGISTRY_H

#include <NvInferRuntime.h>

#include <string>
#include <utility>

namespace mssts::trt {

using Severity = nvinfer1::ILogger::Severity;

// To the logger that TensorRT gave this library, else to that of a runtime of the process, else to stderr (warnings
// and errors alone). Never throws.
void log(Severity severity, const std::string& message) noexcept;

// Runs `body` and returns its result; an exception becomes a logged error and `failed`: none may reach TensorRT.
template <typename Result, typename Body>
Result guarded(const char* who, Result failed, Body&& body) noexcept {
  try {
    return std::forward<Body>(body)();
  } catch (const std::exception& error) {
    log(Severity::kERROR, std::string("mssts ") + who + ": " + error.what());
  } catch (...) {
    log(Severity::kERROR, std::string("mssts ") + who + ": unknown exception");
  }
  return failed;
}

}  // namespace mssts::trt

#endif  // MSSTS_TENSORRT_REGISTRY_H

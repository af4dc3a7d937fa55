// Launches and the runtime's errors.
#include "runtime.h"

#include <map>
#include <mutex>
#include <new>
#include <string>

#include "scheduler.h"

#define MSSTS_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

std::mutex one_launch;  // threadIdx and its like are global
mssts::emulation::Scheduler scheduler;
std::map<const void*, int> shared_limits;
std::string finding;
std::string launches;
thread_local cudaError_t last_error = cudaSuccess;

}  // namespace

// The order of threads and blocks in the launches that follow: 0 ascending, -1 descending, else random by this seed.
MSSTS_EXPORT void mssts_emulation_order(int64_t seed) {
  const std::lock_guard<std::mutex> lock(one_launch);
  scheduler.set_order(seed);
}

// The launches since the last call of this function, a line each: kernel, grid, block, bytes of dynamic shared memory.
MSSTS_EXPORT const char* mssts_emulation_launches() {
  static std::string written;
  const std::lock_guard<std::mutex> lock(one_launch);
  written.swap(launches);
  launches.clear();
  return written.c_str();
}

cudaError_t cudaPeekAtLastError() { return last_error; }

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    case cudaErrorNotSupported: return "cudaErrorNotSupported";
  }
  return "an unknown error";
}

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? finding.c_str() : cudaGetErrorName(error);
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  using mssts::emulation::SharedMemory;
  if (device != 0) return last_error = cudaErrorInvalidDevice;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = SharedMemory::kUsual; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMultiProcessorCount: *value = 4; break;
    case cudaDevAttrL2CacheSize: *value = 60 << 20; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 228 * 1024; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = SharedMemory::kLimit; break;
    default: return last_error = cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

cudaError_t cudaSetSharedLimit(const void* kernel, int bytes) {
  using mssts::emulation::SharedMemory;
  if (bytes < 0 || bytes > static_cast<int>(SharedMemory::kLimit)) return last_error = cudaErrorInvalidValue;
  const std::lock_guard<std::mutex> lock(one_launch);
  shared_limits[kernel] = bytes;
  return cudaSuccess;
}

namespace mssts::emulation {

void launch(const char* name, const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
            const std::function<void()>& body) {
  const std::lock_guard<std::mutex> lock(one_launch);
  const auto text = [](dim3 size) {
    return std::to_string(size.x) + "x" + std::to_string(size.y) + "x" + std::to_string(size.z);
  };
  launches += std::string(name) + " grid " + text(grid) + " block " + text(block) + " shared " +
              std::to_string(shared_bytes) + "\n";
  const auto limit = shared_limits.find(kernel);
  const size_t allowed = limit != shared_limits.end() ? static_cast<size_t>(limit->second) : SharedMemory::kUsual;
  const uint64_t threads = static_cast<uint64_t>(block.x) * block.y * block.z;
  const bool block_is_possible = threads > 0 && block.x <= 1024 && block.y <= 1024 && block.z <= 64 && threads <= 1024;
  const bool grid_is_possible =
      grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535;
  if (!block_is_possible || !grid_is_possible || shared_bytes > std::max(allowed, SharedMemory::kUsual)) {
    last_error = cudaErrorInvalidConfiguration;
    return;
  }
  std::string reason;
  try {
    reason = scheduler.run(name, grid, block, shared_bytes, body);
  } catch (const std::bad_alloc&) {
    last_error = cudaErrorMemoryAllocation;
    return;
  }
  if (reason.empty()) return;
  finding = reason;
  last_error = cudaErrorLaunchFailure;
}

void meet(Request& request) { scheduler.meet(request); }
int lane() { return scheduler.lane(); }
void fail(const char* reason, Site site) { scheduler.fail(reason, site); }

void check_width(int width, Site site) {
  const bool power_of_two = width > 0 && width <= 32 && (width & (width - 1)) == 0;
  if (!power_of_two) scheduler.fail("a shuffle of width " + std::to_string(width), site);
}

void* shared_array(const char* file, int line, const char* name, size_t bytes) {
  void* array = scheduler.shared().array(file, line, bytes);
  if (array == nullptr) {
    scheduler.fail(std::string("no shared memory is left for ") + name + ", " + std::to_string(bytes) + " bytes",
                   Site{file, line});
  }
  return array;
}

void* dynamic_shared() { return scheduler.shared().dynamic(); }

}  // namespace mssts::emulation

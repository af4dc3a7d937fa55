// The C ABI of the CPU library.
#include <exception>
#include <new>

#include "common/error.h"
#include "common/validate.h"
#include "isa.h"
#include "levels.h"
#include "parallel.h"
#include "scalar.h"

namespace {

// Runs a kernel; nothing is thrown across the ABI.
template <class Kernel>
int guarded(const Kernel& kernel) noexcept {
  mssts::clear_error();
  try {
    return kernel();
  } catch (const std::bad_alloc&) {
    return mssts::fail(MSSTS_NO_MEMORY, "not enough memory for the scratch space of the kernel");
  } catch (const std::exception& error) {
    return mssts::fail(MSSTS_NO_MEMORY, "the system refused a resource: %s", error.what());
  }
}

// The vector kernels compute in float32 and number the rows of a frame with 31 bits.
bool fits_vectors(const mssts_deform_attn& call, const std::vector<mssts::Level>& levels) {
  constexpr int64_t kMostRows = (int64_t{1} << 31) - 1, kMostPixels = int64_t{1} << 24;
  int64_t rows = 0;
  for (const mssts::Level& level : levels) {
    if (level.height >= kMostPixels || level.width >= kMostPixels) return false;
    rows += (level.height + 3) * (level.width + 1) + 1;
    if (rows > kMostRows) return false;
  }
  return call.dtype != MSSTS_FLOAT64;
}

mssts_status validate(const mssts_deform_attn* call, bool backward, std::vector<mssts::Level>* levels) {
  mssts_status status = mssts::validate_sizes(call, mssts::kCpuSupport);
  if (status == MSSTS_OK) status = mssts::validate_tensors(*call, backward, 0, mssts::kCpuSupport);
  return status == MSSTS_OK ? mssts::read_levels(*call, levels) : status;
}

int temporal_attn(const mssts_temporal_attn* call, bool backward, const mssts_executor* executor) {
  return guarded([&] {
    const mssts_status status = mssts::validate(call, backward, mssts::kCpuSupport);
    if (status != MSSTS_OK) return status;
    if (call->dtype == MSSTS_FLOAT64) return mssts::temporal_attn_scalar(*call, backward, executor);
    mssts::isa().temporal_attn(*call, backward, executor);
    return MSSTS_OK;
  });
}

}  // namespace

extern "C" {

int mssts_cpu_deform_attn_forward(const mssts_deform_attn* call, const mssts_executor* executor) {
  return guarded([&] {
    std::vector<mssts::Level> levels;
    const mssts_status status = validate(call, false, &levels);
    if (status != MSSTS_OK) return status;
    if (!fits_vectors(*call, levels)) return mssts::deform_attn_forward_scalar(*call, levels, executor);
    mssts::isa().deform_attn_forward(*call, levels.data(), executor);
    return MSSTS_OK;
  });
}

int mssts_cpu_deform_attn_backward(const mssts_deform_attn* call, const mssts_executor* executor) {
  return guarded([&] {
    std::vector<mssts::Level> levels;
    const mssts_status status = validate(call, true, &levels);
    if (status != MSSTS_OK) return status;
    if (!fits_vectors(*call, levels)) return mssts::deform_attn_backward_scalar(*call, levels, executor);
    mssts::isa().deform_attn_backward(*call, levels.data(), executor);
    return MSSTS_OK;
  });
}

int mssts_cpu_temporal_attn_forward(const mssts_temporal_attn* call, const mssts_executor* executor) {
  return temporal_attn(call, false, executor);
}

int mssts_cpu_temporal_attn_backward(const mssts_temporal_attn* call, const mssts_executor* executor) {
  return temporal_attn(call, true, executor);
}

const char* mssts_cpu_isa(void) { return mssts::isa_name(); }

const char* mssts_cpu_threads(void) { return mssts::threads_name(); }
}

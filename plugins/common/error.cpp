#include "common/error.h"

#include <cstdarg>
#include <cstdio>

namespace mssts {
namespace {

thread_local char last_error[512] = "";

}  // namespace

mssts_status fail(mssts_status status, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
  return status;
}

void clear_error() { last_error[0] = '\0'; }

}  // namespace mssts

// In a library once, whichever kernels it holds.
extern "C" {

int32_t mssts_abi_version(void) { return MSSTS_ABI_VERSION; }

const char* mssts_last_error(void) { return mssts::last_error; }
}

// The text of mssts_last_error.
#ifndef MSSTS_COMMON_ERROR_H
#define MSSTS_COMMON_ERROR_H

#include "mssts/kernels.h"

namespace mssts {

// Keeps the printf-formatted reason for this thread and returns `status`.
__attribute__((format(printf, 2, 3))) mssts_status fail(mssts_status status, const char* format, ...);

void clear_error();

}  // namespace mssts

#endif

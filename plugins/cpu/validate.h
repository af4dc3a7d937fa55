// What every call must satisfy before a kernel looks at its pointers.
#ifndef MSSTS_CPU_VALIDATE_H
#define MSSTS_CPU_VALIDATE_H

#include <vector>

#include "isa.h"
#include "mssts/kernels.h"

namespace mssts {


// Checks the call and reads its shapes. Anything but MSSTS_OK has left a message.
mssts_status validate(const mssts_deform_attn* call, bool backward, std::vector<Level>* levels);
mssts_status validate(const mssts_temporal_attn* call, bool backward);

}  // namespace mssts

#endif

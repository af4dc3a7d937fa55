// The levels of a call of deformable attention.
#ifndef MSSTS_CPU_LEVELS_H
#define MSSTS_CPU_LEVELS_H

#include <vector>

#include "isa.h"
#include "mssts/kernels.h"

namespace mssts {

// Reads the levels from the shapes of a call that is otherwise valid, and checks them. Anything but MSSTS_OK has left a
// message.
mssts_status read_levels(const mssts_deform_attn& call, std::vector<Level>* levels);

}  // namespace mssts

#endif  // MSSTS_CPU_LEVELS_H

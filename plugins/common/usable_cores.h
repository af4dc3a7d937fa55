// How many processors this process may run on.
#ifndef MSSTS_COMMON_USABLE_CORES_H
#define MSSTS_COMMON_USABLE_CORES_H

#include <sched.h>

#include <algorithm>
#include <thread>

namespace mssts {

// At least 1.
inline int usable_cores() {
  cpu_set_t set;
  const int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;
  return count > 0 ? count : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

}  // namespace mssts

#endif  // MSSTS_COMMON_USABLE_CORES_H

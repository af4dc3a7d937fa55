// Which GPUs run what a library was built for. Plain C++, so that it is tested without CUDA.
#ifndef MSSTS_CUDA_CAPABILITY_H
#define MSSTS_CUDA_CAPABILITY_H

#include <initializer_list>

namespace mssts {

// GPUs on one chip with a processor: Xavier, Orin, Thor (10.1 up to CUDA 12, 11.0 from 13 on).
inline bool is_tegra(int capability) {
  return capability == 72 || capability == 87 || capability == 101 || capability == 110;
}

// A binary runs on its own and on higher minor versions of its major one, but one for a discrete GPU not on a Tegra and
// the other way round. PTX runs on all that come after it. Capabilities are 10 × major + minor.
inline bool runs_on(std::initializer_list<int> binaries, int ptx, int capability) {
  for (const int binary : binaries) {
    if (binary / 10 == capability / 10 && binary <= capability && is_tegra(binary) == is_tegra(capability)) return true;
  }
  return ptx > 0 && ptx <= capability;
}

}  // namespace mssts

#endif  // MSSTS_CUDA_CAPABILITY_H

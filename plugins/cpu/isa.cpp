#include "isa.h"

#include <cstdlib>
#include <cstring>

namespace mssts {

#if defined(__x86_64__)
#ifndef MSSTS_WITHOUT_AVX512
namespace avx512 {
extern const Isa kernels;
}
#endif
namespace avx2 {
extern const Isa kernels;
}
#endif
namespace portable {
extern const Isa kernels;
}

namespace {

struct Candidate {
  const char* name;
  const Isa* kernels;
  bool available;
};

const Candidate& chosen() {
  static const Candidate candidate = [] {
    const Candidate candidates[] = {
#if defined(__x86_64__)
    // These ask the operating system too, whether it keeps the registers.
#ifndef MSSTS_WITHOUT_AVX512
        {"avx512", &avx512::kernels,
         __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#endif
        {"avx2", &avx2::kernels,
         __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")},
#endif
        {"portable", &portable::kernels, true},
    };
    const char* limit = std::getenv("MSSTS_CPU_ISA");
    bool known = false;
    for (const Candidate& c : candidates) known = known || (limit != nullptr && std::strcmp(c.name, limit) == 0);
    bool allowed = !known;
    for (const Candidate& c : candidates) {
      allowed = allowed || std::strcmp(c.name, limit) == 0;
      if (allowed && c.available) return c;
    }
    return Candidate{"portable", &portable::kernels, true};
  }();
  return candidate;
}

}  // namespace

const Isa& isa() { return *chosen().kernels; }

const char* isa_name() { return chosen().name; }

}  // namespace mssts

// Shared memory of the running block.
#ifndef MSSTS_EMULATION_SHARED_MEMORY_H
#define MSSTS_EMULATION_SHARED_MEMORY_H

#include <cstddef>
#include <string>
#include <vector>

#include "cuda_emulation.h"

namespace mssts::emulation {

// A place in the source, as in "file.cu:12".
std::string text(Site site);

// Arrays with canaries between them, all filled with 0xff when a block begins.
class SharedMemory {
 public:
  // `dynamic_bytes` of the launch, at most kLimit.
  void begin_block(size_t dynamic_bytes);
  void* dynamic() { return memory_.data() + offset_of_first_; }
  // The array declared at this line; the same for all threads of a block. Null where shared memory does not suffice.
  void* array(const char* file, int line, size_t bytes);
  // Names an array whose canary was overwritten; empty where none was.
  std::string damaged() const;

  static constexpr size_t kLimit = 227 * 1024;
  static constexpr size_t kUsual = 48 * 1024;  // without cudaFuncSetAttribute, and of static arrays always

 private:
  struct Array {
    const char* file;
    int line;
    size_t offset;
    size_t bytes;
  };
  void add(const char* file, int line, size_t bytes);

  static constexpr size_t kCanary = 128;
  std::vector<unsigned char> memory_;
  size_t offset_of_first_ = 0;
  size_t end_ = 0;
  size_t used_ = 0;
  std::vector<Array> arrays_;
};

}  // namespace mssts::emulation

#endif  // MSSTS_EMULATION_SHARED_MEMORY_H

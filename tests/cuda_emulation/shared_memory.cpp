#include "shared_memory.h"

#include <cstdint>
#include <cstring>

namespace mssts::emulation {

std::string text(Site site) {
  const char* slash = std::strrchr(site.file, '/');
  return std::string(slash != nullptr ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

void SharedMemory::begin_block(size_t dynamic_bytes) {
  const size_t capacity = 2 * kLimit;  // canaries included
  memory_.resize(capacity + 128);
  std::memset(memory_.data(), 0xff, end_ > 0 ? end_ : memory_.size());
  const auto address = reinterpret_cast<uintptr_t>(memory_.data());
  offset_of_first_ = (128 - address % 128) % 128;
  end_ = offset_of_first_;
  used_ = 0;
  arrays_.clear();
  add("dynamic shared memory", 0, dynamic_bytes);
}

void SharedMemory::add(const char* file, int line, size_t bytes) {
  arrays_.push_back({file, line, end_, bytes});
  std::memset(memory_.data() + end_ + bytes, 0xa5, kCanary);
  end_ += (bytes + kCanary + 127) / 128 * 128;
  used_ += bytes;
}

void* SharedMemory::array(const char* file, int line, size_t bytes) {
  for (const Array& array : arrays_) {
    if (array.line == line && array.bytes == bytes && std::strcmp(array.file, file) == 0) {
      return memory_.data() + array.offset;
    }
  }
  if (used_ - arrays_.front().bytes + bytes > kUsual || used_ + bytes > kLimit || arrays_.size() > 256) return nullptr;
  add(file, line, bytes);
  return memory_.data() + arrays_.back().offset;
}

std::string SharedMemory::damaged() const {
  for (const Array& array : arrays_) {
    const unsigned char* canary = memory_.data() + array.offset + array.bytes;
    for (size_t i = 0; i < kCanary; ++i) {
      if (canary[i] == 0xa5) continue;
      const std::string which =
          array.line == 0 ? array.file : "the shared array of " + text(Site{array.file, array.line});
      return which + " was written " + std::to_string(i) + " bytes past its end of " + std::to_string(array.bytes);
    }
  }
  return "";
}

}  // namespace mssts::emulation

#include "scratch.h"

#include <atomic>
#include <cstdlib>
#include <new>
#include <thread>

namespace mssts {

struct Scratch::Lent {
  std::atomic<bool> now{false};
};

Scratch::Scratch(int blocks, size_t bytes)
    : blocks_(static_cast<size_t>(blocks)), bytes_((bytes + kAlignment - 1) / kAlignment * kAlignment) {
  size_t all = 0;
  if (bytes_ < bytes || __builtin_mul_overflow(bytes_, blocks_, &all)) throw std::bad_alloc();
  void* memory = nullptr;
  if (all > 0 && posix_memalign(&memory, kAlignment, all) != 0) throw std::bad_alloc();
  memory_ = static_cast<char*>(memory);
  lent_ = new (std::nothrow) Lent[blocks_];
  if (lent_ == nullptr) {
    std::free(memory_);
    throw std::bad_alloc();
  }
}

Scratch::~Scratch() {
  delete[] lent_;
  std::free(memory_);
}

Scratch::Block::Block(Scratch& scratch) : scratch_(scratch), index_(0) {
  // An executor that runs more tasks at once than it said makes some of them wait here.
  while (scratch_.lent_[index_].now.exchange(true, std::memory_order_acquire)) {
    if (++index_ == scratch_.blocks_) {
      index_ = 0;
      std::this_thread::yield();
    }
  }
  data_ = scratch_.memory_ + index_ * scratch_.bytes_;
}

Scratch::Block::~Block() { scratch_.lent_[index_].now.store(false, std::memory_order_release); }

}  // namespace mssts

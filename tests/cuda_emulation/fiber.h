// Coroutines with stacks of their own, as many as a block has threads: switched by hand on x86-64, by ucontext
// elsewhere.
#ifndef MSSTS_EMULATION_FIBER_H
#define MSSTS_EMULATION_FIBER_H

#include <cstddef>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace mssts::emulation {

class Fiber {
 public:
  static constexpr size_t kStackBytes = 128 * 1024;

  // What runs already: the stack of the thread that launches.
  Fiber() = default;
  // Takes `stack`, of kStackBytes; nothing runs before the first switch to it. `entry` must not return.
  void start(char* stack, void (*entry)());

  // Leaves `from` where it is, and goes on where `to` was left.
  static void change(Fiber& from, Fiber& to);
  // To be called first in an entry: tells AddressSanitizer that the switch is done.
  static void arrived();

 private:
#if defined(__x86_64__)
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_{};
#endif
  // For AddressSanitizer.
  const void* bottom_ = nullptr;
  size_t bytes_ = 0;
  void* fake_stack_ = nullptr;
};

// A stack of Fiber::kStackBytes below which lies a page that cannot be touched. Throws std::bad_alloc.
char* map_stack();

}  // namespace mssts::emulation

#endif  // MSSTS_EMULATION_FIBER_H

// How a launch runs: the threads of one block at a time, each a fiber, in an order that tests choose.
#ifndef MSSTS_EMULATION_SCHEDULER_H
#define MSSTS_EMULATION_SCHEDULER_H

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cuda_emulation.h"
#include "fiber.h"
#include "shared_memory.h"

namespace mssts::emulation {

enum class State { kReady, kWaiting, kExited };

struct Thread {
  Fiber fiber;
  char* stack = nullptr;
  State state = State::kReady;
  uint3 index{0, 0, 0};
  Request* request = nullptr;  // on the fiber's own stack, while it waits
};

class Scheduler {
 public:
  // 0: ascending, -1: descending, anything else: a random order of threads and blocks for this seed.
  void set_order(int64_t seed) { seed_ = seed; }
  // The reason of a failure; empty where the grid ran to its end.
  std::string run(const char* name, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);

  // Of the running thread:
  void meet(Request& request);
  [[noreturn]] void fail(const std::string& reason, Site site);
  void fault(const void* address);
  int lane() const { return static_cast<int>(current_ % 32); }
  SharedMemory& shared() { return shared_; }

 private:
  void run_block(size_t shared_bytes);
  void resume(size_t thread);
  void park();
  static void enter();

  void arrive_at_barrier(Request& request);
  void arrive_at_warp_operation(Request& request);
  void leave();  // the running thread exits
  void release_barrier();
  void release_warp(unsigned mask, Operation operation);
  std::string stuck() const;
  std::string describe(size_t thread) const;
  uint64_t random();
  void shuffle(std::vector<size_t>& order);

  int64_t seed_ = 0;
  uint64_t random_state_ = 0;
  std::vector<std::unique_ptr<Thread>> threads_;  // as many as the largest block had
  size_t count_ = 0;                              // of this block
  size_t current_ = 0;
  size_t exited_ = 0;
  size_t at_barrier_ = 0;
  Fiber home_;
  bool inside_ = false;  // a thread of the grid runs
  const std::function<void()>* body_ = nullptr;
  std::string where_;  // kernel and block
  std::string failure_;
  SharedMemory shared_;
};

}  // namespace mssts::emulation

#endif  // MSSTS_EMULATION_SCHEDULER_H

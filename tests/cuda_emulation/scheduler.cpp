#include "scheduler.h"

#include <signal.h>

#include <cstdio>
#include <cstring>
#include <numeric>
#include <utility>

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace mssts::emulation {
namespace {

Scheduler* running = nullptr;

const char* name_of(Operation operation) {
  switch (operation) {
    case Operation::kSyncthreads: return "__syncthreads";
    case Operation::kSyncwarp: return "__syncwarp";
    case Operation::kShuffle: return "a shuffle";
    case Operation::kBallot: return "a vote";
    case Operation::kMatrix: return "a matrix product";
    default: return "a reduction";
  }
}

std::string text(uint3 index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

std::string text(unsigned mask) {
  char digits[16];
  std::snprintf(digits, sizeof(digits), "0x%08x", mask);
  return digits;
}

// What a GPU reports as an illegal memory access: a signal while a thread of the grid runs. The handler stays on a
// stack of its own until it changes to the scheduler's, so that a thread that used up its stack can be reported too.
class FaultHandler {
 public:
  FaultHandler() {
#if !defined(__SANITIZE_ADDRESS__)
    static char stack[64 * 1024];
    stack_t own{};
    own.ss_sp = stack;
    own.ss_size = sizeof(stack);
    sigaltstack(&own, &stack_before_);
    struct sigaction action{};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &before_[0]);
    sigaction(SIGBUS, &action, &before_[1]);
#endif
  }
  ~FaultHandler() {
#if !defined(__SANITIZE_ADDRESS__)
    sigaction(SIGSEGV, &before_[0], nullptr);
    sigaction(SIGBUS, &before_[1], nullptr);
    sigaltstack(&stack_before_, nullptr);
#endif
  }
  FaultHandler(const FaultHandler&) = delete;
  FaultHandler& operator=(const FaultHandler&) = delete;

 private:
  static void handle(int, siginfo_t* info, void*) { running->fault(info->si_addr); }

  struct sigaction before_[2]{};
  stack_t stack_before_{};
};

// D = A B + C, with A 16×16, B 16×8, C and D 16×8, from the registers of 32 lanes and back to them. The PTX ISA says
// where a lane's i-th number lies: with group = lane / 4 and member = lane % 4,
//   A: row group, + 8 for i >= 2; column 2 member + i % 2
//   B: row 2 member + i % 2; column group
//   C: row group, + 8 for i >= 2; column 2 member + i % 2
void multiply_matrices(Fragments* const (&lanes)[32]) {
  float a[16][8], b[8][8];
  for (int lane = 0; lane < 32; ++lane) {
    const Fragments& own = *lanes[lane];
    const int group = lane / 4, member = lane % 4;
    for (int i = 0; i < 2; ++i) {
      const int k = 2 * member + i;
      a[group][k] = own.number(static_cast<uint16_t>(own.a[0] >> (16 * i)));
      a[group + 8][k] = own.number(static_cast<uint16_t>(own.a[1] >> (16 * i)));
      b[k][group] = own.number(static_cast<uint16_t>(own.b >> (16 * i)));
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + (i >= 2 ? 8 : 0), column = 2 * (lane % 4) + i % 2;
      for (int k = 0; k < 8; ++k) lanes[lane]->c[i] += a[row][k] * b[k][column];
    }
  }
}

bool same(Site one, Site other) { return one.line == other.line && std::strcmp(one.file, other.file) == 0; }

}  // namespace

std::string Scheduler::run(const char* name, dim3 grid, dim3 block, size_t shared_bytes,
                           const std::function<void()>& body) {
  count_ = static_cast<size_t>(block.x) * block.y * block.z;
  while (threads_.size() < count_) {
    threads_.push_back(std::make_unique<Thread>());
    threads_.back()->stack = map_stack();
  }
  body_ = &body;
  failure_.clear();
  random_state_ = static_cast<uint64_t>(seed_);
  running = this;
  const FaultHandler handler;
  ::blockDim = block;
  ::gridDim = grid;
  const size_t blocks = static_cast<size_t>(grid.x) * grid.y * grid.z;
  std::vector<size_t> order(seed_ > 0 ? blocks : 0);
  if (seed_ > 0) {
    std::iota(order.begin(), order.end(), size_t{0});
    shuffle(order);
  }
  for (size_t i = 0; i < blocks && failure_.empty(); ++i) {
    const size_t index = seed_ > 0 ? order[i] : seed_ < 0 ? blocks - 1 - i : i;
    ::blockIdx = {static_cast<unsigned>(index % grid.x), static_cast<unsigned>(index / grid.x % grid.y),
                  static_cast<unsigned>(index / grid.x / grid.y)};
    where_ = std::string(name) + ", block " + text(::blockIdx);
    run_block(shared_bytes);
  }
  running = nullptr;
  return failure_;
}

void Scheduler::run_block(size_t shared_bytes) {
  shared_.begin_block(shared_bytes);
  exited_ = at_barrier_ = 0;
  for (size_t i = 0; i < count_; ++i) {
    Thread& thread = *threads_[i];
    thread.index = {static_cast<unsigned>(i % ::blockDim.x), static_cast<unsigned>(i / ::blockDim.x % ::blockDim.y),
                    static_cast<unsigned>(i / ::blockDim.x / ::blockDim.y)};
    thread.state = State::kReady;
    thread.request = nullptr;
    thread.fiber.start(thread.stack, &Scheduler::enter);
  }
  std::vector<size_t> order(count_);
  std::iota(order.begin(), order.end(), size_t{0});
  if (seed_ < 0) std::reverse(order.begin(), order.end());
  while (exited_ < count_) {
    if (seed_ > 0) shuffle(order);
    bool progress = false;
    for (const size_t thread : order) {
      if (threads_[thread]->state != State::kReady) continue;
      resume(thread);
      progress = true;
      if (!failure_.empty()) return;
    }
    if (!progress) {
      failure_ = where_ + ": " + stuck();
      return;
    }
  }
  const std::string damage = shared_.damaged();
  if (!damage.empty()) failure_ = where_ + ": " + damage;
}

void Scheduler::resume(size_t thread) {
  current_ = thread;
  ::threadIdx = threads_[thread]->index;
  inside_ = true;
  Fiber::change(home_, threads_[thread]->fiber);
  inside_ = false;
}

void Scheduler::park() { Fiber::change(threads_[current_]->fiber, home_); }

void Scheduler::enter() {
  Fiber::arrived();
  Scheduler& scheduler = *running;
  (*scheduler.body_)();
  scheduler.leave();
  scheduler.park();  // never resumed
  std::abort();
}

void Scheduler::fail(const std::string& reason, Site site) {
  failure_ = where_ + ", thread " + text(threads_[current_]->index) + " at " + text(site) + ": " + reason;
  park();  // never resumed
  std::abort();
}

void Scheduler::fault(const void* address) {
  if (!inside_) std::abort();  // not a kernel's
  char digits[32];
  std::snprintf(digits, sizeof(digits), "%p", address);
  failure_ = where_ + ", thread " + text(threads_[current_]->index) + ": an illegal memory access at " + digits;
  park();  // never resumed
}

void Scheduler::meet(Request& request) {
  Thread& self = *threads_[current_];
  self.request = &request;
  self.state = State::kWaiting;
  if (request.operation == Operation::kSyncthreads) {
    arrive_at_barrier(request);
  } else {
    arrive_at_warp_operation(request);
  }
  park();
}

void Scheduler::arrive_at_barrier(Request& request) {
  const size_t first = current_ / 32 * 32;
  for (size_t other = first; other < std::min(first + 32, count_); ++other) {
    const Thread& thread = *threads_[other];
    if (thread.state != State::kWaiting || thread.request->operation == Operation::kSyncthreads) continue;
    if ((thread.request->mask >> lane() & 1u) != 0) {
      fail("__syncthreads, while " + describe(other) + " for this lane too", request.site);
    }
  }
  ++at_barrier_;
  if (at_barrier_ + exited_ == count_) release_barrier();
}

void Scheduler::release_barrier() {
  uint64_t total = 0;
  const Request* first = nullptr;
  for (size_t i = 0; i < count_; ++i) {
    const Thread& thread = *threads_[i];
    if (thread.state != State::kWaiting) continue;
    if (first != nullptr && !same(first->site, thread.request->site)) {
      failure_ = where_ + ", thread " + text(thread.index) + ": __syncthreads at " + text(thread.request->site) +
                 " meets one at " + text(first->site);
      return;
    }
    first = thread.request;
    total += thread.request->value[0];
  }
  for (size_t i = 0; i < count_; ++i) {
    Thread& thread = *threads_[i];
    if (thread.state != State::kWaiting) continue;
    thread.request->value[0] = total;
    thread.state = State::kReady;
  }
  at_barrier_ = 0;
}

void Scheduler::arrive_at_warp_operation(Request& request) {
  if ((request.mask >> lane() & 1u) == 0) {
    fail("the mask " + text(request.mask) + " does not name the lane that gives it", request.site);
  }
  const size_t first = current_ / 32 * 32;
  bool complete = true;
  for (int lane = 0; lane < 32; ++lane) {
    if ((request.mask >> lane & 1u) == 0) continue;
    const size_t other = first + static_cast<size_t>(lane);
    if (other >= count_) {
      fail("the mask " + text(request.mask) + " names lane " + std::to_string(lane) + ", which this block lacks",
           request.site);
    }
    const Thread& thread = *threads_[other];
    if (thread.state == State::kExited) {
      fail("the mask " + text(request.mask) + " names lane " + std::to_string(lane) + ", which has exited",
           request.site);
    }
    if (thread.state == State::kReady) {
      complete = false;
      continue;
    }
    const Request& theirs = *thread.request;
    const bool matches =
        theirs.operation == request.operation && theirs.mask == request.mask && same(theirs.site, request.site);
    if (matches) continue;
    complete = false;
    const bool waits_for_this = theirs.operation == Operation::kSyncthreads || (theirs.mask >> this->lane() & 1u) != 0;
    if (waits_for_this) {
      fail(std::string(name_of(request.operation)) + " with mask " + text(request.mask) + ", while " + describe(other),
           request.site);
    }
  }
  if (complete) release_warp(request.mask, request.operation);
}

void Scheduler::release_warp(unsigned mask, Operation operation) {
  const size_t first = current_ / 32 * 32;
  uint64_t values[32][2];
  std::memset(values, 0xff, sizeof(values));  // what a lane outside of the mask gives
  uint64_t combined = 0;
  bool any = false;
  Fragments* fragments[32] = {};
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1u) == 0) continue;
    const Request& request = *threads_[first + static_cast<size_t>(lane)]->request;
    std::memcpy(values[lane], request.value, sizeof(request.value));
    const auto value = static_cast<int64_t>(request.value[0]), before = static_cast<int64_t>(combined);
    switch (operation) {
      case Operation::kBallot: combined |= request.value[0] << lane; break;
      case Operation::kReduceAdd: combined += request.value[0]; break;
      case Operation::kReduceMin: combined = static_cast<uint64_t>(any ? std::min(before, value) : value); break;
      case Operation::kReduceMax: combined = static_cast<uint64_t>(any ? std::max(before, value) : value); break;
      case Operation::kMatrix: fragments[lane] = request.fragments; break;
      default: break;
    }
    any = true;
  }
  if (operation == Operation::kMatrix) multiply_matrices(fragments);
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1u) == 0) continue;
    Thread& thread = *threads_[first + static_cast<size_t>(lane)];
    Request& request = *thread.request;
    if (operation == Operation::kShuffle) {
      std::memcpy(request.value, values[request.source & 31], sizeof(request.value));
    } else {
      request.value[0] = combined;
    }
    thread.state = State::kReady;
  }
}

void Scheduler::leave() {
  threads_[current_]->state = State::kExited;
  ++exited_;
  const size_t first = current_ / 32 * 32;
  for (size_t other = first; other < std::min(first + 32, count_); ++other) {
    const Thread& thread = *threads_[other];
    if (thread.state != State::kWaiting || thread.request->operation == Operation::kSyncthreads) continue;
    if ((thread.request->mask >> lane() & 1u) != 0) {
      failure_ =
          where_ + ", thread " + text(threads_[current_]->index) + " exits, while " + describe(other) + " for it too";
      return;
    }
  }
  if (at_barrier_ > 0 && at_barrier_ + exited_ == count_) release_barrier();
}

std::string Scheduler::describe(size_t index) const {
  const Thread& thread = *threads_[index];
  const Request& request = *thread.request;
  std::string line = "thread " + text(thread.index) + " waits in " + name_of(request.operation);
  if (request.operation != Operation::kSyncthreads) line += " with mask " + text(request.mask);
  return line + " at " + text(request.site);
}

std::string Scheduler::stuck() const {
  // One thread for each operation that threads wait in.
  std::string reason = "no thread can go on";
  std::vector<const Request*> reported;
  for (size_t i = 0; i < count_ && reported.size() < 4; ++i) {
    if (threads_[i]->state != State::kWaiting) continue;
    const Request* request = threads_[i]->request;
    bool known = false;
    for (const Request* one : reported) known = known || (same(one->site, request->site) && one->mask == request->mask);
    if (known) continue;
    reported.push_back(request);
    reason += "; " + describe(i);
  }
  return reason;
}

uint64_t Scheduler::random() {
  uint64_t word = random_state_ += 0x9e3779b97f4a7c15u;  // splitmix64
  word = (word ^ word >> 30) * 0xbf58476d1ce4e5b9u;
  word = (word ^ word >> 27) * 0x94d049bb133111ebu;
  return word ^ word >> 31;
}

void Scheduler::shuffle(std::vector<size_t>& order) {
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random() % i]);
}

}  // namespace mssts::emulation

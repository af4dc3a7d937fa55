#include "parallel.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>

#include "common/usable_cores.h"

namespace mssts {
namespace {

// Set in a task: a kernel that is called from one runs on its caller's thread alone.
thread_local bool in_task = false;
// Set in the child of a fork: neither the OpenMP runtime's threads nor our own came along.
std::atomic<bool> forked{false};

// The tasks of one call, taken one by one by any free thread.
struct Work {
  int64_t tasks;
  Task task;
  void* argument;
  std::atomic<int64_t> next{0};

  void take() {
    const bool before = in_task;
    in_task = true;
    for (int64_t i = next.fetch_add(1); i < tasks; i = next.fetch_add(1)) task(argument, i);
    in_task = before;
  }
};

void take_work(void* work) { static_cast<Work*>(work)->take(); }

// ---------------------------------------------------------------------------------------------------- OpenMP

// The runtime's entry points that compilers call; libgomp has them, and LLVM's and Intel's runtimes as well.
struct OpenMP {
  void (*parallel)(void (*function)(void*), void* data, unsigned threads, unsigned flags) = nullptr;
  int (*max_threads)() = nullptr;
  int (*in_parallel)() = nullptr;

  bool look_in(void* handle) {
    max_threads = reinterpret_cast<int (*)()>(dlsym(handle, "omp_get_max_threads"));
    in_parallel = reinterpret_cast<int (*)()>(dlsym(handle, "omp_in_parallel"));
    parallel = reinterpret_cast<decltype(parallel)>(dlsym(handle, "GOMP_parallel"));
    return parallel != nullptr && max_threads != nullptr && in_parallel != nullptr;
  }
};

int count_loads(dl_phdr_info* info, size_t, void* count) {
  *static_cast<unsigned long long*>(count) = info->dlpi_adds;
  return 1;
}

int try_library(dl_phdr_info* info, size_t, void* name) {
  const char* slash = std::strrchr(info->dlpi_name, '/');
  const char* base = slash != nullptr ? slash + 1 : info->dlpi_name;
  for (const char* start : {"libgomp", "libomp", "libiomp"}) {
    if (std::strncmp(base, start, std::strlen(start)) == 0) {
      std::strncpy(static_cast<char*>(name), info->dlpi_name, 4095);
      return 1;
    }
  }
  return 0;
}

// The OpenMP runtime of this process, or NULL; looks again only after more libraries were loaded.
const OpenMP* openmp() {
  static std::mutex mutex;
  static OpenMP found;
  static unsigned long long looked_at = 0;
  static std::atomic<bool> ready{false};
  if (forked.load(std::memory_order_relaxed)) return nullptr;
  if (ready.load(std::memory_order_acquire)) return &found;
  const std::lock_guard<std::mutex> lock(mutex);
  unsigned long long loads = 0;
  dl_iterate_phdr(count_loads, &loads);
  if (loads == looked_at) return ready.load() ? &found : nullptr;
  looked_at = loads;
  bool there = found.look_in(RTLD_DEFAULT);
  if (!there) {
    // Loaded, but not for all to see: a wheel's private copy.
    char name[4096] = "";
    if (dl_iterate_phdr(try_library, name) == 1) {
      void* handle = dlopen(name, RTLD_NOW | RTLD_NOLOAD);
      there = handle != nullptr && found.look_in(handle);
    }
  }
  ready.store(there, std::memory_order_release);
  return there ? &found : nullptr;
}

// ---------------------------------------------------------------------------------------------------- our own

// As many as there are cores, but no more than OMP_NUM_THREADS.
int most_threads() {
  int count = usable_cores();
  if (const char* limit = std::getenv("OMP_NUM_THREADS")) {
    const int most = std::atoi(limit);
    if (most > 0) count = std::min(count, most);
  }
  return count;
}

// Threads that wait for work. One call at a time has them; another one at that time does its work by itself.
class Team {
 public:
  void run(Work* work, int threads) {
    std::unique_lock<std::mutex> mine(busy_, std::try_to_lock);
    if (!mine.owns_lock()) return work->take();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      try {
        for (; started_ < threads - 1; ++started_) std::thread(&Team::wait, this, started_).detach();
      } catch (...) {
        // The system gives no more threads: those that there are do the work.
      }
      wanted_ = std::min(threads - 1, started_);
      running_ = wanted_;
      work_ = work;
      ++round_;
    }
    wake_.notify_all();
    work->take();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return running_ == 0; });
    work_ = nullptr;
  }

 private:
  void wait(int index) {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      wake_.wait(lock, [&] { return round_ != seen; });
      seen = round_;
      if (index >= wanted_) continue;
      Work* work = work_;
      lock.unlock();
      work->take();
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::mutex busy_, mutex_;
  std::condition_variable wake_, done_;
  Work* work_ = nullptr;
  uint64_t round_ = 0;
  int started_ = 0, wanted_ = 0, running_ = 0;
};

std::atomic<Team*> team{nullptr};

void after_fork() {
  forked.store(true);
  in_task = false;
  team.store(nullptr);  // never freed: its locks may be held by threads that are no more
}

// Made at the first use and never destroyed, as its threads are not joined.
Team* own_team() {
  Team* present = team.load(std::memory_order_acquire);
  if (present != nullptr) return present;
  Team* fresh = new Team;
  if (team.compare_exchange_strong(present, fresh)) return fresh;
  delete fresh;
  return present;
}

const int registered = pthread_atfork(nullptr, nullptr, after_fork);

}  // namespace

int thread_count(const mssts_executor* executor) {
  if (executor != nullptr && executor->threads > 0) return executor->threads;
  if (executor != nullptr && executor->run != nullptr) return 1;
  if (in_task) return 1;
  if (const OpenMP* omp = openmp()) return omp->in_parallel() != 0 ? 1 : std::max(1, omp->max_threads());
  static const int threads = most_threads();
  return threads;
}

void run_tasks(const mssts_executor* executor, int64_t tasks, Task task, void* argument) {
  if (tasks <= 0) return;
  if (executor != nullptr && executor->run != nullptr) return executor->run(executor->context, tasks, task, argument);
  Work work{tasks, task, argument};
  const int threads = static_cast<int>(std::min<int64_t>(thread_count(executor), tasks));
  if (threads == 1 || in_task) return work.take();
  if (const OpenMP* omp = openmp()) {
    if (omp->in_parallel() != 0) return work.take();
    return omp->parallel(take_work, &work, static_cast<unsigned>(threads), 0);
  }
  own_team()->run(&work, threads);
}

const char* threads_name() { return openmp() != nullptr ? "openmp" : "own"; }

}  // namespace mssts

// Who runs the tasks of a kernel.
#ifndef MSSTS_CPU_PARALLEL_H
#define MSSTS_CPU_PARALLEL_H

#include <type_traits>

#include "mssts/kernels.h"

namespace mssts {

using Task = void (*)(void* argument, int64_t index);

// How many tasks may run at once; at least 1.
int thread_count(const mssts_executor* executor);

// Calls task(argument, i) for every i in [0, tasks). A task must not throw.
void run_tasks(const mssts_executor* executor, int64_t tasks, Task task, void* argument);

template <class Body>
void parallel_for(const mssts_executor* executor, int64_t tasks, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  run_tasks(executor, tasks, [](void* argument, int64_t index) { (*static_cast<Plain*>(argument))(index); }, &body);
}

// "openmp" or "own".
const char* threads_name();

}  // namespace mssts

#endif

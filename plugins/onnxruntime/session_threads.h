// The threads of an ONNX Runtime session as the executor of a CPU kernel, so that the two never compete for cores.
#ifndef MSSTS_ONNXRUNTIME_SESSION_THREADS_H
#define MSSTS_ONNXRUNTIME_SESSION_THREADS_H

#include <mssts/kernels.h>

#include "api.h"
#include "common/usable_cores.h"

namespace mssts::ort {

class SessionThreads {
 public:
  SessionThreads(const OrtApi& api, const OrtKernelContext* context) : api_(api), context_(context) {}
  ~SessionThreads() {
    if (status_ != nullptr) api_.ReleaseStatus(status_);
  }
  SessionThreads(const SessionThreads&) = delete;
  SessionThreads& operator=(const SessionThreads&) = delete;

  // The API does not tell how many threads a session has. A kernel needs the number only to cut its work into enough
  // tasks, which the session's threads take one after the other, so the cores of this process are a safe answer.
  mssts_executor executor() {
    static const int cores = usable_cores();
    return {cores, &run, this};
  }

  // Throws what went wrong while handing out tasks. To be called after the kernel.
  void check_run() {
    OrtStatus* status = status_;
    status_ = nullptr;
    check(status);
  }

 private:
  struct Work {
    void (*task)(void*, int64_t);
    void* argument;
  };

  static void run(void* self, int64_t tasks, void (*task)(void*, int64_t), void* argument) {
    auto& threads = *static_cast<SessionThreads*>(self);
    if (threads.status_ != nullptr || tasks <= 0) return;
    Work work{task, argument};
    const auto one = [](void* data, size_t index) {
      const auto& work = *static_cast<const Work*>(data);
      work.task(work.argument, static_cast<int64_t>(index));
    };
    // Zero batches: each thread takes the next task when it is done with one, so uneven tasks even out.
    threads.status_ =
        threads.api_.KernelContext_ParallelFor(threads.context_, one, static_cast<size_t>(tasks), 0, &work);
  }

  const OrtApi& api_;
  const OrtKernelContext* context_;
  OrtStatus* status_ = nullptr;
};

}  // namespace mssts::ort

#endif  // MSSTS_ONNXRUNTIME_SESSION_THREADS_H

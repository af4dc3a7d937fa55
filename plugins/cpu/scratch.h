// Memory of the tasks of one call: as many blocks as tasks may run at once, each lent to one task at a time.
#ifndef MSSTS_CPU_SCRATCH_H
#define MSSTS_CPU_SCRATCH_H

#include <cstddef>

namespace mssts {

class Scratch {
 public:
  static constexpr size_t kAlignment = 64;

  // Throws std::bad_alloc.
  Scratch(int blocks, size_t bytes);
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch();

  // The block of one task, until its end.
  class Block {
   public:
    explicit Block(Scratch& scratch);
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;
    ~Block();
    void* data() const { return data_; }

   private:
    Scratch& scratch_;
    size_t index_;
    void* data_;
  };

 private:
  struct Lent;  // whether a block is

  size_t blocks_;
  size_t bytes_;
  Lent* lent_ = nullptr;
  char* memory_ = nullptr;
};

}  // namespace mssts

#endif

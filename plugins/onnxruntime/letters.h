/* The sizes of an op's tensors by their letters, as the documentation writes them: "NSMD" is [N, S, M, D]. */
#ifndef MSSTS_ONNXRUNTIME_LETTERS_H
#define MSSTS_ONNXRUNTIME_LETTERS_H

#include <array>
#include <cctype>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "runtime.h"

namespace mssts::ort {

/* Binds each letter to the first size it meets and demands that size wherever it comes again. */
class Letters {
 public:
  explicit Letters(const char* op) : op_(op) { sizes_.fill(-1); }

  /* Throws a Failure that names the tensor, what it is and what it should be, where `sizes` is not of the pattern: a
   * letter is any size, but everywhere the same; a digit is that size. */
  void Match(const char* tensor, const std::string& pattern, const std::vector<int64_t>& sizes) {
    bool fits = sizes.size() == pattern.size();
    for (size_t i = 0; fits && i < pattern.size(); ++i) {
      if (std::isdigit(static_cast<unsigned char>(pattern[i]))) {
        fits = sizes[i] == pattern[i] - '0';
      } else {
        const int64_t bound = sizes_[static_cast<unsigned char>(pattern[i])];
        fits = bound < 0 || bound == sizes[i];
      }
    }
    if (!fits) throw Failure(ORT_INVALID_ARGUMENT, Complaint(tensor, pattern, sizes));
    for (size_t i = 0; i < pattern.size(); ++i) {
      const auto letter = static_cast<unsigned char>(pattern[i]);
      if (!std::isdigit(letter)) sizes_[letter] = sizes[i];
    }
  }

  int64_t operator[](char letter) const { return sizes_[static_cast<unsigned char>(letter)]; }

  /* The size as the C ABI has it where it counts heads, channels, levels and the like. */
  int32_t Small(char letter) const {
    if ((*this)[letter] > std::numeric_limits<int32_t>::max()) {
      throw Failure(ORT_INVALID_ARGUMENT, op_ + ": " + letter + " is beyond 32 bits");
    }
    return static_cast<int32_t>((*this)[letter]);
  }

 private:
  std::string Complaint(const char* tensor, const std::string& pattern, const std::vector<int64_t>& sizes) const {
    std::string found;
    for (int64_t size : sizes) found += (found.empty() ? "" : ", ") + std::to_string(size);
    std::string expected;
    for (char c : pattern) {
      const int64_t bound = sizes_[static_cast<unsigned char>(c)];
      expected += (expected.empty() ? "" : ", ") + (bound < 0 ? std::string(1, c) : c + ("=" + std::to_string(bound)));
    }
    return op_ + ": " + tensor + " is [" + found + "]; expected [" + expected + "]";
  }

  std::string op_;
  std::array<int64_t, 256> sizes_;
};

}  // namespace mssts::ort

#endif  // MSSTS_ONNXRUNTIME_LETTERS_H

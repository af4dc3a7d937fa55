// The two ONNX nodes: their tensors, and the calls of the C ABI that they become. What all bindings share.
#ifndef MSSTS_COMMON_NODE_H
#define MSSTS_COMMON_NODE_H

#include <array>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "mssts/kernels.h"

namespace mssts {

// The types that a tensor may have.
enum class Role {
  kData,       // floating, the same for all tensors of this role
  kReference,  // fp32; fp64 where the data is
  kIndex,      // INT32 or INT64
};

struct TensorSpec {
  const char* name;
  const char* letters;  // one for each dimension, as in "NSMD"; a digit stands for itself
  Role role;
};

struct Node {
  const char* op;
  int32_t input_count;
  TensorSpec tensors[6];  // the inputs, then the output
};

inline constexpr Node kDeformAttn{"MSDeformAttn",
                                  5,
                                  {{"value", "NSMD", Role::kData},
                                   {"shapes", "L2", Role::kIndex},
                                   {"reference", "NQLR", Role::kReference},
                                   {"offsets", "NQMLP2", Role::kData},
                                   {"logits", "NQMLP", Role::kData},
                                   {"out", "NQC", Role::kData}}};

inline constexpr Node kTemporalAttn{"SplitTemporalAttn",
                                    3,
                                    {{"query", "BTSC", Role::kData},
                                     {"key", "BUSC", Role::kData},
                                     {"value", "BUSC", Role::kData},
                                     {"out", "BTSC", Role::kData}}};

// A size is -1 where it is not known yet, while a network with dynamic shapes is built. Such a size fits anything.
using Sizes = std::vector<int64_t>;

std::string text_of(const Sizes& sizes);

// The size of each letter, collected tensor by tensor. The functions that return text return "" where all is well, else
// what is wrong and what was expected.
class Letters {
 public:
  // Takes the sizes of a tensor, which must agree with its letters and with what is known.
  std::string bind(const TensorSpec& tensor, const Sizes& sizes);

  int64_t operator[](char letter) const { return size_.at(static_cast<unsigned char>(letter)); }

 private:
  static constexpr size_t kCount = 128;
  static std::array<int64_t, kCount> unknown() {
    std::array<int64_t, kCount> sizes{};
    sizes.fill(-1);
    return sizes;
  }

  std::array<int64_t, kCount> size_ = unknown();
  std::array<const char*, kCount> from_{};  // the tensor that the size is of
};

// The channels of its three inputs that a SplitTemporalAttn takes, as attributes of the node: a projection of several
// of them comes in one tensor, which is then more than one input.
struct Channels {
  static constexpr int64_t kLast = std::numeric_limits<int64_t>::max();  // the end of all channels
  std::array<int64_t, 3> starts{0, 0, 0};
  std::array<int64_t, 3> ends{kLast, kLast, kLast};

  bool all() const { return *this == Channels(); }
  bool operator==(const Channels& other) const { return starts == other.starts && ends == other.ends; }
  // What is wrong whatever the tensors; text as above.
  std::string error() const;
  // Makes the sizes of an input those of its part; text as above.
  std::string take(int32_t input, Sizes* sizes) const;
  // Where the part begins in a token, in bytes.
  int64_t offset(int32_t input, int32_t dtype) const;
};

// What no kernel takes of sizes that fit their letters; text as above.
std::string deform_attn_error(const Letters& sizes);
std::string temporal_attn_error(const Letters& sizes, int64_t heads);
std::string heads_error(int64_t heads);

// The forward call of sizes without error. `inputs` are in the node's order, and dense. `sizes` are those of the parts,
// `widths` those of the tensors' last dimension; the pointers are to the parts.
mssts_deform_attn deform_attn_call(const Letters& sizes, int32_t dtype, int32_t shapes_dtype, const void* const* inputs,
                                   void* out);
mssts_temporal_attn temporal_attn_call(const Letters& sizes, int64_t heads, int32_t dtype, const Channels& channels,
                                       const int64_t* widths, const void* const* inputs, void* out);

}  // namespace mssts

#endif  // MSSTS_COMMON_NODE_H

#include "common/node.h"

#include <cctype>
#include <limits>

#include "common/dtype.h"

namespace mssts {
namespace {

std::string expected(const TensorSpec& tensor, const Sizes& sizes) {
  std::string letters;
  for (const char* letter = tensor.letters; *letter != '\0'; ++letter) {
    letters += (letters.empty() ? "" : ",") + std::string(1, *letter);
  }
  return std::string(tensor.name) + " is " + text_of(sizes) + ", expected [" + letters + "]";
}

// The C ABI counts these sizes with 32 bits, and wants at least `least` of each.
std::string count_error(const Letters& sizes, const char* letters, int64_t least) {
  for (const char* letter = letters; *letter != '\0'; ++letter) {
    const int64_t size = sizes[*letter];
    if (size < 0) continue;
    if (size < least) return std::string(1, *letter) + " is 0, expected 1 or more";
    if (size > std::numeric_limits<int32_t>::max()) {
      return std::string(1, *letter) + " is " + std::to_string(size) + ", expected less than 2^31";
    }
  }
  return "";
}

void set_dense(int64_t (&strides)[3], int64_t frames, int64_t locations, int64_t width) {
  strides[0] = frames * locations * width;
  strides[1] = locations * width;
  strides[2] = width;
}

std::string text_of(int64_t start, int64_t end) {
  return std::to_string(start) + " to " + (end == Channels::kLast ? "the last" : std::to_string(end));
}

}  // namespace

std::string text_of(const Sizes& sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) {
    text += (i == 0 ? "" : ",") + (sizes[i] < 0 ? std::string("?") : std::to_string(sizes[i]));
  }
  return text + "]";
}

std::string Letters::bind(const TensorSpec& tensor, const Sizes& sizes) {
  const std::string letters = tensor.letters;
  if (sizes.size() != letters.size()) return expected(tensor, sizes);
  for (size_t i = 0; i < letters.size(); ++i) {
    const auto letter = static_cast<unsigned char>(letters[i]);
    if (sizes[i] < 0) continue;
    if (std::isdigit(letter)) {
      if (sizes[i] != letter - '0') return expected(tensor, sizes);
    } else if (size_[letter] < 0) {
      size_[letter] = sizes[i];
      from_[letter] = tensor.name;
    } else if (size_[letter] != sizes[i]) {
      return expected(tensor, sizes) + " with " + letters[i] + " = " + std::to_string(size_[letter]) + " as in " +
             from_[letter];
    }
  }
  return "";
}

std::string Channels::error() const {
  for (int32_t i = 0; i < 3; ++i) {
    const auto part = static_cast<size_t>(i);
    if (starts[part] < 0 || starts[part] >= ends[part]) {
      return "attributes starts and ends are " + text_of(starts[part], ends[part]) + " for " +
             kTemporalAttn.tensors[i].name + ", expected a start of 0 or more, and an end after it";
    }
  }
  return "";
}

std::string Channels::take(int32_t input, Sizes* sizes) const {
  if (input > 2 || sizes->empty()) return "";
  const int64_t start = starts.at(static_cast<size_t>(input)), end = ends.at(static_cast<size_t>(input));
  int64_t& width = sizes->back();
  if (width >= 0 && (start > width || (end != kLast && end > width))) {
    return std::string(kTemporalAttn.tensors[input].name) + " has " + std::to_string(width) +
           " channels, but attributes starts and ends are " + text_of(start, end);
  }
  if (end != kLast) {
    width = end - start;
  } else if (width >= 0) {
    width -= start;
  }
  return "";
}

int64_t Channels::offset(int32_t input, int32_t dtype) const {
  return starts.at(static_cast<size_t>(input)) * static_cast<int64_t>(bytes_of(dtype));
}

std::string deform_attn_error(const Letters& sizes) {
  if (sizes['R'] >= 0 && sizes['R'] != 2 && sizes['R'] != 4) {
    return "reference has " + std::to_string(sizes['R']) + " coordinates, expected 2 or 4";
  }
  return count_error(sizes, "MDLP", 1);
}

std::string temporal_attn_error(const Letters& sizes, int64_t heads) {
  const int64_t channels = sizes['C'];
  if (channels >= 0 && (channels == 0 || channels % heads != 0)) {
    return "query has C = " + std::to_string(channels) +
           " channels, expected a multiple of heads = " + std::to_string(heads);
  }
  const std::string wrong = count_error(sizes, "UC", 1);
  return wrong.empty() ? count_error(sizes, "T", 0) : wrong;
}

std::string heads_error(int64_t heads) {
  if (heads >= 1 && heads <= std::numeric_limits<int32_t>::max()) return "";
  return "attribute heads is " + std::to_string(heads) + ", expected 1 or more";
}

mssts_deform_attn deform_attn_call(const Letters& sizes, int32_t dtype, int32_t shapes_dtype, const void* const* inputs,
                                   void* out) {
  mssts_deform_attn call{};
  call.batch = sizes['N'];
  call.tokens = sizes['S'];
  call.queries = sizes['Q'];
  call.heads = static_cast<int32_t>(sizes['M']);
  call.channels = static_cast<int32_t>(sizes['D']);
  call.levels = static_cast<int32_t>(sizes['L']);
  call.points = static_cast<int32_t>(sizes['P']);
  call.coordinates = static_cast<int32_t>(sizes['R']);
  call.dtype = dtype;
  call.shapes_dtype = shapes_dtype;
  call.value = inputs[0];
  call.shapes = inputs[1];
  call.reference = inputs[2];
  call.offsets = inputs[3];
  call.logits = inputs[4];
  call.out = out;
  return call;
}

mssts_temporal_attn temporal_attn_call(const Letters& sizes, int64_t heads, int32_t dtype, const Channels& channels,
                                       const int64_t* widths, const void* const* inputs, void* out) {
  const int64_t locations = sizes['S'];
  const auto part = [&](int32_t input) -> const void* {
    if (inputs[input] == nullptr) return nullptr;
    return static_cast<const char*>(inputs[input]) + channels.offset(input, dtype);
  };
  mssts_temporal_attn call{};
  call.batch = sizes['B'];
  call.locations = locations;
  call.query_frames = static_cast<int32_t>(sizes['T']);
  call.key_frames = static_cast<int32_t>(sizes['U']);
  call.heads = static_cast<int32_t>(heads);
  call.channels = static_cast<int32_t>(sizes['C'] / heads);
  call.dtype = dtype;
  set_dense(call.query_strides, sizes['T'], locations, widths[0]);
  set_dense(call.key_strides, sizes['U'], locations, widths[1]);
  set_dense(call.value_strides, sizes['U'], locations, widths[2]);
  call.query = part(0);
  call.key = part(1);
  call.value = part(2);
  call.out = out;
  return call;
}

}  // namespace mssts

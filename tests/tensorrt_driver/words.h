// The words of a command, as text and as the tensors they stand for; and the memory of those tensors.
#ifndef MSSTS_TENSORRT_DRIVER_WORDS_H
#define MSSTS_TENSORRT_DRIVER_WORDS_H

#include <NvInferRuntime.h>

#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

using namespace nvinfer1;

using Words = std::vector<std::string>;

inline std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out + "\"";
}

inline std::string truth(bool value) { return value ? "true" : "false"; }

inline std::string joined(const Words& items) {
  std::string out = "[";
  for (size_t i = 0; i < items.size(); ++i) out += (i == 0 ? "" : ", ") + items[i];
  return out + "]";
}

inline const std::map<std::string, DataType> kTypes = {{"float32", DataType::kFLOAT}, {"float16", DataType::kHALF},
                                                       {"bfloat16", DataType::kBF16}, {"int32", DataType::kINT32},
                                                       {"int64", DataType::kINT64},   {"int8", DataType::kINT8},
                                                       {"bool", DataType::kBOOL},     {"uint8", DataType::kUINT8},
                                                       {"fp8", DataType::kFP8},       {"int4", DataType::kINT4}};
inline const std::map<std::string, TensorFormat> kFormats = {{"linear", TensorFormat::kLINEAR},
                                                             {"chw2", TensorFormat::kCHW2},
                                                             {"hwc8", TensorFormat::kHWC8},
                                                             {"chw32", TensorFormat::kCHW32},
                                                             {"hwc", TensorFormat::kHWC}};

inline size_t bytes_of(DataType type) {
  switch (type) {
    case DataType::kFLOAT:
    case DataType::kINT32: return 4;
    case DataType::kHALF:
    case DataType::kBF16: return 2;
    case DataType::kINT64: return 8;
    default: throw std::runtime_error("no data of this type here");
  }
}

inline Words split(const std::string& text, char separator) {
  Words parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

// "float16:5,4,8,32", "int64:4,2:hwc8"; "-" for no dimensions.
inline PluginTensorDesc tensor_of(const std::string& text) {
  const Words parts = split(text, ':');
  PluginTensorDesc tensor{};
  tensor.type = kTypes.at(parts.at(0));
  const Words sizes = parts.at(1) == "-" ? Words{} : split(parts.at(1), ',');
  tensor.dims.nbDims = static_cast<int32_t>(sizes.size());
  for (size_t i = 0; i < sizes.size(); ++i) tensor.dims.d[i] = std::stoll(sizes[i]);
  tensor.format = parts.size() > 2 ? kFormats.at(parts[2]) : TensorFormat::kLINEAR;
  tensor.scale = 1.0F;
  return tensor;
}

inline DynamicPluginTensorDesc dynamic_of(const std::string& text) {
  const PluginTensorDesc tensor = tensor_of(text);
  return {tensor, tensor.dims, tensor.dims, tensor.dims};
}

// The data of one tensor: from a file, or as many bytes of 0xff (NaN).
class Memory {
 public:
  Memory(size_t bytes, const std::string& path) : host_(bytes, '\xff') {
    const auto size = static_cast<std::streamsize>(bytes);
    if (!path.empty() && !std::ifstream(path, std::ios::binary).read(host_.data(), size)) {
      throw std::runtime_error("too little in " + path);
    }
#ifdef MSSTS_DRIVER_CUDA
    if (cudaMalloc(&device_, bytes + 1) != cudaSuccess ||
        cudaMemcpy(device_, host_.data(), bytes, cudaMemcpyHostToDevice) != cudaSuccess) {
      throw std::runtime_error("no GPU memory");
    }
#endif
  }
#ifdef MSSTS_DRIVER_CUDA
  ~Memory() { cudaFree(device_); }
  void* data() { return device_; }
#else
  void* data() { return host_.data(); }
#endif
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void write(const std::string& path) {
#ifdef MSSTS_DRIVER_CUDA
    if (cudaDeviceSynchronize() != cudaSuccess ||
        cudaMemcpy(host_.data(), device_, host_.size(), cudaMemcpyDeviceToHost) != cudaSuccess) {
      throw std::runtime_error("the kernel failed on the GPU");
    }
#endif
    std::ofstream(path, std::ios::binary).write(host_.data(), static_cast<std::streamsize>(host_.size()));
  }

 private:
  std::vector<char> host_;
#ifdef MSSTS_DRIVER_CUDA
  void* device_ = nullptr;
#endif
};

#endif  // MSSTS_TENSORRT_DRIVER_WORDS_H

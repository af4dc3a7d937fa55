// Drives a plugin library as TensorRT does, through the registry of a real TensorRT runtime: a command a line on stdin
// (words; see `run`), for each a line of JSON on stdout: {"result": …, "log": [[severity, message], …]}.
//
// Built with MSSTS_DRIVER_CUDA, `enqueue` puts the tensors into GPU memory, else it passes host pointers, which only a
// library that is linked to host_kernels.cpp can take.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstring>
#include <iostream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "expressions.h"
#include "words.h"

extern "C" void* __libc_malloc(size_t size);

namespace {
size_t allocations = 0;
}

// In place of the C library's, for this program and what it loads: it counts.
extern "C" void* malloc(size_t size) noexcept {
  ++allocations;
  return __libc_malloc(size);
}

namespace {

class Logger final : public ILogger {
 public:
  void log(Severity severity, AsciiChar const* message) noexcept override {
    static const char* const names[] = {"INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"};
    entries.push_back("[" + quoted(names[static_cast<int>(severity)]) + ", " + quoted(message) + "]");
  }
  Words entries;
};

class Finder final : public ILoggerFinder {
 public:
  explicit Finder(Logger& logger) : logger_(logger) {}
  ILogger* findLogger() override { return &logger_; }

 private:
  Logger& logger_;
};

class Driver {
 public:
  Driver() : finder_(logger_) {}

  std::string run(const std::string& line) {
    std::string result;
    try {
      std::stringstream stream(line);
      Words words;
      for (std::string word; stream >> word;) words.push_back(word);
      result = call(words.at(0), Words(words.begin() + 1, words.end()));
    } catch (const std::exception& error) {
      result = "null, \"error\": " + quoted(std::string(error.what()) + " in: " + line);
    }
    const std::string log = joined(logger_.entries);
    logger_.entries.clear();
    return "{\"result\": " + result + ", \"log\": " + log + "}";
  }

 private:
  std::string call(const std::string& name, const Words& words) {
    if (name == "runtime") return open_runtime(words.at(0));  // the file of a TensorRT runtime
    if (name == "dlopen") return open_library(words);         // file, then lazy|now, local|global
    if (name == "createRuntime") return create_runtime();
    if (name == "loadLibrary") return load_library(words.at(0));  // through the registry
    if (name == "deregisterLibrary") return registry_->deregisterLibrary(handle_), "true";
    if (name == "logger") return set_logger();
    if (name == "register") return register_plugins();
    if (name == "build") return quoted(symbol<const char* (*)()>("mssts_tensorrt_build")());
    if (name == "creators") return creators(words);  // of these names
    if (name == "create") return create(words);      // op, build|runtime, field:type:value,value…
    if (name == "use") return use(std::stoul(words.at(0)));
    if (name == "capabilities") return capabilities();
    if (name == "types") return types(words);
    if (name == "shapes") return shapes(words);        // "N,4820,8,32"…: a name is a size not known yet
    if (name == "format") return format(words);        // position, tensors
    if (name == "configure") return configure(words);  // inputs, output
    if (name == "change") return change(words);
    if (name == "enqueue") return enqueue(words);  // tensor@file…, output@file
    if (name == "cost") return cost(words);        // as enqueue: [microseconds of a call, allocations of 20,000]
    if (name == "tactic") return std::to_string(runtime_part()->setTactic(std::stoi(words.at(0))));
    if (name == "outputs") return std::to_string(build_part()->getNbOutputs());
    if (name == "workspace") return std::to_string(build_part()->getWorkspaceSize(nullptr, 0, nullptr, 0));
    if (name == "timing") return quoted(build_part()->getTimingCacheID());
    if (name == "metadata") return quoted(build_part()->getMetadataString());
    if (name == "fields") return fields();
    if (name == "recreate") return keep(from_fields());
    if (name == "clone") return keep(plugin().clone());
    if (name == "attach") return keep(runtime_part()->attachToContext(nullptr));
    if (name == "delete") return plugins_.at(current_).reset(), "true";
    throw std::runtime_error("no such command");
  }

  template <typename Function>
  Function symbol(const char* name) {
    void* found = library_ == nullptr ? nullptr : dlsym(library_, name);
    if (found == nullptr) throw std::runtime_error(std::string("no ") + name);
    return reinterpret_cast<Function>(found);
  }

  std::string open_runtime(const std::string& path) {
    runtime_ = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (runtime_ == nullptr) throw std::runtime_error(dlerror());
    registry_ = reinterpret_cast<IPluginRegistry* (*)()>(dlsym(runtime_, "getPluginRegistry"))();
    return std::to_string(reinterpret_cast<int32_t (*)()>(dlsym(runtime_, "getInferLibVersion"))());
  }

  // Whether a runtime's own registry finds MSDeformAttn, and whether it makes an engine of what is no plan; null where
  // there is no runtime.
  std::string create_runtime() {
    const auto create = reinterpret_cast<void* (*)(void*, int32_t)>(dlsym(runtime_, "createInferRuntime_INTERNAL"));
    void* const created = create(&logger_, NV_TENSORRT_VERSION);
    // Where there is none, the lean library of 11.1 adds 0x228, a base class's place, to its null pointer all the same.
    if (reinterpret_cast<uintptr_t>(created) < 4096) return "null";
    const std::unique_ptr<IRuntime> runtime(static_cast<IRuntime*>(created));
    const bool finds = runtime->getPluginRegistry().getCreator("MSDeformAttn", "1", "") != nullptr;
    const std::vector<char> no_plan(256, '\7');
    const std::unique_ptr<ICudaEngine> engine(runtime->deserializeCudaEngine(no_plan.data(), no_plan.size()));
    return joined({truth(finds), truth(engine != nullptr)});
  }

  std::string open_library(const Words& words) {
    const int when = words.at(1) == "lazy" ? RTLD_LAZY : RTLD_NOW;
    library_ = dlopen(words.at(0).c_str(), when | (words.at(2) == "global" ? RTLD_GLOBAL : RTLD_LOCAL));
    if (library_ == nullptr) throw std::runtime_error(dlerror());
    return "true";
  }

  std::string load_library(const std::string& path) {
    handle_ = registry_->loadLibrary(path.c_str());
    library_ = dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD);
    return truth(handle_ != nullptr);
  }

  std::string set_logger() {
    symbol<void (*)(ILoggerFinder*)>("setLoggerFinder")(&finder_);
    return "true";
  }

  std::string register_plugins() {
    return std::to_string(symbol<int32_t (*)(void*)>("mssts_register_tensorrt_plugins")(nullptr));
  }

  // Those of the registry with one of these names; a runtime's own plugins may fail without a GPU when asked more.
  std::string creators(const Words& names) {
    int32_t count = 0;
    IPluginCreatorInterface* const* all = registry_->getAllCreators(&count);
    Words items;
    for (int32_t i = 0; i < count; ++i) {
      if (std::strcmp(all[i]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") != 0) continue;
      auto* creator = static_cast<IPluginCreatorV3One*>(all[i]);
      if (std::find(names.begin(), names.end(), creator->getPluginName()) == names.end()) continue;
      Words fields;
      const PluginFieldCollection* all_fields = creator->getFieldNames();
      for (int32_t f = 0; f < all_fields->nbFields; ++f) fields.push_back(quoted(all_fields->fields[f].name));
      items.push_back(joined({quoted(creator->getPluginName()), quoted(creator->getPluginVersion()),
                              quoted(creator->getPluginNamespace()), joined(fields)}));
    }
    return joined(items);
  }

  IPluginCreatorV3One& creator(const std::string& op) {
    IPluginCreatorInterface* found = registry_->getCreator(op.c_str(), "1", "");
    if (found == nullptr) throw std::runtime_error("no creator of " + op);
    return *static_cast<IPluginCreatorV3One*>(found);
  }

  std::string create(const Words& words) {
    std::vector<std::vector<int64_t>> data;  // 8 bytes hold any of the values
    std::vector<PluginField> fields;
    Words names;
    names.reserve(words.size());
    for (size_t i = 2; i < words.size(); ++i) {
      const Words parts = split(words[i], ':');
      names.push_back(parts.at(0));
      const Words values = parts.at(1) == "char" ? Words{"0"} : split(parts.at(2), ',');
      data.emplace_back(values.size());
      PluginField field(names.back().c_str(), data.back().data(), PluginFieldType::kUNKNOWN,
                        static_cast<int32_t>(values.size()));
      if (parts[1] == "int32") {
        for (size_t n = 0; n < values.size(); ++n) {
          const auto narrow = static_cast<int32_t>(std::stoll(values[n]));
          std::memcpy(reinterpret_cast<char*>(data.back().data()) + n * sizeof narrow, &narrow, sizeof narrow);
        }
        field.type = PluginFieldType::kINT32;
      } else if (parts[1] == "int64") {
        std::transform(values.begin(), values.end(), data.back().begin(),
                       [](const std::string& value) { return std::stoll(value); });
        field.type = PluginFieldType::kINT64;
      } else {
        std::memcpy(data.back().data(), parts.size() > 2 ? parts[2].c_str() : "", 1);
        field.type = PluginFieldType::kCHAR;
      }
      fields.push_back(field);
    }
    const PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
    const TensorRTPhase phase = words.at(1) == "build" ? TensorRTPhase::kBUILD : TensorRTPhase::kRUNTIME;
    return keep(creator(words.at(0)).createPlugin("a_node", &collection, phase));
  }

  // What TensorRT does with a plan: the fields travel, and the creator makes the plugin again at run time.
  IPluginV3* from_fields() {
    const PluginFieldCollection* fields = runtime_part()->getFieldsToSerialize();
    return creator(core_part()->getPluginName()).createPlugin("a_node", fields, TensorRTPhase::kRUNTIME);
  }

  std::string keep(IPluginV3* plugin) {
    if (plugin == nullptr) return "null";
    plugins_.emplace_back(plugin);
    return use(plugins_.size() - 1);
  }

  std::string use(size_t index) {
    if (plugins_.at(index) == nullptr) throw std::runtime_error("deleted");
    current_ = index;
    return std::to_string(index);
  }

  IPluginV3& plugin() {
    if (plugins_.empty() || plugins_.at(current_) == nullptr) throw std::runtime_error("no plugin");
    return *plugins_[current_];
  }
  IPluginV3OneCore* core_part() {
    return static_cast<IPluginV3OneCore*>(plugin().getCapabilityInterface(PluginCapabilityType::kCORE));
  }
  IPluginV3OneBuild* build_part() {
    return static_cast<IPluginV3OneBuild*>(plugin().getCapabilityInterface(PluginCapabilityType::kBUILD));
  }
  IPluginV3OneRuntime* runtime_part() {
    return static_cast<IPluginV3OneRuntime*>(plugin().getCapabilityInterface(PluginCapabilityType::kRUNTIME));
  }

  std::string capabilities() {
    return joined({quoted(plugin().getInterfaceInfo().kind), quoted(core_part()->getInterfaceInfo().kind),
                   quoted(build_part()->getInterfaceInfo().kind), quoted(runtime_part()->getInterfaceInfo().kind),
                   quoted(core_part()->getPluginName()), quoted(core_part()->getPluginVersion()),
                   quoted(core_part()->getPluginNamespace())});
  }

  std::string types(const Words& words) {
    std::vector<DataType> inputs;
    for (const std::string& word : words) inputs.push_back(kTypes.at(word));
    DataType output = DataType::kBOOL;
    const int32_t status =
        build_part()->getOutputDataTypes(&output, 1, inputs.data(), static_cast<int32_t>(inputs.size()));
    if (status != 0) return "null";
    for (const auto& [name, type] : kTypes) {
      if (type == output) return quoted(name);
    }
    return quoted("?");
  }

  std::string shapes(const Words& words) {
    ExpressionBuilder builder;
    std::vector<DimsExprs> inputs;
    for (const std::string& word : words) {
      const Words sizes = split(word, ',');
      DimsExprs dims{};
      dims.nbDims = static_cast<int32_t>(sizes.size());
      for (size_t i = 0; i < sizes.size(); ++i) {
        const bool number = std::isdigit(static_cast<unsigned char>(sizes[i].at(0))) != 0;
        dims.d[i] = number ? builder.constant(std::stoll(sizes[i])) : builder.symbol(sizes[i]);
      }
      inputs.push_back(dims);
    }
    DimsExprs output{};
    const int32_t status = build_part()->getOutputShapes(inputs.data(), static_cast<int32_t>(inputs.size()), nullptr, 0,
                                                         &output, 1, builder);
    if (status != 0) return "null";
    Words texts;
    for (int32_t i = 0; i < output.nbDims; ++i) {
      texts.push_back(quoted(static_cast<const Expression*>(output.d[i])->text));
    }
    return joined(texts);
  }

  std::string format(const Words& words) {
    std::vector<DynamicPluginTensorDesc> tensors;
    for (size_t i = 1; i < words.size(); ++i) tensors.push_back(dynamic_of(words[i]));
    return truth(build_part()->supportsFormatCombination(std::stoi(words.at(0)), tensors.data(),
                                                         static_cast<int32_t>(tensors.size()) - 1, 1));
  }

  std::string configure(const Words& words) {
    std::vector<DynamicPluginTensorDesc> tensors;
    for (const std::string& word : words) tensors.push_back(dynamic_of(word));
    const auto inputs = static_cast<int32_t>(tensors.size()) - 1;
    return std::to_string(build_part()->configurePlugin(tensors.data(), inputs, &tensors[inputs], 1));
  }

  std::string change(const Words& words) {
    std::vector<PluginTensorDesc> tensors;
    for (const std::string& word : words) tensors.push_back(tensor_of(word));
    const auto inputs = static_cast<int32_t>(tensors.size()) - 1;
    return std::to_string(runtime_part()->onShapeChange(tensors.data(), inputs, &tensors[inputs], 1));
  }

  std::string cost(const Words& words) {
    std::vector<PluginTensorDesc> tensors;
    for (const std::string& word : words) tensors.push_back(tensor_of(word));
    const size_t inputs = tensors.size() - 1;
    void* const nowhere[8] = {};
    const auto calls = [&] {
      const auto began = std::chrono::steady_clock::now();
      for (int i = 0; i < 1000; ++i) {
        if (runtime_part()->enqueue(tensors.data(), &tensors[inputs], nowhere, nowhere, nullptr, nullptr) != 0) {
          throw std::runtime_error("enqueue failed");
        }
      }
      return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - began).count() / 1000;
    };
    double least = calls();
    const size_t before = allocations;
    for (int i = 0; i < 20; ++i) least = std::min(least, calls());
    const size_t made = allocations - before;
    return joined({std::to_string(least), std::to_string(made)});
  }

  std::string enqueue(const Words& words) {
    std::vector<PluginTensorDesc> tensors;
    std::vector<std::unique_ptr<Memory>> memory;
    std::vector<void*> pointers;
    for (size_t i = 0; i < words.size(); ++i) {
      const Words parts = split(words[i], '@');
      tensors.push_back(tensor_of(parts.at(0)));
      size_t bytes = bytes_of(tensors.back().type);
      for (int32_t d = 0; d < tensors.back().dims.nbDims; ++d) bytes *= static_cast<size_t>(tensors.back().dims.d[d]);
      memory.push_back(std::make_unique<Memory>(bytes, i + 1 < words.size() ? parts.at(1) : ""));
      pointers.push_back(memory.back()->data());
    }
    const size_t inputs = tensors.size() - 1;
    const int32_t status =
        runtime_part()->enqueue(tensors.data(), &tensors[inputs], pointers.data(), &pointers[inputs], nullptr, nullptr);
    if (status == 0) memory.back()->write(split(words.back(), '@').at(1));
    return std::to_string(status);
  }

  std::string fields() {
    const PluginFieldCollection* all = runtime_part()->getFieldsToSerialize();
    Words items;
    for (int32_t i = 0; i < all->nbFields; ++i) {
      const PluginField& field = all->fields[i];
      if (field.type != PluginFieldType::kINT32) throw std::runtime_error("not INT32");
      Words words{quoted(field.name)};
      const auto* const values = static_cast<const int32_t*>(field.data);
      for (int32_t n = 0; n < field.length; ++n) words.push_back(std::to_string(values[n]));
      items.push_back(joined(words));
    }
    return joined(items);
  }

  Logger logger_;
  Finder finder_;
  IPluginRegistry* registry_ = nullptr;
  IPluginRegistry::PluginLibraryHandle handle_ = nullptr;
  void* runtime_ = nullptr;
  void* library_ = nullptr;
  std::vector<std::unique_ptr<IPluginV3>> plugins_;
  size_t current_ = 0;
};

}  // namespace

int main() {
  Driver driver;
  for (std::string line; std::getline(std::cin, line);) std::cout << driver.run(line) << std::endl;
}

// What the TensorRT library offers beside the plugins that TensorRT finds by itself.
#ifndef MSSTS_TENSORRT_BINDING_H
#define MSSTS_TENSORRT_BINDING_H

#include <stdint.h>

#include "mssts/kernels.h"

extern "C" {

// Registers the plugins with one nvinfer1::IPluginRegistry, or with every TensorRT runtime of this process where
// `registry` is NULL. Loading the library does the latter; who loads TensorRT only afterwards calls this. Returns the
// number of registries that have the plugins now; 0 comes with a message. Never throws.
MSSTS_API int32_t mssts_register_tensorrt_plugins(void* registry);

// What this library was built for, as in "TensorRT 11.1.0".
MSSTS_API const char* mssts_tensorrt_build(void);

}  // extern "C"

#endif  // MSSTS_TENSORRT_BINDING_H

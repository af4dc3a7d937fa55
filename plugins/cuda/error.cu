// mssts_last_error, as in the CPU library. Not in mssts_cuda_objects: a library that holds the CPU's objects too has
// it.
#include "../cpu/error.cpp"

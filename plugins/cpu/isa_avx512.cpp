#define MSSTS_ISA avx512
#include "isa.inl"

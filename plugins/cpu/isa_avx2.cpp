#define MSSTS_ISA avx2
#include "isa.inl"

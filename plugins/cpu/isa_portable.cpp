#define MSSTS_ISA portable
#include "isa.inl"

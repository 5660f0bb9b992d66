// MEGATRON_CLONES: compile a function for several instruction sets and choose at load time. Only where the compiler
// and the C library support it (GCC, glibc, x86-64); elsewhere the function is compiled once for the baseline.
#pragma once

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__gnu_linux__)
#include <features.h>
#if defined(__GLIBC__)
#if __GNUC__ >= 12
#define MEGATRON_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MEGATRON_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#endif
#endif
#ifndef MEGATRON_CLONES
#define MEGATRON_CLONES
#endif

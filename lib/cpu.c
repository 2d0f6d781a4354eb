/* SPDX-License-Identifier: MIT
 * cpu.c: asks the processor which kernel level it runs, and puts a thread's floating-point
 * environment into the one state that results are defined in. It knows nothing of kernels. */
#include "cpu.h"

#include "os.h"

#include <stdbool.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#define CPU_X86 1
#else
#define CPU_X86 0
#endif

/* All exceptions masked, round to nearest, subnormals neither read nor written as zero. */
#define CPU_MXCSR 0x1f80u

#if CPU_X86
/* clang's __builtin_cpu_supports() of old doesn't know the word. What the operating system saves is
 * asked with AVX2. */
static bool cpu_f16c(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

int kvc__cpu_best(void) {
#if CPU_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vnni")) {
        return KVC__LEVEL_AVX512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && cpu_f16c()) {
        return KVC__LEVEL_AVX2;
    }
#endif
    return KVC__LEVEL_SCALAR;
}

int kvc__cpu_level(void) {
    const char *name = kvc__env("KVC_CPU");
    const int best = kvc__cpu_best();
    if (name != NULL && strcmp(name, "scalar") == 0) {
        return KVC__LEVEL_SCALAR;
    }
    if (name != NULL && strcmp(name, "avx2") == 0 && best > KVC__LEVEL_AVX2) {
        return KVC__LEVEL_AVX2;
    }
    return best;
}

uint32_t kvc__fp_enter(void) {
#if CPU_X86
    uint32_t saved = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(CPU_MXCSR);
    return saved;
#else
    return 0;
#endif
}

void kvc__fp_leave(uint32_t saved) {
#if CPU_X86
    __builtin_ia32_ldmxcsr(saved);
#else
    (void)saved;
#endif
}

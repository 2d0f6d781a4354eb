/* SPDX-License-Identifier: MIT
 * probe.h: the two limits that a decode loop runs into: how fast this machine reads memory, and how
 * fast it multiplies small integers. Measured on the spot, so that a figure and its limit come from
 * the same minutes. It knows nothing of models or sessions. */
#ifndef KVC_PROBE_H
#define KVC_PROBE_H

#include <stddef.h>
#include <stdint.h>

/** Limits of the machine on a number of threads. */
typedef struct cmp_limits {
    double read_gb_s;         /* 1e9 bytes read per second; NaN: not known */
    double int8_gmac_s;       /* 1e9 multiply-adds of 8-bit integers per second; NaN: not known */
    const char *instructions; /* what multiplied: "avx512vnni", "avx2", "generic" */
} cmp_limits;

/** Nothing is known yet. */
void cmp_limits_init(cmp_limits *l);

/** What measuring needs: memory far larger than the last cache, taken once. */
typedef struct cmp_probe cmp_probe;

/** Makes it for n_thread threads (1 or more), which read about so many bytes together; 0: as many
 * as a figure takes, which can be gigabytes. NULL without memory. */
cmp_probe *cmp_probe_open(uint32_t n_thread, size_t read_bytes);
/** Frees it; NULL is legal. */
void cmp_probe_close(cmp_probe *p);
/** Measures both limits, best of five, and raises what l holds: noise only ever lowers a limit.
 * Takes a fraction of a second. The threads aren't pinned, as those of a program aren't. Returns 0,
 * or -1 when threads can't be started. */
int cmp_probe_run(cmp_probe *p, cmp_limits *l);
/** Reads once and raises what l holds of it: some machines read at one rate in one second and at
 * another in the next, so a limit is looked for beside whatever is held against it. */
void cmp_probe_read(cmp_probe *p, cmp_limits *l);

/* One thread's work, for probe.c: n rounds of cmp_probe_mac_NAME multiply-adds each, in registers
 * alone (tests/check_probe.sh reads the code). The sum is returned so that nothing is left out. */
#define CMP_PROBE_MAC_AVX512 (12u * 64u)
#define CMP_PROBE_MAC_AVX2   (4u * 32u)
int32_t cmp_probe_int8_avx512(uint64_t n);
int32_t cmp_probe_int8_avx2(uint64_t n);

#endif

/* SPDX-License-Identifier: MIT
 * machine.h: what a comparison ran on, for its report. */
#ifndef KVC_MACHINE_H
#define KVC_MACHINE_H

/** The machine and the build. */
typedef struct cmp_machine {
    char cpu[128];    /* "AMD EPYC 9R14", "" when it doesn't say */
    long n_core;      /* that are online */
    char kernel[160]; /* "Linux 6.1.0 x86_64" */
    char compiler[128];
    double load; /* of the last minute when the run began, -1: not known */
} cmp_machine;

/** Fills m. */
void cmp_machine_read(cmp_machine *m);
/** Bytes of memory that programs can still take, -1: not known. */
double cmp_machine_available(void);

#endif

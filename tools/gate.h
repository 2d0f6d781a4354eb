/* SPDX-License-Identifier: MIT
 * gate.h: limits that a comparison must keep, `quant8.kld.mean>1e-4`: a gate is missed when what it
 * says is true. It knows the names of policies and figures, not how they are measured. */
#ifndef KVC_GATE_H
#define KVC_GATE_H

#include "figures.h"

#include <stddef.h>
#include <stdint.h>

/** One parsed gate. */
typedef struct cmp_gate {
    const char *text;            /* as the user wrote it */
    uint8_t row[CMP_MAX_POLICY]; /* 1: it speaks of that policy */
    uint32_t figure;             /* CMP_… */
    char op[3];                  /* ">", ">=", "<", "<=", "==" */
    double limit;
} cmp_gate;

/** Parses text against the n specs of the comparison. A policy is named by its spec, or by its
 * first stage's name when one spec alone begins with it. Returns 0, or -1 with a sentence in
 * why[cap]. */
int cmp_gate_parse(const char *text, const char *const *spec, uint32_t n, cmp_gate *out, char *why,
                   size_t cap);
/** 1 when the gate is missed by that row; a figure that is not known misses it. Writes a line that
 * says by what to why[cap]. */
int cmp_gate_missed(const cmp_gate *gate, const cmp_row *row, char *why, size_t cap);
/** The name of a spec's first stage, its length in *n: "window" of "window:size=4+quant8", "my" of
 * "./my.so:x=1". Points into spec. */
const char *cmp_spec_name(const char *spec, size_t *n);

#endif

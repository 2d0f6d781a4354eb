/* SPDX-License-Identifier: MIT
 * merge.h: merges neighbours in one piece of text until none may merge, the pair of lowest rank
 * first, of equal ranks the leftmost. What may merge is the rules' business (bpe.h, spm.h). */
#ifndef KVC_MERGE_H
#define KVC_MERGE_H

#include "mem.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KVC__NO_SYMBOL UINT32_MAX

/** A run of bytes that is one token now; its place in the array is its first byte's. */
typedef struct kvc__symbol {
    int32_t id;          /* -1: none */
    uint32_t prev, next; /* KVC__NO_SYMBOL at the ends */
    uint32_t len;        /* bytes; 0: merged into its left neighbour */
} kvc__symbol;

/** What merges. rules is passed back. */
typedef struct kvc__merge_rules {
    const void *rules;
    /** The symbol that text of n >= 1 bytes begins with before anything is merged: its id, and its
     * bytes, 1 to n, to *len. */
    int32_t (*first)(const void *rules, const uint8_t *text, size_t n, uint32_t *len);
    /** Whether l and r, whose bytes begin at text, merge: their rank and what they become. */
    bool (*pair)(const void *rules, const uint8_t *text, const kvc__symbol *l, const kvc__symbol *r,
                 uint32_t *rank, int32_t *id);
} kvc__merge_rules;

/** Scratch of one tokenize call, grown as pieces need it; zeroed at first. */
typedef struct kvc__merge_work {
    void *block; /* symbols, then the heap */
    size_t bytes;
} kvc__merge_work;

/** Where tokens go: n counts all of them, out takes the first cap. */
typedef struct kvc__sink {
    int32_t *out;
    size_t cap, n;
} kvc__sink;

/** Merges n bytes (1 to 2^31) with O(n log n) calls of the rules. *out is the array of symbols, the
 * first one at 0 and the others by `next`, valid until the next call on work. KVC_E_NOMEM. [any] */
int32_t kvc__merge(const kvc__merge_rules *r, kvc__mem *mem, kvc__merge_work *work,
                   const uint8_t *text, size_t n, const kvc__symbol **out);
/** Frees the scratch. */
void kvc__merge_work_free(kvc__mem *mem, kvc__merge_work *work);

/** Appends one token. */
void kvc__sink_put(kvc__sink *sink, int32_t id);

#endif

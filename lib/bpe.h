/* SPDX-License-Identifier: MIT
 * bpe.h: merges one piece of bytes into tokens by ranked pairs of tokens. It knows ids and ranks;
 * what a token's text is, and where pieces come from, is vocab.c's business. */
#ifndef KVC_BPE_H
#define KVC_BPE_H

#include "merge.h"

#include <stddef.h>
#include <stdint.h>

/** One rule: the neighbours left, right become id. */
typedef struct kvc__bpe_rule {
    int32_t left, right; /* left -1: empty slot */
    int32_t id;
    uint32_t rank;
} kvc__bpe_rule;

/** All rules of a vocabulary, read-only once filled. */
typedef struct kvc__bpe {
    int32_t byte[256]; /* the token of each byte, -1 for none */
    uint32_t n_slot;   /* a power of two, at least twice the rules */
    kvc__bpe_rule *slot;
} kvc__bpe;

/** Prepares an empty table with room for n_rule rules, every byte -1. KVC_E_NOMEM. */
int32_t kvc__bpe_init(kvc__mem *mem, uint32_t n_rule, kvc__bpe *out);
/** Frees the table; a zeroed one is legal. */
void kvc__bpe_free(kvc__mem *mem, kvc__bpe *b);
/** Adds a rule; of two for the same pair the first stays. At most n_rule calls. */
void kvc__bpe_add(kvc__bpe *b, int32_t left, int32_t right, int32_t id, uint32_t rank);
/** Merges n bytes (below 2^31) in O(n log n) and appends the tokens to sink; a byte without a token
 * gives none. KVC_E_NOMEM. [any] */
int32_t kvc__bpe_encode(const kvc__bpe *b, kvc__mem *mem, kvc__merge_work *work,
                        const uint8_t *piece, size_t n, kvc__sink *sink);

#endif

/* SPDX-License-Identifier: MIT
 * rope.h: RoPE's angles and the tables of their cosines and sines: base, scaling beyond the context
 * of training, divisors per pair. A model has one set, or two when layers with a window have their
 * own. It knows keys of a file, not layers. */
#ifndef KVC_ROPE_H
#define KVC_ROPE_H

#include "err.h"
#include "gguf.h"
#include "mem.h"

#include <stdint.h>

#define KVC__ROT_MAX 1024u /* most elements that are turned */

/** One way to turn keys and queries. */
typedef struct kvc__rope {
    float base;
    float factor; /* angles are divided by it; 1: not scaled */
    float ext;    /* YaRN: how much of the fast pairs stays unscaled, 1; 0: all pairs are scaled */
    float attn;   /* on cosines and sines, beside YaRN's own */
    float beta_fast, beta_slow; /* YaRN: turns in the first context between which pairs are mixed */
    uint32_t n_ctx;             /* YaRN: the context before it was stretched */
    float *divisor;             /* [n_rot / 2] of the angles, or NULL; owned */
    float *cs;                  /* [n][n_rot]: cosines, then sines, n_rot / 2 each; owned */
    uint32_t n;
} kvc__rope;

/** Reads the keys arch.rope.… of g; n_ctx_train: the context that YaRN's factor refers to unless
 * they say another. Of llama3's factors the file holds what they come to, rope_freqs.weight, which
 * the caller loads. KVC_E_FORMAT, KVC_E_UNSUPPORTED. */
int32_t kvc__rope_read(const kvc__gguf *g, const char *arch, uint32_t n_ctx_train, kvc__rope *out,
                       kvc__err *err);
/** Makes sure that cs covers positions [0, n), keeping what it has. cos and sin are taken in
 * double. KVC_E_NOMEM. */
int32_t kvc__rope_grow(kvc__rope *r, kvc__mem *mem, uint32_t n_rot, uint32_t n, kvc__err *err);
/** Frees what it owns. */
void kvc__rope_free(kvc__rope *r, kvc__mem *mem, uint32_t n_rot);

#endif

/* SPDX-License-Identifier: MIT
 * hparams.h: the numbers that make a model of its architecture, read from a file's keys and
 * checked. It knows keys, not tensors. */
#ifndef KVC_HPARAMS_H
#define KVC_HPARAMS_H

#include "arch.h"
#include "err.h"
#include "gguf.h"

#include <stdint.h>

/** Tensors that every layer has: seven matrices and two norms. */
#define KVC__LAYER_MATS    7u
#define KVC__LAYER_TENSORS 9u

/** Hyperparameters. */
typedef struct kvc__hparams {
    uint32_t n_layer, n_embd, n_ff, n_vocab, n_ctx_train;
    uint32_t n_head, n_head_kv; /* the same in every layer */
    uint32_t dim_k, dim_v;      /* elements of a key and of a value */
    uint32_t n_rot;             /* leading elements of a key that RoPE turns; even */
    float norm_eps;
    float scale;      /* on q·k */
    float soft_cap;   /* on scores, cap × tanh(score / cap); 0: none */
    float logit_cap;  /* the same on logits */
    float embd_scale; /* on embeddings; 1: none */
} kvc__hparams;

/** Reads all but n_vocab. A key that would change the result and has no code here refuses the file.
 * KVC_E_FORMAT, KVC_E_UNSUPPORTED. */
int32_t kvc__hparams_read(const kvc__gguf *g, const kvc__arch *arch, kvc__hparams *out,
                          kvc__err *err);
/** How many tokens a query of that layer sees, itself included; 0: all before it. KVC_E_FORMAT. */
int32_t kvc__hparams_window(const kvc__gguf *g, const kvc__arch *arch, const kvc__hparams *hp,
                            uint32_t layer, uint32_t *out, kvc__err *err);
/** RoPE base of layers with a window; 0: they are turned as the others. KVC_E_FORMAT,
 * KVC_E_UNSUPPORTED. */
int32_t kvc__hparams_local_base(const kvc__gguf *g, const kvc__arch *arch, float *out,
                                kvc__err *err);

#endif

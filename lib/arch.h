/* SPDX-License-Identifier: MIT
 * arch.h: the architectures that can be read, each a row of differences from llama: which tensors a
 * layer has beside the common ones, how pairs are turned, what is scaled. It knows names and
 * numbers, nothing of files, weights or how they are computed with. */
#ifndef KVC_ARCH_H
#define KVC_ARCH_H

#include "gguf.h"

#include <stdbool.h>
#include <stdint.h>

/** Vectors of a layer beside the two norms that all have. A model of an architecture that has them
 * must have them in every layer; one without must not. */
enum {
    KVC__ARCH_QKV_BIAS = 1u << 0,  /* attn_q.bias, attn_k.bias, attn_v.bias */
    KVC__ARCH_QK_NORM = 1u << 1,   /* attn_q_norm, attn_k_norm: of each head, before it is turned */
    KVC__ARCH_POST_NORM = 1u << 2, /* post_attention_norm, post_ffw_norm: of what a branch adds */
    KVC__ARCH_EVERY = 1u << 3      /* what every layer has */
};

typedef struct kvc__arch {
    const char *name; /* general.architecture, and the first word of its keys */
    uint32_t vectors; /* KVC__ARCH_… that its layers have */
    bool rope_neox;   /* RoPE turns pairs (i, i + n_rot / 2); else (2i, 2i + 1) */
    bool gelu;        /* the gate's function is GELU; else SiLU */
    bool embd_sqrt;   /* embeddings are multiplied by sqrt(n_embd) */
    /* Layers with a window, when the file has one but doesn't say which: all but each pattern-th;
     * 0: all. */
    uint32_t pattern;
    /* RoPE base of layers with a window, which is not scaled; 0: they are turned as the others. */
    float local_base;
    /* Scores of the model of so many layers are divided by sqrt(n_embd / n_head), not sqrt(dim_k);
     * no key says so. 0: no model. */
    uint32_t wide_scale_layers;
} kvc__arch;

/** The row of that name; NULL when it isn't supported. */
const kvc__arch *kvc__arch_find(kvc__str name);
/** All names, for a sentence: "llama, qwen2, …". */
const char *kvc__arch_names(void);

#endif

/* SPDX-License-Identifier: MIT
 * model.h: a model as four separate things: hyperparameters, weights, vocabulary, threads. Read
 * once, shared by all sessions, never changed by decoding. It knows files and tensors, nothing of
 * caches or policies. */
#ifndef KVC_MODEL_H
#define KVC_MODEL_H

#include "chat.h"
#include "err.h"
#include "gguf.h"
#include "io.h"
#include "kern.h"
#include "mat.h"
#include "mem.h"
#include "params.h"
#include "pool.h"
#include "vocab.h"

#include <pthread.h>
#include <stdint.h>

/** Hyperparameters of the architecture `llama`. */
typedef struct kvc__hparams {
    uint32_t n_layer, n_embd, n_ff, n_vocab, n_ctx_train;
    uint32_t n_head, n_head_kv; /* the same in every layer */
    uint32_t dim_k, dim_v;      /* elements of a key and of a value */
    uint32_t n_rot;             /* leading elements of a key that RoPE turns; even */
    float rope_base;
    float norm_eps;
    float scale; /* on q·k: 1 / sqrt(dim_k) */
} kvc__hparams;

/** One layer's weights. */
typedef struct kvc__layer {
    float *attn_norm; /* [n_embd] */
    float *ffn_norm;  /* [n_embd] */
    kvc__mat q;       /* [n_head × dim_k, n_embd] */
    kvc__mat k;       /* [n_head_kv × dim_k, n_embd] */
    kvc__mat v;       /* [n_head_kv × dim_v, n_embd] */
    kvc__mat o;       /* [n_embd, n_head × dim_v] */
    kvc__mat gate;    /* [n_ff, n_embd] */
    kvc__mat up;      /* [n_ff, n_embd] */
    kvc__mat down;    /* [n_embd, n_ff] */
} kvc__layer;

/** The public handle. */
struct kvc_model {
    kvc__mem mem; /* counts all of it */
    kvc__hparams hp;
    kvc__mat embd;   /* [n_vocab, n_embd] */
    kvc__mat head;   /* [n_vocab, n_embd]; shares embd's data when tied */
    uint32_t tied;   /* 1: head is embd */
    uint8_t *weight; /* [weight_bytes] the data of all matrices */
    size_t weight_bytes;
    float *out_norm;   /* [n_embd] */
    float *rope_freq;  /* [n_rot / 2] divisors (rope_freqs.weight), or NULL */
    kvc__layer *layer; /* [n_layer] */
    kvc__vocab *vocab;
    kvc__chat chat;
    kvc__pool *pool;
    kvc__io *io; /* made with the first session that has a tier */
    const kvc__kern *kern;
    uint32_t n_batch; /* most tokens computed together */
    float *rope; /* [rope_n][n_rot]: cos then sin, n_rot / 2 each; grown when a session opens */
    uint32_t rope_n;
    uint64_t n_param, file_bytes;
    uint64_t read_bytes, n_mac; /* of one decoded token, as in kvc_model_info */
    char arch[32], name[128], weights[16], fingerprint[33];
    struct kvc__work *work; /* scratch of batches (forward.h), made with the first session */
    void (*work_free)(kvc_model *model); /* frees it */
    pthread_mutex_t lock; /* one computing call at a time; also guards rope and n_ref */
    uint32_t n_ref;       /* the caller's hold and one per open session */
    kvc__err err;
};

/** Builds a model from a GGUF file's bytes, which are not needed afterwards; is_map: they are a
 * mapped file, whose pages are given back one by one. Checks every
 * hyperparameter and the type and shape of every tensor. Weights are packed on all threads.
 * KVC_E_FORMAT, KVC_E_UNSUPPORTED, KVC_E_NOMEM. */
int32_t kvc__model_create(const uint8_t *bytes, size_t n, bool is_map,
                          const struct kvc_params *params, kvc_model **out, kvc__err *err);
/** Frees it. */
void kvc__model_free(kvc_model *model);
/** Makes sure that rope covers positions [0, n). Called with the lock held. cos and sin are taken
 * in double: angle = pos × base^(-2i / n_rot) / rope_freq[i]. KVC_E_NOMEM. */
int32_t kvc__model_rope(kvc_model *model, uint32_t n, kvc__err *err);
/** Takes a hold; drops one and frees the model with the last. */
void kvc__model_hold(kvc_model *model);
void kvc__model_drop(kvc_model *model);

#endif

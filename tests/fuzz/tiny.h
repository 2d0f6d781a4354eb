/* SPDX-License-Identifier: MIT
 * tiny.h: a model of a few kilobytes made in memory, and params that find the policies linked in
 * and give no more memory than a fuzzer may take. Its bytes are the same in every build, so that
 * saved sessions in a corpus stay good. */
#ifndef KVC_FUZZ_TINY_H
#define KVC_FUZZ_TINY_H

#include "fuzz.h"

#include <check.h>
/* Check's own ends the program when no test of Check runs. */
#undef ck_assert_ptr_nonnull
#define ck_assert_ptr_nonnull(p) fuzz_check((p) != NULL, "memory", "")
#include "gguf_bytes.h"

#include "kvc/kvc.h"

/** Sizes of a model. */
typedef struct tiny_shape {
    uint32_t n_layer, n_embd, n_head, n_head_kv, head_dim, n_ff, n_ctx;
    uint32_t n_vocab; /* below TINY_VOCAB: the first tokens, and id 0 for all bytes without one */
    const char *pre;  /* the pre-tokenizer */
} tiny_shape;

enum {
    TINY_USER = 3,    /* id of a user-defined token */
    TINY_VOCAB = 268, /* special tokens, all bytes, merged ones */
    TINY_CTX = 384
};

/** What tiny_model() has: two layers of one KV head for two query heads. */
extern const tiny_shape tiny_default;

/** The keys of the vocabulary; n_kv of them. */
void tiny_put_vocab(bytes *b, const tiny_shape *shape);
#define TINY_VOCAB_KV 8u
/** The same number of keys for a vocabulary of SentencePiece with the same special tokens. */
void tiny_put_spm(bytes *b);
/** A whole file. */
void tiny_put_model(bytes *b, const tiny_shape *shape);

/** Params with every policy linked in and no others, one thread, a limit on memory. */
kvc_params *tiny_params(void);
/** The model of tiny_default. It lives as long as the process. */
kvc_model *tiny_model(uint32_t n_batch);
/** Opens a session on it, which must succeed. */
kvc_session *tiny_session(kvc_model *model, const char *spec, uint32_t n_ctx, uint32_t compute);
/** A path in a directory of this process for a file that sessions are saved to; both are removed
 * when the process exits. */
const char *tiny_path(void);

/** Stacks that together take every path of the engine. */
extern const char *const tiny_stack[];
extern const uint32_t tiny_n_stack;

#endif

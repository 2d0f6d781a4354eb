/* SPDX-License-Identifier: MIT
 * forward.h: one batch through all layers. The batch is rows (tokens) of one or several sessions;
 * weights are read once for all. It knows the model's definition and cuts rows into pieces for
 * attention; what a session is, it doesn't know. */
#ifndef KVC_FORWARD_H
#define KVC_FORWARD_H

#include "attend.h"
#include "err.h"
#include "model.h"
#include "product.h"
#include "stack.h"
#include "store.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/** Flags of a token, kept with it so that a replay ticks in the same places. */
enum {
    KVC__TOKEN_WANTED = 1, /* its logits were asked for */
    KVC__TOKEN_ENDS = 2    /* a prompt ends with it */
};

/** The KVC_PHASE_… of a token with these flags. */
static inline uint32_t kvc__token_phase(uint8_t flag) {
    if ((flag & KVC__TOKEN_ENDS) != 0) {
        return KVC_PHASE_PROMPT_END;
    }
    return (flag & KVC__TOKEN_WANTED) != 0 ? KVC_PHASE_DECODE : KVC_PHASE_PROMPT;
}

/** Consecutive tokens of one session in a batch. */
typedef struct kvc__part {
    kvc__stack *stack;
    kvc__store *store;
    const int32_t *token; /* [n] */
    const uint8_t *flag;  /* [n] KVC__TOKEN_… */
    uint32_t n;
    int32_t pos0;
    uint32_t row0;            /* set by kvc__forward() */
    uint32_t cursor;          /* rows of this layer that are through attention */
    int32_t new_pos;          /* tokens below it are computed again */
    bool last;                /* the final batch of the call */
    const atomic_int *cancel; /* not 0: stop */
    float *logits;            /* of the session; row of a wanted token t: want[t] */
    const int32_t *want;      /* [n] row in logits, or -1 */
    int32_t status;           /* out */
    kvc__err *err;            /* the session's */
} kvc__part;

/** Scratch of a model's batches. */
typedef struct kvc__work {
    kvc__attend attend;
    kvc__part *part;     /* [n_batch] */
    int32_t *want;       /* [n_batch] */
    float *x;            /* [n_batch][n_embd] the residual stream */
    float *h;            /* [n_batch][n_embd] normed rows that are read as floats; a branch */
    float *gate;         /* [n_batch][n_ff] the same of gated rows */
    float *row;          /* [n_thread][widest] a normed row that only int8 is made of */
    kvc__act rounded[2]; /* buffers [n_batch][widest] of what goes into products in int8 */
    kvc__products products;
    size_t widest;
    uint64_t attention_ns, policy_ns;
} kvc__work;

/** Rows of logits computed together. */
#define KVC__HEAD_ROWS 16u

/** Makes the scratch, or grows it for a session of n_ctx positions. KVC_E_NOMEM. */
int32_t kvc__work_reserve(kvc_model *model, uint32_t n_ctx, bool observe, bool select,
                          kvc__err *err);
/** Frees it. */
void kvc__work_free(kvc_model *model);

/** Computes the first n_part of work->part (at most n_batch rows) in the given way. Each part's
 * status says what became of it; its store has then seen none, some or all of its rows. */
void kvc__forward(kvc_model *model, uint32_t n_part, uint32_t compute);

/** How many of a session's next tokens may be one part: up to the first tick that a stage with
 * `end` asks for. */
uint32_t kvc__part_length(const kvc__stack *stack, const uint8_t *flag, int32_t pos0, uint32_t n);

#endif

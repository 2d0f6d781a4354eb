/* SPDX-License-Identifier: MIT
 * attend_part.h: what the phases of attention share: where a block's rows and results lie, and the
 * failures of calls in workers. Included by attend.c, which has the rows, the merge and the order
 * of all, and by attend_range.c, which has what comes between. */
#ifndef KVC_ATTEND_PART_H
#define KVC_ATTEND_PART_H

#include "attend.h"

static inline uint32_t group_of(const kvc__attend *a) {
    return a->model->hp.n_head / a->model->hp.n_head_kv;
}

/* What one range of one head gives for the rows of a block. */
struct partial {
    float *acc; /* [rows][dim_v] exponentials times values */
    float *max; /* [rows] -INFINITY: nothing was seen */
    float *sum; /* [rows] of exponentials */
};

static inline struct partial partial_at(const kvc__attend *a, const kvc__block *b, uint32_t head,
                                        uint32_t place) {
    const size_t rows = (size_t)b->n * group_of(a);
    float *acc =
        a->partial + b->part + ((size_t)head * b->n_range + place) * kvc__partial_floats(a, rows);
    float *max = acc + rows * a->model->hp.dim_v;
    return (struct partial){acc, max, max + rows};
}

static inline float *prob_at(const kvc__attend *a, const kvc__block *b, uint32_t head,
                             uint32_t row) {
    const size_t rows = (size_t)b->n * group_of(a), wide = (size_t)b->n_range * KVC__RANGE_ENTRIES;
    return a->prob + b->prob + ((size_t)head * rows + row) * wide;
}

static inline float *qrot_at(const kvc__attend *a, uint32_t head, uint32_t row) {
    const size_t wide = (size_t)group_of(a) * a->model->hp.dim_k;
    return a->qrot + ((size_t)head * a->n_batch + row) * wide;
}

static inline bool observes(const kvc__piece *p) {
    return (p->stack->observe & (KVC_OBSERVE_MASS | KVC_OBSERVE_MASS_LAST)) != 0;
}

/* Turns a key or a query of the layer by its position. */
static inline void turn(const kvc__attend *a, int32_t pos, const float *x, float *y) {
    const kvc__hparams *hp = &a->model->hp;
    const float *cs = a->model->rope[a->model->layer[a->layer].rope].cs + (size_t)pos * hp->n_rot;
    if (a->model->arch->rope_neox) {
        a->kern->rope_neox(x, cs, hp->n_rot, hp->dim_k, y);
    } else {
        a->kern->rope_norm(x, cs, hp->n_rot, hp->dim_k, y);
    }
}

/* ---------------------------------------------------------------- failures of worker calls */

/* Calls that may fail in workers; their numbers stand beside the status in `failed`. */
enum {
    CALL_VISIBLE = 0,
    CALL_APPEND,
    CALL_SELECT,
    CALL_SCORE,
    CALL_MIX,
    CALL_GET,
    CALL_UNPACK,
    CALL_FINITE
};

/* Keeps the first failure of a (piece, head): status in the upper bits, the call in the lowest
 * three. */
static inline void note_failure(kvc__attend *a, uint32_t piece, uint32_t head, int32_t code,
                                int call) {
    int none = 0;
    /* A plugin's status may be any number; only those that mean something here fit. */
    code = code < 0 && code > -64 ? code : KVC_E_POLICY;
    const int packed = code * 8 - call;
    atomic_compare_exchange_strong(&a->failed[(size_t)piece * a->model->hp.n_head_kv + head], &none,
                                   packed);
}

#define KVC__ITEM_HEADS 16u /* heads that are taken together, at most */

/* Scores, exponentials and mix of the range at a place of a block, for `take` heads from `head` on;
 * with a tier for one head of the n blocks from b on, which are of one piece. take is at most
 * KVC__ITEM_HEADS. */
void kvc__attend_range(kvc__attend *a, const kvc__block *b, uint32_t n, uint32_t place,
                       uint32_t head, uint32_t take, uint32_t thread);

#endif

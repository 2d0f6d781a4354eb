/* SPDX-License-Identifier: MIT
 * attend.h: attention over the store, page by page: rows are appended, every query is scored
 * against what it may see, results are merged. The one reader of pages for attention. It knows
 * lanes and ranges, not layers' weights.
 *
 * Order of arithmetic: pages are taken in ranges of four consecutive indexes of the lane's table.
 * Within a range, page by page: its scores, the largest score so far, exponentials below that,
 * their sum, values mixed in ascending entry; sum and mix of the pages before are first multiplied
 * by exp(maximum before - maximum), unless it is the same. Ranges are merged in ascending order by
 * the common maximum. A query's result depends on nothing else, so neither threads nor chunks can
 * change it. */
#ifndef KVC_ATTEND_H
#define KVC_ATTEND_H

#include "codec.h"
#include "kern.h"
#include "model.h"
#include "pool.h"
#include "stack.h"
#include "store.h"

#include <stdatomic.h>
#include <stdint.h>

#define KVC__RANGE_ENTRIES (KVC__RANGE_PAGES * KVC_PAGE)

/** Consecutive rows of one session that lie in one page: what is appended and attended together. */
typedef struct kvc__piece {
    kvc__stack *stack;
    kvc__store *store;
    uint32_t row0;    /* first row in the batch */
    uint32_t n;       /* 1 to 64 */
    int32_t pos0;     /* position of row0 */
    uint32_t phase;   /* KVC_PHASE_… of its rows */
    uint32_t part;    /* the part of the batch it is cut from */
    bool more;        /* another piece of it follows in this layer */
    int32_t status;   /* what became of it */
    const char *call; /* the call that failed */
    uint32_t head;    /* where */
} kvc__piece;

/** Consecutive ranges: [first, end). */
typedef struct kvc__stretch {
    uint32_t first, end;
} kvc__stretch;

/** A block of a piece's rows whose ranges are computed together: those in which a row of the piece
 * may see anything, n_range of them, ascending. */
typedef struct kvc__block {
    uint32_t piece, t0, n, n_range, n_span;
    kvc__stretch span[KVC_MAX_RANGES + 1];
    size_t part; /* first float of its partial results */
    size_t prob; /* first float of its probabilities, when observed */
} kvc__block;

/** One thread's scratch. */
typedef struct kvc__attend_thread {
    float *s;    /* [max_row][64] scores of a page; [max_range] factors of a row's ranges */
    float *tmp;  /* [max_row][64] scores of a page in another pass */
    float *q;    /* [max_row][dim_k] queries at shifted positions */
    float *max;  /* [4][max_row] what a page's exponentials are relative to, for observers */
    float *down; /* [max_row] by what a page takes down those before it */
    kvc__codec_scratch codec;
} kvc__attend_thread;

/** Scratch of all attention on one model; sized when a session opens. */
typedef struct kvc__attend {
    const kvc__kern *kern;
    kvc__pool *pool;
    const kvc_model *model;
    uint32_t max_row;   /* rows (query heads) of a block */
    uint32_t max_range; /* ranges of the longest session */
    uint32_t max_word;  /* 64-bit words of a page set */
    uint32_t n_batch;
    /* Projections of the batch, filled by forward. Rows are tokens. */
    float *q;          /* [n_batch][n_head × dim_k] before RoPE */
    float *k;          /* [n_batch][n_head_kv × dim_k] before RoPE */
    float *v;          /* [n_batch][n_head_kv × dim_v] */
    float *out;        /* [n_batch][n_head × dim_v]: the result */
    float *krot;       /* as k, turned */
    float *kobs;       /* as k, for observers */
    float *vobs;       /* as v, for observers */
    float *qrot;       /* [n_head_kv][n_batch][group × dim_k] */
    kvc__piece *piece; /* [n_batch] */
    uint32_t n_piece, layer;
    bool turned;       /* kvc__attend_turn() was called for all rows of the layer */
    kvc__block *block; /* [n_batch] */
    uint32_t n_block;
    uint32_t n_range; /* of all blocks */
    kvc_range *range; /* [n_batch][KVC_MAX_RANGES + 1] */
    uint32_t *n_rng;  /* [n_batch] */
    uint64_t *sel;    /* [n_batch][n_head_kv][max_word], when a session selects */
    float *partial;   /* per block [head][range]: [row][dim_v] output, [row] maximum, [row] sum */
    size_t cap_partial;
    float *prob; /* per block [head][row][range × 256], when a session observes */
    size_t cap_prob;
    atomic_int *failed;         /* [n_batch][n_head_kv] status of worker calls */
    kvc__attend_thread *thread; /* [n_thread] */
    uint32_t *item;             /* [n_batch + 1] first of each piece's ranges, by its first block */
} kvc__attend;

/** Floats of one range's partial results for so many rows: output, maximum, sum; whole lines. */
static inline size_t kvc__partial_floats(const kvc__attend *a, size_t rows) {
    return (rows * (2 + (size_t)a->model->hp.dim_v) + 15) & ~(size_t)15;
}

/** The set of pages that the query of a row reads of a head. */
static inline uint64_t *kvc__attend_sel_at(const kvc__attend *a, uint32_t row, uint32_t head) {
    return a->sel + ((size_t)row * a->model->hp.n_head_kv + head) * a->max_word;
}

/** Whether the query of a row reads a sealed page of a head, as far as select() says. */
static inline bool kvc__attend_selected(const kvc__attend *a, uint32_t row, uint32_t head,
                                        uint32_t page) {
    return (kvc__attend_sel_at(a, row, head)[page / 64] >> (page % 64) & 1) != 0;
}

/** Blocks of the same piece that follow block `first`, itself included. */
static inline uint32_t kvc__attend_same_piece(const kvc__attend *a, uint32_t first) {
    uint32_t n = 1;
    while (first + n < a->n_block && a->block[first + n].piece == a->block[first].piece) {
        n++;
    }
    return n;
}

/** Tells the pagers of all pieces what the blocks read, and what is read after them; then, that it
 * was read. (attend_tier.c) */
void kvc__attend_bring(const kvc__attend *a);
void kvc__attend_brought(const kvc__attend *a);

/** Sizes the scratch for sessions of up to n_ctx positions; observe, select: whether one of them
 * asks for it. Grows only. KVC_E_NOMEM. */
int32_t kvc__attend_reserve(kvc__attend *a, kvc_model *model, uint32_t n_ctx, bool observe,
                            bool select, kvc__err *err);
/** Frees the scratch; a zeroed one is legal. */
void kvc__attend_free(kvc__attend *a, kvc_model *model);
/** Turns keys and queries of a row of layer a->layer, at a position of a session with that stack;
 * and brings them and the values to the form in which pages hold and meet them, when no policy is
 * shown rows before that. For every row of a layer once, in front of kvc__attend_run(), with
 * a->turned set; or for none, and then it happens there. [any] for different rows. */
void kvc__attend_turn(kvc__attend *a, const kvc__stack *stack, uint32_t row, int32_t pos);
/** Appends the rows of all pieces to the given layer's lanes and attends. Pieces with a negative
 * status are passed over; a piece that fails gets one, and the others go on. */
void kvc__attend_run(kvc__attend *a, uint32_t layer);

#endif

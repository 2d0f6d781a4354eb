/* SPDX-License-Identifier: MIT
 * product.h: activations times weight matrices on all threads, and what is done to the outputs
 * while they lie in the cache of the core that computed them: added, gated and rounded, or capped.
 * It knows matrices and rows, not layers. */
#ifndef KVC_PRODUCT_H
#define KVC_PRODUCT_H

#include "kern.h"
#include "mat.h"
#include "mem.h"
#include "pool.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** From so many rows on, threads divide the rows among them, and not the weights. */
#define KVC__MANY_ROWS 128u

/** What products need beside matrices: kernels, threads, and scratch of each thread. */
typedef struct kvc__products {
    const kvc__kern *kern;
    kvc__pool *pool;
    float *tile;  /* [n_thread][tile_floats] a group of weights as floats */
    float *group; /* as tile: a group that is packed in use; NULL: all are packed */
    float *strip; /* [n_thread][2][strip_floats] outputs of some groups and all rows */
    size_t tile_floats, strip_floats;
} kvc__products;

/** Takes the scratch for up to n_batch rows. tile_bytes: the most that kvc__tile_bytes() says of a
 * matrix; packs: matrices aren't packed. False without memory; kvc__products_free() is due then
 * too. */
bool kvc__products_init(kvc__products *p, kvc__mem *mem, const kvc__kern *kern, kvc__pool *pool,
                        uint32_t n_batch, size_t tile_bytes, bool packs);
/** Frees the scratch; a zeroed one is legal. */
void kvc__products_free(kvc__products *p, kvc__mem *mem);

/* Of all: act->n is 1 to n_batch; int8 says that act holds int8, which quantised matrices are then
 * multiplied with, and others with its floats. One call at a time. */

/** out[i][act->n, n_row] = act × w[i]ᵀ for n matrices, 1 to 3. */
void kvc__multiply(const kvc__products *p, const kvc__act *act, bool int8, uint32_t n,
                   const kvc__mat *const *w, float *const *out);
/** x[act->n, n_row] += act × wᵀ. */
void kvc__multiply_add(const kvc__products *p, const kvc__act *act, bool int8, const kvc__mat *w,
                       float *x);
/** y[act->n, n_row] = gate(act × w[0]ᵀ, act × w[1]ᵀ): in `rounded` as int8, or as floats in out
 * when rounded is NULL. gate is a kernel that replaces its first argument. */
void kvc__multiply_gated(const kvc__products *p, const kvc__act *act, bool int8,
                         const kvc__mat *const w[2], void (*gate)(float *, const float *, uint32_t),
                         float *out, const kvc__act *rounded);
/** to[i][n_row] = row i of act × wᵀ, under the soft cap when that is above 0. */
void kvc__multiply_rows(const kvc__products *p, const kvc__act *act, bool int8, const kvc__mat *w,
                        float cap, float *const *to);

#endif

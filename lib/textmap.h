/* SPDX-License-Identifier: MIT
 * textmap.h: from a token's bytes to its id. A hash table over the tokens that text may become by
 * merging; which these are is vocab_load.c's business. */
#ifndef KVC_TEXTMAP_H
#define KVC_TEXTMAP_H

#include "mem.h"
#include "special.h"

#include <stddef.h>
#include <stdint.h>

/** Read-only once filled. */
typedef struct kvc__textmap {
    const kvc__tokens *tokens; /* not owned */
    uint32_t n_slot;           /* a power of two, at least twice the tokens */
    int32_t *slot;             /* ids, -1 for none */
} kvc__textmap;

/** Prepares an empty table for all of t. KVC_E_NOMEM. */
int32_t kvc__textmap_init(kvc__mem *mem, const kvc__tokens *t, kvc__textmap *out);
/** Frees it; a zeroed one is legal. */
void kvc__textmap_free(kvc__mem *mem, kvc__textmap *m);
/** Adds a token, once, its bytes being there; of two with the same bytes the first is found, an
 * empty one never. */
void kvc__textmap_add(kvc__textmap *m, int32_t id);
/** The token of these bytes, or -1. [any] */
int32_t kvc__textmap_find(const kvc__textmap *m, const void *p, size_t n);

#endif

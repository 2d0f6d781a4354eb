/* SPDX-License-Identifier: MIT
 * arena.h: memory of sealed pages: slots of one size per layer in reserved address space, committed
 * on use, given back when the last holder drops them. A session and its forks share one arena; each
 * holder brings a segment, so there is always room for all that it can hold. Used with the model's
 * lock held. It knows slots, not lanes. */
#ifndef KVC_ARENA_H
#define KVC_ARENA_H

#include "err.h"
#include "mem.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KVC__NO_SLOT    UINT32_MAX
#define KVC__MAX_HOLDER 1024u /* a session and its forks, those that are closed included */

/** One layer's slots. */
typedef struct kvc__slots {
    size_t page_bytes;
    uint32_t per_seg;    /* slots of a segment */
    uint32_t first_free; /* no free slot below it */
    uint8_t **seg;       /* reserved [KVC__MAX_HOLDER], n_seg of them [per_seg][page_bytes] */
    uint32_t *holder;    /* reserved [KVC__MAX_HOLDER × per_seg] how many hold the slot */
} kvc__slots;

typedef struct kvc__arena {
    kvc__mem *mem;
    uint32_t n_layer, n_seg, n_holder;
    kvc__slots *layer;
} kvc__arena;

/** Makes an arena for one holder. page_bytes[n_layer], per_seg[n_layer]. mem outlives all holders.
 */
int32_t kvc__arena_create(kvc__mem *mem, uint32_t n_layer, const size_t *page_bytes,
                          const uint32_t *per_seg, kvc__arena **out, kvc__err *err);
/** One more holder, with a segment of its own. KVC_E_NOMEM, KVC_E_RANGE (too many) leave the arena
 * as it was. */
int32_t kvc__arena_join(kvc__arena *a, kvc__err *err);
/** A holder leaves; it has given all its slots. The last one frees the arena. NULL is legal. */
void kvc__arena_leave(kvc__arena *a);

/** Takes a free slot; KVC__NO_SLOT when there is none. */
uint32_t kvc__arena_take(kvc__arena *a, uint32_t layer);
/** One more holder of a slot. */
void kvc__arena_share(kvc__arena *a, uint32_t layer, uint32_t slot);
/** A holder drops a slot; the last one gives its memory back. */
void kvc__arena_give(kvc__arena *a, uint32_t layer, uint32_t slot);
/** True when others hold it too. */
bool kvc__arena_is_shared(const kvc__arena *a, uint32_t layer, uint32_t slot);
/** A slot's bytes. */
uint8_t *kvc__arena_page(const kvc__arena *a, uint32_t layer, uint32_t slot);

#endif

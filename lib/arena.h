/* SPDX-License-Identifier: MIT
 * arena.h: sealed pages: slots of one size per layer in reserved address space, whose memory is
 * committed on use and given back when the last holder drops them. Slots lie in blocks, and the
 * blocks of all layers one behind the other in the order of their first use, so that a large cache
 * is made of large pages of the system. With a tier a slot's page may be away: the slot then has a
 * key instead of memory. A session and its forks share one arena; each holder brings a segment, so
 * there is always room for all that it can hold. Used with the model's lock held. It knows slots,
 * not lanes. */
#ifndef KVC_ARENA_H
#define KVC_ARENA_H

#include "err.h"
#include "mem.h"
#include "tier.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KVC__NO_SLOT    UINT32_MAX
#define KVC__MAX_HOLDER 1024u /* a session and its forks, those that are closed included */

/** Where a slot's page is. */
enum {
    KVC__PAGE_HERE = 0, /* in the slot's memory */
    KVC__PAGE_AWAY,     /* in the tier */
    KVC__PAGE_NOWHERE   /* the tier refused it: only good to be given up */
};

/** A slot whose page isn't in its memory. */
typedef struct kvc__slot_key {
    uint64_t key[2];
    uint32_t head;
    uint32_t where; /* KVC__PAGE_… */
} kvc__slot_key;

/** One layer's slots. */
typedef struct kvc__slots {
    size_t page_bytes;
    uint32_t per_seg;    /* slots that a holder brings */
    uint32_t per_block;  /* slots of a block */
    uint32_t first_free; /* no free slot below it */
    uint8_t **block;     /* reserved: [per_block][page_bytes] each, NULL before its first use */
    uint32_t *holder;    /* reserved [KVC__MAX_HOLDER × per_seg] how many hold the slot */
    kvc__slot_key *key;  /* reserved, the same; NULL without a tier */
} kvc__slots;

typedef struct kvc__arena {
    kvc__mem *mem;
    kvc__tier *tier; /* or NULL */
    uint32_t n_layer, n_seg, n_holder;
    kvc__slots *layer;
    size_t seg_bytes; /* of a segment */
    uint8_t **seg;    /* [KVC__MAX_HOLDER] n_seg of them, which blocks are cut from */
    uint32_t cut_seg; /* where the next block is cut: */
    size_t cut_at;    /* behind so many bytes of that segment */
} kvc__arena;

/** Makes an arena for one holder. page_bytes[n_layer], per_seg[n_layer]. mem and tier (or NULL)
 * outlive all holders. */
int32_t kvc__arena_create(kvc__mem *mem, kvc__tier *tier, uint32_t n_layer,
                          const size_t *page_bytes, const uint32_t *per_seg, kvc__arena **out,
                          kvc__err *err);
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
/** A slot's bytes, of no meaning when its page is away. */
uint8_t *kvc__arena_page(const kvc__arena *a, uint32_t layer, uint32_t slot);

/** True when the page isn't in memory. */
bool kvc__arena_is_away(const kvc__arena *a, uint32_t layer, uint32_t slot);
/** Hands bytes to the tier as the page of a slot, whose memory isn't touched. Statuses as
 * kvc__tier_put(); the page is then nowhere. [worker] for different slots */
int32_t kvc__arena_put(kvc__arena *a, uint32_t layer, uint32_t head, uint32_t slot,
                       const void *bytes);
/** What the tier is to be asked for to bring a page back. [any] while the slot is held */
kvc_tier_page kvc__arena_away(const kvc__arena *a, uint32_t layer, uint32_t slot);
/** Bytes of one slot's bookkeeping. */
size_t kvc__arena_slot_bytes(const kvc__arena *a);

#endif

/* SPDX-License-Identifier: MIT
 * store.h: the session's one store of keys and values, addressed by lane = (layer, KV head). A lane
 * is a table of sealed pages and one open page. The store does what the merged plan says and knows
 * no policy; it reads no page for attention (attend.h does; store_mass.c scores pages again, for
 * stages that ask).
 *
 * Page i of a lane holds positions 64i to 64i + 63 until a tick compacts the lane. The open page's
 * index is n_page. Sealed pages live in one arena: in memory, or, when the plan has a tier and a
 * layer's share of memory is full, away (store_tier.c). */
#ifndef KVC_STORE_H
#define KVC_STORE_H

#include "arena.h"
#include "codec.h"
#include "err.h"
#include "mem.h"
#include "pager.h"
#include "pool.h"
#include "stack.h"
#include "stream.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/** A sealed page of a lane. */
typedef struct kvc__ref {
    uint64_t live;  /* bit e: entry e may be attended to */
    int32_t pos0;   /* position of entry 0, unless moved */
    uint32_t slot;  /* in the layer's arena; KVC__NO_SLOT: freed */
    uint16_t n;     /* entries */
    uint16_t moved; /* 1: positions stand in the store's pos array */
} kvc__ref;

/** One (layer, KV head). */
typedef struct kvc__lane {
    kvc__ref *page;  /* [cap_page] */
    uint32_t n_page; /* sealed pages in the table, freed ones included */
    uint32_t open_n; /* rows in the open page */
    uint64_t open_live;
    int32_t open_pos0;
    uint32_t n_live; /* live entries */
    uint8_t *open_k; /* [dim_k][64] open_type */
    uint8_t *open_v; /* [64][dim_v] open_type */
    uint32_t held;   /* 1: the open page is empty and still holds the rows of the last sealed one */
    uint32_t leaves; /* 1: the page that is being sealed goes to the tier */
} kvc__lane;

/** What waits in a layer until a step is accepted. */
typedef struct kvc__journal_layer {
    bool settle;
    int32_t floor; /* of kvc__store_free_unseen(), or -1 */
} kvc__journal_layer;

/** What a step changes that computing can't bring back (store_journal.c). */
typedef struct kvc__journal {
    bool on;
    int evicted;
    kvc__lane *lane;           /* [n_lane] */
    kvc__ref *ref;             /* [n_lane][cap_page] */
    kvc__journal_layer *layer; /* [n_layer] */
    float *column;             /* reserved, as the store's; or NULL */
} kvc__journal;

typedef struct kvc__store {
    kvc__mem *mem;
    kvc__stack *stack;
    uint32_t n_layer, n_lane, cap_page, n_column; /* n_column: the engine's and the stages' */
    uint32_t *lane0;                              /* [n_layer + 1] first lane of a layer */
    kvc__lane *lane;                              /* [n_lane] */
    kvc__ref *refs;                               /* memory of the page tables */
    uint8_t *open;                                /* memory of the open pages */
    size_t open_bytes;
    kvc__arena *arena; /* sealed pages; shared with forks */
    float *column;     /* reserved, [n_lane][n_column][(cap_page + 1) × 64], or NULL */
    size_t column_reserved;
    int32_t *pos; /* reserved, [n_lane][cap_page × 64] positions of moved entries, or NULL */
    size_t pos_reserved;
    atomic_int evicted; /* 1: an entry was given up that no replay of a part can bring back */
    uint64_t sealed_bytes, n_sealed, n_moved; /* of pages in memory */
    uint64_t peak;
    kvc__journal journal; /* when entries are evicted or have columns; else zeroed */
    /* with a tier */
    kvc__pager *pager;
    size_t pager_bytes;
    uint32_t *resident, *share; /* [n_layer] pages in memory, and how many may be */
    uint64_t away_bytes, n_away;
} kvc__store;

/** Makes an empty store for the merged plan. family outlives the store and its forks: memory of
 * what they share. like: a store of the same plan whose arena to join, or NULL. */
int32_t kvc__store_create(kvc__mem *mem, kvc__mem *family, kvc__stack *stack,
                          const kvc__store *like, kvc__store *out, kvc__err *err);
/** Frees it; a zeroed store is legal. */
void kvc__store_destroy(kvc__store *s);

/** A lane. */
static inline kvc__lane *kvc__store_lane(const kvc__store *s, uint32_t layer, uint32_t head) {
    return &s->lane[s->lane0[layer] + head];
}
/** The bytes of a sealed page; NULL when freed or away. */
const uint8_t *kvc__store_page(const kvc__store *s, uint32_t layer, const kvc__ref *ref);
/** True when a page isn't in memory. */
bool kvc__store_is_away(const kvc__store *s, uint32_t layer, const kvc__ref *ref);
/** Positions of page index i of a lane (i == n_page: the open page) into out[64]; returns its
 * entries. */
uint32_t kvc__store_positions(const kvc__store *s, uint32_t lane, uint32_t i, int32_t *out);
/** Column col of entry 0 of page index i. NULL without columns. */
float *kvc__store_column(const kvc__store *s, uint32_t lane, uint32_t col, uint32_t i);

/** Appends n rows at positions pos0 … to a lane's open page, which has room. k[n, dim_k], v[n,
 * dim_v]. [worker] */
void kvc__store_append(kvc__store *s, uint32_t layer, uint32_t head, uint32_t n, int32_t pos0,
                       const float *k, size_t k_stride, const float *v, size_t v_stride);
/** A sealed page that isn't freed, in memory: its own, or in a room of the caller's, of
 * kvc__store_room() bytes, aligned to KVC_FILE_ALIGN. NULL when it can't be brought back: *rc then
 * says KVC_E_LOST, KVC_E_IO, KVC_E_NOMEM or KVC_E_POLICY. [worker] */
const uint8_t *kvc__store_bring(const kvc__store *s, uint32_t layer, uint32_t lane, uint32_t page,
                                uint8_t *room, int32_t *rc);
/** Memory for a page that is being filled, which is to be placed by kvc__store_place(): the slot's
 * own, or one per head on its way to the tier. Takes a slot; NULL when there is none. [decode] */
uint8_t *kvc__store_fill(kvc__store *s, uint32_t layer, uint32_t head, uint32_t *slot);
/** Hands a filled page to the tier, if it goes there. On failure it is lost, and the step with it.
 */
int32_t kvc__store_place(kvc__store *s, uint32_t layer, uint32_t head, uint32_t slot,
                         uint8_t *bytes);

/** Takes slots for sealing the full open pages of a layer. KVC_E_NOMEM. */
int32_t kvc__store_seal_begin(kvc__store *s, uint32_t layer, kvc__err *err);
/** Encodes one lane's open page, and hands it to the tier if it goes there. *call: what failed.
 * [worker] */
int32_t kvc__store_seal_lane(kvc__store *s, uint32_t layer, uint32_t head,
                             kvc__codec_scratch *scratch, const char **call);
/** Makes the sealed pages part of the tables, empties the open pages. */
void kvc__store_seal_end(kvc__store *s, uint32_t layer);
/** Frees the pages of a layer that no query at or after position floor can see. */
int32_t kvc__store_free_unseen(kvc__store *s, uint32_t layer, int32_t floor);
/** After evictions in a layer: frees empty pages and compacts lanes where that frees one. */
int32_t kvc__store_settle(kvc__store *s, uint32_t layer);

/** The highest position <= pos that the store can go back to. */
int32_t kvc__store_rewind(const kvc__store *s, int32_t pos);
/** Goes back to pos, an answer of kvc__store_rewind(); 0 empties it. */
void kvc__store_truncate(kvc__store *s, int32_t pos);

/** Copies what a step is going to change; only when journal.ref isn't NULL. The step adds rows of
 * one page and ticks after the last of them at most. Until it is committed or undone, settling and
 * freeing wait. */
void kvc__store_journal_begin(kvc__store *s);
/** Accepts the step: what waits is done, as if it had not waited. *layer: where it failed. */
int32_t kvc__store_journal_commit(kvc__store *s, uint32_t *layer);
/** Takes the step back. */
void kvc__store_journal_undo(kvc__store *s);
int32_t kvc__store_journal_create(kvc__store *s, kvc__err *err);
void kvc__store_journal_destroy(kvc__store *s);
/** Frees page i of a lane, unless it is freed. */
void kvc__store_free_page(kvc__store *s, uint32_t layer, kvc__lane *l, uint32_t i);

/** Live entries of a lane: number, and what kvc_host_store offers. The caller checked layer and
 * head. */
int32_t kvc__store_read_pos(const kvc__store *s, uint32_t lane, uint32_t first, uint32_t n,
                            int32_t *out);
int32_t kvc__store_column_get(const kvc__store *s, uint32_t lane, uint32_t col, uint32_t first,
                              uint32_t n, float *out);
int32_t kvc__store_column_set(kvc__store *s, uint32_t lane, uint32_t col, uint32_t first,
                              uint32_t n, const float *in);
int32_t kvc__store_keep(kvc__store *s, uint32_t lane, const uint32_t *index, uint32_t n);
int32_t kvc__store_drop(kvc__store *s, uint32_t lane, int32_t first, int32_t end);
int32_t kvc__store_read(const kvc__store *s, uint32_t layer, uint32_t head, uint32_t first,
                        uint32_t n, float *k, float *v);
/** Adds how much the queries (as kvc_host_store.mass() is given them, checked) attend to the live
 * entries of their lane to out[live entries]. Statuses as kvc__store_bring() and KVC_E_UNSUPPORTED.
 * [worker] (store_mass.c) */
int32_t kvc__store_mass(const kvc__store *s, const kvc_rows *queries, float *out);

/** Makes `to`, empty and of the same plan and arena, hold what `from` holds; sealed pages are
 * shared. */
void kvc__store_copy(kvc__store *to, const kvc__store *from);
/** Writes all that the store holds. */
int32_t kvc__store_save(const kvc__store *s, kvc__stream *out);
/** Reads it into an empty store of the same plan that is to hold n_valid positions. KVC_E_FORMAT:
 * what was read contradicts itself; the store is then only good to be freed. */
int32_t kvc__store_load(kvc__store *s, uint32_t n_valid, kvc__stream *in);

/** Counted bytes. */
typedef struct kvc__store_bytes {
    uint64_t sealed, open, meta, column, buffer;
} kvc__store_bytes;
void kvc__store_count(const kvc__store *s, kvc__store_bytes *out);
/** All of them, stages included. */
uint64_t kvc__store_held(const kvc__store *s);
/** Raises the peak to that. */
void kvc__store_note_peak(kvc__store *s);

/** What a store with a tier needs beside the rest: a pager and each layer's share of the memory
 * that the plan allows. KVC_E_PARAM when that is too little, but not for a fork, whose tier may
 * have grown; KVC_E_NOMEM. (store_tier.c) */
int32_t kvc__store_tier_create(kvc__store *s, bool fork, kvc__err *err);
void kvc__store_tier_destroy(kvc__store *s);
/** Room for one page that is brought back, which the store has; NULL without a tier. [decode] */
uint8_t *kvc__store_buffer(const kvc__store *s);
/** Bytes of such a room; 0 without a tier. */
size_t kvc__store_room(const kvc__store *s);
/** A page in memory became one in the tier, or the other way round when it is given up. */
void kvc__store_count_away(kvc__store *s, uint32_t layer, int sign);

#endif

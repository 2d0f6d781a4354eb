/* SPDX-License-Identifier: MIT
 * pager.h: pages of one session on their way back from a tier. Attention reads them by units: the
 * pages of one range of a layer's tables, of all its heads. What the present pass needs is a list
 * of units in the order in which they will be used, what the next one will need another; I/O
 * threads, and workers that would have to wait, bring the units' records into a ring of buffers
 * ahead of their use; a worker unpacks the pages that it reads. It knows slots and where they are,
 * not lanes or positions. */
#ifndef KVC_PAGER_H
#define KVC_PAGER_H

#include "arena.h"
#include "err.h"
#include "io.h"
#include "mem.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct kvc__pager kvc__pager;
/** A unit whose records are there. */
typedef struct kvc__unit kvc__unit;

/** What a pager is made for. */
typedef struct kvc__pager_env {
    kvc__mem *mem;
    kvc__arena *arena;
    kvc__io *io;
    uint32_t n_entry;    /* units that the ring holds, at least kvc__pager_least() */
    uint32_t n_head;     /* most heads of a layer */
    uint32_t n_range;    /* ranges of the longest table */
    uint32_t n_thread;   /* workers */
    size_t page_bytes;   /* of the largest page */
    size_t record_bytes; /* most of a record */
} kvc__pager_env;

/** The fewest units of a ring that n_thread workers can work with. */
uint32_t kvc__pager_least(uint32_t n_thread);
/** Bytes that a pager will hold. */
size_t kvc__pager_bytes(const kvc__pager_env *env);
/** Makes one. KVC_E_NOMEM. */
int32_t kvc__pager_create(const kvc__pager_env *env, kvc__pager **out, kvc__err *err);
/** Frees it; NULL is legal. */
void kvc__pager_destroy(kvc__pager *p);

/** Begins a list of units of a layer; range ascends from call to call. [decode] */
void kvc__pager_list(kvc__pager *p, uint32_t layer);
/** Adds a page to it: the at-th of the range of that head. */
void kvc__pager_want(kvc__pager *p, uint32_t range, uint32_t head, uint32_t at, uint32_t slot);
/** Makes it the present pass: each of its units will be pinned n_use times, in ascending order as
 * far as threads keep order. What was read ahead and is of no use now is forgotten. [decode] */
void kvc__pager_begin(kvc__pager *p, uint32_t n_use);
/** Makes it what is read ahead. [decode] */
void kvc__pager_ahead(kvc__pager *p);
/** Ends the present pass, whether or not all was used. [decode] */
void kvc__pager_end(kvc__pager *p);

/** Waits for a range's unit. *out is NULL when nothing of it is on the list. A unit that can't be
 * brought back answers KVC_E_LOST, KVC_E_IO, KVC_E_NOMEM or KVC_E_POLICY; it is to be unpinned all
 * the same. [worker] */
int32_t kvc__pager_pin(kvc__pager *p, uint32_t range, kvc__unit **out);
/** Gives back what was pinned, whatever pinning answered. [worker] */
void kvc__pager_unpin(kvc__pager *p, uint32_t range);
/** Page `at` of a head's range, of a pinned unit that has it: valid until the unit is unpinned and
 * the same page `at` is asked for on that thread again. NULL: *rc says why not, as pinning would,
 * and a page that is lost is noted. [worker] */
const uint8_t *kvc__pager_page(kvc__pager *p, kvc__unit *unit, uint32_t head, uint32_t at,
                               uint32_t thread, int32_t *rc);

/** A page is about to change or go: forgets what was read of it. [decode] */
void kvc__pager_forget(kvc__pager *p, uint32_t layer, uint32_t slot);
/** The lowest page index that was found lost since the last call, UINT32_MAX when none was. */
uint32_t kvc__pager_take_lost(kvc__pager *p);
/** Notes a loss that somebody else met. */
void kvc__pager_note_lost(kvc__pager *p, uint32_t page);
/** Nanoseconds that workers waited for pages. */
uint64_t kvc__pager_wait_ns(const kvc__pager *p);
/** Room for a page of each head, for what is on its way to the tier. */
uint8_t *kvc__pager_stage(const kvc__pager *p, uint32_t head);
/** Room for one page that somebody else brings back: kvc__pager_room() bytes, aligned to
 * KVC_FILE_ALIGN. */
uint8_t *kvc__pager_buffer(const kvc__pager *p);
size_t kvc__pager_room(const kvc__pager *p);
/** Brings one page back on its own, to such a room. NULL: as kvc__pager_page(). [any] while the
 * slot is held */
const uint8_t *kvc__pager_bring(const kvc__pager *p, uint32_t layer, uint32_t slot, uint8_t *room,
                                int32_t *rc);

#endif

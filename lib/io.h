/* SPDX-License-Identifier: MIT
 * io.h: the model's I/O threads, which read ahead while others compute. What there is to read is
 * known to sources (pager.h); a thread asks them in turn and sleeps when none has work. */
#ifndef KVC_IO_H
#define KVC_IO_H

#include "err.h"
#include "mem.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct kvc__io kvc__io;

/** A source of work. `next` and `n_inside` belong to io.c. */
typedef struct kvc__io_source {
    /** Does one piece of work; false when there is none now. On several threads at once. */
    bool (*work)(void *arg);
    void *arg;
    struct kvc__io_source *next;
    uint32_t n_inside;
} kvc__io_source;

enum {
    KVC__IO_THREADS = 4 /* reads wait for the disk, not for a core; a disk wants several at once */
};

/** Starts the threads. KVC_E_NOMEM. */
int32_t kvc__io_create(kvc__mem *mem, kvc__io **out, kvc__err *err);
/** Joins them; no source may be left. NULL is legal. */
void kvc__io_destroy(kvc__io *io);
/** Adds a source, which stays where it is until it is removed. */
void kvc__io_add(kvc__io *io, kvc__io_source *source);
/** Takes it out; when this returns no thread is inside its work(). */
void kvc__io_remove(kvc__io *io, kvc__io_source *source);
/** Says that a source may have work. [any] */
void kvc__io_wake(kvc__io *io);

#endif

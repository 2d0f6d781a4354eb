/* SPDX-License-Identifier: MIT
 * io.c: threads that ask sources for work. A count of wake-ups, read before the sources are asked,
 * tells a thread that found nothing whether something may have come up meanwhile. */
#include "io.h"

#include "cpu.h"
#include "os.h"

#include <pthread.h>
#include <stdatomic.h>

struct kvc__io {
    kvc__mem *mem;
    pthread_mutex_t mutex;
    pthread_cond_t wake, left;
    kvc__io_source *first;
    atomic_uint_least64_t n_wake;
    atomic_uint n_asleep;
    bool stop;
    uint32_t n_started;
    pthread_t thread[KVC__IO_THREADS];
};

/* Asks each source once; with the mutex held on entry and exit. */
static bool ask_all(kvc__io *io) {
    bool any = false;
    for (kvc__io_source *s = io->first; s != NULL;) {
        s->n_inside++;
        pthread_mutex_unlock(&io->mutex);
        any |= s->work(s->arg);
        pthread_mutex_lock(&io->mutex);
        kvc__io_source *next = s->next;
        if (--s->n_inside == 0) {
            pthread_cond_broadcast(&io->left);
        }
        s = next;
    }
    return any;
}

static void *io_main(void *arg) {
    kvc__io *io = arg;
    (void)kvc__fp_enter();
    pthread_mutex_lock(&io->mutex);
    while (!io->stop) {
        const uint64_t seen = atomic_load(&io->n_wake);
        if (ask_all(io)) {
            continue;
        }
        /* A sleeper counts itself first; kvc__io_wake() counts first and looks for sleepers then.
         * One of the two sees the other. */
        atomic_fetch_add(&io->n_asleep, 1);
        while (!io->stop && atomic_load(&io->n_wake) == seen) {
            pthread_cond_wait(&io->wake, &io->mutex);
        }
        atomic_fetch_sub(&io->n_asleep, 1);
    }
    pthread_mutex_unlock(&io->mutex);
    return NULL;
}

void kvc__io_wake(kvc__io *io) {
    atomic_fetch_add(&io->n_wake, 1);
    if (atomic_load(&io->n_asleep) > 0) {
        pthread_mutex_lock(&io->mutex);
        pthread_cond_broadcast(&io->wake);
        pthread_mutex_unlock(&io->mutex);
    }
}

void kvc__io_add(kvc__io *io, kvc__io_source *source) {
    pthread_mutex_lock(&io->mutex);
    source->n_inside = 0;
    source->next = io->first;
    io->first = source;
    pthread_mutex_unlock(&io->mutex);
}

void kvc__io_remove(kvc__io *io, kvc__io_source *source) {
    pthread_mutex_lock(&io->mutex);
    while (source->n_inside > 0) {
        pthread_cond_wait(&io->left, &io->mutex);
    }
    kvc__io_source **at = &io->first;
    while (*at != source) {
        at = &(*at)->next;
    }
    *at = source->next;
    pthread_mutex_unlock(&io->mutex);
}

int32_t kvc__io_create(kvc__mem *mem, kvc__io **out, kvc__err *err) {
    kvc__io *io = kvc__alloc(mem, sizeof *io);
    if (io == NULL) {
        return kvc__fail(err, KVC_E_NOMEM, "no memory for I/O threads");
    }
    io->mem = mem;
    atomic_init(&io->n_wake, 0);
    atomic_init(&io->n_asleep, 0);
    pthread_mutex_init(&io->mutex, NULL);
    pthread_cond_init(&io->wake, NULL);
    pthread_cond_init(&io->left, NULL);
    while (io->n_started < KVC__IO_THREADS &&
           kvc__thread_start(&io->thread[io->n_started], io_main, io) == 0) {
        io->n_started++;
    }
    if (io->n_started < KVC__IO_THREADS) {
        kvc__io_destroy(io);
        return kvc__fail(err, KVC_E_NOMEM, "the I/O threads can't be started");
    }
    *out = io;
    return KVC_OK;
}

void kvc__io_destroy(kvc__io *io) {
    if (io == NULL) {
        return;
    }
    pthread_mutex_lock(&io->mutex);
    io->stop = true;
    pthread_cond_broadcast(&io->wake);
    pthread_mutex_unlock(&io->mutex);
    for (uint32_t i = 0; i < io->n_started; i++) {
        pthread_join(io->thread[i], NULL);
    }
    pthread_cond_destroy(&io->left);
    pthread_cond_destroy(&io->wake);
    pthread_mutex_destroy(&io->mutex);
    kvc__free(io->mem, io, sizeof *io);
}

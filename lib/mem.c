/* SPDX-License-Identifier: MIT
 * mem.c: counted memory, from libc or from the caller's allocator. Everything that the library
 * allocates passes here, so that the figures it reports are counted and not estimated. It must not
 * know who asks, and it keeps no headers: who frees says the size. */
#include "mem.h"

#include "os.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    ALIGN_LEAST = 64, /* a cache line and a 512-bit vector */
    ALIGN_MOST = 4096 /* what a kvc_allocator must be able to do */
};

void kvc__mem_init(kvc__mem *m, const kvc_allocator *a, kvc__mem *up) {
    memset(&m->a, 0, sizeof(m->a));
    if (a) {
        m->a = *a;
    }
    m->up = up;
    atomic_init(&m->used, 0);
    atomic_init(&m->peak, 0);
}

/* Moves the counts of m and all above it by new_size - old_size. Sizes are below SIZE_MAX / 2 each
 * in practice and unsigned arithmetic wraps, so shrinking is adding the wrapped difference. */
static void count(kvc__mem *m, size_t old_size, size_t new_size) {
    size_t delta = new_size - old_size;
    for (; m; m = m->up) {
        size_t used = atomic_fetch_add_explicit(&m->used, delta, memory_order_relaxed) + delta;
        if (new_size <= old_size) {
            continue;
        }
        size_t peak = atomic_load_explicit(&m->peak, memory_order_relaxed);
        while (used > peak &&
               !atomic_compare_exchange_weak_explicit(&m->peak, &peak, used, memory_order_relaxed,
                                                      memory_order_relaxed)) {
        }
    }
}

/* Blocks of that size, weights above all, get the system's large pages. */
#define LARGE ((size_t)4 << 20)

/* libc's realloc() loses alignment, hence a new block each time. */
static void *libc_realloc(void *p, size_t old_size, size_t new_size, size_t align) {
    void *q = NULL;
    if (new_size == 0) {
        free(p);
        return NULL;
    }
    if (posix_memalign(&q, align, new_size) != 0) {
        return NULL;
    }
    if (new_size >= LARGE) {
        kvc__prefer_large(q, new_size);
    }
    if (p) {
        memcpy(q, p, old_size < new_size ? old_size : new_size);
        free(p);
    }
    return q;
}

void *kvc__realloc(kvc__mem *m, void *p, size_t old_size, size_t new_size, size_t align) {
    if (!p) {
        old_size = 0;
        if (new_size == 0) {
            return NULL;
        }
    }
    if (align < ALIGN_LEAST) {
        align = ALIGN_LEAST;
    }
    bool legal = new_size <= PTRDIFF_MAX && align <= ALIGN_MOST && (align & (align - 1)) == 0;
    if (new_size > 0 && !legal) {
        return NULL;
    }
    void *q = m->a.realloc ? m->a.realloc(m->a.ctx, p, old_size, new_size, align)
                           : libc_realloc(p, old_size, new_size, align);
    if (new_size == 0) {
        count(m, old_size, 0);
        return NULL;
    }
    if (!q) {
        return NULL;
    }
    if (new_size > old_size) {
        memset((char *)q + old_size, 0, new_size - old_size);
    }
    count(m, old_size, new_size);
    return q;
}

void *kvc__alloc(kvc__mem *m, size_t size) {
    return kvc__realloc(m, NULL, 0, size, ALIGN_LEAST);
}

void *kvc__alloc_n(kvc__mem *m, size_t n, size_t size) {
    size_t total = 0;
    return kvc__mul_size(n, size, &total) ? kvc__alloc(m, total) : NULL;
}

void kvc__free(kvc__mem *m, void *p, size_t size) {
    (void)kvc__realloc(m, p, size, 0, ALIGN_LEAST);
}

char *kvc__strndup(kvc__mem *m, const char *text, size_t n) {
    size_t size = 0;
    if (!kvc__add_size(n, 1, &size)) {
        return NULL;
    }
    char *copy = kvc__alloc(m, size);
    if (copy && n > 0) {
        memcpy(copy, text, n);
    }
    return copy;
}

bool kvc__mul_size(size_t a, size_t b, size_t *out) {
    if (a != 0 && b > SIZE_MAX / a) {
        return false;
    }
    *out = a * b;
    return true;
}

bool kvc__add_size(size_t a, size_t b, size_t *out) {
    if (b > SIZE_MAX - a) {
        return false;
    }
    *out = a + b;
    return true;
}

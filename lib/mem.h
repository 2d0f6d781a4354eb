/* SPDX-License-Identifier: MIT
 * mem.h: the one counted allocator. Every byte of libkvc's own comes through here and is freed with
 * its size. */
#ifndef KVC_MEM_H
#define KVC_MEM_H

#include "kvc/kvc.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

/** An allocator with its count. A child adds its bytes to its parent's too. */
typedef struct kvc__mem {
    kvc_allocator a;     /* realloc NULL: libc */
    struct kvc__mem *up; /* parent, or NULL */
    atomic_size_t used;  /* bytes held now */
    atomic_size_t peak;  /* the most of it */
} kvc__mem;

/** Prepares m: a may be NULL (libc), up may be NULL. */
void kvc__mem_init(kvc__mem *m, const kvc_allocator *a, kvc__mem *up);

/** size bytes, zeroed, 64-byte aligned; NULL when there is no memory or size is 0. [any] */
void *kvc__alloc(kvc__mem *m, size_t size);
/** n × size bytes, NULL also when the product overflows. [any] */
void *kvc__alloc_n(kvc__mem *m, size_t n, size_t size);
/** Grows, shrinks or frees p of old_size; new bytes are zero. NULL on failure, p then unchanged.
 * [any] */
void *kvc__realloc(kvc__mem *m, void *p, size_t old_size, size_t new_size, size_t align);
/** Frees p of size bytes; NULL is legal. [any] */
void kvc__free(kvc__mem *m, void *p, size_t size);
/** A copy of text of n bytes with a NUL behind; free with n + 1. */
char *kvc__strndup(kvc__mem *m, const char *text, size_t n);

/** Checked arithmetic: false on overflow, *out then unchanged. */
bool kvc__mul_size(size_t a, size_t b, size_t *out);
bool kvc__add_size(size_t a, size_t b, size_t *out);

#endif

/* SPDX-License-Identifier: MIT
 * gguf_bytes.h: writes GGUF files into memory, right and wrong ones, for the tests of what reads
 * them. It puts down what it is told and checks nothing. */
#ifndef KVC_GGUF_BYTES_H
#define KVC_GGUF_BYTES_H

#include "gguf.h"

#include <check.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/** A file that is being written. */
typedef struct bytes {
    uint8_t *p;
    size_t n, cap;
} bytes;

static inline void put(bytes *b, const void *p, size_t n) {
    if (b->n + n > b->cap) {
        b->cap = 2 * (b->n + n);
        b->p = realloc(b->p, b->cap);
        ck_assert_ptr_nonnull(b->p);
    }
    if (n > 0) {
        memcpy(b->p + b->n, p, n);
    }
    b->n += n;
}

/* The tests run on little-endian machines, as the library does. */
static inline void put_u32(bytes *b, uint32_t v) {
    put(b, &v, sizeof v);
}

static inline void put_u64(bytes *b, uint64_t v) {
    put(b, &v, sizeof v);
}

static inline void put_str(bytes *b, const char *s) {
    put_u64(b, strlen(s));
    put(b, s, strlen(s));
}

static inline void put_header(bytes *b, uint32_t version, uint64_t n_tensor, uint64_t n_kv) {
    put(b, "GGUF", 4);
    put_u32(b, version);
    put_u64(b, n_tensor);
    put_u64(b, n_kv);
}

static inline void put_key(bytes *b, const char *key, uint32_t type) {
    put_str(b, key);
    put_u32(b, type);
}

static inline void put_array(bytes *b, const char *key, uint32_t elem_type, uint64_t n) {
    put_key(b, key, KVC__GGUF_ARRAY);
    put_u32(b, elem_type);
    put_u64(b, n);
}

/* A scalar of any numeric type. */
static inline void put_number(bytes *b, uint32_t type, double v) {
    bool is_float = type == KVC__GGUF_F32 || type == KVC__GGUF_F64;
    float f = type == KVC__GGUF_F32 ? (float)v : 0;
    uint64_t u = is_float ? 0 : v < 0 ? (uint64_t)(int64_t)v : (uint64_t)v;
    switch (type) {
    case KVC__GGUF_F32:
        put(b, &f, 4);
        break;
    case KVC__GGUF_F64:
        put(b, &v, 8);
        break;
    case KVC__GGUF_U64:
    case KVC__GGUF_I64:
        put(b, &u, 8);
        break;
    case KVC__GGUF_U32:
    case KVC__GGUF_I32:
        put(b, &u, 4);
        break;
    case KVC__GGUF_U16:
    case KVC__GGUF_I16:
        put(b, &u, 2);
        break;
    default:
        put(b, &u, 1);
    }
}

static inline void put_u32_kv(bytes *b, const char *key, uint32_t v) {
    put_key(b, key, KVC__GGUF_U32);
    put_u32(b, v);
}

static inline void put_tensor(bytes *b, const char *name, uint32_t n_dims, const uint64_t *dim,
                              uint32_t type, uint64_t offset) {
    put_str(b, name);
    put_u32(b, n_dims);
    for (uint32_t i = 0; i < n_dims; i++) {
        put_u64(b, dim[i]);
    }
    put_u32(b, type);
    put_u64(b, offset);
}

static inline void put_zeros(bytes *b, size_t n) {
    static const uint8_t zeros[64];
    for (; n > 0; n -= n < 64 ? n : 64) {
        put(b, zeros, n < 64 ? n : 64);
    }
}

static inline void put_padding(bytes *b, size_t align) {
    put_zeros(b, (align - b->n % align) % align);
}

static inline void bytes_free(bytes *b) {
    free(b->p);
    memset(b, 0, sizeof *b);
}

/* Random numbers that are the same everywhere. */
static inline uint64_t next_random(uint64_t *state) {
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

/* Damages p in one to three places below n: flipped bits or extreme numbers. */
static inline void mutate(uint8_t *p, size_t n, uint64_t *state) {
    static const uint64_t extremes[] = {
        0,         1,          UINT64_MAX,        INT64_MAX,          (uint64_t)INT64_MAX + 1,
        INT32_MAX, UINT32_MAX, (uint64_t)1 << 32, (uint64_t)1 << 60,  (uint64_t)1 << 61,
        255,       65536,      UINT64_MAX - 7,    UINT64_MAX / 4 + 1, UINT64_MAX / 48 + 1,
    };
    uint64_t times = 1 + next_random(state) % 3;
    for (uint64_t i = 0; i < times; i++) {
        size_t at = (size_t)(next_random(state) % n);
        if (next_random(state) & 1) {
            p[at] ^= (uint8_t)(1u << next_random(state) % 8);
        } else {
            uint64_t v = extremes[next_random(state) % (sizeof extremes / sizeof extremes[0])];
            size_t width = next_random(state) & 1 ? 8 : 4;
            memcpy(p + at, &v, width < n - at ? width : n - at);
        }
    }
}

#endif

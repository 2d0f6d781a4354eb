/* SPDX-License-Identifier: MIT
 * stream.h: bytes in order, to a file, from a file, or through memory, with a running checksum. A
 * file is written beside its place and renamed when it is whole. */
#ifndef KVC_STREAM_H
#define KVC_STREAM_H

#include "err.h"
#include "mem.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** One direction at a time. */
typedef struct kvc__stream {
    kvc__mem *mem;
    kvc__err *err;     /* sentences go here */
    int fd;            /* -1: memory alone */
    uint8_t *buf;      /* buffer of a file, or all bytes of memory */
    size_t n, at, cap; /* bytes in buf, the next to read, its size */
    uint64_t left;     /* reading: bytes of the file not yet in buf */
    void *hash;        /* XXH3 of all that went through */
    char *path, *temp; /* the file, and the name it has first */
    bool unnamed;      /* it has no name yet */
    size_t path_bytes;
} kvc__stream;

/** Begins to write path: a temporary file beside it. KVC_E_IO, KVC_E_NOMEM. */
int32_t kvc__stream_create(kvc__mem *mem, const char *path, kvc__stream *out, kvc__err *err);
/** Begins to read path. KVC_E_NOT_FOUND, KVC_E_IO, KVC_E_NOMEM. */
int32_t kvc__stream_open(kvc__mem *mem, const char *path, kvc__stream *out, kvc__err *err);
/** A stream through memory: what is written can then be read. */
int32_t kvc__stream_memory(kvc__mem *mem, kvc__stream *out, kvc__err *err);
/** Writes n bytes. KVC_E_IO, KVC_E_NOMEM. */
int32_t kvc__stream_write(kvc__stream *s, const void *p, size_t n);
/** Reads exactly n bytes. KVC_E_IO; KVC_E_FORMAT when there are fewer. */
int32_t kvc__stream_read(kvc__stream *s, void *p, size_t n);
/** Bytes that can still be read. */
uint64_t kvc__stream_left(const kvc__stream *s);
/** The checksum of all bytes written or read so far. */
uint64_t kvc__stream_hash(const kvc__stream *s);
/** Makes a written file whole and gives it its name: flush, sync, rename, sync of the directory.
 * KVC_E_IO. */
int32_t kvc__stream_commit(kvc__stream *s);
/** Frees it; an uncommitted file is removed. A zeroed stream is legal. */
void kvc__stream_close(kvc__stream *s);

#endif

/* SPDX-License-Identifier: MIT
 * scratch.h: files without a name that hold records for as long as somebody wants them: what
 * kvc_host_file (policy.h) promises to a tier. It must not know what a record is. */
#ifndef KVC_SCRATCH_H
#define KVC_SCRATCH_H

#include "err.h"
#include "mem.h"

#include "kvc/policy.h"

#include <stdint.h>

/** Makes a file in dir; NULL or "": in the user's cache directory, which is made if need be.
 * KVC_E_NOT_FOUND (there is no such directory), KVC_E_IO, KVC_E_NOMEM. */
int32_t kvc__scratch_open(kvc__mem *mem, const char *dir, kvc_file **out, kvc__err *err);
/** Closes it, and with that it is gone; NULL is legal. */
void kvc__scratch_close(kvc_file *f);

/** Writes a record of n bytes and sets *at to its place, a multiple of KVC_FILE_ALIGN. Records of
 * one group that are put one after the other lie one after the other where there is room. On
 * failure its room is free again: KVC_E_IO, KVC_E_NOMEM, KVC_E_RANGE (an empty record). [any] */
int32_t kvc__scratch_put(kvc_file *f, uint32_t group, const void *bytes, size_t n, uint64_t *at,
                         kvc__err *err);
/** Reads n bytes at `at`: a record, or several with what lies between. KVC_E_RANGE when no record
 * can begin there; KVC_E_IO, also when the file ends before. [any] */
int32_t kvc__scratch_get(kvc_file *f, uint64_t at, void *bytes, size_t n, kvc__err *err);
/** Gives a record's room back; what isn't a record's is left alone. [any] */
void kvc__scratch_drop(kvc_file *f, uint64_t at, size_t n);

/** Takes memory for the tables of one more group, of n records of at most `bytes` each.
 * KVC_E_NOMEM. [any] */
int32_t kvc__scratch_expect(kvc_file *f, uint32_t group, uint32_t n, size_t bytes, kvc__err *err);

/** Bytes that the file takes on disk, room for later records included. [any] */
uint64_t kvc__scratch_bytes(kvc_file *f);
/** The change of these bytes since the last call, or since the file was made. [any] */
int64_t kvc__scratch_change(kvc_file *f);

/** The extension KVC_HOST_FILE; its ctx is a kvc__stage (host_file.c). */
extern const kvc_host_file kvc__host_file;

#endif

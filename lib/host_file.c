/* SPDX-License-Identifier: MIT
 * host_file.c: the extension KVC_HOST_FILE of a stage's host table: scratch files whose memory and
 * disk bytes count as the stage's, and whose failures are recorded as its sentence. It trusts ctx
 * to be a stage and file to be one that open() gave. */
#include "scratch.h"
#include "stack.h"

/* Counts what the file has taken or given back since it was last asked. */
static void settle(kvc__stage *st, kvc_file *file) {
    st->host.account(st, KVC_BYTES_DISK, kvc__scratch_change(file));
    /* Lets the host see a new peak of st->mem. */
    st->host.account(st, KVC_BYTES_MEMORY, 0);
}

static int32_t host_file_open(void *ctx, const char *dir, kvc_file **out) {
    kvc__stage *st = ctx;
    kvc__err err = {{0}};
    if (out == NULL) {
        return st->host.fail(st, KVC_E_ARG, "a scratch file needs a place for its handle");
    }
    *out = NULL;
    const int32_t rc = kvc__scratch_open(&st->mem, dir, out, &err);
    if (rc < 0) {
        return st->host.fail(st, rc, err.text);
    }
    settle(st, *out);
    return KVC_OK;
}

static void host_file_close(void *ctx, kvc_file *file) {
    kvc__stage *st = ctx;
    if (file != NULL) {
        settle(st, file);
        st->host.account(st, KVC_BYTES_DISK, -(int64_t)kvc__scratch_bytes(file));
        kvc__scratch_close(file);
    }
}

static int32_t host_file_put(void *ctx, kvc_file *file, uint32_t group, const void *bytes, size_t n,
                             uint64_t *at) {
    kvc__stage *st = ctx;
    kvc__err err = {{0}};
    if (file == NULL || bytes == NULL || at == NULL) {
        return st->host.fail(st, KVC_E_ARG,
                             "a record needs a file, bytes and a place for its place");
    }
    const int32_t rc = kvc__scratch_put(file, group, bytes, n, at, &err);
    settle(st, file);
    return rc < 0 ? st->host.fail(st, rc, err.text) : KVC_OK;
}

static int32_t host_file_get(void *ctx, kvc_file *file, uint64_t at, void *bytes, size_t n) {
    kvc__stage *st = ctx;
    kvc__err err = {{0}};
    if (file == NULL || bytes == NULL) {
        return st->host.fail(st, KVC_E_ARG, "a record needs a file and a place for its bytes");
    }
    const int32_t rc = kvc__scratch_get(file, at, bytes, n, &err);
    return rc < 0 ? st->host.fail(st, rc, err.text) : KVC_OK;
}

static void host_file_drop(void *ctx, kvc_file *file, uint64_t at, size_t n) {
    kvc__stage *st = ctx;
    if (file != NULL) {
        kvc__scratch_drop(file, at, n);
        settle(st, file);
    }
}

static int32_t host_file_expect(void *ctx, kvc_file *file, uint32_t group, uint32_t n,
                                size_t bytes) {
    kvc__stage *st = ctx;
    kvc__err err = {{0}};
    if (file == NULL) {
        return st->host.fail(st, KVC_E_ARG, "records are expected in no file");
    }
    const int32_t rc = kvc__scratch_expect(file, group, n, bytes, &err);
    return rc < 0 ? st->host.fail(st, rc, err.text) : KVC_OK;
}

const kvc_host_file kvc__host_file = {.struct_size = sizeof(kvc_host_file),
                                      .open = host_file_open,
                                      .close = host_file_close,
                                      .put = host_file_put,
                                      .get = host_file_get,
                                      .drop = host_file_drop,
                                      .expect = host_file_expect};

/* SPDX-License-Identifier: MIT
 * fuzz_session.c: loading a session from hostile bytes. The first byte chooses which of the three
 * seals of a file (fingerprint of the model, checksum of the head, checksum of the end) are left as
 * they are; the others are made good, so that damage behind them is reached. What loads must
 * decode, go back, and be saved and loaded again. */
#include "fuzz.h"
#include "state.h"
#include "tiny.h"

#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

enum { KEEP_MODEL = 1, KEEP_HEAD = 2, KEEP_END = 4 };

#define LAYER_BYTES (4u * 4 + 8) /* what a head says of a layer */

static uint32_t u32_at(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static void seal_at(uint8_t *p, size_t at) {
    const uint64_t sum = XXH3_64bits(p, at);
    memcpy(p + at, &sum, sizeof sum);
}

/* Where the head's checksum stands; 0 when the head is no head. */
static size_t head_end(const uint8_t *p, size_t n) {
    size_t at = 16;
    for (int i = 0; i < 3; i++) {
        if (n - at < 4 || u32_at(p + at) > n - at - 4) {
            return 0;
        }
        at += 4 + u32_at(p + at);
    }
    const size_t rest = 6 * 4 + (size_t)tiny_default.n_layer * LAYER_BYTES;
    return n - at < rest + 8 ? 0 : at + rest;
}

static void make_good(uint8_t *p, size_t n, uint32_t keep, const kvc_model *m) {
    const size_t mark = strlen(m->fingerprint);
    if (n < 16 + 4 + mark) {
        return;
    }
    if ((keep & KEEP_MODEL) == 0 && u32_at(p + 16) == mark) {
        memcpy(p + 20, m->fingerprint, mark);
    }
    const size_t head = head_end(p, n);
    if ((keep & KEEP_HEAD) == 0 && head > 0) {
        seal_at(p, head);
    }
    if ((keep & KEEP_END) == 0) {
        seal_at(p, n - 8);
    }
}

static void write_file(const char *path, const uint8_t *p, size_t n) {
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    bool good = fd >= 0;
    for (size_t at = 0; good && at < n;) {
        const ssize_t w = write(fd, p + at, n - at);
        good = w > 0;
        at += good ? (size_t)w : 0;
    }
    fuzz_check(good && close(fd) == 0, "the input can be put into a file", path);
}

/* What was taken for whole is whole. */
static void use(kvc_model *m, kvc_params *p, kvc_session *s, uint32_t choice) {
    kvc_session *again = NULL;
    const int32_t token[2] = {5, 6};
    int32_t rc = kvc_session_save(s, tiny_path());
    fuzz_check(rc == KVC_OK, "what loads can be saved", kvc_session_error(s));
    rc = kvc_session_load(m, tiny_path(), p, &again);
    fuzz_check(rc == KVC_OK, "and loaded again", kvc_params_error(p));
    kvc_session_close(again);
    (void)kvc_session_decode(s, token, 1);
    (void)kvc_session_truncate(s, choice % (kvc_session_n_past(s) + 1));
    (void)kvc_session_decode(s, token, 2);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_input in = {data, size};
    const uint32_t choice = fuzz_u8(&in);
    kvc_model *m = tiny_model(16);
    kvc_params *p = tiny_params();
    kvc_session *s = NULL;
    uint8_t *copy = malloc(in.n + 1);
    fuzz_check(copy != NULL, "memory", "");
    memcpy(copy, in.n > 0 ? (const void *)in.p : "", in.n);
    make_good(copy, in.n, choice, m);
    write_file(tiny_path(), copy, in.n);
    int32_t rc = kvc_session_load(m, tiny_path(), p, &s);
    fuzz_check((rc == KVC_OK) == (s != NULL), "a session or a failure", kvc_status_name(rc));
    fuzz_check(rc == KVC_OK || kvc_params_error(p)[0] != '\0', "a failure has a sentence",
               kvc_status_name(rc));
    if (rc == KVC_OK) {
        use(m, p, s, choice >> 3);
    }
    kvc_session_close(s);
    kvc_params_destroy(p);
    free(copy);
    return 0;
}

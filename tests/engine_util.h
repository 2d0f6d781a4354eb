/* SPDX-License-Identifier: MIT
 * engine_util.h: what tests of whole sessions share: opening tiny models, running tokens in many
 * ways, comparing logits bit for bit. Everything goes through the public API. */
#ifndef KVC_TESTS_ENGINE_UTIL_H
#define KVC_TESTS_ENGINE_UTIL_H

#include "kvc/kvc.h"

#include <check.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Params that find the built policies and the test ones. */
static inline kvc_params *util_params(void) {
    kvc_params *p = NULL;
    ck_assert_int_eq(kvc_params_create(&p), KVC_OK);
    static const char *const env[] = {"KVC_TEST_POLICIES", "KVC_TEST_PLUGINS", "KVC_TEST_BROKEN"};
    for (size_t i = 0; i < sizeof env / sizeof *env; i++) {
        if (getenv(env[i]) != NULL) {
            ck_assert_int_eq(kvc_params_add_policy_dir(p, getenv(env[i])), KVC_OK);
        }
    }
    return p;
}

/* Opens KVC_TEST_MODELS/name with that many threads and rows per batch (0: the default). */
static inline kvc_model *util_model(const char *name, int threads, int n_batch) {
    char path[4096];
    const char *dir = getenv("KVC_TEST_MODELS");
    ck_assert_msg(dir != NULL, "KVC_TEST_MODELS names no directory");
    snprintf(path, sizeof path, "%s/%s", dir, name);
    kvc_params *p = util_params();
    kvc_model *m = NULL;
    ck_assert_int_eq(kvc_params_set_i64(p, "n_threads", threads), KVC_OK);
    if (n_batch > 0) {
        ck_assert_int_eq(kvc_params_set_i64(p, "n_batch", n_batch), KVC_OK);
    }
    int32_t rc = kvc_model_open(path, p, &m);
    ck_assert_msg(rc == KVC_OK, "%s", kvc_params_error(p));
    kvc_params_destroy(p);
    return m;
}

static inline kvc_session *util_session(kvc_model *m, const char *spec, const char *compute,
                                        int n_ctx) {
    kvc_params *p = util_params();
    kvc_session *s = NULL;
    ck_assert_int_eq(kvc_params_set_str(p, "compute", compute), KVC_OK);
    ck_assert_int_eq(kvc_params_set_i64(p, "n_ctx", n_ctx), KVC_OK);
    int32_t rc = kvc_session_open(m, spec, p, &s);
    ck_assert_msg(rc == KVC_OK, "%s: %s", spec, kvc_params_error(p));
    kvc_params_destroy(p);
    return s;
}

static inline uint32_t util_vocab(const kvc_model *m) {
    kvc_model_info info = {.struct_size = sizeof info};
    ck_assert_int_eq(kvc_model_get_info(m, &info), KVC_OK);
    return info.n_vocab;
}

/* Seeded tokens. */
static inline void util_tokens(int32_t *token, uint32_t n, uint32_t n_vocab, uint32_t seed) {
    uint64_t x = seed * 0x9e3779b97f4a7c15u + 1;
    for (uint32_t i = 0; i < n; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        token[i] = (int32_t)(x % n_vocab);
    }
}

/* Decodes n tokens, wanting the logits from index first_wanted on, in calls of at most chunk
 * tokens; the logits are appended to out, [n - first_wanted][n_vocab]. */
static inline void util_feed(kvc_session *s, const int32_t *token, uint32_t n,
                             uint32_t first_wanted, uint32_t chunk, uint32_t n_vocab, float *out) {
    uint8_t want[4096];
    ck_assert_uint_le(n, sizeof want);
    for (uint32_t i = 0; i < n; i += chunk) {
        const uint32_t m = n - i < chunk ? n - i : chunk;
        uint32_t wanted = 0;
        for (uint32_t j = 0; j < m; j++) {
            want[j] = i + j >= first_wanted;
            wanted += want[j];
        }
        kvc_run run = {.struct_size = sizeof run,
                       .wants = KVC_WANT_LIST,
                       .session = s,
                       .token = token + i,
                       .want = want,
                       .n_token = m};
        int32_t rc = kvc_decode(&run, 1, sizeof run);
        ck_assert_msg(rc == KVC_OK, "%s: %s (%s)", kvc_session_spec(s), kvc_session_error(s),
                      kvc_status_name(rc));
        ck_assert_uint_eq(run.n_logits, wanted);
        for (uint32_t j = 0; j < wanted; j++) {
            memcpy(out, kvc_session_logits(s, j), n_vocab * sizeof *out);
            out += n_vocab;
        }
    }
}

/* Fails with the first difference of two sets of logits. */
static inline void util_same(const float *a, const float *b, size_t rows, uint32_t n_vocab,
                             const char *what) {
    for (size_t i = 0; i < rows * n_vocab; i++) {
        if (memcmp(&a[i], &b[i], sizeof *a) != 0) {
            ck_abort_msg("%s: row %zu, logit %zu: %.9g is not %.9g", what, i / n_vocab, i % n_vocab,
                         (double)a[i], (double)b[i]);
        }
    }
}

#endif

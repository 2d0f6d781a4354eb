/* SPDX-License-Identifier: MIT
 * test_state.c: copies of sessions and sessions in files: both go on with the same logits to the
 * last bit, change nothing in the session they come from, and refuse what isn't theirs. */
#include "engine_util.h"

#include <fcntl.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <unistd.h>

#define N      300u
#define WANTED 290u
#define ROWS   (N - WANTED)
#define N_CTX  512

static const char *const specs[] = {"",
                                    "full:type=f32",
                                    "none",
                                    "window:size=100:sinks=4",
                                    "window:size=90:sinks=3:positions=cache+quant8",
                                    "quant8",
                                    "t_mass:budget=100",
                                    "t_mass:budget=60+quant8",
                                    "t_codec",
                                    "t_pages:pages=2",
                                    "t_pages:pages=2+quant8",
                                    "t_tier",
                                    "window:size=100:sinks=4+quant8+t_tier",
                                    "t_mass:budget=60+quant8+t_tier"};
#define N_SPEC ((int)(sizeof specs / sizeof *specs))

static const uint32_t cuts[] = {1, 63, 64, 130, 192, 255, 256, 290};
#define N_CUT (sizeof cuts / sizeof *cuts)

/* A model, a spec, and the logits of a session that was never cut. */
struct whole {
    kvc_model *m;
    const char *spec;
    uint32_t n_vocab;
    int32_t token[N], other[N];
    float *base, *got;
};

static void whole_open(struct whole *w, int i) {
    w->spec = specs[i];
    w->m = util_model("tiny-q8_0.gguf", 2, 0);
    w->n_vocab = util_vocab(w->m);
    util_tokens(w->token, N, w->n_vocab, 5);
    util_tokens(w->other, N, w->n_vocab, 6);
    w->base = calloc(ROWS * w->n_vocab, sizeof *w->base);
    w->got = calloc(ROWS * w->n_vocab, sizeof *w->got);
    kvc_session *s = util_session(w->m, w->spec, "f32", N_CTX);
    util_feed(s, w->token, N, WANTED, N, w->n_vocab, w->base);
    kvc_session_close(s);
}

static void whole_close(struct whole *w) {
    kvc_model_close(w->m);
    free(w->base);
    free(w->got);
}

/* Feeds what is left after `at` tokens and compares. */
static void goes_on(struct whole *w, kvc_session *s, uint32_t at, const char *what) {
    char text[128];
    ck_assert_uint_eq(kvc_session_n_past(s), at);
    util_feed(s, w->token + at, N - at, WANTED - at, N, w->n_vocab, w->got);
    snprintf(text, sizeof text, "%s, %s at %u", w->spec, what, at);
    util_same(w->base, w->got, ROWS, w->n_vocab, text);
}

static void feed_quietly(struct whole *w, kvc_session *s, const int32_t *token, uint32_t n) {
    util_feed(s, token, n, n, N, w->n_vocab, w->got);
}

START_TEST(forks_go_on) {
    struct whole w;
    whole_open(&w, _i);
    for (size_t c = 0; c < N_CUT; c++) {
        kvc_session *s = util_session(w.m, w.spec, "f32", N_CTX), *f[3] = {NULL, NULL, NULL};
        feed_quietly(&w, s, w.token, cuts[c]);
        for (int i = 0; i < 3; i++) {
            ck_assert_msg(kvc_session_fork(s, &f[i]) == KVC_OK, "%s", kvc_session_error(s));
        }
        /* One fork goes another way, far enough to evict and to compact what it shares. */
        feed_quietly(&w, f[0], w.other, N_CTX - cuts[c] < N ? N_CTX - cuts[c] : N);
        goes_on(&w, f[1], cuts[c], "a fork");
        goes_on(&w, s, cuts[c], "the session forked");
        kvc_session_close(s);
        kvc_session_close(f[0]);
        goes_on(&w, f[2], cuts[c], "a fork left alone");
        ck_assert_int_eq(kvc_session_truncate(f[2], 0), KVC_OK);
        goes_on(&w, f[2], 0, "a fork begun again");
        kvc_session_close(f[1]);
        kvc_session_close(f[2]);
    }
    whole_close(&w);
}
END_TEST

START_TEST(forks_share_pages) {
    kvc_model *m = util_model("tiny-f16.gguf", 1, 0);
    const uint32_t vocab = util_vocab(m);
    int32_t token[N];
    float sink[1];
    util_tokens(token, N, vocab, 1);
    kvc_session *s = util_session(m, "", "f32", N_CTX), *f = NULL, *g = NULL;
    util_feed(s, token, 256, 256, 256, vocab, sink);
    ck_assert_int_eq(kvc_session_fork(s, &f), KVC_OK);
    ck_assert_int_eq(kvc_session_fork(f, &g), KVC_OK);
    kvc_session_stats a = {.struct_size = sizeof a}, b = {.struct_size = sizeof b};
    ck_assert_int_eq(kvc_session_get_stats(s, &a), KVC_OK);
    ck_assert_int_eq(kvc_session_get_stats(g, &b), KVC_OK);
    ck_assert_uint_eq(a.sealed_bytes, b.sealed_bytes);
    ck_assert_uint_eq(a.n_entry, b.n_entry);
    ck_assert_uint_eq(b.n_computed, 0);
    kvc_session_close(s);
    kvc_session_close(f);
    util_feed(g, token, 44, 44, 44, vocab, sink);
    kvc_session_close(g);
    kvc_model_close(m);
}
END_TEST

/* ---------------------------------------------------------------- files */

static char dir[] = "/tmp/kvc-test-state-XXXXXX";
static char path[64];

static void setup(void) {
    strcpy(dir + sizeof dir - 7, "XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/session", dir);
}

static void teardown(void) {
    (void)unlink(path);
    ck_assert_msg(rmdir(dir) == 0, "a file is left beside the session");
}

static kvc_session *load(kvc_model *m, int32_t want, const char *say) {
    kvc_params *p = util_params();
    kvc_session *s = NULL;
    int32_t rc = kvc_session_load(m, path, p, &s);
    ck_assert_msg(rc == want, "%s: %s", kvc_status_name(rc), kvc_params_error(p));
    if (want != KVC_OK) {
        ck_assert_ptr_null(s);
        ck_assert_msg(strstr(kvc_params_error(p), say) != NULL, "%s", kvc_params_error(p));
    }
    kvc_params_destroy(p);
    return s;
}

START_TEST(saved_sessions_go_on) {
    struct whole w;
    whole_open(&w, _i);
    for (size_t c = 0; c < N_CUT; c++) {
        kvc_session *s = util_session(w.m, w.spec, "f32", N_CTX);
        feed_quietly(&w, s, w.token, cuts[c]);
        ck_assert_msg(kvc_session_save(s, path) == KVC_OK, "%s", kvc_session_error(s));
        goes_on(&w, s, cuts[c], "the session saved");
        kvc_session *l = load(w.m, KVC_OK, NULL);
        ck_assert_str_eq(kvc_session_spec(l), kvc_session_spec(s));
        goes_on(&w, l, cuts[c], "a session loaded");
        ck_assert_int_eq(kvc_session_truncate(l, cuts[c]), KVC_OK);
        goes_on(&w, l, cuts[c], "a session loaded and cut again");
        kvc_session_close(l);
        kvc_session_close(s);
    }
    whole_close(&w);
}
END_TEST

static uint8_t *read_file(size_t *n) {
    FILE *f = fopen(path, "rb");
    ck_assert_ptr_nonnull(f);
    struct stat st;
    ck_assert_int_eq(fstat(fileno(f), &st), 0);
    *n = (size_t)st.st_size;
    uint8_t *bytes = malloc(*n);
    ck_assert_uint_eq(fread(bytes, 1, *n, f), *n);
    fclose(f);
    return bytes;
}

/* Changes one byte of the file in place, and cuts it behind there. */
static void damage(size_t at, uint8_t byte, bool cut) {
    const int fd = open(path, O_WRONLY);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(pwrite(fd, &byte, 1, (off_t)at), 1);
    ck_assert_int_eq(cut ? ftruncate(fd, (off_t)at) : 0, 0);
    ck_assert_int_eq(close(fd), 0);
}

static void write_file(const uint8_t *bytes, size_t n) {
    FILE *f = fopen(path, "wb");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(bytes, 1, n, f), n);
    ck_assert_int_eq(fclose(f), 0);
}

START_TEST(saving_twice_gives_the_same_bytes) {
    struct whole w;
    size_t n, m;
    whole_open(&w, _i);
    kvc_session *s = util_session(w.m, w.spec, "f32", N_CTX);
    feed_quietly(&w, s, w.token, 200);
    ck_assert_int_eq(kvc_session_save(s, path), KVC_OK);
    uint8_t *a = read_file(&n);
    kvc_session *l = load(w.m, KVC_OK, NULL);
    ck_assert_int_eq(kvc_session_save(l, path), KVC_OK);
    uint8_t *b = read_file(&m);
    ck_assert_uint_eq(n, m);
    ck_assert_int_eq(memcmp(a, b, n), 0);
    free(a);
    free(b);
    kvc_session_close(l);
    kvc_session_close(s);
    whole_close(&w);
}
END_TEST

/* Files that are cut or changed anywhere are refused: mostly by a check, at last by the checksum.
 */
START_TEST(damaged_files_are_refused) {
    struct whole w;
    size_t n;
    whole_open(&w, _i);
    kvc_session *s = util_session(w.m, w.spec, "f32", N_CTX);
    feed_quietly(&w, s, w.token, 130);
    ck_assert_int_eq(kvc_session_save(s, path), KVC_OK);
    kvc_session_close(s);
    uint8_t *bytes = read_file(&n);
    uint64_t x = 88172645463325252u;
    kvc_params *p = util_params();
    for (size_t i = 0; i < 200; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        /* Half of the places in the first part, where the counts are. */
        const size_t at = x % (i % 2 == 0 ? n : n < 2048 ? n : 2048);
        const bool cut = i % 25 == 0;
        damage(at, bytes[at] ^ (uint8_t)(1u << (x >> 32) % 8), cut);
        kvc_session *l = NULL;
        const int32_t rc = kvc_session_load(w.m, path, p, &l);
        ck_assert_msg(rc < 0, "byte %zu of %zu %s", at, n, cut ? "cut" : "changed");
        ck_assert_ptr_null(l);
        ck_assert_str_ne(kvc_params_error(p), "");
        if (cut) {
            write_file(bytes, n);
        } else {
            damage(at, bytes[at], false);
        }
    }
    kvc_params_destroy(p);
    free(bytes);
    whole_close(&w);
}
END_TEST

START_TEST(foreign_files_are_refused) {
    kvc_model *m = util_model("tiny-f16.gguf", 1, 0), *other = util_model("tiny-q8_0.gguf", 1, 0);
    int32_t token[N];
    float sink[1];
    util_tokens(token, N, util_vocab(m), 1);
    load(m, KVC_E_NOT_FOUND, path);
    write_file((const uint8_t *)"GGUF and more of it", 19);
    load(m, KVC_E_FORMAT, "not a saved session");
    write_file((const uint8_t *)"", 0);
    load(m, KVC_E_FORMAT, "cut short");
    kvc_session *s = util_session(m, "window:size=77", "f32", N_CTX);
    util_feed(s, token, 100, 100, 100, util_vocab(m), sink);
    ck_assert_int_eq(kvc_session_save(s, path), KVC_OK);
    load(other, KVC_E_UNSUPPORTED, "another model");
    size_t n;
    uint8_t *bytes = read_file(&n);
    bytes[8] = 9;
    write_file(bytes, n);
    load(m, KVC_E_FORMAT, "format 9");
    free(bytes);
    ck_assert_int_eq(kvc_session_save(s, "/nonexistent/dir/session"), KVC_E_IO);
    ck_assert_ptr_nonnull(strstr(kvc_session_error(s), "/nonexistent/dir/session"));
    ck_assert_int_eq(kvc_session_decode(s, token, 1), KVC_OK);
    kvc_session_close(s);
    kvc_model_close(m);
    kvc_model_close(other);
}
END_TEST

START_TEST(arguments) {
    kvc_session *s = NULL;
    ck_assert_int_eq(kvc_session_fork(NULL, &s), KVC_E_ARG);
    ck_assert_int_eq(kvc_session_save(NULL, path), KVC_E_ARG);
    ck_assert_int_eq(kvc_session_load(NULL, path, NULL, &s), KVC_E_ARG);
    kvc_model *m = util_model("tiny-f16.gguf", 1, 0);
    ck_assert_int_eq(kvc_session_load(m, NULL, NULL, &s), KVC_E_ARG);
    ck_assert_int_eq(kvc_session_load(m, path, NULL, NULL), KVC_E_ARG);
    s = util_session(m, "", "f32", N_CTX);
    ck_assert_int_eq(kvc_session_fork(s, NULL), KVC_E_ARG);
    ck_assert_int_eq(kvc_session_save(s, NULL), KVC_E_ARG);
    kvc_session_close(s);
    kvc_model_close(m);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("state");
    TCase *tc = tcase_create("state");
    tcase_set_timeout(tc, 300);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, forks_go_on, 0, N_SPEC);
    tcase_add_test(tc, forks_share_pages);
    tcase_add_loop_test(tc, saved_sessions_go_on, 0, N_SPEC);
    tcase_add_loop_test(tc, saving_twice_gives_the_same_bytes, 0, N_SPEC);
    tcase_add_loop_test(tc, damaged_files_are_refused, 0, N_SPEC);
    tcase_add_test(tc, foreign_files_are_refused);
    tcase_add_test(tc, arguments);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}

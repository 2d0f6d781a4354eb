/* SPDX-License-Identifier: MIT
 * test_state.c: copies of sessions and sessions in files: both go on with the same logits to the
 * last bit, change nothing in the session they come from, and refuse what isn't theirs. */
#include "engine_util.h"
#include "every.h"

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
                                    "window:size=60:sinks=0",
                                    "window:size=90:sinks=3:positions=cache+quant8",
                                    "quant8",
                                    "quant4",
                                    "window:size=100:sinks=4+kivi",
                                    "quant4+offload:dir=/tmp",
                                    "kivi+offload:dir=/tmp",
                                    "t_mass:budget=100",
                                    "t_mass:budget=60+quant8",
                                    "t_codec",
                                    "t_pages:pages=2",
                                    "t_pages:pages=2+quant8",
                                    "quest:share=30:least=1:dense=0",
                                    "quest:share=50:least=1:dense=0:prompt=on+quant8+t_tier",
                                    "t_tier",
                                    "window:size=100:sinks=4+quant8+t_tier",
                                    "t_mass:budget=60+quant8+t_tier",
                                    "h2o:budget=100",
                                    "tova:budget=90+quant8+t_tier",
                                    "snapkv:budget=100",
                                    "snapkv:budget=80:window=50:pyramid=3+quant8+t_tier"};
#define N_SPEC ((int)(sizeof specs / sizeof *specs))

static const uint32_t cuts[] = {1, 63, 64, 130, 192, 255, 256, 290};
#define N_CUT ((int)(sizeof cuts / sizeof *cuts))

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
    for (int c = _i % every_inner(N_CUT); c < N_CUT; c += every_inner(N_CUT)) {
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
    for (int c = _i % every_inner(N_CUT); c < N_CUT; c += every_inner(N_CUT)) {
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
    for (int i = _i % every_inner(200); i < 200; i += every_inner(200)) {
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

/* ---------------------------------------------------------------- places in a file */

static uint32_t u32_at(const uint8_t *b, size_t at) {
    uint32_t v;
    memcpy(&v, b + at, sizeof v);
    return v;
}

/* Where the tokens begin: behind magic, format, order, three texts, six numbers, 24 bytes a layer,
 * the head's checksum. */
static size_t tokens_at(const uint8_t *b) {
    size_t at = 16;
    for (int i = 0; i < 3; i++) {
        at += 4 + u32_at(b, at);
    }
    return at + 6 * 4 + u32_at(b, at + 8) * 24 + 8;
}

/* Where the store begins: behind four bytes and one of each token. */
static size_t store_at(const uint8_t *b) {
    size_t at = 16;
    for (int i = 0; i < 3; i++) {
        at += 4 + u32_at(b, at);
    }
    return tokens_at(b) + 5 * (size_t)u32_at(b, at + 16);
}

/* Where page i of the first lane begins. A lane: pages, open rows, position and mask of them; a
 * page: mask, position, entries, whether they moved, whether it is held, positions, bytes, columns.
 */
static size_t page_at(const uint8_t *b, uint32_t i) {
    size_t head = 16, at = store_at(b) + 4 + 20;
    for (int t = 0; t < 3; t++) {
        head += 4 + u32_at(b, head);
    }
    for (; i > 0; i--) {
        at += 24 + u32_at(b, at + 16) * 256 + u32_at(b, at + 20) * u32_at(b, head + 24 + 16) +
              u32_at(b, head + 12) * 256;
    }
    return at;
}

enum { NOWHERE, STORE, LANE, PAGE0, PAGE1, MOVED /* the first page whose entries moved */ };

static size_t place(const uint8_t *b, int where) {
    uint32_t i = where == PAGE1;
    if (where < PAGE0) {
        return store_at(b) + (where == LANE ? 4 : 0);
    }
    while (where == MOVED && u32_at(b, page_at(b, i) + 16) == 0) {
        i++;
    }
    return page_at(b, i);
}

#define PAGES_APART "lane 0 has pages that don't follow each other"

/* Numbers that contradict the rest are found before they are used: long before the checksum. */
static const struct {
    const char *spec;
    uint32_t n;
    struct {
        int where;
        uint32_t skip, width;
        uint64_t value;
    } put[3];
    const char *words;
} lies[] = {
    {"", 70, {{STORE, 0, 4, 1}}, "evictions that its policies don't make"},
    {"t_mass:budget=60", 70, {{STORE, 0, 4, 2}}, "evictions that its policies don't make"},
    {"", 70, {{LANE, 0, 4, 1000}}, "lane 0 has an impossible table"},
    {"", 70, {{LANE, 4, 4, 7}}, "lane 0 has an impossible table"},
    {"", 70, {{LANE, 8, 4, 0}}, "lane 0 has an impossible table"},
    {"", 70, {{LANE, 12, 8, 0x40}}, "lane 0 has an impossible table"},
    {"", 70, {{PAGE0, 8, 4, UINT32_MAX}}, "lane 0 has pages out of order"},
    {"", 70, {{PAGE0, 8, 4, 7}}, "lane 0 has pages out of order"},
    {"", 70, {{PAGE0, 8, 4, 3}}, "lane 0 has pages behind the open one"},
    {"", 70, {{PAGE0, 12, 4, 0}}, "lane 0 has an impossible page"},
    {"", 70, {{PAGE0, 12, 4, 65}}, "lane 0 has an impossible page"},
    {"", 70, {{PAGE0, 12, 4, 63}}, "lane 0 has an impossible page"},
    {"", 70, {{PAGE0, 12, 4, 63}, {PAGE0, 0, 8, INT64_MAX}}, PAGES_APART},
    {"", 134, {{PAGE0, 12, 4, 1}, {PAGE0, 0, 8, 1}, {PAGE1, 8, 4, 30}}, PAGES_APART},
    {"", 134, {{PAGE1, 8, 4, 63}}, "lane 0 has pages out of order"},
    {"", 70, {{PAGE0, 16, 4, 1}}, "lane 0 has an impossible page"},
    {"", 70, {{PAGE0, 20, 4, 0}}, "lane 0 has an impossible page"},
    {"", 70, {{PAGE0, 20, 4, 2}}, "lane 0 has an impossible page"},
    {"t_mass:budget=60", 250, {{STORE, 0, 4, 0}}, PAGES_APART},
    {"t_mass:budget=60", 250, {{MOVED, 16, 4, 2}}, "lane 0 has an impossible page"},
    {"t_mass:budget=60", 250, {{MOVED, 24, 4, UINT32_MAX}}, "lane 0 has positions out of order"},
    {"t_mass:budget=60", 250, {{MOVED, 28, 4, 0}}, "lane 0 has positions out of order"},
    {"t_mass:budget=60", 250, {{MOVED, 24, 4, 250}}, "lane 0 has positions out of order"},
};

START_TEST(lies_are_found) {
    kvc_model *m = util_model("tiny-f16.gguf", 1, 0);
    int32_t token[N];
    float sink[1];
    size_t n;
    util_tokens(token, N, util_vocab(m), 1);
    kvc_session *s = util_session(m, lies[_i].spec, "f32", N_CTX);
    util_feed(s, token, lies[_i].n, lies[_i].n, N, util_vocab(m), sink);
    ck_assert_int_eq(kvc_session_save(s, path), KVC_OK);
    kvc_session_close(s);
    uint8_t *bytes = read_file(&n);
    for (int i = 0; i < 3 && lies[_i].put[i].where != NOWHERE; i++) {
        const size_t at = place(bytes, lies[_i].put[i].where) + lies[_i].put[i].skip;
        ck_assert_msg(memcmp(bytes + at, &lies[_i].put[i].value, lies[_i].put[i].width) != 0,
                      "the file says so already");
        memcpy(bytes + at, &lies[_i].put[i].value, lies[_i].put[i].width);
    }
    write_file(bytes, n);
    load(m, KVC_E_FORMAT, lies[_i].words);
    free(bytes);
    kvc_model_close(m);
}
END_TEST

/* A session without tokens is little more than a head: cut at each byte. */
/* The size of the context isn't believed before the head's checksum is: it decides how much memory
 * a session and its policies take. */
START_TEST(no_memory_is_taken_for_a_damaged_context) {
    kvc_model *m = util_model("tiny-f16.gguf", 1, 0);
    kvc_params *p = util_params();
    kvc_session *s = util_session(m, "snapkv", "f32", 512);
    size_t n, at = 16;
    ck_assert_int_eq(kvc_session_save(s, path), KVC_OK);
    kvc_session_close(s);
    s = NULL;
    uint8_t *bytes = read_file(&n);
    for (int i = 0; i < 3; i++) {
        at += 4 + u32_at(bytes, at);
    }
    ck_assert_uint_eq(u32_at(bytes, at + 4), 512);
    for (size_t b = 0; b < 32; b++) {
        const size_t byte = at + 4 + b / 8;
        damage(byte, bytes[byte] ^ (uint8_t)(1u << b % 8), false);
        ck_assert_int_eq(kvc_session_load(m, path, p, &s), KVC_E_FORMAT);
        ck_assert_msg(b == 9 || strstr(kvc_params_error(p), "checksum") != NULL, "bit %zu: %s", b,
                      kvc_params_error(p));
        damage(byte, bytes[byte], false);
    }
    free(bytes);
    kvc_params_destroy(p);
    kvc_model_close(m);
}
END_TEST

START_TEST(heads_that_are_cut_are_refused) {
    kvc_model *m = util_model("tiny-f16.gguf", 1, 0);
    kvc_params *p = util_params();
    kvc_session *s = util_session(m, "t_pages:pages=1", "f32", 1);
    struct stat st;
    ck_assert_int_eq(kvc_session_save(s, path), KVC_OK);
    kvc_session_close(s);
    kvc_session_close(load(m, KVC_OK, NULL));
    ck_assert_int_eq(stat(path, &st), 0);
    for (off_t at = st.st_size - 1; at >= 0; at -= at < 2000 ? every_step(8) : 13) {
        ck_assert_int_eq(truncate(path, at), 0);
        const int32_t rc = kvc_session_load(m, path, p, &s);
        ck_assert_msg(rc == KVC_E_FORMAT, "cut at %d: %d", (int)at, rc);
        ck_assert_ptr_null(s);
        ck_assert_str_ne(kvc_params_error(p), "");
    }
    kvc_params_destroy(p);
    kvc_model_close(m);
}
END_TEST

/* Cut inside every number of the head, the tokens, the first lane and its pages, and in steps that
 * miss no column and no page. */
START_TEST(files_that_are_cut_are_refused) {
    kvc_model *m = util_model("tiny-f16.gguf", 1, 0);
    int32_t token[N];
    float sink[1];
    size_t n;
    util_tokens(token, N, util_vocab(m), 1);
    kvc_session *s = util_session(m, "t_mass:budget=60+quant8", "f32", N_CTX);
    util_feed(s, token, 250, 250, N, util_vocab(m), sink);
    ck_assert_int_eq(kvc_session_save(s, path), KVC_OK);
    kvc_session_close(s);
    uint8_t *bytes = read_file(&n);
    const size_t head = tokens_at(bytes), store = store_at(bytes), page = place(bytes, MOVED);
    kvc_params *p = util_params();
    for (size_t at = n - 1; at > 0;) {
        ck_assert_int_eq(truncate(path, (off_t)at), 0);
        const int32_t rc = kvc_session_load(m, path, p, &s);
        ck_assert_msg(rc == KVC_E_FORMAT, "cut at %zu of %zu: %d", at, n, rc);
        ck_assert_ptr_null(s);
        ck_assert_msg(strstr(kvc_params_error(p), path) != NULL, "%s", kvc_params_error(p));
        const bool number = at + 24 > n || at < head || (at >= store && at < store + 60) ||
                            (at >= page && at < page + 300);
        const size_t step = number ? (size_t)every_step(8) : at % 100 > 0 ? at % 100 : 100;
        at -= step < at ? step : at;
    }
    kvc_params_destroy(p);
    free(bytes);
    kvc_model_close(m);
}
END_TEST

/* More than is written or read at a time. */
START_TEST(large_sessions_go_on) {
    enum { LARGE = 1500 };
    static int32_t token[LARGE];
    kvc_model *m = util_model("tiny-f16.gguf", 2, 0);
    const uint32_t vocab = util_vocab(m);
    float *want = malloc(vocab * sizeof *want), *got = malloc(vocab * sizeof *got);
    util_tokens(token, LARGE, vocab, 1);
    kvc_session *s = util_session(m, "full:type=f32", "f32", LARGE);
    util_feed(s, token, LARGE - 1, LARGE - 1, LARGE, vocab, got);
    ck_assert_int_eq(kvc_session_save(s, path), KVC_OK);
    struct stat st;
    ck_assert_int_eq(stat(path, &st), 0);
    ck_assert_int_gt(st.st_size, 1 << 20);
    kvc_session *l = load(m, KVC_OK, NULL);
    util_feed(s, token + LARGE - 1, 1, 0, 1, vocab, want);
    util_feed(l, token + LARGE - 1, 1, 0, 1, vocab, got);
    util_same(want, got, 1, vocab, "a large session");
    kvc_session_close(l);
    kvc_session_close(s);
    kvc_model_close(m);
    free(want);
    free(got);
}
END_TEST

/* A path may be a name alone; what isn't a file is no session. */
START_TEST(paths) {
    kvc_model *m = util_model("tiny-f16.gguf", 1, 0);
    int32_t token[N];
    float sink[1];
    util_tokens(token, N, util_vocab(m), 1);
    kvc_session *s = util_session(m, "", "f32", N_CTX), *l = NULL;
    kvc_params *p = util_params();
    util_feed(s, token, 3, 3, 3, util_vocab(m), sink);
    const int here = open(".", O_RDONLY);
    ck_assert_int_ge(here, 0);
    ck_assert_int_eq(chdir(dir), 0);
    ck_assert_msg(kvc_session_save(s, "session") == KVC_OK, "%s", kvc_session_error(s));
    ck_assert_msg(kvc_session_load(m, "session", p, &l) == KVC_OK, "%s", kvc_params_error(p));
    ck_assert_uint_eq(kvc_session_n_past(l), 3);
    kvc_session_close(l);
    ck_assert_int_eq(fchdir(here), 0);
    close(here);
    kvc_session_close(load(m, KVC_OK, NULL));
    ck_assert_int_eq(kvc_session_load(m, dir, p, &l), KVC_E_IO);
    ck_assert_ptr_null(l);
    ck_assert_ptr_nonnull(strstr(kvc_params_error(p), "not a regular file; give the path of"));
    ck_assert_int_eq(kvc_session_save(s, dir), KVC_E_IO);
    ck_assert_ptr_nonnull(strstr(kvc_session_error(s), dir));
    kvc_session_close(s);
    kvc_params_destroy(p);
    kvc_model_close(m);
}
END_TEST

/* A pipe that nobody writes to is refused at once. */
START_TEST(pipes_are_refused) {
    kvc_model *m = util_model("tiny-f16.gguf", 1, 0);
    kvc_params *p = util_params();
    kvc_session *l = NULL;
    ck_assert_int_eq(mkfifo(path, 0600), 0);
    alarm(20); /* where Check doesn't fork there is no other end to a call that hangs */
    ck_assert_int_eq(kvc_session_load(m, path, p, &l), KVC_E_IO);
    alarm(0);
    ck_assert_ptr_null(l);
    ck_assert_ptr_nonnull(strstr(kvc_params_error(p), path));
    ck_assert_ptr_nonnull(strstr(kvc_params_error(p), "not a regular file; give the path of"));
    kvc_params_destroy(p);
    kvc_model_close(m);
}
END_TEST

/* A file names its policies without their paths: they are found where the options say. */
START_TEST(policies_that_were_given_by_path) {
    char spec[4096];
    int32_t token[N];
    float sink[1];
    kvc_model *m = util_model("tiny-f16.gguf", 1, 0);
    kvc_params *p = NULL;
    kvc_session *l = NULL;
    snprintf(spec, sizeof spec, "%s/t_codec.so", getenv("KVC_TEST_PLUGINS"));
    util_tokens(token, N, util_vocab(m), 1);
    kvc_session *s = util_session(m, spec, "f32", N_CTX);
    util_feed(s, token, 100, 100, 100, util_vocab(m), sink);
    ck_assert_int_eq(kvc_session_save(s, path), KVC_OK);
    kvc_session_close(s);
    ck_assert_int_eq(kvc_params_create(&p), KVC_OK);
    ck_assert_int_eq(kvc_session_load(m, path, p, &l), KVC_E_NOT_FOUND);
    ck_assert_ptr_nonnull(strstr(kvc_params_error(p), "kvc_params_add_policy_dir()"));
    ck_assert_ptr_nonnull(strstr(kvc_params_error(p), "KVC_POLICY_PATH"));
    ck_assert_ptr_null(strstr(kvc_params_error(p), "give a path"));
    ck_assert_int_eq(kvc_session_open(m, "t_codec", p, &l), KVC_E_NOT_FOUND);
    ck_assert_ptr_nonnull(strstr(kvc_params_error(p), "KVC_POLICY_PATH or give a path with '/'"));
    ck_assert_int_eq(kvc_params_add_policy_dir(p, getenv("KVC_TEST_PLUGINS")), KVC_OK);
    ck_assert_msg(kvc_session_load(m, path, p, &l) == KVC_OK, "%s", kvc_params_error(p));
    ck_assert_uint_eq(kvc_session_n_past(l), 100);
    kvc_session_close(l);
    kvc_params_destroy(p);
    kvc_model_close(m);
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
    every_add(tc, forks_go_on, N_SPEC, N_CUT);
    tcase_add_test(tc, forks_share_pages);
    every_add(tc, saved_sessions_go_on, N_SPEC, N_CUT);
    every_add(tc, saving_twice_gives_the_same_bytes, N_SPEC, N_CUT);
    every_add(tc, damaged_files_are_refused, N_SPEC, N_CUT);
    tcase_add_loop_test(tc, lies_are_found, 0, (int)(sizeof lies / sizeof *lies));
    tcase_add_test(tc, no_memory_is_taken_for_a_damaged_context);
    tcase_add_test(tc, heads_that_are_cut_are_refused);
    tcase_add_test(tc, files_that_are_cut_are_refused);
    tcase_add_test(tc, large_sessions_go_on);
    tcase_add_test(tc, paths);
    tcase_add_test(tc, pipes_are_refused);
    tcase_add_test(tc, policies_that_were_given_by_path);
    tcase_add_test(tc, foreign_files_are_refused);
    tcase_add_test(tc, arguments);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}

/* SPDX-License-Identifier: MIT
 * test_engine.c: results must not depend on how they are computed. Logits are compared bit for bit
 * over threads, chunks, company in a call, truncation and replay, kernel levels, and policies that
 * mean the same. */
#include "engine_util.h"

#include "every.h"
#include "kern.h"

#include <math.h>
#include <stdbool.h>

#define N      300u /* tokens: several pages, two ranges of pages */
#define WANTED 290u /* from here on logits are wanted, one prompt in front */
#define ROWS   (N - WANTED)
#define N_CTX  512

static const char *const models[] = {"tiny-q4_1.gguf",  "tiny-q8_0.gguf", "tiny-f16.gguf",
                                     "tiny-mqa80.gguf", "tiny-kv.gguf",   "tiny-f32.gguf",
                                     "tiny-q4_0.gguf"};
static const char *const specs[] = {
    "",
    "full:type=f32",
    "full:type=bf16",
    "none",
    "window:size=100:sinks=4",
    "window:size=70:sinks=0",
    "window:size=100:sinks=4:positions=cache",
    "quant8",
    "quant8:hadamard=off",
    "window:size=100:sinks=4+quant8",
    "window:size=90:sinks=3:positions=cache+quant8",
    "quant4",
    "kivi:bits=2",
    "window:size=100:sinks=4+kivi",
    "t_mass:budget=100",
    "t_mass:budget=100+quant8",
    "t_mass:budget=100+quant4",
    "t_codec",
    "t_pages:pages=2",
    "t_pages:pages=2+quant8",
    "t_tier",
    "quant8+t_tier",
    "quant4+offload:dir=/tmp",
    "kivi+offload:dir=/tmp",
    "window:size=100:sinks=4:positions=cache+quant8+t_tier:unpack=on",
    "t_mass:budget=100+quant8+t_tier:unpack=on",
    "t_pages:pages=2+t_tier",
    "quest:share=30:least=1:dense=1",
    "quest:share=50:least=1:first=0:recent=0:dense=0:prompt=on:block=64+quant8+t_tier",
    "h2o:budget=130:recent=20",
    "h2o:budget=25%:age=on+quant8",
    "tova:budget=100",
    "tova:budget=64KiB+quant8+t_tier",
    "snapkv:budget=100:window=16",
    "snapkv:budget=90:window=40:pyramid=5:pool=max+quant8+t_tier",
};
#define N_MODEL (sizeof models / sizeof *models)
#define N_SPEC  (sizeof specs / sizeof *specs)

/* One case of the grid: a model, a spec, a way to compute. */
struct grid {
    kvc_model *m;
    const char *spec, *compute;
    uint32_t n_vocab;
    int32_t token[N];
    float *base, *other;
};

/* Runs its tokens in one call. */
static void grid_base(struct grid *g, const char *model) {
    g->m = util_model(model, 1, 0);
    g->n_vocab = util_vocab(g->m);
    util_tokens(g->token, N, g->n_vocab, 7);
    g->base = calloc(ROWS * g->n_vocab, sizeof *g->base);
    g->other = calloc(ROWS * g->n_vocab, sizeof *g->other);
    kvc_session *s = util_session(g->m, g->spec, g->compute, N_CTX);
    util_feed(s, g->token, N, WANTED, N, g->n_vocab, g->base);
    kvc_session_close(s);
}

static void grid_open(struct grid *g, int i) {
    const size_t n = (size_t)i;
    g->compute = n % 2 == 0 ? "f32" : "int8";
    g->spec = specs[n / 2 % N_SPEC];
    grid_base(g, models[n / 2 / N_SPEC]);
}

static void grid_close(struct grid *g) {
    kvc_model_close(g->m);
    free(g->base);
    free(g->other);
}

/* Runs the grid's tokens in calls of `chunk` on m and compares. */
static void grid_check(struct grid *g, kvc_model *m, uint32_t chunk, const char *what) {
    char text[256];
    kvc_session *s = util_session(m, g->spec, g->compute, N_CTX);
    util_feed(s, g->token, N, WANTED, chunk, g->n_vocab, g->other);
    kvc_session_close(s);
    snprintf(text, sizeof text, "%s, %s, %s", g->spec, g->compute, what);
    util_same(g->base, g->other, ROWS, g->n_vocab, text);
}

#define GRID ((int)(N_MODEL * N_SPEC * 2))

START_TEST(chunks_do_not_matter) {
    struct grid g;
    grid_open(&g, _i);
    grid_check(&g, g.m, 100, "chunks of 100");
    grid_check(&g, g.m, 64, "chunks of 64");
    if (strcmp(g.spec, "none") != 0) {
        grid_check(&g, g.m, 7, "chunks of 7");
        grid_check(&g, g.m, 1, "chunks of 1");
    }
    kvc_model *small = util_model(models[(size_t)_i / 2 / N_SPEC], 1, 33);
    grid_check(&g, small, N, "batches of 33 rows");
    kvc_model_close(small);
    grid_close(&g);
}
END_TEST

START_TEST(threads_do_not_matter) {
    struct grid g;
    grid_open(&g, _i);
    for (int threads = 2; threads <= 5; threads += 3) {
        kvc_model *m = util_model(models[(size_t)_i / 2 / N_SPEC], threads, 0);
        grid_check(&g, m, N, threads == 2 ? "2 threads" : "5 threads");
        grid_check(&g, m, 90, threads == 2 ? "2 threads, chunks of 90" : "5 threads, chunks of 90");
        kvc_model_close(m);
    }
    grid_close(&g);
}
END_TEST

/* More KV heads than an item of attention takes. */
START_TEST(many_heads_do_not_matter) {
    static const char *const some[] = {"full", "quant8", "window:size=80:sinks=4"};
    for (int i = 0; i < 6; i++) {
        struct grid g = {.spec = some[i / 2], .compute = i % 2 == 0 ? "f32" : "int8"};
        grid_base(&g, "tiny-heads.gguf");
        grid_check(&g, g.m, 1, "20 heads, chunks of 1");
        kvc_model *two = util_model("tiny-heads.gguf", 2, 0);
        grid_check(&g, two, 1, "20 heads, 2 threads");
        kvc_model_close(two);
        grid_close(&g);
    }
}
END_TEST

/* So many rows that a strip of them holds but one item of weights. */
START_TEST(large_batches_do_not_matter) {
    enum { LONG = 1200, FROM = LONG - 10 };
    static const char *const some[] = {"tiny-q4_1.gguf", "tiny-f16.gguf"};
    kvc_model *a = util_model(some[_i / 2], 1, LONG), *b = util_model(some[_i / 2], 3, 100);
    const char *compute = _i % 2 == 0 ? "f32" : "int8";
    const uint32_t n_vocab = util_vocab(a);
    int32_t token[LONG];
    float *want = calloc((size_t)2 * (LONG - FROM) * n_vocab, sizeof *want);
    float *got = want + (size_t)(LONG - FROM) * n_vocab;
    util_tokens(token, LONG, n_vocab, 3);
    kvc_session *s = util_session(a, "full", compute, LONG + 10);
    util_feed(s, token, LONG, FROM, LONG, n_vocab, want);
    kvc_session_close(s);
    s = util_session(b, "full", compute, LONG + 10);
    util_feed(s, token, LONG, FROM, LONG, n_vocab, got);
    kvc_session_close(s);
    util_same(want, got, LONG - FROM, n_vocab, "one batch of 1,200 rows");
    free(want);
    kvc_model_close(a);
    kvc_model_close(b);
}
END_TEST

/* Three sessions' rows together, which two threads divide. */
START_TEST(company_does_not_matter) {
    struct grid g;
    grid_open(&g, _i);
    kvc_model *m = util_model(models[(size_t)_i / 2 / N_SPEC], 2, 0);
    kvc_session *s[3] = {util_session(m, g.spec, g.compute, N_CTX),
                         util_session(m, "", g.compute, N_CTX),
                         util_session(m, g.spec, g.compute, N_CTX)};
    int32_t others[N];
    util_tokens(others, N, g.n_vocab, 99);
    kvc_run run[3];
    for (uint32_t at = 0; at < N;) {
        const uint32_t n = at < WANTED ? WANTED - at : 1;
        for (int j = 0; j < 3; j++) {
            run[j] = (kvc_run){.struct_size = sizeof run[j],
                               .wants = at + n > WANTED ? KVC_WANT_LAST : KVC_WANT_NONE,
                               .session = s[j],
                               .token = (j == 1 ? others : g.token) + at,
                               .n_token = n};
        }
        ck_assert_msg(kvc_decode(run, 3, sizeof run[0]) == KVC_OK, "%s", kvc_session_error(s[0]));
        at += n;
        if (at > WANTED) {
            const float *want = g.base + (at - WANTED - 1) * g.n_vocab;
            util_same(want, kvc_session_logits(s[0], 0), 1, g.n_vocab, g.spec);
            util_same(want, kvc_session_logits(s[2], 0), 1, g.n_vocab, g.spec);
        }
    }
    for (int j = 0; j < 3; j++) {
        kvc_session_close(s[j]);
    }
    kvc_model_close(m);
    grid_close(&g);
}
END_TEST

START_TEST(truncation_and_replay_do_not_matter) {
    static const uint32_t to[] = {0, 1, 63, 64, 65, 130, 191, 192, 229, 255, 256, 289, 290, 295};
    struct grid g;
    grid_open(&g, _i);
    kvc_session *s = util_session(g.m, g.spec, g.compute, N_CTX);
    util_feed(s, g.token, N, WANTED, N, g.n_vocab, g.other);
    for (size_t i = 0; i < sizeof to / sizeof *to; i++) {
        const uint32_t keep = to[i], first = keep > WANTED ? keep : WANTED;
        char text[128];
        ck_assert_msg(kvc_session_truncate(s, keep) == KVC_OK, "%s", kvc_session_error(s));
        ck_assert_uint_eq(kvc_session_n_past(s), keep);
        util_feed(s, g.token + keep, N - keep, first - keep, N, g.n_vocab, g.other);
        snprintf(text, sizeof text, "%s after truncation to %u", g.spec, keep);
        util_same(g.base + (first - WANTED) * g.n_vocab, g.other, N - first, g.n_vocab, text);
    }
    kvc_session_close(s);
    grid_close(&g);
}
END_TEST

START_TEST(truncation_forgets_the_tail) {
    struct grid g;
    grid_open(&g, _i);
    int32_t wrong[100];
    util_tokens(wrong, 100, g.n_vocab, 1234);
    kvc_session *s = util_session(g.m, g.spec, g.compute, N_CTX);
    float *sink = calloc((size_t)100 * g.n_vocab, sizeof *sink);
    util_feed(s, g.token, 200, 200, 200, g.n_vocab, sink);
    util_feed(s, wrong, 100, 98, 100, g.n_vocab, sink);
    ck_assert_int_eq(kvc_session_truncate(s, 200), KVC_OK);
    util_feed(s, g.token + 200, N - 200, WANTED - 200, N, g.n_vocab, g.other);
    util_same(g.base, g.other, ROWS, g.n_vocab, g.spec);
    free(sink);
    kvc_session_close(s);
    grid_close(&g);
}
END_TEST

#define N_PAIR 31u

START_TEST(policies_that_mean_the_same) {
    static const char *const pairs[][2] = {
        {"", "full"},
        {"none", "full"},
        {"none:type=f32", "full:type=f32"},
        {"none:type=bf16", "full:type=bf16"},
        {"window:size=512", "full"},
        {"window:size=300:sinks=0", "full"},
        {"window:size=512:positions=cache", "full"},
        {"window:size=512+quant8", "quant8"},
        {"t_codec", "full:type=f16"},
        {"t_pages:pages=64", "full"},
        {"t_pages:pages=64+quant8", "quant8"},
        {"t_mass:budget=512", "full"},
        {"t_tier", "full"},
        {"full:type=f32+t_tier", "full:type=f32"},
        {"quant8+t_tier", "quant8"},
        {"quant8+t_tier:unpack=on", "quant8"},
        {"window:size=100:sinks=4+quant8+t_tier", "window:size=100:sinks=4+quant8"},
        {"t_mass:budget=100+t_tier", "t_mass:budget=100"},
        {"t_pages:pages=2+quant8+t_tier", "t_pages:pages=2+quant8"},
        {"quest:share=100", "full"},
        {"template:size=100", "window:size=100:sinks=0"},
        {"quest:least=1:dense=0+quant8+t_tier", "quest:least=1:dense=0+quant8"},
        {"h2o:budget=576", "full"},
        {"tova:budget=576+quant8", "quant8"},
        {"snapkv:budget=100%", "full"},
        {"h2o:budget=128+quant8+t_tier", "h2o:budget=128+quant8"},
        {"h2o:budget=128+quant8+offload:dir=/tmp", "h2o:budget=128+quant8"},
        {"tova:budget=25%+t_tier", "tova:budget=25%"},
        {"snapkv:budget=128+quant8+t_tier", "snapkv:budget=128+quant8"},
        {"quant4+offload:dir=/tmp", "quant4"},
        {"kivi+offload:dir=/tmp", "kivi"},
    };
    _Static_assert(sizeof pairs / sizeof *pairs == N_PAIR, "the loop takes all pairs");
    const size_t n = (size_t)_i;
    const char *compute = n % 2 == 0 ? "f32" : "int8";
    const char *const *pair = pairs[n / 2 % N_PAIR];
    kvc_model *m = util_model(models[n / 2 / N_PAIR], 2, 0);
    const uint32_t vocab = util_vocab(m);
    int32_t token[N];
    float *a = calloc(ROWS * vocab, sizeof *a), *b = calloc(ROWS * vocab, sizeof *b);
    char text[128];
    util_tokens(token, N, vocab, 3);
    kvc_session *x = util_session(m, pair[0], compute, N_CTX),
                *y = util_session(m, pair[1], compute, N_CTX);
    util_feed(x, token, N, WANTED, N, vocab, a);
    util_feed(y, token, N, WANTED, N, vocab, b);
    snprintf(text, sizeof text, "%s against %s", pair[0], pair[1]);
    util_same(a, b, ROWS, vocab, text);
    kvc_session_close(x);
    kvc_session_close(y);
    kvc_model_close(m);
    free(a);
    free(b);
}
END_TEST

START_TEST(policies_that_differ_do) {
    kvc_model *m = util_model("tiny-f16.gguf", 2, 0);
    const uint32_t vocab = util_vocab(m);
    int32_t token[N];
    float *a = calloc(ROWS * vocab, sizeof *a), *b = calloc(ROWS * vocab, sizeof *b);
    util_tokens(token, N, vocab, 3);
    kvc_session *x = util_session(m, "full:type=f32", "f32", N_CTX);
    util_feed(x, token, N, WANTED, N, vocab, a);
    kvc_session_close(x);
    static const char *const other[] = {"",
                                        "full:type=bf16",
                                        "window:size=100",
                                        "quant8",
                                        "quant8:hadamard=off",
                                        "quant4",
                                        "kivi",
                                        "t_mass:budget=100",
                                        "t_pages:pages=1",
                                        "quest:least=1:dense=0",
                                        "h2o:budget=128",
                                        "h2o:budget=128:age=on",
                                        "tova:budget=128",
                                        "snapkv:budget=64",
                                        "window:size=100:positions=cache"};
    for (size_t i = 0; i < sizeof other / sizeof *other; i++) {
        kvc_session *y = util_session(m, other[i], "f32", N_CTX);
        util_feed(y, token, N, WANTED, N, vocab, b);
        kvc_session_close(y);
        ck_assert_msg(memcmp(a, b, ROWS * vocab * sizeof *a) != 0, "%s changes nothing", other[i]);
        double worst = 0;
        for (size_t j = 0; j < ROWS * vocab; j++) {
            ck_assert(isfinite(b[j]));
            worst = fmax(worst, fabs((double)a[j] - (double)b[j]));
        }
        ck_assert_msg(worst < 20, "%s: logits are off by %g", other[i], worst);
    }
    kvc_model_close(m);
    free(a);
    free(b);
}
END_TEST

/* ---- kernel levels: this program runs itself once for each level, since a process has one */

static const char *hash_model;

/* Models share the cases out among themselves. */
static bool left_out(size_t i, const char *model) {
    size_t m = 0;
    while (strcmp(models[m], model) != 0) {
        m++;
    }
    return (i + m) % (size_t)every() != 0;
}

/* Prints a line for every spec and way to compute: level, case, hash of all logits. */
START_TEST(print_hashes) {
    kvc_model *m = util_model(hash_model, 2, 0);
    const uint32_t vocab = util_vocab(m);
    int32_t token[N];
    float *a = calloc(ROWS * vocab, sizeof *a);
    util_tokens(token, N, vocab, 11);
    for (size_t i = 0; i < N_SPEC * 2; i++) {
        if (left_out(i, hash_model)) {
            continue;
        }
        const char *compute = i % 2 == 0 ? "f32" : "int8", *spec = specs[i / 2];
        kvc_session *s = util_session(m, spec, compute, N_CTX);
        util_feed(s, token, N, WANTED, N, vocab, a);
        kvc_session_close(s);
        uint64_t hash = 1469598103934665603u;
        for (size_t j = 0; j < ROWS * vocab; j++) {
            uint32_t bits;
            memcpy(&bits, &a[j], sizeof bits);
            hash = (hash ^ bits) * 1099511628211u;
        }
        printf("%s %s/%s %016llx\n", kvc_cpu_level(), spec, compute, (unsigned long long)hash);
    }
    kvc_model_close(m);
    free(a);
}
END_TEST

static const char *self;

static FILE *run_level(const char *level, const char *model) {
    char command[8192];
    snprintf(command, sizeof command, "KVC_CPU=%s '%s' --hash '%s'", level, self, model);
    FILE *p = popen(command, "r");
    ck_assert_ptr_nonnull(p);
    return p;
}

START_TEST(levels_are_equal) {
    static const char *const names[] = {"scalar", "avx2", "avx512"};
    const char *model = models[_i];
    FILE *run[3];
    char level[3][32], what[3][128], hash[3][32];
    for (int l = 0; l < 3; l++) {
        run[l] = run_level(names[l], model);
    }
    for (size_t i = 0; i < N_SPEC * 2; i++) {
        if (left_out(i, model)) {
            continue;
        }
        for (int l = 0; l < 3; l++) {
            ck_assert_int_eq(fscanf(run[l], "%31s %127s %31s", level[l], what[l], hash[l]), 3);
            ck_assert(kvc__kern_level(l) == NULL || strcmp(level[l], names[l]) == 0);
            ck_assert_str_eq(what[l], what[0]);
            ck_assert_msg(strcmp(hash[l], hash[0]) == 0, "%s, %s: %s and %s differ", model, what[0],
                          level[0], level[l]);
        }
    }
    for (int l = 0; l < 3; l++) {
        ck_assert_int_eq(pclose(run[l]), 0);
    }
}
END_TEST

static int run(Suite *suite, enum print_output mode) {
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, mode);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}

int main(int argc, char **argv) {
    const bool hashes = argc == 3 && strcmp(argv[1], "--hash") == 0;
    self = argv[0];
    Suite *suite = suite_create("engine");
    TCase *tc = tcase_create("bits");
    suite_add_tcase(suite, tc);
    tcase_set_timeout(tc, 300);
    if (hashes) {
        hash_model = argv[2];
        tcase_add_test(tc, print_hashes);
        return run(suite, CK_SILENT);
    }
    every_add(tc, chunks_do_not_matter, GRID, 1);
    tcase_add_loop_test(tc, large_batches_do_not_matter, 0, 4);
    every_add(tc, threads_do_not_matter, GRID, 1);
    tcase_add_test(tc, many_heads_do_not_matter);
    every_add(tc, company_does_not_matter, GRID, 1);
    every_add(tc, truncation_and_replay_do_not_matter, GRID, 1);
    every_add(tc, truncation_forgets_the_tail, GRID, 1);
    every_add(tc, policies_that_mean_the_same, (int)(N_MODEL * 2 * N_PAIR), 1);
    tcase_add_test(tc, policies_that_differ_do);
    tcase_add_loop_test(tc, levels_are_equal, 0, (int)N_MODEL);
    return run(suite, CK_NORMAL);
}

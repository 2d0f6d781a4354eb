/* SPDX-License-Identifier: MIT
 * test_arch.c: every architecture and kind of RoPE scaling, on the tiny models of make_arch.py:
 * logits against an independent implementation (data/arch-reference.json), windows of the model's
 * own against those of a policy, and the promise that results don't depend on chunks, threads,
 * truncation or kernel levels. Everything goes through the public API. */
#include "engine_util.h"

#include "every.h"
#include "kern.h"

#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <unistd.h>

#define N      300u /* tokens: several pages, two ranges of pages, longer than every window */
#define WANTED 292u
#define ROWS   (N - WANTED)
#define N_CTX  512
#define NEAR   1e-3 /* of a logit; they lie within 20 */

static const char *const names[] = {
    "llama", "llama-window", "llama-linear", "llama-llama3", "llama-yarn",  "qwen2",
    "qwen3", "qwen2-yarn",   "gemma3",       "gemma3-caps",  "gemma3-wide",
};
#define N_NAME (sizeof names / sizeof *names)

/* Those of the grids: a window in every layer, biases, layers of two kinds with caps and weights of
 * integers. */
static const char *const grid_names[] = {"llama-window", "qwen2-yarn", "gemma3-caps-q8_0"};
#define N_GRID_NAME (sizeof grid_names / sizeof *grid_names)

/* Of each kind of format, choice and place: paths on which windows, caps and rotations differ. */
static const char *const specs[] = {
    "full:type=f32",
    "",
    "quant8",
    "kivi",
    "window:size=100:sinks=4+quant8",
    "window:size=50:sinks=4:positions=cache",
    "t_mass:budget=100+quant8",
    "h2o:budget=130:recent=20",
    "snapkv:budget=100:window=16+quant8",
    "tova:budget=64KiB+quant8+t_tier",
    "quest:share=50:least=1:first=0:recent=0:dense=0:prompt=on:block=64",
    "quest:share=30:least=1:dense=1+quant8+t_tier:unpack=on",
};
#define N_SPEC (sizeof specs / sizeof *specs)

/* The cases of a grid: the models above with all specs, then all models with one. */
#define N_FIRST ((int)(N_GRID_NAME * N_SPEC))
#define N_GRID  (N_FIRST + (int)N_NAME)

static kvc_model *open_arch(const char *name, int threads) {
    char file[64];
    snprintf(file, sizeof file, "arch-%s.gguf", name);
    return util_model(file, threads, 0);
}

/* ---------------------------------------------------------------- against the reference */

static size_t ints_of(const json_t *a, int32_t *out, size_t cap) {
    const size_t n = json_array_size(a);
    ck_assert(n > 0 && n <= cap);
    for (size_t i = 0; i < n; i++) {
        out[i] = (int32_t)json_integer_value(json_array_get(a, i));
    }
    return n;
}

static double furthest(const float *logits, const json_t *row, uint32_t n_vocab) {
    double far = 0;
    ck_assert_uint_eq(json_array_size(row), n_vocab);
    for (uint32_t i = 0; i < n_vocab; i++) {
        far = fmax(far, fabs((double)logits[i] - json_number_value(json_array_get(row, i))));
    }
    return far;
}

START_TEST(logits_are_the_references) {
    char path[4096];
    int32_t token[N], position[16];
    snprintf(path, sizeof path, "%s/arch-reference.json", getenv("KVC_TEST_DATA"));
    json_t *reference = json_load_file(path, 0, NULL);
    ck_assert_msg(reference != NULL, "can't read %s", path);
    const size_t n = ints_of(json_object_get(reference, "tokens"), token, N);
    const size_t n_pos = ints_of(json_object_get(reference, "positions"), position, 16);
    const json_t *rows =
        json_object_get(json_object_get(json_object_get(reference, "cases"), names[_i]), "logits");
    kvc_model *m = open_arch(names[_i], 2);
    const uint32_t vocab = util_vocab(m);
    float *logits = calloc(n * vocab, sizeof *logits);
    ck_assert_uint_eq(json_array_size(rows), n_pos);
    for (uint32_t chunk = every() > 1 ? (uint32_t)n : 1; chunk <= n; chunk += (uint32_t)n - 1) {
        kvc_session *s = util_session(m, "full:type=f32", "f32", N_CTX);
        util_feed(s, token, (uint32_t)n, 0, chunk, vocab, logits);
        kvc_session_close(s);
        for (size_t i = 0; i < n_pos; i++) {
            const double far =
                furthest(logits + (size_t)position[i] * vocab, json_array_get(rows, i), vocab);
            if (getenv("KVC_TEST_SAYS") != NULL && chunk == n) {
                printf("%s, position %d: %.2g\n", names[_i], (int)position[i], far);
            }
            ck_assert_msg(far <= NEAR, "%s, position %d: logits are off by %g", names[_i],
                          (int)position[i], far);
        }
    }
    free(logits);
    kvc_model_close(m);
    json_decref(reference);
}
END_TEST

/* ---------------------------------------------------------------- one result, however computed */

struct grid {
    kvc_model *m;
    const char *name, *spec, *compute;
    uint32_t n_vocab;
    int32_t token[N];
    float *base, *other;
};

static void grid_open(struct grid *g, int i, uint32_t wanted) {
    const size_t n = (size_t)i, most = (size_t)N_FIRST;
    g->compute = (n + n / N_SPEC) % 2 == 0 ? "f32" : "int8";
    g->spec = n < most ? specs[n % N_SPEC] : "window:size=100:sinks=4+quant8";
    g->name = n < most ? grid_names[n / N_SPEC] : names[n - most];
    g->m = open_arch(g->name, 1);
    g->n_vocab = util_vocab(g->m);
    util_tokens(g->token, N, g->n_vocab, 7);
    g->base = calloc(ROWS * g->n_vocab, sizeof *g->base);
    g->other = calloc(ROWS * g->n_vocab, sizeof *g->other);
    kvc_session *s = util_session(g->m, g->spec, g->compute, N_CTX);
    util_feed(s, g->token, wanted + ROWS, wanted, N, g->n_vocab, g->base);
    kvc_session_close(s);
    for (size_t j = 0; j < ROWS * g->n_vocab; j++) {
        ck_assert(isfinite(g->base[j]));
    }
}

static void grid_close(struct grid *g) {
    kvc_model_close(g->m);
    free(g->base);
    free(g->other);
}

static void grid_check(struct grid *g, kvc_model *m, uint32_t chunk, const char *what) {
    char text[256];
    kvc_session *s = util_session(m, g->spec, g->compute, N_CTX);
    util_feed(s, g->token, N, WANTED, chunk, g->n_vocab, g->other);
    kvc_session_close(s);
    snprintf(text, sizeof text, "%s, %s, %s, %s", g->name, g->spec, g->compute, what);
    util_same(g->base, g->other, ROWS, g->n_vocab, text);
}

START_TEST(chunks_and_threads_do_not_matter) {
    struct grid g;
    grid_open(&g, _i, WANTED);
    grid_check(&g, g.m, 100, "chunks of 100");
    grid_check(&g, g.m, 1, "chunks of 1");
    kvc_model *m = open_arch(g.name, 3);
    grid_check(&g, m, 90, "3 threads, chunks of 90");
    kvc_model_close(m);
    grid_close(&g);
}
END_TEST

/* Going back a little, across a page, and far beyond what windows have left. */
START_TEST(truncation_does_not_matter) {
    static const uint32_t to[] = {299, 290, 255, 200, 64, 1};
    struct grid g;
    grid_open(&g, _i, WANTED);
    kvc_session *s = util_session(g.m, g.spec, g.compute, N_CTX);
    util_feed(s, g.token, N, WANTED, N, g.n_vocab, g.other);
    for (size_t i = 0; i < sizeof to / sizeof *to; i++) {
        const uint32_t keep = to[i], first = keep > WANTED ? keep : WANTED;
        char text[256];
        ck_assert_msg(kvc_session_truncate(s, keep) == KVC_OK, "%s", kvc_session_error(s));
        util_feed(s, g.token + keep, N - keep, first - keep, N, g.n_vocab, g.other);
        snprintf(text, sizeof text, "%s, %s after truncation to %u", g.name, g.spec, keep);
        util_same(g.base + (first - WANTED) * g.n_vocab, g.other, N - first, g.n_vocab, text);
    }
    kvc_session_close(s);
    grid_close(&g);
}
END_TEST

/* ---------------------------------------------------------------- windows of the model's own */

/* Logits of the text under a spec; the session is left open. */
static kvc_session *run_spec(kvc_model *m, const char *spec, float *out) {
    int32_t token[N];
    util_tokens(token, N, util_vocab(m), 3);
    kvc_session *s = util_session(m, spec, "f32", N_CTX);
    util_feed(s, token, N, WANTED, N, util_vocab(m), out);
    return s;
}

static const char *const with_windows[] = {"llama-window", "gemma3", "gemma3-caps"};

/* Stacks that leave all that the model sees, and stacks that are the same without their tier. */
START_TEST(policies_that_mean_the_same) {
    static const char *const pairs[][2] = {
        {"none", "full"},
        {"window:size=512", "full"},
        {"quest:share=100", "full"},
        {"t_pages:pages=64+quant8", "quant8"},
        {"t_tier", "full"},
        {"quant8+t_tier:unpack=on", "quant8"},
        {"kivi+offload:dir=/tmp", "kivi"},
        {"h2o:budget=128+quant8+t_tier", "h2o:budget=128+quant8"},
    };
    const size_t n_pair = sizeof pairs / sizeof *pairs;
    kvc_model *m = open_arch(with_windows[_i], 2);
    const uint32_t vocab = util_vocab(m);
    float *a = calloc(ROWS * vocab, sizeof *a), *b = calloc(ROWS * vocab, sizeof *b);
    for (size_t i = 0; i < n_pair; i += (size_t)every_inner((int)n_pair)) {
        char text[128];
        kvc_session_close(run_spec(m, pairs[i][0], a));
        kvc_session_close(run_spec(m, pairs[i][1], b));
        snprintf(text, sizeof text, "%s: %s against %s", with_windows[_i], pairs[i][0],
                 pairs[i][1]);
        util_same(a, b, ROWS, vocab, text);
    }
    free(a);
    free(b);
    kvc_model_close(m);
}
END_TEST

/* Where entries may be evicted, lanes close up over the pages that left a window, so sums are taken
 * in another order. */
START_TEST(budgets_for_all_change_next_to_nothing) {
    static const char *const all[] = {
        "h2o:budget=576+full:type=f32", "tova:budget=576+full:type=f32",
        "snapkv:budget=100%+full:type=f32", "t_mass:budget=512+full:type=f32"};
    kvc_model *m = open_arch(with_windows[_i], 2);
    const uint32_t vocab = util_vocab(m);
    float *a = calloc(ROWS * vocab, sizeof *a), *b = calloc(ROWS * vocab, sizeof *b);
    kvc_session_close(run_spec(m, "full:type=f32", a));
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        kvc_session_close(run_spec(m, all[i], b));
        for (size_t j = 0; j < ROWS * vocab; j++) {
            ck_assert_msg(fabsf(a[j] - b[j]) <= (float)NEAR, "%s, %s: %.9g is not %.9g",
                          with_windows[_i], all[i], (double)b[j], (double)a[j]);
        }
    }
    free(a);
    free(b);
    kvc_model_close(m);
}
END_TEST

/* The file's bytes with one key renamed to another of the same length, as a model. */
static kvc_model *open_without(const char *name, const char *key) {
    char path[4096];
    const size_t n_key = strlen(key);
    kvc_model *m = NULL;
    snprintf(path, sizeof path, "%s/arch-%s.gguf", getenv("KVC_TEST_MODELS"), name);
    FILE *f = fopen(path, "rb");
    ck_assert_ptr_nonnull(f);
    ck_assert_int_eq(fseek(f, 0, SEEK_END), 0);
    const size_t n = (size_t)ftell(f);
    uint8_t *bytes = malloc(n);
    ck_assert_ptr_nonnull(bytes);
    rewind(f);
    ck_assert_uint_eq(fread(bytes, 1, n, f), n);
    (void)fclose(f);
    size_t at = 0;
    while (at + n_key < n && memcmp(bytes + at, key, n_key) != 0) {
        at++;
    }
    ck_assert_msg(at + n_key < n, "%s has no key %s", name, key);
    bytes[at] = 'x';
    kvc_params *p = util_params();
    ck_assert_msg(kvc_model_open_memory(bytes, n, p, &m) == KVC_OK, "%s", kvc_params_error(p));
    kvc_params_destroy(p);
    free(bytes);
    return m;
}

START_TEST(a_window_is_that_of_a_policy) {
    static const char *const format[] = {"full:type=f32", "quant8", "kivi", "quant8+t_tier"};
    kvc_model *with = open_arch("llama-window", 2);
    kvc_model *without = open_without("llama-window", "llama.attention.sliding_window");
    const uint32_t vocab = util_vocab(with);
    float *a = calloc(ROWS * vocab, sizeof *a), *b = calloc(ROWS * vocab, sizeof *b);
    char spec[64];
    snprintf(spec, sizeof spec, "window:size=70:sinks=0+%s", format[_i]);
    kvc_session *own = run_spec(with, format[_i], a), *policy = run_spec(without, spec, b);
    util_same(a, b, ROWS, vocab, spec);
    /* What no query will see is given back by both. */
    kvc_session_stats x = {.struct_size = sizeof x}, y = x;
    ck_assert_int_eq(kvc_session_get_stats(own, &x), KVC_OK);
    ck_assert_int_eq(kvc_session_get_stats(policy, &y), KVC_OK);
    ck_assert_uint_eq(x.sealed_bytes, y.sealed_bytes);
    ck_assert_uint_eq(x.tier_bytes, y.tier_bytes);
    kvc_session_close(own);
    kvc_session_close(policy);
    kvc_session_close(run_spec(without, format[_i], b));
    ck_assert_msg(memcmp(a, b, ROWS * vocab * sizeof *a) != 0, "the window changes nothing");
    free(a);
    free(b);
    kvc_model_close(with);
    kvc_model_close(without);
}
END_TEST

/* Of gemma3's seven layers six have a window of 40: at 300 tokens they keep two pages of four. */
START_TEST(local_layers_give_pages_back) {
    kvc_model *m = open_arch("gemma3", 2);
    float *a = calloc(ROWS * util_vocab(m), sizeof *a);
    kvc_session *s = run_spec(m, "full:type=f32", a);
    kvc_session_stats x = {.struct_size = sizeof x};
    const uint64_t page = 64 * 2 * 32 * sizeof(float), heads = 2;
    ck_assert_int_eq(kvc_session_get_stats(s, &x), KVC_OK);
    ck_assert_uint_eq(x.sealed_bytes, page * heads * (6 * 2 + 4));
    free(a);
    kvc_session_close(s);
    kvc_model_close(m);
}
END_TEST

/* Pages that left a window are no part of a fork or of a file. */
START_TEST(forks_and_saved_sessions_go_on) {
    static const char *const spec[] = {"full", "quant8+t_tier", "window:size=100:sinks=4+quant8"};
    enum { CUT = 250 };
    kvc_model *m = open_arch(with_windows[_i / 3], 2);
    const uint32_t vocab = util_vocab(m);
    float *a = calloc(ROWS * vocab, sizeof *a), *b = calloc(ROWS * vocab, sizeof *b);
    int32_t token[N];
    char path[64];
    kvc_session_close(run_spec(m, spec[_i % 3], a));
    util_tokens(token, N, vocab, 3);
    kvc_session *s = util_session(m, spec[_i % 3], "f32", N_CTX), *next[2];
    util_feed(s, token, CUT, CUT, CUT, vocab, b);
    snprintf(path, sizeof path, "/tmp/kvc-arch-%d-%d", (int)getpid(), _i);
    kvc_params *p = util_params();
    ck_assert_msg(kvc_session_fork(s, &next[0]) == KVC_OK, "%s", kvc_session_error(s));
    ck_assert_msg(kvc_session_save(s, path) == KVC_OK, "%s", kvc_session_error(s));
    kvc_session_close(s);
    ck_assert_msg(kvc_session_load(m, path, p, &next[1]) == KVC_OK, "%s", kvc_params_error(p));
    ck_assert_int_eq(remove(path), 0);
    for (int i = 0; i < 2; i++) {
        util_feed(next[i], token + CUT, N - CUT, WANTED - CUT, N, vocab, b);
        util_same(a, b, ROWS, vocab, spec[_i % 3]);
        kvc_session_close(next[i]);
    }
    kvc_params_destroy(p);
    free(a);
    free(b);
    kvc_model_close(m);
}
END_TEST

/* ---------------------------------------------------------------- kernel levels */

/* Prints a line for every model, spec and way to compute: a hash of all logits, of fewer tokens,
 * since plain C takes its time. */
START_TEST(print_hashes) {
    for (int i = 0; i < N_FIRST; i += every_step(4)) {
        struct grid g;
        grid_open(&g, i, 132);
        uint64_t hash = 1469598103934665603u;
        for (size_t j = 0; j < ROWS * g.n_vocab; j++) {
            uint32_t bits;
            memcpy(&bits, &g.base[j], sizeof bits);
            hash = (hash ^ bits) * 1099511628211u;
        }
        printf("%s %s/%s/%s %016llx\n", kvc_cpu_level(), g.name, g.spec, g.compute,
               (unsigned long long)hash);
        grid_close(&g);
    }
}
END_TEST

static const char *self;

START_TEST(levels_are_equal) {
    static const char *const levels[] = {"scalar", "avx2", "avx512"};
    FILE *run[3];
    char level[3][32], what[3][192], hash[3][32];
    for (int l = 0; l < 3; l++) {
        char command[8192];
        snprintf(command, sizeof command, "KVC_CPU=%s '%s' --hash", levels[l], self);
        run[l] = popen(command, "r");
        ck_assert_ptr_nonnull(run[l]);
    }
    for (int i = 0; i < N_FIRST; i += every_step(4)) {
        for (int l = 0; l < 3; l++) {
            ck_assert_int_eq(fscanf(run[l], "%31s %191s %31s", level[l], what[l], hash[l]), 3);
            ck_assert(kvc__kern_level(l) == NULL || strcmp(level[l], levels[l]) == 0);
            ck_assert_str_eq(what[l], what[0]);
            ck_assert_msg(strcmp(hash[l], hash[0]) == 0, "%s: %s and %s differ", what[0], level[0],
                          level[l]);
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

static TCase *add_case(Suite *suite, const char *name) {
    TCase *tc = tcase_create(name);
    tcase_set_timeout(tc, 300);
    suite_add_tcase(suite, tc);
    return tc;
}

int main(int argc, char **argv) {
    self = argv[0];
    Suite *suite = suite_create("arch");
    if (argc == 2 && strcmp(argv[1], "--hash") == 0) {
        tcase_add_test(add_case(suite, "bits"), print_hashes); /* as the caller: CK_RUN_CASE */
        return run(suite, CK_SILENT);
    }
    TCase *tc = add_case(suite, "reference");
    tcase_add_loop_test(tc, logits_are_the_references, 0, (int)N_NAME);
    tc = add_case(suite, "windows");
    tcase_add_loop_test(tc, policies_that_mean_the_same, 0, 3);
    tcase_add_loop_test(tc, budgets_for_all_change_next_to_nothing, 0, 3);
    tcase_add_loop_test(tc, a_window_is_that_of_a_policy, 0, 4);
    tcase_add_test(tc, local_layers_give_pages_back);
    tcase_add_loop_test(tc, forks_and_saved_sessions_go_on, 0, 9);
    tc = add_case(suite, "bits");
    every_add(tc, chunks_and_threads_do_not_matter, N_GRID, 1);
    every_add(tc, truncation_does_not_matter, N_GRID, 1);
    tcase_add_test(tc, levels_are_equal);
    return run(suite, CK_NORMAL);
}

/* SPDX-License-Identifier: MIT
 * test_weights.c: whole models in every weight type, and one that mixes them, against their twins:
 * files that hold as F32 what the package gguf reads in them (make_model.py). Exact products give
 * the twin's logits bit for bit; int8 ones come near them. */
#include "engine_util.h"

#include "every.h"

#include <math.h>
#include <stdbool.h>

#define N      80u
#define WANTED 60u
#define ROWS   (N - WANTED)
#define N_CTX  128

static const char *const names[] = {"f16",  "bf16", "q8_0", "q4_0", "q4_1", "q5_0",
                                    "q5_1", "q4_k", "q5_k", "q6_k", "mix"};
#define N_NAME ((int)(sizeof names / sizeof *names))

struct logits {
    uint32_t n_vocab;
    float *at; /* [ROWS, n_vocab] */
};

/* The logits of weights-NAME.gguf or its twin, in calls of `chunk` tokens. */
static struct logits run(const char *name, const char *twin, const char *compute, uint32_t chunk) {
    char file[64];
    int32_t token[N];
    snprintf(file, sizeof file, "weights-%s%s.gguf", name, twin);
    kvc_model *m = util_model(file, 2, 0);
    struct logits x = {.n_vocab = util_vocab(m)};
    x.at = calloc((size_t)ROWS * x.n_vocab, sizeof *x.at);
    util_tokens(token, N, x.n_vocab, 5);
    kvc_session *s = util_session(m, "full:type=f32", compute, N_CTX);
    util_feed(s, token, N, WANTED, chunk, x.n_vocab, x.at);
    kvc_session_close(s);
    kvc_model_close(m);
    return x;
}

START_TEST(exact_logits_are_the_twins) {
    struct logits a = run(names[_i], "-f32", "f32", N), b = run(names[_i], "", "f32", N);
    util_same(a.at, b.at, ROWS, a.n_vocab, names[_i]);
    struct logits c = run(names[_i], "", "f32", 1);
    util_same(a.at, c.at, ROWS, a.n_vocab, "one by one");
    free(a.at);
    free(b.at);
    free(c.at);
}
END_TEST

/* KL divergence of q's distribution from p's, over one row of logits. */
static double divergence(const float *p, const float *q, uint32_t n) {
    double max_p = -INFINITY, max_q = -INFINITY, sum_p = 0, sum_q = 0, kl = 0;
    for (uint32_t i = 0; i < n; i++) {
        max_p = fmax(max_p, (double)p[i]);
        max_q = fmax(max_q, (double)q[i]);
    }
    for (uint32_t i = 0; i < n; i++) {
        sum_p += exp((double)p[i] - max_p);
        sum_q += exp((double)q[i] - max_q);
    }
    for (uint32_t i = 0; i < n; i++) {
        const double lp = (double)p[i] - max_p - log(sum_p), lq = (double)q[i] - max_q - log(sum_q);
        kl += exp(lp) * (lp - lq);
    }
    return kl;
}

/* Activations rounded to 8 bits move logits a little (4e-3 to 9e-3 here); a scale or a bit in the
 * wrong place moves them a lot. */
START_TEST(int8_logits_come_near_the_twins) {
    struct logits a = run(names[_i], "-f32", "f32", N), b = run(names[_i], "", "int8", N);
    const bool is_float = strstr(names[_i], "f16") != NULL; /* then int8 rounds nothing */
    double mean = 0;
    for (uint32_t r = 0; r < ROWS; r++) {
        const size_t at = (size_t)r * a.n_vocab;
        mean += divergence(a.at + at, b.at + at, a.n_vocab) / ROWS;
    }
    ck_assert_msg(is_float ? mean == 0 : mean > 0 && mean < 3e-2, "%s: %.3e", names[_i], mean);
    free(a.at);
    free(b.at);
}
END_TEST

/* int8 is as bit-equal over levels, threads and chunks as f32. */
START_TEST(int8_logits_do_not_depend_on_the_way) {
    static const char *const level[] = {"scalar", "avx2", "avx512"};
    struct logits a = run(names[_i], "", "int8", N);
    for (size_t i = 0; i < 3; i++) {
        ck_assert_int_eq(setenv("KVC_CPU", level[i], 1), 0);
        struct logits b = run(names[_i], "", "int8", 7);
        util_same(a.at, b.at, ROWS, a.n_vocab, level[i]);
        free(b.at);
    }
    ck_assert_int_eq(unsetenv("KVC_CPU"), 0);
    free(a.at);
}
END_TEST

int main(void) {
    Suite *s = suite_create("weights");
    TCase *tc = tcase_create("twins");
    every_add(tc, exact_logits_are_the_twins, N_NAME, 4);
    every_add(tc, int8_logits_come_near_the_twins, N_NAME, 4);
    every_add(tc, int8_logits_do_not_depend_on_the_way, N_NAME, 4);
    suite_add_tcase(s, tc);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    const int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}

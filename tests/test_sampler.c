/* SPDX-License-Identifier: MIT
 * test_sampler.c: the sampler through its public functions: greedy choice, each filter, the
 * distribution against exact probabilities, seeds, and logits that are not numbers. */
#include "kvc/kvc.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define N_DRAW 200000

static kvc_params *params;
static kvc_sampler *sampler;

static void setup(void) {
    ck_assert_int_eq(kvc_params_create(&params), KVC_OK);
}

static void teardown(void) {
    kvc_sampler_destroy(sampler);
    sampler = NULL;
    kvc_params_destroy(params);
    params = NULL;
}

static void set(const char *name, double value) {
    ck_assert_msg(kvc_params_set_f64(params, name, value) == KVC_OK, "%s",
                  kvc_params_error(params));
}

static void set_i64(const char *name, int64_t value) {
    ck_assert_msg(kvc_params_set_i64(params, name, value) == KVC_OK, "%s",
                  kvc_params_error(params));
}

static void create(void) {
    kvc_sampler_destroy(sampler);
    ck_assert_int_eq(kvc_sampler_create(params, &sampler), KVC_OK);
}

/* Draws many times and holds the frequency of each id against its probability: within five
 * standard deviations, and never when it is 0. */
static void check_distribution(const float *logits, const double *p, uint32_t n) {
    uint32_t count[64] = {0};
    create();
    for (uint32_t i = 0; i < N_DRAW; i++) {
        int32_t id = kvc_sampler_sample(sampler, logits, n);
        if (id < 0 || id >= (int32_t)n) { /* Check's own would take most of the time */
            ck_abort_msg("id %d of %u", id, n);
        }
        count[id]++;
    }
    for (uint32_t i = 0; i < n; i++) {
        double mean = p[i] * N_DRAW;
        double bound = 5 * sqrt(mean * (1 - p[i]));
        ck_assert_msg(fabs(count[i] - mean) <= bound, "id %u: %u times, expected %.0f +- %.0f", i,
                      count[i], mean, bound);
    }
}

/* Softmax of the logits over t, restricted to those with keep[i]. */
static void exact(const float *logits, const int *keep, double t, double *p, uint32_t n) {
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        p[i] = keep[i] ? exp(logits[i] / t) : 0;
        sum += p[i];
    }
    for (uint32_t i = 0; i < n; i++) {
        p[i] /= sum;
    }
}

/* Probabilities of these at temperature 1: .0571 .1551 .4217 .0210 .1551 .0346 .1551 .0001; ids
 * 1, 4 and 6 are equal. */
#define N 8
static const float logits_of[N] = {1, 2, 3, 0, 2, 0.5f, 2, -5};

/* ---------------------------------------------------------------- greedy */

START_TEST(test_greedy_takes_the_lowest_of_equals) {
    const float a[] = {-1, 3, 2, 3};
    const float b[] = {NAN, -3, NAN, -2, -INFINITY};
    const float c[] = {NAN, -INFINITY, -INFINITY};
    const float d[] = {1, INFINITY, INFINITY, NAN};
    create();
    ck_assert_int_eq(kvc_sampler_sample(sampler, a, 4), 1);
    ck_assert_int_eq(kvc_sampler_sample(sampler, b, 5), 3);
    ck_assert_int_eq(kvc_sampler_sample(sampler, c, 3), 1);
    ck_assert_int_eq(kvc_sampler_sample(sampler, d, 4), 1);
    ck_assert_int_eq(kvc_sampler_sample(sampler, a, 1), 0);
}
END_TEST

START_TEST(test_params_may_be_null) {
    kvc_sampler *s = NULL;
    ck_assert_int_eq(kvc_sampler_create(NULL, &s), KVC_OK);
    ck_assert_int_eq(kvc_sampler_sample(s, logits_of, N), 2);
    kvc_sampler_destroy(s);
    kvc_sampler_destroy(NULL);
}
END_TEST

START_TEST(test_bad_arguments) {
    const float nan[] = {NAN, NAN};
    set("temperature", _i);
    create();
    ck_assert_int_eq(kvc_sampler_create(params, NULL), KVC_E_ARG);
    ck_assert_int_eq(kvc_sampler_sample(NULL, logits_of, N), KVC_E_ARG);
    ck_assert_int_eq(kvc_sampler_sample(sampler, NULL, N), KVC_E_ARG);
    ck_assert_int_eq(kvc_sampler_sample(sampler, logits_of, 0), KVC_E_ARG);
    ck_assert_int_eq(kvc_sampler_sample(sampler, logits_of, UINT32_MAX), KVC_E_ARG);
    ck_assert_int_eq(kvc_sampler_sample(sampler, nan, 2), KVC_E_ARG);
    ck_assert_int_eq(kvc_sampler_sample(sampler, logits_of, N) >= 0, 1);
}
END_TEST

/* ---------------------------------------------------------------- filters */

static const struct filter {
    double temperature, top_p, min_p;
    int top_k;
    int keep[N];
} filter[] = {
    {1, 1, 0, 0, {1, 1, 1, 1, 1, 1, 1, 1}},
    {0.5, 1, 0, 0, {1, 1, 1, 1, 1, 1, 1, 1}},
    {3, 1, 0, 0, {1, 1, 1, 1, 1, 1, 1, 1}},
    /* top-k: of equals the lowest ids */
    {1, 1, 0, 1, {0, 0, 1, 0, 0, 0, 0, 0}},
    {1, 1, 0, 3, {0, 1, 1, 0, 1, 0, 0, 0}},
    {2, 1, 0, 5, {1, 1, 1, 0, 1, 0, 1, 0}},
    {1, 1, 0, 8, {1, 1, 1, 1, 1, 1, 1, 1}},
    {1, 1, 0, 100, {1, 1, 1, 1, 1, 1, 1, 1}},
    /* top-p: the least number that reaches it */
    {1, 0.0001, 0, 0, {0, 0, 1, 0, 0, 0, 0, 0}},
    {1, 0.42, 0, 0, {0, 0, 1, 0, 0, 0, 0, 0}},
    {1, 0.43, 0, 0, {0, 1, 1, 0, 0, 0, 0, 0}},
    {1, 0.74, 0, 0, {0, 1, 1, 0, 1, 0, 1, 0}},
    {1, 0.9, 0, 0, {1, 1, 1, 0, 1, 0, 1, 0}},
    /* at a higher temperature the best one has less: .2205 */
    {3, 0.25, 0, 0, {0, 1, 1, 0, 0, 0, 0, 0}},
    /* min-p: exp(-1) = .37, exp(-2) = .14, exp(-2.5) = .08 of the best one's */
    {1, 1, 0.5, 0, {0, 0, 1, 0, 0, 0, 0, 0}},
    {1, 1, 0.36, 0, {0, 1, 1, 0, 1, 0, 1, 0}},
    {1, 1, 0.1, 0, {1, 1, 1, 0, 1, 0, 1, 0}},
    {0.5, 1, 0.1, 0, {0, 1, 1, 0, 1, 0, 1, 0}},
    /* together: top-p counts what top-k left, .58 of it is the best one's */
    {1, 0.57, 0, 3, {0, 0, 1, 0, 0, 0, 0, 0}},
    {1, 0.7, 0, 3, {0, 1, 1, 0, 0, 0, 0, 0}},
    {1, 0.9, 0.2, 6, {0, 1, 1, 0, 1, 0, 1, 0}},
};

START_TEST(test_filter_leaves_the_exact_distribution) {
    const struct filter *f = &filter[_i];
    double p[N];
    set("temperature", f->temperature);
    set("top_p", f->top_p);
    set("min_p", f->min_p);
    set_i64("top_k", f->top_k);
    set_i64("seed", 42);
    exact(logits_of, f->keep, f->temperature, p, N);
    check_distribution(logits_of, p, N);
}
END_TEST

START_TEST(test_infinite_logits_are_weighed) {
    const float some[] = {1, -INFINITY, NAN, 1};
    const float most[] = {1, INFINITY, NAN, INFINITY};
    const float none[] = {-INFINITY, NAN, -INFINITY};
    const double ends[] = {0.5, 0, 0, 0.5};
    const double odd[] = {0, 0.5, 0, 0.5};
    const double both[] = {0.5, 0, 0.5};
    set("temperature", 1);
    if (_i == 1) {
        set("min_p", 0.01);
        set("top_p", 0.99);
    }
    check_distribution(some, ends, 4);
    check_distribution(most, odd, 4);
    check_distribution(none, both, 3);
}
END_TEST

START_TEST(test_least_temperature_is_greedy) {
    set("temperature", 1e-300);
    create();
    for (int i = 0; i < 100; i++) {
        ck_assert_int_eq(kvc_sampler_sample(sampler, logits_of, N), 2);
    }
}
END_TEST

/* A vocabulary's worth of logits, against a sort. */
START_TEST(test_many_tokens_are_cut_in_order) {
    enum { MANY = 50000, K = 40 };
    float *x = malloc(MANY * sizeof *x);
    ck_assert(x != NULL);
    for (uint32_t i = 0; i < MANY; i++) {
        x[i] = (float)(i * 7919u % MANY) / 1000.0f;
    }
    set("temperature", 100);
    set_i64("top_k", _i == 0 ? K : 0);
    set("min_p", _i == 1 ? exp(-(K - 0.5) / 100000.0) : 0);
    create();
    uint32_t seen = 0;
    uint8_t hit[K] = {0};
    for (int i = 0; i < 1000; i++) {
        int32_t id = kvc_sampler_sample(sampler, x, MANY);
        uint32_t rank = MANY - 1 - (uint32_t)id * 7919u % MANY;
        ck_assert_uint_lt(rank, K);
        seen += !hit[rank];
        hit[rank] = 1;
    }
    ck_assert_uint_eq(seen, K);
    free(x);
}
END_TEST

/* ---------------------------------------------------------------- seeds and memory */

/* Fixed for good: a seed is part of what users write down. */
START_TEST(test_seed_gives_these_tokens) {
    static const int32_t want[16] = {4, 2, 1, 2, 4, 4, 2, 2, 2, 4, 1, 2, 4, 2, 6, 6};
    set("temperature", 1);
    set_i64("seed", 1234);
    create();
    for (int i = 0; i < 16; i++) {
        ck_assert_int_eq(kvc_sampler_sample(sampler, logits_of, N), want[i]);
    }
}
END_TEST

/* The sequence is the same when other logits came before: callers skip by it. */
START_TEST(test_a_call_takes_one_number) {
    static const int32_t want[4] = {4, 2, 1, 2};
    const float one = 0;
    set("temperature", 1);
    set("top_p", _i == 0 ? 1 : 0.9);
    set_i64("seed", 1234);
    create();
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(kvc_sampler_sample(sampler, &one, 1), 0);
    }
    int32_t fourth = kvc_sampler_sample(sampler, logits_of, N);
    create();
    for (int i = 0; i < 4; i++) {
        int32_t id = kvc_sampler_sample(sampler, logits_of, N);
        ck_assert(_i > 0 || id == want[i]);
        ck_assert(i < 3 || id == fourth);
    }
}
END_TEST

START_TEST(test_seeds_differ_and_repeat) {
    int32_t token[3][32];
    set("temperature", 1);
    for (int k = 0; k < 3; k++) {
        set_i64("seed", k % 2);
        create();
        for (int i = 0; i < 32; i++) {
            token[k][i] = kvc_sampler_sample(sampler, logits_of, N);
        }
    }
    ck_assert_mem_eq(token[0], token[2], sizeof token[0]);
    ck_assert_mem_ne(token[0], token[1], sizeof token[0]);
}
END_TEST

static size_t n_calls, held, allowed;

static void *counting_realloc(void *ctx, void *p, size_t old_size, size_t new_size, size_t align) {
    (void)ctx;
    (void)align;
    void *q = NULL;
    n_calls++;
    if (new_size > 0) {
        if (allowed == 0 || posix_memalign(&q, 4096, new_size) != 0) {
            return NULL;
        }
        allowed--;
        if (p) {
            memcpy(q, p, old_size < new_size ? old_size : new_size);
        }
    }
    held = held + new_size - old_size;
    free(p);
    return q;
}

START_TEST(test_no_allocation_after_the_first_sample) {
    kvc_allocator a = {.struct_size = sizeof a, .realloc = counting_realloc};
    held = 0;
    allowed = 100;
    set("temperature", 1);
    set("top_p", 0.9);
    ck_assert_int_eq(kvc_params_set_allocator(params, &a), KVC_OK);
    create();
    ck_assert_int_ge(kvc_sampler_sample(sampler, logits_of, N), 0);
    n_calls = 0;
    for (uint32_t n = 1; n <= N; n++) {
        ck_assert_int_ge(kvc_sampler_sample(sampler, logits_of, n), 0);
    }
    ck_assert_uint_eq(n_calls, 0);
    kvc_sampler_destroy(sampler);
    sampler = NULL;
    ck_assert_uint_eq(held, 0);
}
END_TEST

START_TEST(test_no_memory_is_answered) {
    kvc_allocator a = {.struct_size = sizeof a, .realloc = counting_realloc};
    kvc_sampler *s = (kvc_sampler *)&a;
    set("temperature", 1);
    ck_assert_int_eq(kvc_params_set_allocator(params, &a), KVC_OK);
    allowed = 0;
    ck_assert_int_eq(kvc_sampler_create(params, &s), KVC_E_NOMEM);
    ck_assert_ptr_null(s);
    ck_assert_str_ne(kvc_params_error(params), "");
    allowed = 1;
    create();
    ck_assert_int_eq(kvc_sampler_sample(sampler, logits_of, N), KVC_E_NOMEM);
    allowed = 1;
    ck_assert_int_ge(kvc_sampler_sample(sampler, logits_of, N), 0);
}
END_TEST

/* ---------------------------------------------------------------- main */

int main(void) {
    Suite *suite = suite_create("sampler");
    TCase *c = tcase_create("sampler");
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, test_greedy_takes_the_lowest_of_equals);
    tcase_add_test(c, test_params_may_be_null);
    tcase_add_loop_test(c, test_bad_arguments, 0, 2);
    tcase_add_loop_test(c, test_filter_leaves_the_exact_distribution, 0,
                        (int)(sizeof filter / sizeof filter[0]));
    tcase_add_loop_test(c, test_infinite_logits_are_weighed, 0, 2);
    tcase_add_test(c, test_least_temperature_is_greedy);
    tcase_add_loop_test(c, test_many_tokens_are_cut_in_order, 0, 2);
    tcase_add_test(c, test_seed_gives_these_tokens);
    tcase_add_loop_test(c, test_a_call_takes_one_number, 0, 2);
    tcase_add_test(c, test_seeds_differ_and_repeat);
    tcase_add_test(c, test_no_allocation_after_the_first_sample);
    tcase_add_test(c, test_no_memory_is_answered);
    suite_add_tcase(suite, c);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures != 0;
}

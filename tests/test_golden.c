/* SPDX-License-Identifier: MIT
 * test_golden.c: the real model against an independent float32 implementation: last-position
 * logits, mean NLL and greedy tokens of every reference prompt, for both ways to compute. Uses the
 * public API alone. Needs the model: KVC_TEST_MODEL; KVC_TEST_DATA holds the reference. */
#include "kvc/kvc.h"

#include <check.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static kvc_model *model;
static json_t *reference;
static uint32_t n_vocab;

static void setup(void) {
    char path[4096];
    const char *dir = getenv("KVC_TEST_DATA");
    snprintf(path, sizeof path, "%s/smollm2-reference.json", dir != NULL ? dir : "tests/data");
    reference = json_load_file(path, 0, NULL);
    ck_assert_msg(reference != NULL, "can't read %s", path);
    kvc_params *params = NULL;
    ck_assert_int_eq(kvc_params_create(&params), KVC_OK);
    int32_t rc = kvc_model_open(getenv("KVC_TEST_MODEL"), params, &model);
    ck_assert_msg(rc == KVC_OK, "%s", kvc_params_error(params));
    kvc_params_destroy(params);
    kvc_model_info info = {.struct_size = sizeof info};
    ck_assert_int_eq(kvc_model_get_info(model, &info), KVC_OK);
    n_vocab = info.n_vocab;
}

static void teardown(void) {
    kvc_model_close(model);
    json_decref(reference);
}

static kvc_session *open_session(const char *compute, const char *spec) {
    kvc_params *params = NULL;
    kvc_session *s = NULL;
    ck_assert_int_eq(kvc_params_create(&params), KVC_OK);
    if (getenv("KVC_TEST_POLICIES") != NULL) {
        ck_assert_int_eq(kvc_params_add_policy_dir(params, getenv("KVC_TEST_POLICIES")), KVC_OK);
    }
    ck_assert_int_eq(kvc_params_set_str(params, "compute", compute), KVC_OK);
    ck_assert_int_eq(kvc_params_set_i64(params, "n_ctx", 1024), KVC_OK);
    int32_t rc = kvc_session_open(model, spec, params, &s);
    ck_assert_msg(rc == KVC_OK, "%s", kvc_params_error(params));
    kvc_params_destroy(params);
    return s;
}

static size_t ids_of(const json_t *entry, const char *key, int32_t *out, size_t cap) {
    const json_t *a = json_object_get(entry, key);
    const size_t n = json_array_size(a);
    ck_assert_uint_le(n, cap);
    for (size_t i = 0; i < n; i++) {
        out[i] = (int32_t)json_integer_value(json_array_get(a, i));
    }
    return n;
}

static uint32_t argmax(const float *x) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < n_vocab; i++) {
        best = x[i] > x[best] ? i : best;
    }
    return best;
}

static double nll(const float *logits, int32_t token) {
    double max = logits[argmax(logits)], sum = 0;
    for (uint32_t i = 0; i < n_vocab; i++) {
        sum += exp((double)logits[i] - max);
    }
    return max + log(sum) - (double)logits[token];
}

/* Prefills the prompt with all logits; the mean NLL of its tokens but the first. */
static double prompt_nll(kvc_session *s, const int32_t *ids, size_t n) {
    kvc_run run = {.struct_size = sizeof run,
                   .wants = KVC_WANT_ALL,
                   .session = s,
                   .token = ids,
                   .n_token = (uint32_t)n,
                   .prompt_end = 1};
    ck_assert_msg(kvc_decode(&run, 1, sizeof run) == KVC_OK, "%s", kvc_session_error(s));
    double sum = 0;
    for (size_t i = 0; i + 1 < n; i++) {
        sum += nll(kvc_session_logits(s, (uint32_t)i), ids[i + 1]);
    }
    return n > 1 ? sum / (double)(n - 1) : 0;
}

/* The largest distance of the last position's top-10 logits from the reference's. */
static double top10_error(const json_t *entry, const float *logits) {
    int32_t ids[10];
    double worst = 0;
    const size_t n = ids_of(entry, "last_top10_ids", ids, 10);
    for (size_t i = 0; i < n; i++) {
        double want =
            json_number_value(json_array_get(json_object_get(entry, "last_top10_logits"), i));
        worst = fmax(worst, fabs((double)logits[ids[i]] - want));
    }
    return worst;
}

static double margin_of(const json_t *entry) {
    const json_t *a = json_object_get(entry, "last_top10_logits");
    return json_number_value(json_array_get(a, 0)) - json_number_value(json_array_get(a, 1));
}

START_TEST(f32_equals_the_reference) {
    const json_t *entry = json_array_get(json_object_get(reference, "logits"), (size_t)_i);
    int32_t ids[1024], greedy[64];
    const size_t n = ids_of(entry, "ids", ids, 1024),
                 n_greedy = ids_of(entry, "greedy32", greedy, 64);
    kvc_session *s = open_session("f32", "full:type=f32");
    const double mean = prompt_nll(s, ids, n),
                 want = json_number_value(json_object_get(entry, "mean_nll"));
    const float *last = kvc_session_logits(s, (uint32_t)n - 1);
    const double error = top10_error(entry, last);
    printf(
        "f32  prompt %d: %zu tokens, top-10 logits within %.2e, mean NLL %.6f (reference %.6f)\n",
        _i, n, error, mean, want);
    ck_assert_double_le(error, 5e-3);
    ck_assert_double_le(fabs(mean / want - 1), 1e-4);
    int32_t token = (int32_t)argmax(last);
    for (size_t i = 0; i < n_greedy; i++) {
        ck_assert_msg(token == greedy[i], "greedy token %zu is %d, not %d", i, (int)token,
                      (int)greedy[i]);
        ck_assert_int_eq(kvc_session_decode(s, &token, 1), KVC_OK);
        token = (int32_t)argmax(kvc_session_logits(s, 0));
    }
    kvc_session_close(s);
}
END_TEST

START_TEST(int8_is_near_the_reference) {
    const json_t *entry = json_array_get(json_object_get(reference, "logits"), (size_t)_i);
    int32_t ids[1024];
    const size_t n = ids_of(entry, "ids", ids, 1024);
    kvc_session *s = open_session("int8", "full");
    const double mean = prompt_nll(s, ids, n),
                 want = json_number_value(json_object_get(entry, "mean_nll"));
    const float *last = kvc_session_logits(s, (uint32_t)n - 1);
    const double error = top10_error(entry, last);
    const int32_t first =
        (int32_t)json_integer_value(json_array_get(json_object_get(entry, "last_top10_ids"), 0));
    printf("int8 prompt %d: %zu tokens, top-10 logits within %.3f, mean NLL off by %.3f %%\n", _i,
           n, error, 100 * fabs(mean / want - 1));
    ck_assert_double_le(error, 0.8);
    ck_assert_double_le(fabs(mean / want - 1), n > 400 ? 0.005 : 0.03);
    if (margin_of(entry) > 0.5) {
        ck_assert_int_eq((int32_t)argmax(last), first);
    }
    kvc_session_close(s);
}
END_TEST

int main(void) {
    if (getenv("KVC_TEST_MODEL") == NULL) {
        puts("skipped: KVC_TEST_MODEL names no model");
        return 77;
    }
    Suite *suite = suite_create("golden");
    TCase *tc = tcase_create("reference");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, f32_equals_the_reference, 0, 6);
    tcase_add_loop_test(tc, int8_is_near_the_reference, 0, 6);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}

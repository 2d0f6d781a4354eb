/* SPDX-License-Identifier: MIT
 * test_params.c: params.c and api_params.c: every option by every setter, and what each refusal
 * says. */
#include "params.h"

#include <check.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static kvc_params *params;

static void make_params(void) {
    ck_assert_int_eq(kvc_params_create(&params), KVC_OK);
}

static void free_params(void) {
    kvc_params_destroy(params);
    params = NULL;
}

/* The call is refused with KVC_E_PARAM and the sentence holds each of the words. */
static void refused(int32_t status, const char *first, const char *second, const char *third) {
    const char *word[] = {first, second, third};
    ck_assert_int_eq(status, KVC_E_PARAM);
    for (size_t i = 0; i < 3; i++) {
        ck_assert_msg(!word[i] || strstr(kvc_params_error(params), word[i]), "\"%s\" isn't in: %s",
                      word[i], kvc_params_error(params));
    }
    kvc__fail(&params->err, KVC_OK, "%s", "");
}

/* ---------------------------------------------------------------- options */

static const struct integer {
    const char *name;
    int64_t def, min, max;
} integers[] = {
    {"n_threads", 0, 0, 256}, {"n_ctx", 0, 0, 1048576},    {"n_batch", 512, 1, 4096},
    {"compute", 0, 0, 1},     {"repack", 1, 0, 1},         {"seed", 0, 0, INT64_MAX},
    {"policy_env", 1, 0, 1},  {"policy_default", 1, 0, 1}, {"top_k", 0, 0, 2147483647},
};
static const struct fraction {
    const char *name;
    double def, max;
} fractions[] = {{"temperature", 0.0, 100.0}, {"top_p", 1.0, 1.0}, {"min_p", 0.0, 1.0}};
enum {
    N_INTEGER = sizeof(integers) / sizeof(integers[0]),
    N_FRACTION = sizeof(fractions) / sizeof(fractions[0])
};

static int64_t integer_of(const struct kvc_params *p, int i) {
    const int64_t value[] = {p->n_threads,  p->n_ctx,          p->n_batch,
                             p->compute,    p->repack,         (int64_t)p->seed,
                             p->policy_env, p->policy_default, p->top_k};
    return value[i];
}

static double fraction_of(const struct kvc_params *p, int i) {
    const double value[] = {p->temperature, p->top_p, p->min_p};
    return value[i];
}

/* All others still hold their defaults: an option is written to its own place and no further. */
static void only_changed(int integer, int fraction) {
    for (int i = 0; i < N_INTEGER; i++) {
        ck_assert(i == integer || integer_of(params, i) == integers[i].def);
    }
    for (int i = 0; i < N_FRACTION; i++) {
        ck_assert(i == fraction || fraction_of(params, i) == fractions[i].def);
    }
}

START_TEST(defaults_are_those_of_the_manual) {
    only_changed(-1, -1);
    for (int i = 0; i < N_INTEGER; i++) {
        ck_assert_int_eq(integer_of(&kvc__params_default, i), integers[i].def);
    }
    for (int i = 0; i < N_FRACTION; i++) {
        ck_assert_double_eq(fraction_of(&kvc__params_default, i), fractions[i].def);
    }
    ck_assert(params->allocator.realloc == NULL);
    ck_assert_str_eq(kvc_params_error(params), "");
}
END_TEST

START_TEST(integers_are_set_between_their_bounds) {
    const struct integer *o = &integers[_i];
    const int64_t value[] = {o->min, o->max, o->def};
    char text[32];
    for (size_t i = 0; i < 3; i++) {
        ck_assert_int_eq(kvc_params_set_i64(params, o->name, value[i]), KVC_OK);
        ck_assert_int_eq(integer_of(params, _i), value[i]);
        only_changed(_i, -1);
        if (strcmp(o->name, "compute") == 0) {
            continue;
        }
        ck_assert_int_eq(kvc_params_set_i64(params, o->name, o->min), KVC_OK);
        snprintf(text, sizeof(text), "%lld", (long long)value[i]);
        ck_assert_int_eq(kvc_params_set_str(params, o->name, text), KVC_OK);
        ck_assert_int_eq(integer_of(params, _i), value[i]);
    }
    ck_assert_str_eq(kvc_params_error(params), "");
}
END_TEST

START_TEST(integers_out_of_range_are_refused_with_the_range) {
    const struct integer *o = &integers[_i];
    char bound[32];
    snprintf(bound, sizeof(bound), "%lld", (long long)o->max);
    refused(kvc_params_set_i64(params, o->name, o->min - 1), o->name, bound, NULL);
    refused(kvc_params_set_i64(params, o->name, INT64_MIN), o->name, "-9223372036854775808", NULL);
    if (o->max < INT64_MAX) {
        refused(kvc_params_set_i64(params, o->name, o->max + 1), o->name, bound, NULL);
        refused(kvc_params_set_i64(params, o->name, INT64_MAX), o->name, bound, NULL);
    }
    refused(kvc_params_set_str(params, o->name, "-1"), o->name, "\"-1\"", bound);
    refused(kvc_params_set_str(params, o->name, "99999999999999999999"), o->name, bound, NULL);
    only_changed(-1, -1);
}
END_TEST

START_TEST(integers_refuse_fractions_and_text) {
    static const char *const bad[] = {"", " 1", "1 ", "1.0", "0x1", "one", "1e0", "+", "--1"};
    const char *name = integers[_i].name;
    refused(kvc_params_set_f64(params, name, 1.0), name, "integer", NULL);
    refused(kvc_params_set_f64(params, name, 0.5), name, "0.5", "integer");
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        refused(kvc_params_set_str(params, name, bad[i]), name, bad[i], NULL);
    }
    only_changed(-1, -1);
}
END_TEST

START_TEST(fractions_are_set_between_their_bounds) {
    const struct fraction *o = &fractions[_i];
    ck_assert_int_eq(kvc_params_set_f64(params, o->name, 0.25), KVC_OK);
    ck_assert_double_eq(fraction_of(params, _i), 0.25);
    only_changed(-1, _i);
    ck_assert_int_eq(kvc_params_set_f64(params, o->name, o->max), KVC_OK);
    ck_assert_double_eq(fraction_of(params, _i), o->max);
    ck_assert_int_eq(kvc_params_set_f64(params, o->name, 0.0), KVC_OK);
    ck_assert_int_eq(kvc_params_set_i64(params, o->name, 1), KVC_OK);
    ck_assert_double_eq(fraction_of(params, _i), 1.0);
    ck_assert_int_eq(kvc_params_set_str(params, o->name, "0.125"), KVC_OK);
    ck_assert_double_eq(fraction_of(params, _i), 0.125);
    ck_assert_int_eq(kvc_params_set_str(params, o->name, "5e-1"), KVC_OK);
    ck_assert_double_eq(fraction_of(params, _i), 0.5);
}
END_TEST

START_TEST(fractions_out_of_range_are_refused_with_the_range) {
    static const char *const bad[] = {"", "-0.5", "1e9", "nan", "inf", "0,5", "0.5x", " 1", "."};
    const struct fraction *o = &fractions[_i];
    char bound[32];
    snprintf(bound, sizeof(bound), "to %g", o->max);
    refused(kvc_params_set_f64(params, o->name, -0.001), o->name, "-0.001", bound);
    refused(kvc_params_set_f64(params, o->name, o->max * 1.001), o->name, bound, NULL);
    refused(kvc_params_set_f64(params, o->name, (double)NAN), o->name, bound, NULL);
    refused(kvc_params_set_f64(params, o->name, (double)INFINITY), o->name, bound, NULL);
    refused(kvc_params_set_i64(params, o->name, -1), o->name, bound, NULL);
    refused(kvc_params_set_i64(params, o->name, 101), o->name, bound, NULL);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        refused(kvc_params_set_str(params, o->name, bad[i]), o->name, bad[i], bound);
    }
    only_changed(-1, -1);
}
END_TEST

START_TEST(compute_is_set_by_name) {
    ck_assert_int_eq(kvc_params_set_str(params, "compute", "f32"), KVC_OK);
    ck_assert_uint_eq(params->compute, KVC_COMPUTE_F32);
    ck_assert_int_eq(kvc_params_set_str(params, "compute", "int8"), KVC_OK);
    ck_assert_uint_eq(params->compute, KVC_COMPUTE_INT8);
    refused(kvc_params_set_str(params, "compute", "f16"), "compute", "\"f16\"", "int8 (0) or f32");
    refused(kvc_params_set_i64(params, "compute", 2), "compute", "\"2\"", "int8 (0) or f32");
}
END_TEST

START_TEST(an_unknown_name_gets_the_nearest_and_all) {
    const char *all =
        "n_threads, n_ctx, n_batch, repack, compute, seed, policy_env, policy_default, "
        "temperature, top_k, top_p, min_p";
    refused(kvc_params_set_i64(params, "n_thread", 1), "\"n_thread\"", "mean \"n_threads\"?", all);
    refused(kvc_params_set_f64(params, "temprature", 1), "\"temprature\"", "\"temperature\"?", all);
    refused(kvc_params_set_str(params, "TOP_K", "1"), "\"TOP_K\"", all, NULL);
    refused(kvc_params_set_str(params, "", "1"), "\"\"", all, NULL);
    char name[3000];
    memset(name, 'n', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    refused(kvc_params_set_i64(params, name, 1), "\"nnnn", all, NULL);
    refused(kvc_params_set_i64(params, "zebra crossing", 1), "\"zebra crossing\"; options are", all,
            NULL);
}
END_TEST

START_TEST(the_last_error_stays_when_a_call_succeeds) {
    ck_assert_int_eq(kvc_params_set_i64(params, "n_batch", 0), KVC_E_PARAM);
    ck_assert_int_eq(kvc_params_set_i64(params, "n_batch", 1), KVC_OK);
    ck_assert_ptr_nonnull(strstr(kvc_params_error(params), "n_batch"));
}
END_TEST

/* ---------------------------------------------------------------- what has no name */

static void *no_realloc(void *ctx, void *p, size_t old_size, size_t new_size, size_t align) {
    (void)ctx, (void)p, (void)old_size, (void)new_size, (void)align;
    return NULL;
}

START_TEST(an_allocator_is_copied_and_checked) {
    kvc_allocator a = {.struct_size = sizeof(a), .ctx = &a, .realloc = no_realloc};
    ck_assert_int_eq(kvc_params_set_allocator(params, &a), KVC_OK);
    ck_assert(params->allocator.realloc == no_realloc);
    ck_assert_ptr_eq(params->allocator.ctx, &a);
    /* The params themselves don't use it. */
    ck_assert_int_eq(kvc_params_add_policy_dir(params, "/somewhere"), KVC_OK);
    a.ctx = NULL;
    a.struct_size = 8;
    ck_assert_int_eq(kvc_params_set_allocator(params, &a), KVC_E_ARG);
    ck_assert_ptr_nonnull(strstr(kvc_params_error(params), "struct_size"));
    a.struct_size = sizeof(a);
    a.realloc = NULL;
    ck_assert_int_eq(kvc_params_set_allocator(params, &a), KVC_E_ARG);
    ck_assert_ptr_nonnull(strstr(kvc_params_error(params), "realloc"));
    ck_assert_int_eq(kvc_params_set_allocator(params, NULL), KVC_E_ARG);
    ck_assert(params->allocator.realloc == no_realloc);
    ck_assert_ptr_eq(params->allocator.ctx, &a);
}
END_TEST

static void log_line(void *user, uint32_t level, const char *text) {
    (void)user, (void)level, (void)text;
}

START_TEST(a_log_is_set_and_unset) {
    int user = 0;
    ck_assert_int_eq(kvc_params_set_log(params, log_line, &user), KVC_OK);
    ck_assert(params->log == log_line && params->log_user == &user);
    ck_assert_int_eq(kvc_params_set_log(params, NULL, NULL), KVC_OK);
    ck_assert(params->log == NULL && params->log_user == NULL);
}
END_TEST

static const kvc_policy *entry_a(uint32_t host_abi, uint32_t index) {
    (void)host_abi, (void)index;
    return NULL;
}

static const kvc_policy *entry_b(uint32_t host_abi, uint32_t index) {
    return entry_a(host_abi, index + 1);
}

START_TEST(the_search_has_directories_and_entries_in_order) {
    kvc__search search;
    char name[32];
    for (int i = 0; i < 20; i++) {
        snprintf(name, sizeof(name), "/dir/%d", i);
        ck_assert_int_eq(kvc_params_add_policy_dir(params, name), KVC_OK);
    }
    ck_assert_int_eq(kvc_params_add_policy(params, entry_a), KVC_OK);
    ck_assert_int_eq(kvc_params_add_policy(params, entry_b), KVC_OK);
    ck_assert_int_eq(kvc_params_set_i64(params, "policy_env", 0), KVC_OK);
    kvc__params_search(params, &search);
    ck_assert_uint_eq(search.n_dir, 20);
    for (int i = 0; i < 20; i++) {
        snprintf(name, sizeof(name), "/dir/%d", i);
        ck_assert_str_eq(search.dir[i], name);
    }
    ck_assert_uint_eq(search.n_entry, 2);
    ck_assert(search.entry[0] == entry_a && search.entry[1] == entry_b);
    ck_assert(!search.use_env && search.use_default);
    kvc__params_search(&kvc__params_default, &search);
    ck_assert(search.n_dir == 0 && search.n_entry == 0 && search.use_env && search.use_default);
}
END_TEST

START_TEST(null_arguments_are_answered) {
    ck_assert_int_eq(kvc_params_create(NULL), KVC_E_ARG);
    kvc_params_destroy(NULL);
    ck_assert_int_eq(kvc_params_set_i64(NULL, "seed", 1), KVC_E_ARG);
    ck_assert_int_eq(kvc_params_set_f64(NULL, "top_p", 1), KVC_E_ARG);
    ck_assert_int_eq(kvc_params_set_str(NULL, "seed", "1"), KVC_E_ARG);
    ck_assert_int_eq(kvc_params_set_allocator(NULL, NULL), KVC_E_ARG);
    ck_assert_int_eq(kvc_params_set_log(NULL, NULL, NULL), KVC_E_ARG);
    ck_assert_int_eq(kvc_params_add_policy_dir(NULL, "/"), KVC_E_ARG);
    ck_assert_int_eq(kvc_params_add_policy(NULL, entry_a), KVC_E_ARG);
    ck_assert_str_eq(kvc_params_error(NULL), "");
    ck_assert_int_eq(kvc_params_set_i64(params, NULL, 1), KVC_E_ARG);
    ck_assert_int_eq(kvc_params_set_f64(params, NULL, 1), KVC_E_ARG);
    ck_assert_int_eq(kvc_params_set_str(params, NULL, "1"), KVC_E_ARG);
    ck_assert_int_eq(kvc_params_set_str(params, "seed", NULL), KVC_E_ARG);
    ck_assert_ptr_nonnull(strstr(kvc_params_error(params), "\"seed\""));
    ck_assert_int_eq(kvc_params_add_policy_dir(params, NULL), KVC_E_ARG);
    ck_assert_int_eq(kvc_params_add_policy_dir(params, ""), KVC_E_ARG);
    ck_assert_int_eq(kvc_params_add_policy(params, NULL), KVC_E_ARG);
}
END_TEST

static Suite *params_suite(void) {
    Suite *s = suite_create("params");
    TCase *t = tcase_create("options");
    tcase_add_checked_fixture(t, make_params, free_params);
    tcase_add_test(t, defaults_are_those_of_the_manual);
    tcase_add_loop_test(t, integers_are_set_between_their_bounds, 0, N_INTEGER);
    tcase_add_loop_test(t, integers_out_of_range_are_refused_with_the_range, 0, N_INTEGER);
    tcase_add_loop_test(t, integers_refuse_fractions_and_text, 0, N_INTEGER);
    tcase_add_loop_test(t, fractions_are_set_between_their_bounds, 0, N_FRACTION);
    tcase_add_loop_test(t, fractions_out_of_range_are_refused_with_the_range, 0, N_FRACTION);
    tcase_add_test(t, compute_is_set_by_name);
    tcase_add_test(t, an_unknown_name_gets_the_nearest_and_all);
    tcase_add_test(t, the_last_error_stays_when_a_call_succeeds);
    suite_add_tcase(s, t);
    t = tcase_create("others");
    tcase_add_checked_fixture(t, make_params, free_params);
    tcase_add_test(t, an_allocator_is_copied_and_checked);
    tcase_add_test(t, a_log_is_set_and_unset);
    tcase_add_test(t, the_search_has_directories_and_entries_in_order);
    tcase_add_test(t, null_arguments_are_answered);
    suite_add_tcase(s, t);
    return s;
}

int main(void) {
    SRunner *runner = srunner_create(params_suite());
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}

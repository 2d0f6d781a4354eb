/* SPDX-License-Identifier: MIT
 * test_bench.c: the arithmetic of `kvcompare bench` and the texts around it: shares, slopes,
 * spread, payload, lists, values of --hot, and the columns of the table. Nothing is timed. */
#include "bench.h"
#include "probe.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NEAR(a, b) ck_assert_double_eq_tol(a, b, 1e-9)

/* ---------------------------------------------------------------- arithmetic */

START_TEST(share_is_work_per_second_over_the_limit) {
    NEAR(cmp_bench_share(100e6, 150, 30), 0.5);
    ck_assert(isnan(cmp_bench_share(100e6, 150, NAN)));
    ck_assert(isnan(cmp_bench_share(NAN, 150, 30)));
    ck_assert(isnan(cmp_bench_share(100e6, NAN, 30)));
    ck_assert(isnan(cmp_bench_share(100e6, 150, 0)));
}
END_TEST

START_TEST(weights_are_read_once_for_all_sessions) {
    NEAR(cmp_bench_read(80e6, 0, 1), 80e6);
    NEAR(cmp_bench_read(80e6, 20e6, 1), 100e6);
    NEAR(cmp_bench_read(80e6, 8 * 20e6, 8), 30e6);
}
END_TEST

START_TEST(payload_counts_open_rows_that_are_in_use) {
    kvc_session_stats s = {.struct_size = sizeof s, .open_bytes = 6400};
    NEAR(cmp_bench_payload(&s, 1), 0);
    s.n_past = 1;
    NEAR(cmp_bench_payload(&s, 1), 100);
    s.n_past = 64;
    NEAR(cmp_bench_payload(&s, 1), 6400);
    s.n_past = 65;
    s.sealed_bytes = 5000;
    NEAR(cmp_bench_payload(&s, 1), 5100);
    s.tier_bytes = 3000;
    NEAR(cmp_bench_payload(&s, 1), 8100);
    NEAR(cmp_bench_payload(&s, 0.25), 2100);
    NEAR(cmp_bench_payload(&s, 0), 100);
}
END_TEST

START_TEST(kept_is_what_select_left) {
    NEAR(cmp_bench_kept(0, 0), 1);
    NEAR(cmp_bench_kept(10, 30), 0.25);
    NEAR(cmp_bench_kept(0, 30), 0);
}
END_TEST

START_TEST(slope_is_per_thousand_tokens) {
    NEAR(cmp_bench_slope(9, 4096, 5, 96), 1);
    NEAR(cmp_bench_slope(4, 1512, 5, 512), -1);
    ck_assert(isnan(cmp_bench_slope(9, 512, 5, 512)));
}
END_TEST

/* Two policies, two depths, both tests, one and two sessions; rates that differ by round. */
static cmp_bench_options options;
static cmp_bench_row rows[16];
static double rates[16 * 3];
static cmp_bench run;

static void setup(void) {
    static char full[] = "full", window[] = "window:size=512:sinks=4:positions=original";
    options = (cmp_bench_options){.model = "m.gguf",
                                  .n_step = 32,
                                  .n_prompt = 512,
                                  .rounds = 3,
                                  .n_spec = 2,
                                  .n_depth = 2,
                                  .n_count = 2,
                                  .spec = {full, window},
                                  .depth = {0, 4000},
                                  .count = {1, 2}};
    run = (cmp_bench){.o = &options,
                      .info = {.arch = "llama", .name = "", .weights = "Q4_1", .n_threads = 2},
                      .limits = {30, 400, "avx2"},
                      .row = rows};
    ck_assert_uint_eq(cmp_bench_count_rows(&options), 12);
    cmp_bench_rows(&run, rates);
    ck_assert_uint_eq(run.n_row, 12);
}

static void measured(cmp_bench_row *r, double a, double b, double c, double work) {
    r->rate[0] = a;
    r->rate[1] = b;
    r->rate[2] = c;
    r->n_rate = 3;
    r->work = work;
}

START_TEST(rows_come_by_policy_test_sessions_and_depth) {
    setup();
    ck_assert(rows[0].test == CMP_BENCH_PP && rows[0].depth == 0 && rows[0].n == 512);
    ck_assert(rows[1].test == CMP_BENCH_PP && rows[1].depth == 4000);
    ck_assert(rows[2].test == CMP_BENCH_TG && rows[2].sessions == 1 && rows[2].n == 32);
    ck_assert(rows[5].test == CMP_BENCH_TG && rows[5].sessions == 2 && rows[5].depth == 4000);
    ck_assert_str_eq(rows[6].spec, options.spec[1]);
    ck_assert_ptr_eq(rows[11].rate, rates + 33);
}
END_TEST

START_TEST(figures_follow_from_the_rates) {
    setup();
    measured(&rows[1], 300, 100, 200, 1e9);
    measured(&rows[2], 100, 90, 200, 150e6);
    measured(&rows[3], 50, 40, 60, 150e6);
    measured(&rows[5], 50, 40, 60, NAN);
    cmp_bench_finish(rows, run.n_row, &run.limits);
    ck_assert(isnan(rows[0].median) && isnan(rows[0].min) && isnan(rows[0].share));
    NEAR(rows[1].median, 200);
    NEAR(rows[1].min, 100);
    NEAR(rows[1].max, 300);
    NEAR(rows[1].share, 0.5); /* of int8 */
    NEAR(rows[2].median, 100);
    NEAR(rows[2].share, 0.5); /* of reading */
    NEAR(rows[2].ms, 10);
    ck_assert(isnan(rows[2].slope));
    NEAR(rows[3].slope, 2.5);
    /* Another number of sessions is another line; its first depth wasn't measured. */
    ck_assert(isnan(rows[5].slope) && isnan(rows[5].share));
}
END_TEST

/* ---------------------------------------------------------------- texts */

START_TEST(lists_are_sorted_and_each_number_counts_once) {
    uint32_t x[CMP_BENCH_MAX_LIST];
    ck_assert_uint_eq(cmp_bench_parse_list("512,0,512,4096", 0, 9999, x), 3);
    ck_assert(x[0] == 0 && x[1] == 512 && x[2] == 4096);
    ck_assert_uint_eq(cmp_bench_parse_list("7", 1, 64, x), 1);
    static const char *const bad[] = {"",   ",",  "1,",  ",1",   "1,,2", "x",
                                      "1x", "-1", "0,1", "1,65", "1 ,2", "99999999999999999999"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        ck_assert_msg(cmp_bench_parse_list(bad[i], 1, 64, x) == 0, "'%s' is taken", bad[i]);
    }
    char many[3 * CMP_BENCH_MAX_LIST + 4] = "1";
    for (size_t i = 0; i < CMP_BENCH_MAX_LIST; i++) {
        strcat(many, ",1");
    }
    ck_assert_uint_eq(cmp_bench_parse_list(many, 1, 64, x), 0);
    many[2 * CMP_BENCH_MAX_LIST - 1] = '\0';
    ck_assert_uint_eq(cmp_bench_parse_list(many, 1, 64, x), 1);
}
END_TEST

static int takes(const void *user, const char *name, size_t n) {
    (void)user;
    return n == 4 && memcmp(name, "tier", 4) == 0;
}

START_TEST(hot_goes_to_the_stage_that_takes_it) {
    static const char *const cases[][2] = {
        {"tier", "tier:hot=8M"},
        {"tier:level=3", "tier:level=3:hot=8M"},
        {"window+tier+quant8", "window+tier:hot=8M+quant8"},
        {"tier:hot=1M", NULL},
        {"tier+x:hot=1M", "tier:hot=8M+x:hot=1M"},
        {"tiers", NULL},
        {"./tier", NULL},
        {"full", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *got = cmp_bench_with_hot(cases[i][0], "8M,16M", 2, takes, NULL);
        if (cases[i][1] == NULL) {
            ck_assert_ptr_null(got);
        } else {
            ck_assert_ptr_nonnull(got);
            ck_assert_str_eq(got, cases[i][1]);
        }
        free(got);
    }
}
END_TEST

static char *table(void) {
    static const cmp_machine machine = {.cpu = "processor", .n_core = 2};
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    ck_assert_ptr_nonnull(f);
    cmp_bench_table(f, &run, &machine, 80, 0);
    ck_assert_int_eq(fclose(f), 0);
    return text;
}

START_TEST(table_keeps_to_its_width) {
    setup();
    for (uint32_t i = 0; i < run.n_row; i++) {
        measured(&rows[i], 123456, 1234567, 99999, 1e5);
        rows[i].wait = i % 2 ? 0.5 : NAN;
    }
    rows[3].notes = CMP_BENCH_TRANSIENT | CMP_BENCH_CHUNKED | CMP_BENCH_NO_ROOM;
    cmp_bench_finish(rows, run.n_row, &run.limits);
    char *text = table();
    for (const char *p = text; *p != '\0'; p += strcspn(p, "\n") + 1) {
        ck_assert_msg(strcspn(p, "\n") <= 80, "%.*s", (int)strcspn(p, "\n"), p);
    }
    ck_assert_ptr_nonnull(strstr(text, "read 30.00 GB/s, int8 400.0 G multiply-adds/s"));
    ck_assert_ptr_nonnull(strstr(text, " wait"));
    ck_assert_ptr_nonnull(strstr(text, "don't fit into memory"));
    free(text);
}
END_TEST

START_TEST(columns_that_say_nothing_are_left_out) {
    setup();
    options.n_count = 1;
    cmp_bench_rows(&run, rates);
    cmp_bench_finish(rows, run.n_row, &run.limits);
    char *text = table();
    ck_assert_ptr_null(strstr(text, "wait"));
    ck_assert_ptr_null(strstr(text, "sess"));
    ck_assert_ptr_nonnull(strstr(text, "share"));
    free(text);
}
END_TEST

/* ---------------------------------------------------------------- the probe */

START_TEST(a_probe_only_raises_limits) {
    cmp_probe *p = cmp_probe_open(2, (size_t)16 << 20);
    cmp_limits l;
    ck_assert_ptr_nonnull(p);
    cmp_limits_init(&l);
    ck_assert(isnan(l.read_gb_s) && isnan(l.int8_gmac_s));
    cmp_probe_read(p, &l);
    ck_assert(l.read_gb_s > 0 && isnan(l.int8_gmac_s));
    ck_assert_int_eq(cmp_probe_run(p, &l), 0);
    ck_assert(l.read_gb_s > 0 && l.int8_gmac_s > 0 && l.instructions[0] != '\0');
    l.read_gb_s = 1e6;
    l.int8_gmac_s = 1e9;
    ck_assert_int_eq(cmp_probe_run(p, &l), 0);
    cmp_probe_read(p, &l);
    NEAR(l.read_gb_s, 1e6);
    NEAR(l.int8_gmac_s, 1e9);
    cmp_probe_close(p);
    cmp_probe_close(NULL);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("bench");
    TCase *tc = tcase_create("bench");
    tcase_add_test(tc, share_is_work_per_second_over_the_limit);
    tcase_add_test(tc, weights_are_read_once_for_all_sessions);
    tcase_add_test(tc, payload_counts_open_rows_that_are_in_use);
    tcase_add_test(tc, kept_is_what_select_left);
    tcase_add_test(tc, slope_is_per_thousand_tokens);
    tcase_add_test(tc, rows_come_by_policy_test_sessions_and_depth);
    tcase_add_test(tc, figures_follow_from_the_rates);
    tcase_add_test(tc, lists_are_sorted_and_each_number_counts_once);
    tcase_add_test(tc, hot_goes_to_the_stage_that_takes_it);
    tcase_add_test(tc, table_keeps_to_its_width);
    tcase_add_test(tc, columns_that_say_nothing_are_left_out);
    tcase_add_test(tc, a_probe_only_raises_limits);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}

/* SPDX-License-Identifier: MIT
 * test_budget.c: budgets: as text, encoded, in entries per lane, and in the plan of a stage: what
 * it is told and what is refused. */
#include "budget.h"
#include "session_util.h"
#include "spec.h"

/* ---------------------------------------------------------------- text */

static const struct {
    const char *text;
    uint32_t unit;
    int64_t amount;
    const char *canonical;
} good[] = {
    {"1", KVC_BUDGET_TOKENS, 1, "1"},
    {"512", KVC_BUDGET_TOKENS, 512, "512"},
    {"2K", KVC_BUDGET_TOKENS, 2048, "2048"},
    {"2147483647", KVC_BUDGET_TOKENS, INT32_MAX, "2147483647"},
    {"25%", KVC_BUDGET_SHARE, 250000, "25%"},
    {"12.5%", KVC_BUDGET_SHARE, 125000, "12.5%"},
    {"0.0001%", KVC_BUDGET_SHARE, 1, "0.0001%"},
    {"33.3300%", KVC_BUDGET_SHARE, 333300, "33.33%"},
    {"7.05%", KVC_BUDGET_SHARE, 70500, "7.05%"},
    {"100%", KVC_BUDGET_SHARE, KVC_BUDGET_WHOLE, "100%"},
    {"8MiB", KVC_BUDGET_BYTES, 8 << 20, "8MiB"},
    {"1B", KVC_BUDGET_BYTES, 1, "1B"},
    {"1536KiB", KVC_BUDGET_BYTES, 1536 << 10, "1536KiB"},
    {"1048577B", KVC_BUDGET_BYTES, (1 << 20) + 1, "1048577B"},
    {"4096GiB", KVC_BUDGET_BYTES, INT64_C(1) << 42, "4096GiB"},
    {"1152921504606846975B", KVC_BUDGET_BYTES, (INT64_C(1) << 60) - 1, "1152921504606846975B"},
};

START_TEST(texts_are_read_and_written) {
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        int64_t v = 0, again = 0;
        char text[KVC__BUDGET_TEXT];
        ck_assert_msg(kvc__budget_read(good[i].text, &v), "%s", good[i].text);
        ck_assert(kvc__budget_valid(v));
        ck_assert_uint_eq(kvc_budget_unit(v), good[i].unit);
        ck_assert_int_eq(kvc_budget_amount(v), good[i].amount);
        ck_assert_int_eq(v, KVC_BUDGET(good[i].unit, good[i].amount));
        kvc__budget_text(v, text);
        ck_assert_str_eq(text, good[i].canonical);
        ck_assert(kvc__budget_read(text, &again));
        ck_assert_int_eq(v, again);
    }
    ck_assert_int_eq(KVC_BUDGET_PERCENT(25), KVC_BUDGET(KVC_BUDGET_SHARE, 250000));
}
END_TEST

static const char *const bad[] = {"",          "0",
                                  "-1",        "x",
                                  "1.5",       "2147483648",
                                  "4G",        "0%",
                                  "0.0000%",   "-1%",
                                  "%",         ".5%",
                                  "5.%",       "1.23456%",
                                  "100.0001%", "101%",
                                  "1K%",       "25 %",
                                  "25%%",      "0x10%",
                                  "1e1%",      "99999999999999999999%",
                                  "0B",        "B",
                                  "-8MiB",     "8Mi",
                                  "8iB",       "8.5MiB",
                                  "8MiBB",     "1152921504606846976B",
                                  "8TB",       "1G%",
                                  "12.5",      "9999999999999999999999B",
                                  "8MB",       "64KB",
                                  "1GB",       "64kib",
                                  "64KIB",     "64KiBiB",
                                  "64BiB",     "2k",
                                  "1.5MiB"};

START_TEST(what_is_no_budget_is_refused) {
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int64_t v = 0;
        ck_assert_msg(!kvc__budget_read(bad[i], &v), "%s", bad[i]);
    }
    static const int64_t wrong[] = {0,
                                    5,
                                    -1,
                                    INT64_MIN,
                                    INT64_MAX,
                                    KVC_BUDGET(KVC_BUDGET_TOKENS, 0),
                                    KVC_BUDGET(KVC_BUDGET_TOKENS, INT64_C(1) << 31),
                                    KVC_BUDGET(KVC_BUDGET_SHARE, KVC_BUDGET_WHOLE + 1),
                                    KVC_BUDGET(KVC_BUDGET_BYTES, 0),
                                    KVC_BUDGET(4, 1)};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        ck_assert_msg(!kvc__budget_valid(wrong[i]), "%zu", i);
    }
}
END_TEST

static const kvc_param row = {.struct_size = sizeof row,
                              .type = KVC_PARAM_BUDGET,
                              .name = "budget",
                              .help = "h",
                              .def = {.i = KVC_BUDGET_PERCENT(25)}};

START_TEST(a_wrong_budget_says_what_is_allowed) {
    const kvc_policy p = {.name = "probe", .n_param = 1, .param_stride = sizeof row, .param = &row};
    char *key = (char *)(uintptr_t) "budget", *given = (char *)(uintptr_t) "101%";
    kvc__spec_stage stage = {.n_pair = 1, .key = &key, .value = &given};
    static const char *const hint[][2] = {
        {"8MB", "; write 8MiB, in powers of 1024"},
        {"64kib", "; write 64KiB, in powers of 1024"},
        {"64KIB", "; write 64KiB, in powers of 1024"},
        {"1.5MiB", "; it is a whole number, so take a smaller unit"},
        {"2k", "; did you mean 2K?"},
        {"0MiB", NULL},
        {"12.5", NULL},
        {"MB", NULL},
    };
    kvc__err err;
    kvc_value v;
    ck_assert_int_eq(kvc__spec_values(&stage, &p, &v, &err), KVC_E_PARAM);
    ck_assert_str_eq(err.text,
                     "policy probe: budget=101% is not allowed; give tokens per lane (512, "
                     "2K; at most 2147483647), a share of n_ctx (25%, 12.5%; at most "
                     "100%), or whole bytes in B, KiB, MiB or GiB (8MiB)");
    for (size_t i = 0; i < sizeof hint / sizeof *hint; i++) {
        given = (char *)(uintptr_t)hint[i][0];
        ck_assert_int_eq(kvc__spec_values(&stage, &p, &v, &err), KVC_E_PARAM);
        has(err.text, hint[i][1] != NULL ? hint[i][1] : "GiB (8MiB)");
    }
}
END_TEST

/* ---------------------------------------------------------------- entries */

START_TEST(entries_are_exact) {
    ck_assert_uint_eq(kvc__budget_entries(KVC_BUDGET(KVC_BUDGET_TOKENS, 77), 10, 3), 77);
    ck_assert_uint_eq(kvc__budget_entries(KVC_BUDGET(KVC_BUDGET_SHARE, 125000), 1024, 3), 128);
    ck_assert_uint_eq(kvc__budget_entries(KVC_BUDGET(KVC_BUDGET_SHARE, 125000), 1023, 3), 127);
    ck_assert_uint_eq(
        kvc__budget_entries(KVC_BUDGET(KVC_BUDGET_SHARE, KVC_BUDGET_WHOLE), UINT32_MAX, 3),
        UINT32_MAX);
    ck_assert_uint_eq(kvc__budget_entries(KVC_BUDGET(KVC_BUDGET_BYTES, 1000), 10, 333), 3);
    ck_assert_uint_eq(kvc__budget_entries(KVC_BUDGET(KVC_BUDGET_BYTES, 998), 10, 333), 2);
}
END_TEST

START_TEST(the_least_is_the_least) {
    static const uint32_t entries[] = {1, 2, 63, 64, 100, 1000, 4096};
    static const uint32_t n_ctx[] = {64, 100, 1024, 131072, UINT32_MAX};
    static const uint64_t bytes[] = {1, 272, 23040, UINT64_C(1) << 40};
    for (size_t i = 0; i < 7 * 5 * 4 * 3; i++) {
        const uint32_t unit = 1 + (uint32_t)(i % 3), e = entries[i / 3 % 7], c = n_ctx[i / 21 % 5];
        const uint64_t b = bytes[i / 105];
        const int64_t least = kvc__budget_least(unit, e, c, b);
        if (least == 0) {
            ck_assert_uint_eq(unit, KVC_BUDGET_SHARE);
            ck_assert_uint_lt(c, e);
            continue;
        }
        ck_assert(kvc__budget_valid(least));
        ck_assert_uint_eq(kvc_budget_unit(least), unit);
        ck_assert_uint_ge(kvc__budget_entries(least, c, b), e);
        ck_assert(!kvc__budget_valid(least - 1) || kvc__budget_entries(least - 1, c, b) < e);
    }
    ck_assert_int_eq(kvc__budget_least(KVC_BUDGET_BYTES, UINT32_MAX, 64, UINT64_C(1) << 40), 0);
}
END_TEST

/* ---------------------------------------------------------------- in a plan */

static struct {
    uint32_t flags;
    int64_t budget; /* what the plan gets instead of the parameter; 0: that */
    uint32_t early, told, n_told;
} seen;

static const kvc_host_store *store_of(const kvc_host *host) {
    return host->extension(host->ctx, KVC_HOST_STORE);
}

static int32_t saver_create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                            kvc_plan *plan, void **self) {
    (void)shape;
    *self = (void *)(uintptr_t)host;
    plan->answers = KVC_ANSWERS_WHICH;
    plan->flags = seen.flags;
    plan->budget = seen.budget != 0 ? seen.budget : value[0].i;
    plan->budget_least = 70;
    seen.early = store_of(host)->budget(host->ctx);
    return KVC_OK;
}

static int32_t saver_page_end(void *self, const kvc_step *step, uint32_t layer) {
    const kvc_host *host = self;
    (void)step, (void)layer;
    seen.told = store_of(host)->budget(host->ctx);
    seen.n_told++;
    return KVC_OK;
}

static const kvc_policy_api saver_api = {
    .struct_size = sizeof saver_api, .create = saver_create, .page_end = saver_page_end};

static const kvc_policy *saver_entry(uint32_t host_abi, uint32_t index) {
    static const kvc_policy policy = {.struct_size = sizeof(kvc_policy),
                                      .abi = KVC_POLICY_ABI,
                                      .abi_min = KVC_POLICY_ABI_MIN,
                                      .n_param = 1,
                                      .param_stride = sizeof row,
                                      .name = "saver",
                                      .version = "1.0.0",
                                      .summary = "test: has a budget",
                                      .license = "MIT",
                                      .param = &row,
                                      .api = &saver_api};
    (void)host_abi;
    return index == 0 ? &policy : NULL;
}

/* A session of that spec, or NULL and the sentence. */
static kvc_session *open_saver(const char *spec, int n_ctx, int32_t want, kvc_params *p) {
    kvc_session *s = NULL;
    ck_assert_int_eq(kvc_params_set_i64(p, "n_ctx", n_ctx), KVC_OK);
    const int32_t rc = kvc_session_open(model, spec, p, &s);
    ck_assert_msg(rc == want, "%s: %s", spec, kvc_params_error(p));
    return s;
}

static kvc_params *saver_params(void) {
    kvc_params *p = params_for(N_CTX, NULL);
    ck_assert_int_eq(kvc_params_add_policy(p, saver_entry), KVC_OK);
    seen.flags = KVC_PLAN_EVICTS;
    return p;
}

/* tiny-f16: 4 lanes of 32 + 32 elements, so 512 bytes for an entry of every lane in f16, 272 in
 * int8. */
static const struct {
    const char *spec;
    int n_ctx;
    uint32_t entries;
    const char *canonical;
} plans[] = {
    {"saver:budget=512", 1024, 512, "saver:budget=512"},
    {"saver:budget=70", 1024, 70, "saver:budget=70"},
    {"saver:budget=2K", 1024, 2048, "saver:budget=2048"},
    {"saver", 1024, 256, "saver:budget=25%"},
    {"saver:budget=12.50%", 1024, 128, "saver:budget=12.5%"},
    {"saver:budget=100%", 1000, 1000, "saver:budget=100%"},
    {"saver:budget=64KiB", 1024, 128, "saver:budget=64KiB"},
    {"saver:budget=65535B", 1024, 127, "saver:budget=65535B"},
    {"saver:budget=64KiB+quant8", 1024, 240, "saver:budget=64KiB+quant8:hadamard=on"},
    {"full:type=f32+saver:budget=128KiB", 1024, 128, "full:type=f32+saver:budget=128KiB"},
    {"saver:budget=4096GiB", 1024, UINT32_MAX, "saver:budget=4096GiB"},
};

START_TEST(a_stage_is_told_its_entries) {
    kvc_params *p = saver_params();
    kvc_session *s = open_saver(plans[_i].spec, plans[_i].n_ctx, KVC_OK, p), *f = NULL;
    ck_assert_str_eq(kvc_session_spec(s), plans[_i].canonical);
    ck_assert_int_eq(kvc_session_decode(s, tokens, 64), KVC_OK);
    ck_assert_uint_gt(seen.n_told, 0);
    ck_assert_uint_eq(seen.early, 0);
    ck_assert_uint_eq(seen.told, plans[_i].entries);
    ck_assert_msg(kvc_session_fork(s, &f) == KVC_OK, "%s", kvc_session_error(s));
    seen.told = 0;
    ck_assert_int_eq(kvc_session_decode(f, tokens + 64, 64), KVC_OK);
    ck_assert_uint_eq(seen.told, plans[_i].entries);
    ck_assert_str_eq(kvc_session_spec(f), plans[_i].canonical);
    kvc_session_close(f);
    kvc_session_close(s);
    kvc_params_destroy(p);
}
END_TEST

static const struct {
    const char *spec;
    int n_ctx;
    const char *sentence;
} too_small[] = {
    {"saver:budget=69", 1024,
     "policy 'saver': a budget of 69 is 69 tokens per lane, and it needs 70 at least; give 70 or "
     "more"},
    {"saver:budget=6.8359%", 1024,
     "policy 'saver': a budget of 6.8359% is 69 tokens per lane, and it needs 70 at least; give "
     "6.836% or more"},
    {"saver:budget=35KiB+full:type=f32", 1024,
     "policy 'saver': a budget of 35KiB is 35 tokens per lane, and it needs 70 at least; give "
     "70KiB "
     "or more"},
    {"saver:budget=1", 1024,
     "policy 'saver': a budget of 1 is 1 token per lane, and it needs 70 at least; give 70 or "
     "more"},
    {"saver:budget=1B", 1024,
     "policy 'saver': a budget of 1B is 0 tokens per lane, and it needs 70 at least; give 35KiB or "
     "more"},
    {"saver:budget=100%", 69,
     "policy 'saver': no budget of this kind is enough: 100% is 69 tokens per lane, and it needs "
     "70 "
     "at least; raise n_ctx"},
};

START_TEST(a_budget_below_the_least_is_refused) {
    kvc_params *p = saver_params();
    kvc_session *s = open_saver(too_small[_i].spec, too_small[_i].n_ctx, KVC_E_PARAM, p);
    ck_assert_ptr_null(s);
    ck_assert_str_eq(kvc_params_error(p), too_small[_i].sentence);
    kvc_params_destroy(p);
}
END_TEST

START_TEST(a_plan_with_a_wrong_budget_is_refused) {
    kvc_params *p = saver_params();
    seen.flags = 0;
    ck_assert_ptr_null(open_saver("saver", N_CTX, KVC_E_POLICY, p));
    has(kvc_params_error(p), "policy 'saver': its plan has a budget");
    seen.flags = KVC_PLAN_EVICTS;
    seen.budget = 256;
    ck_assert_ptr_null(open_saver("saver", N_CTX, KVC_E_POLICY, p));
    has(kvc_params_error(p), "policy 'saver': its plan has a budget");
    kvc_params_destroy(p);
}
END_TEST

static void setup_saver(void) {
    setup();
    memset(&seen, 0, sizeof seen);
}

int main(void) {
    Suite *suite = suite_create("budget");
    TCase *tc = tcase_create("text");
    tcase_add_test(tc, texts_are_read_and_written);
    tcase_add_test(tc, what_is_no_budget_is_refused);
    tcase_add_test(tc, a_wrong_budget_says_what_is_allowed);
    tcase_add_test(tc, entries_are_exact);
    tcase_add_test(tc, the_least_is_the_least);
    suite_add_tcase(suite, tc);
    tc = tcase_create("plan");
    tcase_add_checked_fixture(tc, setup_saver, teardown);
    tcase_add_loop_test(tc, a_stage_is_told_its_entries, 0, (int)(sizeof plans / sizeof *plans));
    tcase_add_loop_test(tc, a_budget_below_the_least_is_refused, 0,
                        (int)(sizeof too_small / sizeof *too_small));
    tcase_add_test(tc, a_plan_with_a_wrong_budget_is_refused);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}

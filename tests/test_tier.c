/* SPDX-License-Identifier: MIT
 * test_tier.c: sessions whose pages live in a tier: what memory they take, what a failing or
 * forgetful tier does to them, and that nobody can tell it from the logits. */
#include "engine_util.h"
#include "every.h"

#include <pthread.h>
#include <stdbool.h>
#include <unistd.h>

#define N      1000u /* more ranges over all layers than a ring holds */
#define WANTED 985u
#define ROWS   (N - WANTED)
#define N_CTX  1024

enum { N_TIER = 2 };

/* Pages that come back as they are, and records that are unpacked. */
static const char *const tiers[N_TIER] = {"t_tier", "t_tier:unpack=on"};

static kvc_model *model;
static uint32_t n_vocab;
static int32_t token[N];
static float *base, *got;

static void setup(void) {
    model = util_model("tiny-q8_0.gguf", 2, 0);
    n_vocab = util_vocab(model);
    util_tokens(token, N, n_vocab, 5);
    base = calloc(ROWS * n_vocab, sizeof *base);
    got = calloc(ROWS * n_vocab, sizeof *got);
}

static void teardown(void) {
    kvc_model_close(model);
    free(base);
    free(got);
}

static kvc_session_stats stats_of(const kvc_session *s) {
    kvc_session_stats st = {.struct_size = sizeof st};
    ck_assert_int_eq(kvc_session_get_stats(s, &st), KVC_OK);
    return st;
}

static kvc_stage_stats last_stage(const kvc_session *s) {
    kvc_stage_stats st = {.struct_size = sizeof st};
    ck_assert_int_eq(kvc_session_get_stage(s, stats_of(s).n_stage - 1, &st), KVC_OK);
    return st;
}

/* Logits that the stack gives without its tier. */
static void feed_base(const char *spec) {
    kvc_session *s = util_session(model, spec, "f32", N_CTX);
    util_feed(s, token, N, WANTED, N, n_vocab, base);
    kvc_session_close(s);
}

START_TEST(pages_leave_memory) {
    kvc_session *plain = util_session(model, "", "f32", N_CTX),
                *s = util_session(model, "t_tier", "f32", N_CTX);
    const uint64_t least = stats_of(s).kv_bytes;
    util_feed(plain, token, N, N, N, n_vocab, got);
    util_feed(s, token, N, N, N, n_vocab, got);
    const kvc_session_stats a = stats_of(plain), b = stats_of(s);
    ck_assert_uint_gt(a.sealed_bytes, 0);
    ck_assert_uint_eq(a.tier_bytes, 0);
    ck_assert_uint_eq(b.sealed_bytes, 0);
    ck_assert_uint_eq(b.tier_bytes, a.sealed_bytes);
    ck_assert_uint_eq(b.disk_bytes, a.sealed_bytes);
    ck_assert_uint_eq(last_stage(s).n_put, last_stage(s).stored_bytes);
    ck_assert_uint_gt(b.buffer_bytes, 0);
    ck_assert_uint_lt(b.kv_peak_bytes, least + 4096); /* page tables grow */
    ck_assert_uint_eq(b.kv_bytes, b.open_bytes + b.meta_bytes + b.column_bytes + b.buffer_bytes +
                                      b.stage_bytes);
    ck_assert_int_eq(kvc_session_truncate(s, 0), KVC_OK);
    ck_assert_uint_eq(stats_of(s).tier_bytes, 0);
    ck_assert_uint_eq(last_stage(s).stored_bytes, 0);
    kvc_session_close(s);
    kvc_session_close(plain);
}
END_TEST

/* The bytes that a refusal says are needed by a tier behind other stages. */
static uint64_t least_of(const char *stages, const char *tier) {
    char spec[128];
    kvc_params *p = util_params();
    kvc_session *s = NULL;
    unsigned long long had = 0, need = 0;
    ck_assert_int_eq(kvc_params_set_i64(p, "n_ctx", N_CTX), KVC_OK);
    snprintf(spec, sizeof spec, "%s%s:hot=1000", stages, tier);
    ck_assert_int_eq(kvc_session_open(model, spec, p, &s), KVC_E_PARAM);
    ck_assert_ptr_null(s);
    ck_assert_int_eq(sscanf(kvc_params_error(p),
                            "policy '%*[^']' may hold %llu bytes in memory, but this model, spec "
                            "and n_ctx need %llu",
                            &had, &need),
                     2);
    ck_assert_uint_eq(had, 1000);
    kvc_params_destroy(p);
    return need;
}

START_TEST(the_limit_is_kept) {
    static const char *const stages[] = {"", "quant8+", "t_mass:budget=100+", "snapkv:budget=100+"};
    static const char *const bare[] = {"", "quant8", "t_mass:budget=100", "snapkv:budget=100"};
    const char *stage = stages[_i % 4], *tier = tiers[_i / 4];
    const uint64_t least = least_of(stage, tier);
    feed_base(bare[_i % 4]);
    uint64_t before = UINT64_MAX;
    for (uint64_t more = 0; more <= 1000000; more += 200000) {
        char spec[128];
        snprintf(spec, sizeof spec, "%s%s:hot=%llu", stage, tier,
                 (unsigned long long)(least + more));
        kvc_session *s = util_session(model, spec, "f32", N_CTX);
        util_feed(s, token, N, WANTED, N, n_vocab, got);
        util_same(base, got, ROWS, n_vocab, spec);
        const kvc_session_stats st = stats_of(s);
        ck_assert_uint_le(st.kv_peak_bytes, least + more);
        ck_assert_uint_le(st.tier_bytes, before);
        before = st.tier_bytes;
        kvc_session_close(s);
    }
    ck_assert_uint_eq(before, 0); /* with that much nothing had to leave */
    /* One byte less than the least is refused. */
    kvc_params *p = util_params();
    kvc_session *s = NULL;
    char spec[128];
    ck_assert_int_eq(kvc_params_set_i64(p, "n_ctx", N_CTX), KVC_OK);
    snprintf(spec, sizeof spec, "%s%s:hot=%llu", stage, tier, (unsigned long long)least - 1);
    ck_assert_int_eq(kvc_session_open(model, spec, p, &s), KVC_E_PARAM);
    kvc_params_destroy(p);
}
END_TEST

/* On a disk too, at the least memory: decoding takes none, a fork is allowed and stays within the
 * limit as long as it shares what it has. */
START_TEST(the_limit_is_kept_on_a_disk) {
    static const char *const stages[] = {"", "quant8+", "t_mass:budget=100+"};
    const uint64_t least = least_of(stages[_i], "offload:dir=/tmp");
    char spec[128];
    feed_base(_i == 0 ? "" : _i == 1 ? "quant8" : "t_mass:budget=100");
    snprintf(spec, sizeof spec, "%soffload:dir=/tmp:hot=%llu", stages[_i],
             (unsigned long long)least);
    kvc_session *s = util_session(model, spec, "f32", N_CTX), *f = NULL;
    const uint64_t taken = last_stage(s).memory_bytes;
    util_feed(s, token, N, WANTED, N, n_vocab, got);
    util_same(base, got, ROWS, n_vocab, spec);
    ck_assert_uint_gt(stats_of(s).tier_bytes, 0);
    ck_assert_uint_eq(last_stage(s).memory_bytes, taken);
    ck_assert_uint_le(stats_of(s).kv_peak_bytes, least);
    ck_assert_msg(kvc_session_fork(s, &f) == KVC_OK, "%s", kvc_session_error(s));
    ck_assert_uint_le(stats_of(f).kv_peak_bytes, least);
    kvc_session_close(s);
    kvc_session_close(f);
}
END_TEST

/* ---------------------------------------------------------------- a tier that fails */

/* To the next call that is to fail; under a sanitizer fewer do. */
static uint32_t step_from(uint32_t nth) {
    return every() > 1 ? nth : nth < 12 ? 1 : 1 + nth / 4;
}

enum { N_FAILING = 5 };

static const char *const failing[N_FAILING] = {"", "quant8+", "window:size=100:sinks=4+",
                                               "t_mass:budget=100+quant8+",
                                               "snapkv:budget=100+quant8+"};

/* Feeds token by token behind a prompt until a call fails; answers its status, KVC_OK when none
 * does. *at: tokens that the session had then. */
static int32_t feed_until(kvc_session *s, uint32_t *at, uint32_t *row) {
    for (;;) {
        *at = kvc_session_n_past(s);
        if (*at == N) {
            return KVC_OK;
        }
        const bool prompt = *at < WANTED;
        const int32_t rc = prompt ? kvc_session_prefill(s, token + *at, WANTED - *at)
                                  : kvc_session_decode(s, token + *at, 1);
        if (rc != KVC_OK) {
            return rc;
        }
        if (!prompt) {
            memcpy(got + (size_t)(*row)++ * n_vocab, kvc_session_logits(s, 0),
                   n_vocab * sizeof *got);
        }
    }
}

/* Each call of the tier fails once; the step is undone, the session goes on, the logits are those
 * of a tier that never fails. */
START_TEST(a_failing_call_is_undone) {
    const char *stages = failing[_i / 2 % N_FAILING], *tier = tiers[_i / 2 / N_FAILING];
    const char *what = _i % 2 == 0 ? "fail_put" : "fail_get";
    char spec[128];
    snprintf(spec, sizeof spec, "%s%s", stages, tier);
    feed_base(spec);
    uint32_t n = 0;
    /* What was read ahead in vain may fail without harm, so not every call counts. */
    for (uint32_t nth = 1; nth < 200; nth += step_from(nth)) {
        uint32_t at, row = 0;
        snprintf(spec, sizeof spec, "%s%s:%s=%u", stages, tier, what, nth);
        kvc_session *s = util_session(model, spec, "f32", N_CTX);
        int32_t rc = feed_until(s, &at, &row);
        if (rc != KVC_OK) {
            n++;
            ck_assert_int_eq(rc, KVC_E_IO);
            ck_assert_ptr_nonnull(strstr(kvc_session_error(s), "was told to fail"));
            ck_assert_ptr_nonnull(strstr(kvc_session_error(s), "t_tier"));
            ck_assert_uint_eq(kvc_session_n_past(s), at);
            ck_assert_ptr_null(kvc_session_logits(s, 0));
            rc = feed_until(s, &at, &row);
            ck_assert_msg(rc == KVC_OK, "%s: %s", spec, kvc_session_error(s));
        }
        ck_assert_uint_eq(row, ROWS);
        util_same(base, got, ROWS, n_vocab, spec);
        kvc_session_close(s);
    }
    ck_assert_uint_gt(n, 0);
}
END_TEST

START_TEST(lost_pages_are_computed_again) {
    char spec[128];
    const char *stages = failing[_i % N_FAILING], *tier = tiers[_i / N_FAILING];
    snprintf(spec, sizeof spec, "%s%s", stages, tier);
    feed_base(spec);
    uint32_t n = 0;
    for (uint32_t nth = 1; nth < 200; nth += step_from(nth)) {
        uint32_t at, row = 0;
        snprintf(spec, sizeof spec, "%s%s:lose=%u", stages, tier, nth);
        kvc_session *s = util_session(model, spec, "f32", N_CTX);
        const int32_t rc = feed_until(s, &at, &row);
        ck_assert_msg(rc == KVC_OK, "%s: %s", spec, kvc_session_error(s));
        util_same(base, got, ROWS, n_vocab, spec);
        const kvc_session_stats st = stats_of(s);
        n += st.n_lost > 0;
        ck_assert_uint_le(st.n_lost, 1);
        ck_assert_uint_eq(st.n_computed, N + st.n_replayed);
        kvc_session_close(s);
    }
    ck_assert_uint_gt(n, 0);
}
END_TEST

/* Pages that are lost again and again: the call fails, the session lives, and when the tier has
 * come to its senses it goes on. */
START_TEST(lost_for_good) {
    char spec[128];
    uint32_t at, row = 0, fails = 0;
    const char *stages = failing[_i % N_FAILING], *tier = tiers[_i / N_FAILING];
    snprintf(spec, sizeof spec, "%s%s", stages, tier);
    feed_base(spec);
    snprintf(spec, sizeof spec, "%s%s:lose=5:lose_n=40", stages, tier);
    kvc_session *s = util_session(model, spec, "f32", N_CTX);
    for (int32_t rc; (rc = feed_until(s, &at, &row)) != KVC_OK; fails++) {
        ck_assert_int_eq(rc, KVC_E_LOST);
        ck_assert_uint_eq(kvc_session_n_past(s), at);
        ck_assert_uint_lt(fails, 50);
    }
    ck_assert_uint_gt(fails, 0);
    ck_assert_uint_eq(row, ROWS);
    util_same(base, got, ROWS, n_vocab, spec);
    kvc_session_close(s);
}
END_TEST

/* A page that the tier refuses isn't kept in memory instead. */
START_TEST(a_refused_page_takes_no_memory) {
    const uint64_t least = least_of(failing[_i], "t_tier");
    for (uint32_t nth = 1; nth < 40; nth += 1 + nth / 2) {
        char spec[128];
        uint32_t at, row = 0;
        snprintf(spec, sizeof spec, "%st_tier:hot=%llu:fail_put=%u", failing[_i],
                 (unsigned long long)least, nth);
        kvc_session *s = util_session(model, spec, "f32", N_CTX);
        (void)feed_until(s, &at, &row);
        ck_assert_uint_le(stats_of(s).kv_peak_bytes, least);
        ck_assert_int_eq(feed_until(s, &at, &row), KVC_OK);
        ck_assert_uint_le(stats_of(s).kv_peak_bytes, least);
        kvc_session_close(s);
    }
}
END_TEST

/* Any other status is a broken policy. */
START_TEST(a_broken_tier_kills) {
    static const int code[] = {KVC_E_ARG, KVC_E_POLICY, 7, -99};
    char spec[128];
    uint32_t at, row = 0;
    snprintf(spec, sizeof spec, "%s:%s=3:code=%d", tiers[_i / 8],
             _i % 2 == 0 ? "fail_put" : "fail_get", code[_i % 8 / 2]);
    kvc_session *s = util_session(model, spec, "f32", N_CTX),
                *other = util_session(model, "t_tier", "f32", N_CTX);
    ck_assert_int_eq(feed_until(s, &at, &row), KVC_E_POLICY);
    ck_assert_int_eq(kvc_session_decode(s, token, 1), KVC_E_DEAD);
    ck_assert_int_eq(feed_until(other, &at, &row), KVC_OK);
    kvc_session_close(s);
    kvc_session_close(other);
}
END_TEST

/* ---------------------------------------------------------------- a tier that is shared */

START_TEST(forks_share_a_tier) {
    kvc_session *s = util_session(model, "quant8+t_tier", "f32", N_CTX), *f[4];
    feed_base("quant8");
    util_feed(s, token, 200, 200, 200, n_vocab, got);
    const uint64_t pages = last_stage(s).stored_bytes;
    ck_assert_uint_gt(pages, 0);
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(kvc_session_fork(i == 0 ? s : f[i - 1], &f[i]), KVC_OK);
        ck_assert_uint_eq(last_stage(f[i]).stored_bytes, pages);
    }
    kvc_session_close(s); /* the tier lives on */
    ck_assert_int_eq(kvc_session_truncate(f[0], 10), KVC_OK);
    ck_assert_uint_eq(last_stage(f[1]).stored_bytes, pages);
    kvc_session_close(f[0]);
    kvc_run run[3];
    for (uint32_t at = 200; at < N;) {
        const uint32_t n = at < WANTED ? WANTED - at : 1;
        for (int i = 0; i < 3; i++) {
            run[i] = (kvc_run){.struct_size = sizeof run[i],
                               .wants = at < WANTED ? KVC_WANT_NONE : KVC_WANT_LAST,
                               .session = f[i + 1],
                               .token = token + at,
                               .n_token = n};
        }
        ck_assert_int_eq(kvc_decode(run, 3, sizeof run[0]), KVC_OK);
        for (int i = 0; at >= WANTED && i < 3; i++) {
            util_same(base + (size_t)(at - WANTED) * n_vocab, kvc_session_logits(f[i + 1], 0), 1,
                      n_vocab, "a fork");
        }
        at += n;
    }
    /* What they computed apart is theirs alone. */
    ck_assert_uint_gt(last_stage(f[1]).stored_bytes, pages);
    kvc_session_close(f[3]);
    kvc_session_close(f[2]);
    ck_assert_int_eq(kvc_session_truncate(f[1], 0), KVC_OK);
    ck_assert_uint_eq(last_stage(f[1]).stored_bytes, 0);
    kvc_session_close(f[1]);
}
END_TEST

struct saver {
    kvc_session *s;
    char path[64];
    int32_t rc;
};

static void *save_often(void *arg) {
    struct saver *v = arg;
    for (int i = 0; i < 4 && v->rc == KVC_OK; i++) {
        v->rc = kvc_session_save(v->s, v->path);
    }
    return NULL;
}

/* Saving needs no lock of the model's, so forks that are saved by threads of their own, while
 * another one computes and loads, call the shared tier all at once; the test tier counts. */
START_TEST(forks_are_saved_side_by_side) {
    enum { N_FORK = 8 };
    struct saver v[N_FORK];
    pthread_t thread[N_FORK];
    kvc_session *s = util_session(model, "quant8+t_tier:unpack=on:slow=100", "f32", N_CTX),
                *l = NULL;
    kvc_params *p = util_params();
    feed_base("quant8");
    util_feed(s, token, 900, 900, 900, n_vocab, got);
    for (int i = 0; i < N_FORK; i++) {
        v[i] = (struct saver){.rc = KVC_OK};
        snprintf(v[i].path, sizeof v[i].path, "/tmp/kvc-test-tier-%d-%d", (int)getpid(), i);
        ck_assert_int_eq(kvc_session_fork(s, &v[i].s), KVC_OK);
    }
    for (int i = 0; i < N_FORK; i++) {
        ck_assert_int_eq(pthread_create(&thread[i], NULL, save_often, &v[i]), 0);
    }
    util_feed(s, token + 900, N - 900, WANTED - 900, 20, n_vocab, got);
    util_same(base, got, ROWS, n_vocab, "beside forks that are saved");
    for (int i = 0; i < N_FORK; i++) {
        pthread_join(thread[i], NULL);
        ck_assert_msg(v[i].rc == KVC_OK, "%s", kvc_session_error(v[i].s));
        ck_assert_msg(kvc_session_load(model, v[i].path, p, &l) == KVC_OK, "%s",
                      kvc_params_error(p));
        util_feed(l, token + 900, N - 900, WANTED - 900, N, n_vocab, got);
        util_same(base, got, ROWS, n_vocab, "a fork that was saved and loaded");
        kvc_session_close(l);
        kvc_session_close(v[i].s);
        remove(v[i].path);
    }
    kvc_session_close(s);
    kvc_params_destroy(p);
}
END_TEST

/* A saved session keeps the limit while it is loaded. */
START_TEST(loading_keeps_the_limit) {
    char path[] = "/tmp/kvc-test-tier-XXXXXX";
    const int fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    kvc_session *s = util_session(model, "t_tier", "f32", N_CTX), *l = NULL;
    util_feed(s, token, 280, 280, 280, n_vocab, got);
    ck_assert_int_eq(kvc_session_save(s, path), KVC_OK);
    kvc_params *p = util_params();
    ck_assert_msg(kvc_session_load(model, path, p, &l) == KVC_OK, "%s", kvc_params_error(p));
    ck_assert_uint_eq(stats_of(l).tier_bytes, stats_of(s).tier_bytes);
    ck_assert_uint_le(stats_of(l).kv_peak_bytes, stats_of(s).kv_peak_bytes);
    kvc_session_close(l);
    kvc_session_close(s);
    kvc_params_destroy(p);
    remove(path);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("tier");
    TCase *tc = tcase_create("tier");
    tcase_set_timeout(tc, 300);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, pages_leave_memory);
    every_add(tc, the_limit_is_kept, 4 * N_TIER, 8);
    every_add(tc, the_limit_is_kept_on_a_disk, 3, 8);
    every_add(tc, a_failing_call_is_undone, 2 * N_FAILING * N_TIER, 8);
    every_add(tc, a_refused_page_takes_no_memory, N_FAILING, 8);
    every_add(tc, lost_pages_are_computed_again, N_FAILING * N_TIER, 8);
    every_add(tc, lost_for_good, N_FAILING * N_TIER, 8);
    every_add(tc, a_broken_tier_kills, 8 * N_TIER, 8);
    tcase_add_test(tc, forks_share_a_tier);
    tcase_add_test(tc, forks_are_saved_side_by_side);
    tcase_add_test(tc, loading_keeps_the_limit);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}

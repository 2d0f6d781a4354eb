/* SPDX-License-Identifier: MIT
 * test_failure.c: what memory that runs out and policies that fail do to sessions: the right status
 * and sentence, no leak, other sessions untouched, the step undone or the session dead. Everything
 * goes through the public API. */
#include "every.h"
#include "session_util.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---------------------------------------------------------------- memory */

START_TEST(all_is_given_back) {
    heap h;
    heap_init(&h);
    kvc_session *s = open_on(model, specs[_i], N_CTX, &h);
    ck_assert_uint_gt(atomic_load(&h.held), 0);
    ck_assert_int_eq(kvc_session_decode(s, tokens, N), KVC_OK);
    kvc_run run = run_of(s, tokens + N, 50);
    run.wants = KVC_WANT_ALL;
    ck_assert_int_eq(kvc_decode(&run, 1, sizeof run), KVC_OK);
    ck_assert_int_eq(kvc_session_truncate(s, 10), KVC_OK);
    kvc_session_close(s);
    heap_check_empty(&h);
}
END_TEST

START_TEST(failing_opens_give_back) {
    static const char *const bad[] = {
        "nowhere",          "full+",          "window:size=0",        "full:type=f17",
        "full+quant8",      "quant8+none",    "window+t_mass",        "full:type=f16:type=f32",
        "./absent.so",      "b_create_fails", "spy+b_create_mute",    "b_plan_quantum+quant8",
        "spy+b_codec_move", "b_codec_page0",  "window+b_plan_unsaid", "t_codec+b_plan_where"};
    heap h;
    heap_init(&h);
    kvc_params *p = params_for(N_CTX, &h);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        kvc_session *s = NULL;
        ck_assert_msg(kvc_session_open(model, bad[i], p, &s) < 0, "%s", bad[i]);
        ck_assert_ptr_null(s);
        ck_assert_str_ne(kvc_params_error(p), "");
        heap_check_empty(&h);
    }
    kvc_params_destroy(p);
}
END_TEST

START_TEST(decoding_takes_no_memory) {
    heap h, hm;
    heap_init(&h);
    heap_init(&hm);
    kvc_params *p = params_for(0, &hm);
    char path[4096];
    kvc_model *m = NULL;
    snprintf(path, sizeof path, "%s/tiny-f16.gguf", getenv("KVC_TEST_MODELS"));
    ck_assert_int_eq(kvc_model_open(path, p, &m), KVC_OK);
    kvc_params_destroy(p);
    kvc_session *s = open_on(m, specs[_i], N_CTX, &h);
    int before = atomic_load(&h.calls) + atomic_load(&hm.calls);
    ck_assert_int_eq(kvc_session_decode(s, tokens, 120), KVC_OK);
    /* This one holds queries of a prompt until its end, and takes them again when it is replayed.
     */
    const bool prompts = strncmp(specs[_i], "snapkv", 6) == 0;
    before = prompts ? atomic_load(&h.calls) + atomic_load(&hm.calls) : before;
    for (uint32_t i = 120; i < 320; i++) {
        ck_assert_int_eq(kvc_session_decode(s, tokens + i, 1), KVC_OK);
    }
    if (prompts) {
        ck_assert_int_eq(atomic_load(&h.calls) + atomic_load(&hm.calls), before);
    }
    ck_assert_int_eq(kvc_session_truncate(s, 150), KVC_OK);
    ck_assert_int_eq(kvc_session_decode(s, tokens, 1), KVC_OK);
    if (!prompts) {
        ck_assert_int_eq(atomic_load(&h.calls) + atomic_load(&hm.calls), before);
    }
    kvc_session_close(s);
    kvc_model_close(m);
    heap_check_empty(&h);
    heap_check_empty(&hm);
}
END_TEST

START_TEST(open_without_memory) {
    heap h;
    heap_init(&h);
    kvc_session *other = open_spec(""), *s = NULL;
    kvc_params *p = params_for(N_CTX, &h);
    float *want = alone(specs[_i], 70), *others = alone("", 100);
    int32_t rc = KVC_E_NOMEM;
    int n = 0;
    for (; rc != KVC_OK; n++) {
        atomic_store(&h.left, n);
        rc = kvc_session_open(model, specs[_i], p, &s);
        atomic_store(&h.left, -1);
        if (rc != KVC_OK) {
            ck_assert_msg(rc == KVC_E_NOMEM, "allocation %d: %s", n, kvc_params_error(p));
            ck_assert_str_ne(kvc_params_error(p), "");
            ck_assert_ptr_null(s);
            heap_check_empty(&h);
        }
    }
    ck_assert_int_gt(n, 8);
    goes_on(s, 70, want, "opened at last");
    goes_on(other, 100, others, "beside sessions that couldn't be opened");
    kvc_session_close(s);
    kvc_session_close(other);
    kvc_params_destroy(p);
    heap_check_empty(&h);
    free(want);
    free(others);
}
END_TEST

/* The model's own memory: scratch that is made with the first session and grown by larger ones. */
START_TEST(open_without_memory_of_the_model) {
    static const struct {
        const char *spec;
        int n_ctx;
    } steps[] = {{"", 100}, {"", N_CTX}, {"t_mass:budget=70", N_CTX}, {"t_pages", 8192}};
    heap h;
    heap_init(&h);
    kvc_params *p = params_for(0, &h);
    char path[4096];
    kvc_model *m = NULL;
    kvc_session *s[4] = {NULL};
    snprintf(path, sizeof path, "%s/tiny-f16.gguf", getenv("KVC_TEST_MODELS"));
    ck_assert_int_eq(kvc_params_set_i64(p, "n_threads", 2), KVC_OK);
    ck_assert_int_eq(kvc_model_open(path, p, &m), KVC_OK);
    kvc_params_destroy(p);
    for (int i = 0; i < 4; i++) {
        kvc_params *q = params_for(steps[i].n_ctx, NULL);
        float *want = alone(steps[i].spec, 90), *first = alone("", 10 + 20 * (uint32_t)i);
        int32_t rc = KVC_E_NOMEM;
        for (int n = 0; rc != KVC_OK; n++) {
            atomic_store(&h.left, n);
            rc = kvc_session_open(m, steps[i].spec, q, &s[i]);
            atomic_store(&h.left, -1);
            ck_assert_msg(rc == KVC_OK || rc == KVC_E_NOMEM, "%s", kvc_params_error(q));
            if (i > 0 && kvc_session_n_past(s[0]) < 10 + 20 * (uint32_t)i) {
                goes_on(s[0], 10 + 20 * (uint32_t)i, first, "a session that was there before");
            }
        }
        if (i > 0) {
            goes_on(s[i], 90, want, steps[i].spec);
        }
        kvc_params_destroy(q);
        free(want);
        free(first);
    }
    for (int i = 0; i < 4; i++) {
        kvc_session_close(s[i]);
    }
    kvc_model_close(m);
    heap_check_empty(&h);
}
END_TEST

/* One turn of the next test: a call in which allocation n fails, beside a healthy session. Both go
 * on as if nothing had been; a session that is lost is replaced. Returns the call's status. */
static int32_t decode_failing(kvc_session **s, const char *spec, heap *h, int n,
                              kvc_session *other) {
    kvc_run run[2] = {run_of(*s, tokens + 100, 130), run_of(other, tokens + 100, 10)};
    run[0].wants = KVC_WANT_ALL;
    atomic_store(&h->left, n);
    int32_t rc = kvc_decode(run, 2, sizeof run[0]);
    atomic_store(&h->left, -1);
    ck_assert_int_eq(run[0].status, rc);
    ck_assert_int_eq(run[1].status, KVC_OK);
    if (rc != KVC_OK) {
        ck_assert_str_ne(kvc_session_error(*s), "");
        ck_assert_uint_eq(kvc_session_n_past(*s), 100);
        ck_assert_uint_eq(run[0].n_logits, 0);
    }
    if (rc == KVC_E_POLICY) {
        has(kvc_session_error(*s), "truncate");
        kvc_session_close(*s);
        *s = open_on(model, spec, N_CTX, h);
        ck_assert_int_eq(kvc_session_decode(*s, tokens, 100), KVC_OK);
    }
    return rc;
}

/* Each allocation of a call fails once: those of hooks, of reads of the store, of logits. */
START_TEST(decode_without_memory) {
    static const char *const stack[] = {"spy",      "spy+window:size=70",   "spy+quant8",
                                        "spy+none", "spy+t_mass:budget=70", "spy+t_pages:pages=2"};
    heap h;
    heap_init(&h);
    spy.allocates = true;
    float *want = in_two(stack[_i], 100, 230), *others = in_two("", 100, 110);
    kvc_session *s = open_on(model, stack[_i], N_CTX, &h), *other = open_spec("");
    ck_assert_int_eq(kvc_session_decode(s, tokens, 100), KVC_OK);
    ck_assert_int_eq(kvc_session_decode(other, tokens, 100), KVC_OK);
    int n = 0;
    for (int32_t rc = KVC_E_NOMEM; rc != KVC_OK; n++) {
        rc = decode_failing(&s, stack[_i], &h, n, other);
        ck_assert(rc == KVC_OK || rc == KVC_E_NOMEM || (_i == 3 && rc == KVC_E_POLICY));
        util_same(others, kvc_session_logits(other, 0), 1, VOCAB, "beside");
        ck_assert_int_eq(kvc_session_truncate(other, 100), KVC_OK);
        ck_assert_int_eq(kvc_session_truncate(s, 100), KVC_OK);
        goes_on(s, 230, want, "after a call without memory");
        ck_assert_int_eq(kvc_session_truncate(s, 100), KVC_OK);
    }
    ck_assert_int_gt(n, 8);
    kvc_session_close(s);
    kvc_session_close(other);
    heap_check_empty(&h);
    free(want);
    free(others);
}
END_TEST

/* Before each step of a generation the same step fails: in the middle, and at ticks in page_end
 * too. Nothing is computed again for it, whatever the stack has evicted, and nothing differs. */
START_TEST(a_failed_step_costs_no_replay) {
    static const char *const stack[] = {
        "spy+t_mass:budget=40",
        "t_mass:budget=40+quant8+spy",
        "t_mass:budget=40+t_tier+spy",
        "spy+window:size=70+quant8",
        "spy+quant8",
        "spy+quant8+t_tier",
        "spy+t_mass:budget=0+t_codec",
        "t_pages:pages=1+spy",
    };
    kvc_session *good = open_spec(stack[_i]), *s = open_spec(stack[_i]);
    ck_assert_int_eq(kvc_session_prefill(good, tokens, 100), KVC_OK);
    ck_assert_int_eq(kvc_session_prefill(s, tokens, 100), KVC_OK);
    for (uint32_t at = 100; at < 330; at++) {
        const bool ticks = at == 100 || (at + 1) % KVC_PAGE == 0;
        for (int hook = APPEND; hook <= (ticks ? PAGE_END : APPEND); hook++) {
            spy.code[hook] = KVC_E_NOMEM;
            ck_assert_int_eq(kvc_session_decode(s, tokens + at, 1), KVC_E_NOMEM);
            spy.code[hook] = KVC_OK;
            ck_assert_uint_eq(kvc_session_n_past(s), at);
        }
        ck_assert_int_eq(kvc_session_decode(good, tokens + at, 1), KVC_OK);
        ck_assert_int_eq(kvc_session_decode(s, tokens + at, 1), KVC_OK);
        util_same(kvc_session_logits(good, 0), kvc_session_logits(s, 0), 1, VOCAB, stack[_i]);
        ck_assert_msg(stats_of(s).n_replayed == 0, "%s: %llu tokens computed again at %u",
                      stack[_i], (unsigned long long)stats_of(s).n_replayed, at);
    }
    ck_assert_uint_eq(stats_of(s).n_entry, stats_of(good).n_entry);
    ck_assert_uint_eq(stats_of(s).kv_bytes, stats_of(good).kv_bytes);
    kvc_session_close(s);
    kvc_session_close(good);
}
END_TEST

/* Each allocation of a fork, of a save and of a load fails once, those of the stages too. The
 * session goes on, and whatever was made in the end is whole. */
START_TEST(copies_without_memory) {
    heap h;
    heap_init(&h);
    char path[] = "/tmp/kvc-test-failure-XXXXXX", file[4096];
    const int fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    kvc_params *p = params_for(N_CTX, &h);
    kvc_model *m = NULL;
    kvc_session *s = NULL, *f = NULL, *l = NULL;
    snprintf(file, sizeof file, "%s/tiny-f16.gguf", getenv("KVC_TEST_MODELS"));
    ck_assert_int_eq(kvc_params_set_i64(p, "n_threads", 2), KVC_OK);
    ck_assert_int_eq(kvc_model_open(file, p, &m), KVC_OK);
    ck_assert_int_eq(kvc_session_open(m, specs[_i], p, &s), KVC_OK);
    ck_assert_int_eq(kvc_session_decode(s, tokens, 200), KVC_OK);
    float *want = in_two(specs[_i], 200, 330);
    int n = 0;
    for (int32_t rc = KVC_E_NOMEM; rc != KVC_OK; n++) {
        atomic_store(&h.left, n);
        rc = kvc_session_fork(s, &f);
        atomic_store(&h.left, -1);
        ck_assert_msg(rc == KVC_OK || rc == KVC_E_NOMEM, "%s", kvc_session_error(s));
        ck_assert(rc == KVC_OK || f == NULL);
    }
    ck_assert_int_gt(n, 8);
    n = 0;
    for (int32_t rc = KVC_E_NOMEM; rc != KVC_OK; n++) {
        atomic_store(&h.left, n);
        rc = kvc_session_save(s, path);
        atomic_store(&h.left, -1);
        ck_assert_msg(rc == KVC_OK || rc == KVC_E_NOMEM, "%s", kvc_session_error(s));
    }
    ck_assert_int_gt(n, 1);
    n = 0;
    for (int32_t rc = KVC_E_NOMEM; rc != KVC_OK; n++) {
        atomic_store(&h.left, n);
        rc = kvc_session_load(m, path, p, &l);
        atomic_store(&h.left, -1);
        ck_assert_msg(rc == KVC_OK || rc == KVC_E_NOMEM, "%s", kvc_params_error(p));
        ck_assert(rc == KVC_OK || l == NULL);
    }
    ck_assert_int_gt(n, 8);
    goes_on(f, 330, want, "a fork made at last");
    goes_on(l, 330, want, "a session loaded at last");
    goes_on(s, 330, want, "the session that was forked and saved");
    kvc_session_close(s);
    kvc_session_close(l);
    kvc_session_close(f);
    kvc_model_close(m);
    kvc_params_destroy(p);
    heap_check_empty(&h);
    free(want);
    remove(path);
}
END_TEST

/* Going back is the one thing that can't be undone: the stage is lost, and nothing else is. */
START_TEST(truncate_without_memory) {
    heap h;
    heap_init(&h);
    spy.allocates = true;
    float *want = alone("spy", 230);
    for (int n = 0; n < 3; n++) {
        kvc_session *s = open_on(model, "spy", N_CTX, &h);
        goes_on(s, 230, want, "before");
        atomic_store(&h.left, n);
        const int32_t rc = kvc_session_truncate(s, 100);
        atomic_store(&h.left, -1);
        ck_assert_int_eq(spy.last_truncate, 100);
        if (n == 0) {
            ck_assert_int_eq(rc, KVC_E_POLICY);
            has(kvc_session_error(s), "policy 'spy' failed in truncate (position 100)");
            ck_assert_int_eq(kvc_session_decode(s, tokens, 1), KVC_E_DEAD);
            has(kvc_session_error(s), "policy 'spy' failed in truncate (position 100)");
        } else {
            ck_assert_int_eq(rc, KVC_OK);
            goes_on(s, 230, want, "after truncation");
        }
        kvc_session_close(s);
    }
    heap_check_empty(&h);
    free(want);
}
END_TEST

/* ---------------------------------------------------------------- log and spec */

static char logged[64];
static uint32_t log_level;

static void keep_log(void *user, uint32_t level, const char *text) {
    ck_assert_ptr_eq(user, logged);
    log_level = level;
    snprintf(logged, sizeof logged, "%s", text);
}

START_TEST(log_reaches_the_program) {
    kvc_params *p = params_for(64, NULL);
    kvc_session *s = NULL;
    logged[0] = '\0';
    ck_assert_int_eq(kvc_session_open(model, "spy", p, &s), KVC_OK);
    kvc_session_close(s);
    ck_assert_str_eq(logged, "");
    ck_assert_int_eq(kvc_params_set_log(p, keep_log, logged), KVC_OK);
    ck_assert_int_eq(kvc_session_open(model, "spy", p, &s), KVC_OK);
    kvc_session_close(s);
    ck_assert_str_eq(logged, "spy is here");
    ck_assert_uint_eq(log_level, KVC_LOG_INFO);
    kvc_params_destroy(p);
}
END_TEST

/* Opens what can't be opened; the sentence holds both words. */
static void refused(const char *spec, int32_t status, const char *word, const char *too) {
    kvc_params *p = params_for(N_CTX, NULL);
    kvc_session *s = (kvc_session *)(void *)p;
    int32_t rc = kvc_session_open(model, spec, p, &s);
    ck_assert_msg(rc == status, "%s: %s, not %s: %s", spec, kvc_status_name(rc),
                  kvc_status_name(status), kvc_params_error(p));
    ck_assert_ptr_null(s);
    has(kvc_params_error(p), word);
    has(kvc_params_error(p), too);
    kvc_params_destroy(p);
}

START_TEST(specs_that_are_refused) {
    refused("windw", KVC_E_NOT_FOUND, "windw", "\"window\"");
    refused("full+quant9", KVC_E_NOT_FOUND, "quant9", "\"quant8\"");
    refused("window:sise=9", KVC_E_PARAM, "sise", "\"size\"");
    refused("window:size=0", KVC_E_PARAM, "window", "size");
    refused("window:size=many", KVC_E_PARAM, "many", "size");
    refused("full:type=f15", KVC_E_PARAM, "f15", "bf16");
    refused("+full", KVC_E_SPEC, "stage", "");
    refused("full:type", KVC_E_SPEC, "type", "=");
    refused("full+quant8", KVC_E_CONFLICT, "'full' and 'quant8'", "in what format");
    refused("quant8+window+none", KVC_E_CONFLICT, "'quant8' and 'none'", "in what format");
    refused("window+t_mass", KVC_E_CONFLICT, "'window' and 't_mass'", "which tokens");
    refused("full+full", KVC_E_CONFLICT, "'full' and 'full'", "format");
    refused("./absent/policy.so", KVC_E_LOAD_FILE, "./absent/policy.so", "");

    char dir[] = "/tmp/kvc-session-XXXXXX", name[64];
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(name, sizeof name, "%s/text.so", dir);
    FILE *f = fopen(name, "w");
    ck_assert_ptr_nonnull(f);
    fputs("no library\n", f);
    fclose(f);
    refused(name, KVC_E_LOAD_OPEN, name, "");
    unlink(name);
    rmdir(dir);
}
END_TEST

/* ---------------------------------------------------------------- broken policies */

START_TEST(plans_that_are_refused) {
    static const struct {
        const char *spec;
        int32_t status;
        const char *word;
    } cases[] = {
        {"b_plan_answers_bits", KVC_E_POLICY, "question"},
        {"b_plan_where", KVC_E_POLICY, "answers 'where' without a tier"},
        {"b_plan_quantum", KVC_E_POLICY, "quantum"},
        {"b_plan_columns", KVC_E_POLICY, "columns"},
        {"b_plan_observe", KVC_E_POLICY, "bits to observe"},
        {"b_plan_positions", KVC_E_POLICY, "has positions"},
        {"b_plan_cache_evicts", KVC_E_POLICY, "positions in the cache"},
        {"b_plan_type", KVC_E_POLICY, "a type in a format"},
        {"b_plan_unsaid", KVC_E_POLICY, "without answering 'format'"},
        {"b_tier_unsaid", KVC_E_POLICY, "without answering 'where'"},
        {"b_tier_format", KVC_E_POLICY, "stands alone, and another answer"},
        {"b_tier_hook", KVC_E_POLICY, "stands alone, and "},
        {"b_tier_size", KVC_E_POLICY, "a tier without a size"},
        {"b_tier_no_put", KVC_E_POLICY, "a tier without put;"},
        {"b_tier_no_get", KVC_E_POLICY, "a tier without get;"},
        {"b_tier_no_drop", KVC_E_POLICY, "a tier without drop;"},
        {"b_tier_hot", KVC_E_PARAM, "at least"},
        {"b_tier_open_fails", KVC_E_IO, "open says no on purpose"},
        {"b_tier_record0", KVC_E_POLICY, "record_bytes answered 0 for layer 1"},
        {"b_tier_record_huge", KVC_E_POLICY, "record_bytes answered 18446744073709551615"},
        {"b_tier_record_short", KVC_E_POLICY, "record_bytes answered 1 for layer 1"},
        {"b_codec_page0", KVC_E_POLICY, "page_bytes answered 0 for layer 0"},
        {"b_codec_page_huge", KVC_E_POLICY, "page_bytes"},
        {"b_codec_size", KVC_E_POLICY, "codec"},
        {"b_codec_move", KVC_E_POLICY, "move"},
        {"b_codec_page_bytes", KVC_E_POLICY, "without page_bytes;"},
        {"b_codec_encode", KVC_E_POLICY, "without encode;"},
        {"b_codec_decode", KVC_E_POLICY, "without decode;"},
        {"b_create_fails", KVC_E_PARAM, "create says no on purpose"},
        {"b_create_mute", KVC_E_POLICY, "can't be created: create answered KVC_E_"},
        {"b_create_nomem", KVC_E_NOMEM, "can't be created"},
        {"b_create_code", KVC_E_POLICY, "create answered -12345, which is no status"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char name[64], spec[64];
        snprintf(name, sizeof name, "policy '%s'", cases[i].spec);
        refused(cases[i].spec, cases[i].status, name, cases[i].word);
        snprintf(spec, sizeof spec, "spy+%s", cases[i].spec);
        refused(spec, cases[i].status, name, cases[i].word);
    }
    spy.code[CREATE] = 5;
    refused("spy", KVC_E_POLICY, "create answered 5", "spy");
}
END_TEST

START_TEST(odd_plans_that_are_legal) {
    float *want = alone("", 150);
    static const char *const same[] = {"b_nothing", "b_plan_answers", "b_visible_future", "spy",
                                       "idle+spy"};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        kvc_session *s = open_spec(same[i]);
        goes_on(s, 150, want, same[i]);
        kvc_session_close(s);
    }
    free(want);
    want = alone("window:size=1:sinks=0", 150);
    kvc_session *s = open_spec("b_visible_none");
    goes_on(s, 150, want, "a query that sees itself alone");
    kvc_session_close(s);
    free(want);
}
END_TEST

/* After 100 tokens in one call, 100 more in another, beside a healthy session. */
START_TEST(hooks_that_fail) {
    static const struct {
        const char *spec;
        uint32_t past; /* tokens held when it fails */
        const char *where, *said;
    } cases[] = {
        {"b_begin_fails", 100, "begin (position 100)", "begin says no on purpose [KVC_E_IO]"},
        {"b_begin_high", 0, "begin answered position 1", "0"},
        {"b_begin_negative", 0, "begin answered position -1", "0"},
        {"b_keep_in_begin", 100, "begin (position 100)", "KVC_E_UNSUPPORTED"},
        {"b_append_fails", 0, "append (layer 0, head 0, position 0)", "append says no on purpose"},
        {"b_select_fails", 0, "select (layer 0, head 0, position 0)", "select says no on purpose"},
        {"b_page_end_fails", 0, "page_end (layer 0, position 63)", "page_end says no on purpose"},
        {"b_end_fails", 0, "end (position 63)", "end says no on purpose"},
        {"b_keep_order", 0, "page_end (layer 0, position 63)", "KVC_E_RANGE"},
        {"b_keep_range", 0, "page_end (layer 0, position 63)", "KVC_E_RANGE"},
        {"b_keep_unsaid", 0, "page_end (layer 0, position 63)", "KVC_E_UNSUPPORTED"},
        {"b_encode_fails", 0, "encode (layer 0, head 0, position 63)", "KVC_E_POLICY"},
        {"b_decode_fails", 0, "decode (layer 0, head 0, position 64)", "KVC_E_POLICY"},
        {"b_codec_nan", 0, "decode (layer 0, head 0, position 64)", "isn't finite"},
        {"b_tier_put_code", 0, "put (layer 0, head 0, position 63)", "KVC_E_POLICY"},
        {"b_tier_get_code", 0, "get (layer 0, head 0, position 64)", "KVC_E_POLICY"},
        {"b_tier_get_unnamed", 0, "get (layer 0, head 0, position 64)", "KVC_E_POLICY"},
        {"b_tier_get_nowhere", 0, "get (layer 0, head 0, position 64)", "KVC_E_POLICY"},
        {"b_tier_get_outside", 0, "get (layer 0, head 0, position 64)", "KVC_E_POLICY"},
        {"b_tier_get_short", 0, "get (layer 0, head 0, position 64)", "KVC_E_POLICY"},
        {"b_tier_get_odd", 0, "get (layer 0, head 0, position 64)", "KVC_E_POLICY"},
        {"b_tier_unpack_code", 0, "unpack (layer 0, head 0, position 64)", "KVC_E_POLICY"},
        {"b_visible_order", 0, "visible (layer 0, head 0, position", "its range 1 begins at "},
        {"b_visible_many", 0, "visible (layer 0, head 0, position", "ranges, of at most 8"},
        {"t_codec:corrupt=on", 100, "decode (layer 0, head 0, position 128)", "checksum"},
    };
    char name[64];
    snprintf(name, sizeof name, "policy '%.*s'", (int)strcspn(cases[_i].spec, ":"), cases[_i].spec);
    float *want = alone("quant8", 200);
    kvc_session *s = open_spec(cases[_i].spec), *healthy = open_spec("quant8");
    int32_t rc = KVC_OK;
    uint32_t past = 0;
    for (; rc == KVC_OK && past < 200; past += 100) {
        kvc_run run[2] = {run_of(s, tokens + past, 100), run_of(healthy, tokens + past, 100)};
        rc = kvc_decode(run, 2, sizeof run[0]);
        ck_assert_int_eq(run[0].status, rc);
        ck_assert_int_eq(run[1].status, KVC_OK);
    }
    ck_assert_int_eq(rc, KVC_E_POLICY);
    ck_assert_uint_eq(past - 100, cases[_i].past);
    for (int i = 0; i < 2; i++) {
        has(kvc_session_error(s), name);
        has(kvc_session_error(s), cases[_i].where);
        has(kvc_session_error(s), cases[_i].said);
        ck_assert_uint_eq(kvc_session_n_past(s), cases[_i].past);
        ck_assert_ptr_null(kvc_session_logits(s, 0));
        ck_assert_int_eq(kvc_session_decode(s, tokens, 1), KVC_E_DEAD);
        ck_assert_int_eq(kvc_session_truncate(s, 0), KVC_E_DEAD);
    }
    if (past < 200) {
        ck_assert_int_eq(kvc_session_decode(healthy, tokens + 100, 100), KVC_OK);
    }
    util_same(want, kvc_session_logits(healthy, 0), 1, VOCAB, "beside a dead session");
    free(want);
    kvc_session_close(s);
    kvc_session_close(healthy);
}
END_TEST

static char warning[128];

static void keep_warning(void *user, uint32_t level, const char *text) {
    (void)user;
    if (level == KVC_LOG_WARN) {
        snprintf(warning, sizeof warning, "%s", text);
    }
}

/* What a policy doesn't give back is lost to the process, but not in silence. */
START_TEST(a_leak_is_told) {
    kvc_params *p = params_for(N_CTX, NULL);
    kvc_session *s = NULL;
    warning[0] = '\0';
    ck_assert_int_eq(kvc_params_set_log(p, keep_warning, NULL), KVC_OK);
    ck_assert_int_eq(kvc_session_open(model, "b_leaks", p, &s), KVC_OK);
    kvc_session_close(s);
    has(warning, "policy 'b_leaks' didn't give back 1000 bytes");
    kvc_params_destroy(p);
}
END_TEST

/* A hook that never returns can't be helped from inside; it holds up its caller and nobody else. */
START_TEST(a_hook_that_hangs) {
    const pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        (void)signal(SIGALRM, SIG_DFL); /* Check has a handler of its own */
        alarm(2);
        kvc_model *m = util_model("tiny-f16.gguf", 1, 0);
        kvc_session *s = open_on(m, "b_hangs", N_CTX, NULL);
        _exit(kvc_session_decode(s, tokens, 100) == KVC_OK);
    }
    int status = 0;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM);
}
END_TEST

START_TEST(rewind_that_fails) {
    kvc_session *s = open_spec("b_rewind_high");
    ck_assert_int_eq(kvc_session_decode(s, tokens, 100), KVC_OK);
    ck_assert_int_eq(kvc_session_truncate(s, 80), KVC_E_POLICY);
    has(kvc_session_error(s), "policy 'b_rewind_high': rewind answered position 81");
    ck_assert_int_eq(kvc_session_decode(s, tokens, 1), KVC_E_DEAD);
    has(kvc_session_error(s), "rewind answered position 81");
    kvc_session_close(s);
}
END_TEST

START_TEST(begin_without_memory) {
    kvc_session *s = open_spec("b_begin_nomem");
    float *want = alone("", 100);
    goes_on(s, 100, want, "the first call");
    const kvc_session_stats before = stats_of(s);
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(kvc_session_decode(s, tokens, 50), KVC_E_NOMEM);
        has(kvc_session_error(s), "policy 'b_begin_nomem' failed in begin (position 100)");
        const kvc_session_stats now = stats_of(s);
        ck_assert_uint_eq(now.n_past, 100);
        ck_assert_uint_eq(now.n_entry, before.n_entry);
        ck_assert_uint_eq(now.kv_bytes, before.kv_bytes);
        ck_assert_uint_eq(now.n_computed, 100);
    }
    ck_assert_int_eq(kvc_session_truncate(s, 0), KVC_OK);
    goes_on(s, 100, want, "from the beginning");
    free(want);
    kvc_session_close(s);
}
END_TEST

/* The stage that failed is named, not the first that has such a hook. */
START_TEST(the_right_stage_is_blamed) {
    static const char *const stack[] = {"idle+spy", "spy+idle", "idle+window:size=70+spy"};
    kvc_session *s = open_spec(stack[_i]);
    ck_assert_int_eq(kvc_session_decode(s, tokens, 100), KVC_OK);
    spy.code[APPEND] = KVC_E_ARG;
    spy.say = "the spy is tired";
    ck_assert_int_eq(kvc_session_decode(s, tokens, 10), KVC_E_POLICY);
    has(kvc_session_error(s), "policy 'spy' failed in append (layer 1, head 1, position 100)");
    has(kvc_session_error(s), "the spy is tired");
    kvc_session_close(s);
}
END_TEST

/* Every hook, every kind of answer: only KVC_E_NOMEM is forgiven. */
START_TEST(answers_of_hooks) {
    static const int32_t answer[] = {KVC_E_NOMEM, KVC_E_IO,        KVC_E_LOST, KVC_E_POLICY,
                                     -12345,      KVC_E_CANCELLED, 1,          INT32_MIN};
    const int hook = BEGIN + _i;
    float *want = alone("", 200), *first = alone("", 100);
    for (size_t i = 0; i < sizeof answer / sizeof *answer; i++) {
        kvc_session *s = open_spec("spy");
        goes_on(s, 100, first, "before a hook fails");
        spy.code[hook] = answer[i];
        int32_t rc = kvc_session_decode(s, tokens + 100, 100);
        spy.code[hook] = KVC_OK;
        ck_assert_int_eq(rc, answer[i] == KVC_E_NOMEM ? KVC_E_NOMEM : KVC_E_POLICY);
        has(kvc_session_error(s), "policy 'spy' failed in");
        ck_assert_uint_eq(kvc_session_n_past(s), 100);
        if (rc == KVC_E_NOMEM) {
            goes_on(s, 200, want, "after a hook without memory");
        } else {
            ck_assert_int_eq(kvc_session_decode(s, tokens, 1), KVC_E_DEAD);
        }
        kvc_session_close(s);
    }
    free(want);
    free(first);
}
END_TEST

static void add_policy_cases(Suite *suite) {
    TCase *tc = add_case(suite, "policies");
    tcase_add_test(tc, log_reaches_the_program);
    tcase_add_test(tc, specs_that_are_refused);
    tcase_add_test(tc, plans_that_are_refused);
    tcase_add_test(tc, odd_plans_that_are_legal);
    tcase_add_loop_test(tc, hooks_that_fail, 0, 20);
    tcase_add_test(tc, a_leak_is_told);
    tcase_add_test(tc, a_hook_that_hangs);
    tcase_add_test(tc, rewind_that_fails);
    tcase_add_test(tc, begin_without_memory);
    tcase_add_loop_test(tc, the_right_stage_is_blamed, 0, 3);
    tcase_add_loop_test(tc, answers_of_hooks, 0, END - BEGIN + 1);
}

static void add_memory_cases(Suite *suite) {
    TCase *tc = add_case(suite, "memory");
    every_add(tc, all_is_given_back, N_SPEC, 8);
    tcase_add_test(tc, failing_opens_give_back);
    every_add(tc, decoding_takes_no_memory, N_SPEC, 8);
    every_add(tc, open_without_memory, N_SPEC, 8);
    tcase_add_test(tc, open_without_memory_of_the_model);
    every_add(tc, decode_without_memory, 6, 8);
    every_add(tc, a_failed_step_costs_no_replay, 8, 8);
    every_add(tc, copies_without_memory, N_SPEC, 8);
    tcase_add_test(tc, truncate_without_memory);
}

int main(void) {
    Suite *suite = suite_create("failure");
    add_memory_cases(suite);
    add_policy_cases(suite);
    return run_suite(suite);
}

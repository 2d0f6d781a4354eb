/* SPDX-License-Identifier: MIT
 * test_session.c: what a caller of sessions can do, rightly and wrongly, from one thread and from
 * several, and what sessions say of themselves. Everything goes through the public API. That
 * results don't depend on how they are computed is the matter of test_engine.c. */
#include "every.h"
#include "session_util.h"

/* ---------------------------------------------------------------- arguments */

START_TEST(null_is_refused) {
    kvc_session *s = open_spec(""), *none = s;
    kvc_params *p = params_for(64, NULL);
    kvc_session_stats st = {.struct_size = sizeof st};
    kvc_stage_stats stage = {.struct_size = sizeof stage};
    kvc_run run = run_of(NULL, tokens, 1);
    ck_assert_int_eq(kvc_session_open(NULL, "", p, &none), KVC_E_ARG);
    ck_assert_ptr_null(none);
    has(kvc_params_error(p), "model is NULL");
    ck_assert_int_eq(kvc_session_open(model, "", p, NULL), KVC_E_ARG);
    has(kvc_params_error(p), "out is NULL");
    ck_assert_int_eq(kvc_session_open(NULL, NULL, NULL, NULL), KVC_E_ARG);
    kvc_session_close(NULL);
    kvc_session_cancel(NULL);
    ck_assert_int_eq(kvc_decode(NULL, 1, sizeof run), KVC_E_ARG);
    ck_assert_int_eq(kvc_decode(NULL, 0, 0), KVC_OK);
    ck_assert_int_eq(kvc_decode(&run, 1, sizeof run), KVC_E_ARG);
    ck_assert_int_eq(run.status, KVC_E_ARG);
    ck_assert_int_eq(kvc_session_decode(NULL, tokens, 1), KVC_E_ARG);
    ck_assert_int_eq(kvc_session_decode(s, NULL, 1), KVC_E_ARG);
    ck_assert_ptr_null(kvc_session_logits(NULL, 0));
    ck_assert_uint_eq(kvc_session_n_past(NULL), 0);
    ck_assert_int_eq(kvc_session_truncate(NULL, 0), KVC_E_ARG);
    ck_assert_str_eq(kvc_session_error(NULL), "");
    ck_assert_str_eq(kvc_session_spec(NULL), "");
    ck_assert_int_eq(kvc_session_get_stats(NULL, &st), KVC_E_ARG);
    ck_assert_int_eq(kvc_session_get_stats(s, NULL), KVC_E_ARG);
    ck_assert_int_eq(kvc_session_get_stage(NULL, 0, &stage), KVC_E_ARG);
    ck_assert_int_eq(kvc_session_get_stage(s, 0, NULL), KVC_E_ARG);
    ck_assert_int_eq(kvc_session_get_stage(s, 0, &stage), KVC_E_RANGE);
    ck_assert_int_eq(kvc_session_tokens(NULL, 0, 0, tokens), KVC_E_ARG);
    ck_assert_int_eq(kvc_session_tokens(s, 0, 1, NULL), KVC_E_ARG);
    st.struct_size = 0;
    ck_assert_int_eq(kvc_session_get_stats(s, &st), KVC_E_ARG);
    kvc_params_destroy(p);
    kvc_session_close(s);
    ck_assert_int_eq(kvc_session_open(model, NULL, NULL, &s), KVC_OK);
    kvc_session_close(s);
}
END_TEST

START_TEST(sizes_of_structs) {
    kvc_session *s = open_spec("");
    struct {
        kvc_run run;
        char more[24];
    } wide[2] = {{.run = run_of(s, tokens, 70)}, {.run = run_of(open_spec("quant8"), tokens, 70)}};
    kvc_run run = run_of(s, tokens, 1);
    run.struct_size = 8;
    ck_assert_int_eq(kvc_decode(&run, 1, sizeof run), KVC_E_ARG);
    run.struct_size = sizeof run;
    ck_assert_int_eq(kvc_decode(&run, 1, sizeof run - 8), KVC_E_ARG);
    ck_assert_int_eq(kvc_decode(&run, 1, 0), KVC_E_ARG);
    ck_assert_uint_eq(kvc_session_n_past(s), 0);
    ck_assert_int_eq(kvc_decode(&wide[0].run, 2, sizeof wide[0]), KVC_OK);
    ck_assert_uint_eq(kvc_session_n_past(wide[1].run.session), 70);
    wide[1].run.struct_size = 8;
    ck_assert_int_eq(kvc_decode(&wide[0].run, 2, sizeof wide[0]), KVC_E_ARG);
    ck_assert_int_eq(wide[0].run.status, KVC_OK);
    ck_assert_uint_eq(kvc_session_n_past(wide[1].run.session), 70);
    kvc_session_close(wide[1].run.session);

    /* A caller that knows less, or more, of a result. */
    kvc_session_stats st = {.struct_size = 8, .n_ctx = 77};
    ck_assert_int_eq(kvc_session_get_stats(s, &st), KVC_OK);
    ck_assert_uint_eq(st.n_past, 140);
    ck_assert_uint_eq(st.n_ctx, 77);
    struct {
        kvc_session_stats st;
        uint64_t more;
    } future = {.st = {.struct_size = sizeof future}, .more = 5};
    ck_assert_int_eq(kvc_session_get_stats(s, &future.st), KVC_OK);
    ck_assert_uint_eq(future.st.n_ctx, N_CTX);
    ck_assert_uint_eq(future.more, 5);
    kvc_session_close(s);
}
END_TEST

START_TEST(bad_runs_change_nothing) {
    kvc_session *s = open_spec("");
    float *want = alone("", 80);
    ck_assert_int_eq(kvc_session_decode(s, tokens, 70), KVC_OK);
    int32_t bad[3] = {1, VOCAB, 2};
    const struct {
        kvc_run run;
        int32_t status;
        const char *word;
    } cases[] = {
        {{.token = tokens, .n_token = 0}, KVC_E_ARG, "without tokens"},
        {{.token = NULL, .n_token = 1}, KVC_E_ARG, "without tokens"},
        {{.token = tokens, .n_token = 1, .wants = KVC_WANT_LIST}, KVC_E_ARG, "list"},
        {{.token = tokens, .n_token = 1, .wants = 4}, KVC_E_ARG, "wants"},
        {{.token = bad, .n_token = 3}, KVC_E_RANGE, "token 320 at index 1"},
        {{.token = (int32_t[]){-1}, .n_token = 1}, KVC_E_RANGE, "token -1 at index 0"},
        {{.token = tokens, .n_token = N_CTX - 69}, KVC_E_FULL, "room for 1024"},
        {{.token = tokens, .n_token = UINT32_MAX}, KVC_E_FULL, "70 tokens held"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        kvc_run run = cases[i].run;
        run.struct_size = sizeof run;
        run.session = s;
        run.n_logits = 9;
        ck_assert_int_eq(kvc_decode(&run, 1, sizeof run), cases[i].status);
        ck_assert_int_eq(run.status, cases[i].status);
        ck_assert_uint_eq(run.n_logits, 0);
        has(kvc_session_error(s), cases[i].word);
        ck_assert_uint_eq(kvc_session_n_past(s), 70);
    }
    ck_assert_int_eq(kvc_session_truncate(s, 71), KVC_E_RANGE);
    has(kvc_session_error(s), "71");
    goes_on(s, 80, want, "after bad runs");
    ck_assert_str_eq(kvc_session_error(s), "");
    free(want);
    kvc_session_close(s);
}
END_TEST

START_TEST(a_session_is_taken_once_a_call) {
    enum { RUNS = 70 }; /* more than are taken at a time */
    kvc_session *s = open_spec(""), *t = open_spec("");
    float *want = alone("", 80);
    kvc_run run[RUNS];
    for (int i = 0; i < RUNS; i++) {
        run[i] = run_of(s, tokens, 80);
    }
    run[RUNS / 2].session = t;
    ck_assert_int_eq(kvc_decode(run, RUNS, sizeof run[0]), KVC_E_BUSY);
    for (int i = 0; i < RUNS; i++) {
        ck_assert_int_eq(run[i].status, i == 0 || i == RUNS / 2 ? KVC_OK : KVC_E_BUSY);
    }
    ck_assert_uint_eq(kvc_session_n_past(s), 80);
    util_same(want, kvc_session_logits(s, 0), 1, VOCAB, "the first run");
    util_same(want, kvc_session_logits(t, 0), 1, VOCAB, "the other session");
    ck_assert_int_eq(kvc_session_decode(s, tokens, 1), KVC_OK);
    free(want);
    kvc_session_close(s);
    kvc_session_close(t);
}
END_TEST

START_TEST(sessions_of_a_call_share_model_and_way) {
    kvc_model *other = util_model("tiny-f16.gguf", 1, 0);
    kvc_session *s[4] = {open_spec(""), open_on(other, "", 64, NULL),
                         util_session(model, "", "int8", 64), open_spec("quant8")};
    kvc_run run[4];
    for (int i = 0; i < 4; i++) {
        run[i] = run_of(s[i], tokens, 10);
    }
    ck_assert_int_eq(kvc_decode(run, 4, sizeof run[0]), KVC_E_ARG);
    for (int i = 0; i < 4; i++) {
        const bool fits = i == 0 || i == 3;
        ck_assert_int_eq(run[i].status, fits ? KVC_OK : KVC_E_ARG);
        ck_assert_uint_eq(kvc_session_n_past(s[i]), fits ? 10 : 0);
        if (!fits) {
            has(kvc_session_error(s[i]), "must share");
        }
    }
    for (int i = 0; i < 4; i++) {
        kvc_session_close(s[i]);
    }
    kvc_model_close(other);
}
END_TEST

START_TEST(the_context_is_full) {
    static const int sizes[] = {1, 63, 64, 65, 200};
    const int n_ctx = sizes[_i];
    const uint32_t n = (uint32_t)n_ctx;
    float *want = alone("", n);
    kvc_session *s = open_on(model, "", n_ctx, NULL);
    ck_assert_int_eq(kvc_session_decode(s, tokens, n + 1), KVC_E_FULL);
    ck_assert_uint_eq(kvc_session_n_past(s), 0);
    ck_assert_int_eq(kvc_session_decode(s, tokens, n), KVC_OK);
    util_same(want, kvc_session_logits(s, 0), 1, VOCAB, "a full context");
    ck_assert_int_eq(kvc_session_decode(s, tokens, 1), KVC_E_FULL);
    has(kvc_session_error(s), "raise n_ctx or truncate");
    ck_assert_ptr_nonnull(kvc_session_logits(s, 0));
    ck_assert_int_eq(kvc_session_truncate(s, n - 1), KVC_OK);
    ck_assert_ptr_null(kvc_session_logits(s, 0));
    goes_on(s, n, want, "a context that is full again");
    ck_assert_int_eq(kvc_session_decode(s, tokens, 1), KVC_E_FULL);
    ck_assert_uint_eq(stats_of(s).n_ctx, n);
    free(want);
    kvc_session_close(s);
}
END_TEST

/* What it was given, whatever the cache has kept of it. */
START_TEST(tokens_are_held) {
    kvc_session *s = open_spec("window:size=64");
    int32_t have[N] = {0};
    ck_assert_int_eq(kvc_session_tokens(s, 0, 0, NULL), KVC_OK);
    ck_assert_int_eq(kvc_session_tokens(s, 0, 1, have), KVC_E_RANGE);
    ck_assert_int_eq(kvc_session_decode(s, tokens, N), KVC_OK);
    ck_assert_int_eq(kvc_session_tokens(s, 0, N, have), KVC_OK);
    ck_assert_mem_eq(have, tokens, sizeof have);
    ck_assert_int_eq(kvc_session_truncate(s, 90), KVC_OK);
    have[3] = -7;
    ck_assert_int_eq(kvc_session_tokens(s, 87, 3, have), KVC_OK);
    ck_assert_mem_eq(have, tokens + 87, 3 * sizeof *have);
    ck_assert_int_eq(have[3], -7);
    ck_assert_int_eq(kvc_session_tokens(s, 87, 4, have), KVC_E_RANGE);
    ck_assert_int_eq(kvc_session_tokens(s, 91, 0, have), KVC_E_RANGE);
    ck_assert_int_eq(kvc_session_tokens(s, 1, UINT32_MAX, have), KVC_E_RANGE);
    ck_assert_uint_eq(stats_of(s).compute, KVC_COMPUTE_F32);
    kvc_session_close(s);
    s = util_session(model, "", "int8", 64);
    ck_assert_uint_eq(stats_of(s).compute, KVC_COMPUTE_INT8);
    kvc_session_close(s);
}
END_TEST

/* ---------------------------------------------------------------- logits */

START_TEST(wanted_logits) {
    uint8_t list[100] = {0};
    list[3] = list[63] = list[64] = list[99] = 1;
    float *all = malloc(100 * VOCAB * sizeof *all);
    kvc_session *s = open_spec("");
    kvc_run run = run_of(s, tokens, 100);
    run.wants = KVC_WANT_ALL;
    ck_assert_int_eq(kvc_decode(&run, 1, sizeof run), KVC_OK);
    ck_assert_uint_eq(run.n_logits, 100);
    memcpy(all, kvc_session_logits(s, 0), 100 * VOCAB * sizeof *all);
    ck_assert_ptr_eq(kvc_session_logits(s, 99), kvc_session_logits(s, 0) + 99 * VOCAB);
    ck_assert_ptr_null(kvc_session_logits(s, 100));
    ck_assert_ptr_null(kvc_session_logits(s, UINT32_MAX));
    static const uint32_t wants[] = {KVC_WANT_NONE, KVC_WANT_LIST, KVC_WANT_LAST};
    static const uint32_t rows[] = {0, 4, 1};
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(kvc_session_truncate(s, 0), KVC_OK);
        ck_assert_ptr_null(kvc_session_logits(s, 0));
        run.wants = wants[i];
        run.want = wants[i] == KVC_WANT_LIST ? list : NULL;
        ck_assert_int_eq(kvc_decode(&run, 1, sizeof run), KVC_OK);
        ck_assert_uint_eq(run.n_logits, rows[i]);
        ck_assert_ptr_null(kvc_session_logits(s, rows[i]));
        uint32_t at = 0;
        for (uint32_t t = 0; t < 100; t++) {
            if (rows[i] == 4 ? list[t] != 0 : rows[i] == 1 && t == 99) {
                util_same(all + t * VOCAB, kvc_session_logits(s, at++), 1, VOCAB, "a wanted row");
            }
        }
        ck_assert_uint_eq(at, rows[i]);
    }
    memset(list, 0, sizeof list);
    ck_assert_int_eq(kvc_session_truncate(s, 0), KVC_OK);
    run.wants = KVC_WANT_LIST;
    run.want = list;
    ck_assert_int_eq(kvc_decode(&run, 1, sizeof run), KVC_OK);
    ck_assert_uint_eq(run.n_logits, 0);
    free(all);
    kvc_session_close(s);
}
END_TEST

/* Weights that stay in the file give the same bits, whatever their type, and take no memory. */
static const char *const files[] = {"tiny-f32.gguf",     "tiny-q4_1.gguf",    "tiny-untied.gguf",
                                    "tiny-kv.gguf",      "weights-f16.gguf",  "weights-bf16.gguf",
                                    "weights-q8_0.gguf", "weights-q4_0.gguf", "weights-q5_0.gguf",
                                    "weights-q5_1.gguf", "weights-q4_k.gguf", "weights-q5_k.gguf",
                                    "weights-q6_k.gguf", "weights-mix.gguf"};
enum { N_FILE = sizeof files / sizeof *files };

START_TEST(weights_may_stay_in_the_file) {
    const char *name = files[_i / 2], *compute = _i % 2 == 0 ? "int8" : "f32";
    char path[4096];
    kvc_params *p = util_params();
    kvc_model *m[2] = {util_model(name, 2, 0), NULL};
    snprintf(path, sizeof path, "%s/%s", getenv("KVC_TEST_MODELS"), name);
    ck_assert_int_eq(kvc_params_set_i64(p, "n_threads", 2), KVC_OK);
    ck_assert_int_eq(kvc_params_set_i64(p, "repack", 0), KVC_OK);
    const int32_t rc = kvc_model_open(path, p, &m[1]);
    ck_assert_msg(rc == KVC_OK, "%s", kvc_params_error(p));
    const uint32_t vocab = util_vocab(m[0]);
    float *out[2] = {malloc(70 * vocab * sizeof(float)), malloc(70 * vocab * sizeof(float))};
    for (int i = 0; i < 2; i++) {
        kvc_session *s = util_session(m[i], "", compute, 128);
        util_feed(s, tokens, 70, 0, i == 0 ? 64 : 7, vocab, out[i]);
        kvc_session_close(s);
    }
    util_same(out[0], out[1], 70, vocab, name);
    kvc_params_set_str(p, "repack", "2");
    has(kvc_params_error(p), "repack");
    for (int i = 0; i < 2; i++) {
        kvc_model_close(m[i]);
        free(out[i]);
    }
    kvc_params_destroy(p);
}
END_TEST

START_TEST(bytes_in_memory_are_packed) {
    kvc_params *p = util_params();
    kvc_model *m = NULL;
    ck_assert_int_eq(kvc_params_set_i64(p, "repack", 0), KVC_OK);
    ck_assert_int_eq(kvc_model_open_memory("GGUF", 4, p, &m), KVC_E_UNSUPPORTED);
    has(kvc_params_error(p), "by its path");
    kvc_params_destroy(p);
}
END_TEST

/* More sessions than are taken at a time, and than a batch has rows. */
START_TEST(many_sessions) {
    enum { RUNS = 150 };
    kvc_model *m = util_model("tiny-f16.gguf", 2, _i == 0 ? 3 : 500);
    kvc_run run[RUNS];
    float *want[3];
    for (uint32_t i = 0; i < 3; i++) {
        want[i] = alone(specs[5 + i], 66 + i);
    }
    for (uint32_t i = 0; i < RUNS; i++) {
        run[i] = run_of(open_on(m, specs[5 + i % 3], 100, NULL), tokens, 66 + i % 3);
    }
    ck_assert_int_eq(kvc_decode(run, RUNS, sizeof run[0]), KVC_OK);
    for (uint32_t i = 0; i < RUNS; i++) {
        ck_assert_int_eq(run[i].status, KVC_OK);
        ck_assert_uint_eq(run[i].n_logits, 1);
        util_same(want[i % 3], kvc_session_logits(run[i].session, 0), 1, VOCAB, "one of many");
        kvc_session_close(run[i].session);
    }
    for (int i = 0; i < 3; i++) {
        free(want[i]);
    }
    kvc_model_close(m);
}
END_TEST

/* ---------------------------------------------------------------- other threads */

/* Runs fn beside a decode call that has reached that position. */
static pthread_t beside(int32_t pos, void *(*fn)(void *), void *arg) {
    pthread_t thread;
    sem_init(&spy.running, 0, 0);
    sem_init(&spy.go_on, 0, 0);
    spy.wait_at = pos;
    ck_assert_int_eq(pthread_create(&thread, NULL, fn, arg), 0);
    return thread;
}

static void *cancel_beside(void *arg) {
    sem_wait(&spy.running);
    kvc_session_cancel(arg);
    sem_post(&spy.go_on);
    return NULL;
}

/* In the middle of a prompt, and when its last token is through the last layer. */
START_TEST(cancel_in_a_prompt) {
    char spec[128];
    const int i = _i / 2;
    snprintf(spec, sizeof spec, "spy%s%s", specs[i][0] != '\0' ? "+" : "", specs[i]);
    float *want = in_two(spec, 70, N), *others = in_two("", 70, N);
    kvc_session *s = open_spec(spec), *t = open_spec("");
    ck_assert_int_eq(kvc_session_decode(s, tokens, 70), KVC_OK);
    ck_assert_int_eq(kvc_session_decode(t, tokens, 70), KVC_OK);
    const kvc_session_stats before = stats_of(s);
    pthread_t thread = beside(_i % 2 == 0 ? 128 : N - 1, cancel_beside, s);
    kvc_run run[2] = {run_of(s, tokens + 70, N - 70), run_of(t, tokens + 70, N - 70)};
    ck_assert_int_eq(kvc_decode(run, 2, sizeof run[0]), KVC_E_CANCELLED);
    pthread_join(thread, NULL);
    has(kvc_session_error(s), "cancelled");
    ck_assert_int_eq(run[1].status, KVC_OK);
    util_same(others, kvc_session_logits(t, 0), 1, VOCAB, "beside a cancelled session");
    ck_assert_uint_eq(kvc_session_n_past(s), 70);
    ck_assert_ptr_null(kvc_session_logits(s, 0));
    ck_assert_uint_eq(run[0].n_logits, 0);
    ck_assert_uint_le(stats_of(s).kv_bytes, before.kv_bytes);
    /* A tick later at the latest it has stopped. */
    ck_assert(_i % 2 != 0 || stats_of(s).n_computed < before.n_computed + N - 70);
    goes_on(s, N, want, spec);
    free(want);
    free(others);
    kvc_session_close(s);
    kvc_session_close(t);
}
END_TEST

START_TEST(cancel_before_a_call) {
    float *want = in_two(specs[_i], 70, N);
    kvc_session *s = open_spec(specs[_i]);
    ck_assert_int_eq(kvc_session_decode(s, tokens, 70), KVC_OK);
    kvc_session_cancel(s);
    kvc_session_cancel(s);
    ck_assert_int_eq(kvc_session_decode(s, tokens + 70, 5), KVC_E_CANCELLED);
    has(kvc_session_error(s), "cancelled");
    ck_assert_uint_eq(kvc_session_n_past(s), 70);
    goes_on(s, N, want, specs[_i]);
    free(want);
    kvc_session_close(s);
}
END_TEST

static int32_t seen_beside[3];

static void *use_beside(void *arg) {
    kvc_session *s = arg;
    sem_wait(&spy.running);
    kvc_run run = run_of(s, tokens, 1);
    seen_beside[0] = kvc_decode(&run, 1, sizeof run);
    seen_beside[1] = run.status;
    seen_beside[2] = kvc_session_truncate(s, 0);
    sem_post(&spy.go_on);
    return NULL;
}

START_TEST(busy_in_a_call) {
    kvc_session *s = open_spec("spy");
    float *want = alone("", N);
    pthread_t thread = beside(128, use_beside, s);
    ck_assert_int_eq(kvc_session_decode(s, tokens, N), KVC_OK);
    pthread_join(thread, NULL);
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(seen_beside[i], KVC_E_BUSY);
    }
    ck_assert_uint_eq(kvc_session_n_past(s), N);
    util_same(want, kvc_session_logits(s, 0), 1, VOCAB, "a call that others knocked at");
    free(want);
    kvc_session_close(s);
}
END_TEST

static void *feed_beside(void *arg) {
    for (uint32_t i = 0; i < N; i += 30) {
        if (kvc_session_decode(arg, tokens + i, 30) != KVC_OK) {
            return arg;
        }
    }
    return NULL;
}

START_TEST(threads_share_a_model) {
    pthread_t thread[3];
    kvc_session *s[3];
    float *want = alone("", N);
    for (int i = 0; i < 3; i++) {
        s[i] = open_spec("");
        ck_assert_int_eq(pthread_create(&thread[i], NULL, feed_beside, s[i]), 0);
    }
    for (int i = 0; i < 3; i++) {
        void *failed = NULL;
        pthread_join(thread[i], &failed);
        ck_assert_ptr_null(failed);
        util_same(want, kvc_session_logits(s[i], 0), 1, VOCAB, "one of three threads");
        kvc_session_close(s[i]);
    }
    free(want);
}
END_TEST

START_TEST(a_model_lives_as_long_as_its_sessions) {
    heap h;
    heap_init(&h);
    kvc_params *p = params_for(0, &h);
    char path[4096];
    kvc_model *m = NULL;
    snprintf(path, sizeof path, "%s/tiny-f16.gguf", getenv("KVC_TEST_MODELS"));
    ck_assert_int_eq(kvc_model_open(path, p, &m), KVC_OK);
    kvc_params_destroy(p);
    kvc_session *s = open_on(m, "", N_CTX, NULL), *t = open_on(m, "quant8", N_CTX, NULL);
    float *want = alone("", 100);
    kvc_model_close(m);
    goes_on(s, 100, want, "after its model was closed");
    kvc_session_close(s);
    ck_assert_int_eq(kvc_session_decode(t, tokens, 10), KVC_OK);
    ck_assert_uint_gt(atomic_load(&h.held), 0);
    kvc_session_close(t);
    heap_check_empty(&h);
    free(want);
}
END_TEST

/* ---------------------------------------------------------------- figures */

START_TEST(bytes_of_formats) {
    static const struct {
        const char *model, *spec;
        uint32_t lanes, page, open; /* bytes of a sealed and of an open page */
    } cases[] = {
        {"tiny-f16.gguf", "", 4, 64 * 64 * 2, 64 * 64 * 2},
        {"tiny-f16.gguf", "full:type=f16", 4, 64 * 64 * 2, 64 * 64 * 2},
        {"tiny-f16.gguf", "full:type=bf16", 4, 64 * 64 * 2, 64 * 64 * 2},
        {"tiny-f16.gguf", "full:type=f32", 4, 64 * 64 * 4, 64 * 64 * 4},
        {"tiny-f16.gguf", "quant8", 4, 2 * (128 + 64 * 32), 64 * 64 * 2},
        {"tiny-kv.gguf", "full:type=f16", 4, 64 * (32 + 48) * 2, 64 * (32 + 48) * 2},
        {"tiny-kv.gguf", "quant8", 4, 2 * 128 + 64 * (32 + 48), 64 * (32 + 48) * 2},
        {"tiny-mqa80.gguf", "full:type=f32", 2, 64 * 160 * 4, 64 * 160 * 4},
        {"tiny-mqa80.gguf", "quant8", 2, 2 * (128 + 64 * 80), 64 * 160 * 2},
    };
    kvc_model *m = util_model(cases[_i].model, 2, 0);
    kvc_session *s = open_on(m, cases[_i].spec, N_CTX, NULL);
    const uint32_t lanes = cases[_i].lanes;
    for (uint32_t n = 0; n <= 1000; n += 100) {
        kvc_session_stats st = stats_of(s);
        ck_assert_uint_eq(st.n_past, n);
        ck_assert_uint_eq(st.n_computed, n);
        ck_assert_uint_eq(st.n_entry, n * lanes);
        ck_assert_uint_eq(st.sealed_bytes, (uint64_t)(n / 64) * lanes * cases[_i].page);
        ck_assert_uint_eq(st.open_bytes, lanes * cases[_i].open);
        ck_assert_uint_eq(st.column_bytes + st.disk_bytes + st.n_replayed, 0);
        ck_assert_uint_eq(st.kv_bytes,
                          st.sealed_bytes + st.open_bytes + st.meta_bytes + st.stage_bytes);
        ck_assert_uint_eq(st.kv_peak_bytes, st.kv_bytes);
        ck_assert_uint_eq(st.chunk_invariant, 1);
        if (n == 1000) {
            ck_assert_uint_gt(st.compute_ns, st.attention_ns);
            ck_assert_uint_gt(st.attention_ns, 0);
            ck_assert(cases[_i].lanes != 2 || st.meta_bytes * 100 <= st.sealed_bytes);
            break;
        }
        ck_assert_int_eq(kvc_session_decode(s, tokens + n, 100), KVC_OK);
    }
    kvc_session_close(s);
    kvc_model_close(m);
}
END_TEST

START_TEST(window_is_flat_in_context) {
    static const char *const window[] = {"window:size=100:sinks=4", "window:size=100+quant8",
                                         "window:size=100:positions=cache",
                                         "t_mass:budget=70"}; /* compacts */
    static const uint32_t at[] = {300, 500, 1000};
    kvc_session *s = open_spec(window[_i]);
    uint64_t first = 0, peak = 0;
    for (int i = 0; i < 3; i++) {
        const uint32_t past = kvc_session_n_past(s);
        ck_assert_int_eq(kvc_session_decode(s, tokens + past, at[i] - past), KVC_OK);
        const kvc_session_stats st = stats_of(s);
        first = i == 0 ? st.kv_bytes : first;
        peak = i < 2 ? st.kv_peak_bytes : peak;
        ck_assert_uint_eq(st.kv_bytes, first);
        ck_assert_uint_eq(st.kv_peak_bytes, peak);
        ck_assert_uint_ne(st.flags & KVC_PLAN_BOUNDED, 0);
        ck_assert_uint_lt(st.n_entry, N_LANE * 64 * 6);
    }
    kvc_session_close(s);
}
END_TEST

START_TEST(none_keeps_nothing) {
    kvc_model *m = util_model("tiny-f16.gguf", 2, _i == 0 ? 33 : 512);
    kvc_session *s = open_on(m, "none", N_CTX, NULL);
    ck_assert_int_eq(kvc_session_decode(s, tokens, 200), KVC_OK);
    ck_assert_int_eq(kvc_session_decode(s, tokens + 200, 1), KVC_OK);
    ck_assert_int_eq(kvc_session_decode(s, tokens + 201, 1), KVC_OK);
    kvc_session_stats st = stats_of(s);
    ck_assert_uint_eq(st.n_past, 202);
    ck_assert_uint_eq(st.sealed_bytes + st.n_entry, 0);
    ck_assert_uint_ge(st.kv_peak_bytes, st.kv_bytes + 3 * N_LANE * 64 * 64 * 2);
    ck_assert_uint_eq(st.n_computed, 200 + 201 + 202);
    ck_assert_uint_eq(st.n_replayed, 200 + 201);
    /* Nor after a call that fails. */
    kvc_session_cancel(s);
    ck_assert_int_eq(kvc_session_decode(s, tokens + 202, 1), KVC_E_CANCELLED);
    ck_assert_uint_eq(stats_of(s).sealed_bytes + stats_of(s).n_entry, 0);
    kvc_session_close(s);
    kvc_model_close(m);

    s = open_spec("spy+none");
    ck_assert_int_eq(kvc_session_decode(s, tokens, 200), KVC_OK);
    spy.code[END] = KVC_E_NOMEM; /* at the first tick, when a page is sealed */
    ck_assert_int_eq(kvc_session_decode(s, tokens + 200, 1), KVC_E_NOMEM);
    ck_assert_uint_eq(stats_of(s).sealed_bytes + stats_of(s).n_entry, 0);
    kvc_session_close(s);
}
END_TEST

START_TEST(replayed_tokens_are_counted) {
    static const struct {
        const char *spec;
        uint32_t to, replayed;
    } cases[] = {{"", 195, 0},
                 {"", 192, 0},
                 {"", 100, 0},
                 {"quant8", 100, 36},
                 {"full:type=bf16", 191, 0},
                 {"", 64, 0},
                 {"", 0, 0},
                 {"window:size=100", 195, 0},
                 {"window:size=100", 191, 0},
                 {"window:size=100+quant8", 191, 63},
                 {"window:size=10:sinks=0", 130, 0},
                 {"window:size=10:sinks=0", 60, 60},
                 {"t_mass:budget=70", 195, 195},
                 {"t_pages", 195, 0},
                 {"t_pages", 100, 36}};
    kvc_session *s = open_spec(cases[_i].spec);
    ck_assert_int_eq(kvc_session_decode(s, tokens, 200), KVC_OK);
    ck_assert_int_eq(kvc_session_truncate(s, cases[_i].to), KVC_OK);
    ck_assert_uint_eq(stats_of(s).n_replayed, 0);
    ck_assert_int_eq(kvc_session_decode(s, tokens, 1), KVC_OK);
    const kvc_session_stats st = stats_of(s);
    ck_assert_uint_eq(st.n_past, cases[_i].to + 1);
    ck_assert_uint_eq(st.n_replayed, cases[_i].replayed);
    ck_assert_uint_eq(st.n_computed, 200 + cases[_i].replayed + 1);
    kvc_session_close(s);
}
END_TEST

static kvc_stage_stats stage_of(const kvc_session *s, uint32_t i) {
    kvc_stage_stats st = {.struct_size = sizeof st};
    ck_assert_int_eq(kvc_session_get_stage(s, i, &st), KVC_OK);
    return st;
}

START_TEST(stages_are_counted) {
    spy.memory = 5000;
    spy.files = 70000;
    kvc_session *s = open_spec("spy+t_pages:pages=1+quant8");
    ck_assert_str_eq(kvc_session_spec(s), "spy+t_pages:pages=1+quant8:hadamard=on");
    ck_assert_int_eq(kvc_session_decode(s, tokens, N), KVC_OK);
    kvc_stage_stats a = stage_of(s, 0), b = stage_of(s, 1), c = stage_of(s, 2);
    const kvc_session_stats st = stats_of(s);
    const uint64_t pages = N_CTX / 64;
    const uint64_t floats = N_LANE * (64 * 32 + pages * 2 * 32 + pages);
    ck_assert_str_eq(a.name, "spy");
    ck_assert_str_eq(a.path, "");
    ck_assert_uint_eq(a.memory_bytes, 5000 + sizeof(spy_stage));
    ck_assert_uint_eq(a.peak_bytes, a.memory_bytes);
    ck_assert_uint_eq(a.disk_bytes, 70000);
    ck_assert_uint_gt(a.hook_ns, 0);
    ck_assert_str_eq(b.name, "t_pages");
    has(b.path, "t_pages.so");
    ck_assert_uint_ge(b.memory_bytes, floats * sizeof(float));
    ck_assert_uint_le(b.memory_bytes, floats * sizeof(float) + 1024);
    ck_assert_uint_gt(b.n_skipped, 0);
    ck_assert_uint_gt(c.memory_bytes, 0);
    /* The first observes and ticks, the second observes and selects, the third encodes. */
    ck_assert_uint_gt(b.worker_ns, 0);
    ck_assert_uint_gt(c.worker_ns, 0);
    ck_assert_uint_eq(c.hook_ns, 0);
    ck_assert_uint_eq(a.payload_bytes + b.payload_bytes, 0);
    ck_assert_uint_eq(c.payload_bytes, st.sealed_bytes);
    ck_assert_uint_eq(st.n_stage, 3);
    ck_assert_uint_eq(st.stage_bytes, a.memory_bytes + b.memory_bytes + c.memory_bytes);
    ck_assert_uint_eq(st.kv_bytes,
                      st.sealed_bytes + st.open_bytes + st.meta_bytes + st.stage_bytes);
    ck_assert_uint_eq(st.disk_bytes, 70000);
    ck_assert_int_eq(kvc_session_get_stage(s, 3, &a), KVC_E_RANGE);
    kvc_session_close(s);
    s = open_spec("t_mass:budget=70+idle");
    ck_assert_int_eq(kvc_session_decode(s, tokens, N), KVC_OK);
    ck_assert_uint_gt(stage_of(s, 0).n_evicted, 0);
    ck_assert_uint_gt(stats_of(s).column_bytes, 0);
    ck_assert_uint_eq(stats_of(s).chunk_invariant, 0);
    kvc_session_close(s);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("session");
    TCase *tc = add_case(suite, "calls");
    tcase_add_test(tc, null_is_refused);
    tcase_add_test(tc, sizes_of_structs);
    tcase_add_test(tc, bad_runs_change_nothing);
    tcase_add_test(tc, a_session_is_taken_once_a_call);
    tcase_add_test(tc, sessions_of_a_call_share_model_and_way);
    tcase_add_loop_test(tc, the_context_is_full, 0, 5);
    tcase_add_test(tc, tokens_are_held);
    tcase_add_test(tc, wanted_logits);
    tcase_add_loop_test(tc, many_sessions, 0, 2);
    tcase_add_loop_test(tc, weights_may_stay_in_the_file, 0, 2 * N_FILE);
    tcase_add_test(tc, bytes_in_memory_are_packed);
    tc = add_case(suite, "threads");
    every_add(tc, cancel_in_a_prompt, 2 * N_SPEC, 8);
    every_add(tc, cancel_before_a_call, N_SPEC, 8);
    tcase_add_test(tc, busy_in_a_call);
    tcase_add_test(tc, threads_share_a_model);
    tcase_add_test(tc, a_model_lives_as_long_as_its_sessions);
    tc = add_case(suite, "figures");
    tcase_add_loop_test(tc, bytes_of_formats, 0, 9);
    tcase_add_loop_test(tc, window_is_flat_in_context, 0, 4);
    tcase_add_loop_test(tc, none_keeps_nothing, 0, 2);
    tcase_add_loop_test(tc, replayed_tokens_are_counted, 0, 15);
    tcase_add_test(tc, stages_are_counted);
    return run_suite(suite);
}

/* SPDX-License-Identifier: MIT
 * test_session.c: what a caller of sessions can do wrong, what policies and memory can do to them,
 * and what they say of themselves. Everything goes through the public API. That results don't
 * depend on how they are computed is the matter of test_engine.c. */
#include "engine_util.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <unistd.h>

enum {
    N = 300,
    N_CTX = 1024,
    VOCAB = 320,
    N_LANE = 4 /* of most tiny models: 2 layers × 2 heads */
};

static int32_t tokens[N_CTX + 1];
static kvc_model *model; /* tiny-f16.gguf, two threads */

/* Every kind of stack: what the project ships, and what the tests have. */
static const char *const specs[] = {
    "",
    "full:type=f16",
    "full:type=f32",
    "full:type=bf16",
    "none",
    "quant8",
    "quant8:hadamard=off",
    "window:size=100",
    "window:size=100:positions=cache",
    "window:size=100+quant8",
    "quant8+window:size=70:sinks=0",
    "window:size=100:positions=cache+full:type=f32",
    "window:size=100+none",
    "t_mass:budget=70",
    "t_mass:budget=70+quant8",
    "t_codec",
    "t_pages:pages=2",
    "t_pages:pages=2+t_codec",
};
enum { N_SPEC = sizeof specs / sizeof *specs };

/* ---------------------------------------------------------------- memory that counts and fails */

typedef struct heap {
    atomic_size_t held;  /* bytes */
    atomic_int calls;    /* of all kinds */
    atomic_int left;     /* allocations until one fails; negative: none does */
    atomic_int mistakes; /* blocks that were given back with another size */
} heap;

/* The size stands in front of the block, to be compared when it is given back. */
static void *heap_realloc(void *ctx, void *p, size_t old_size, size_t new_size, size_t align) {
    heap *h = ctx;
    char *base = NULL, *fresh = NULL;
    atomic_fetch_add(&h->calls, 1);
    if (new_size > 0) {
        if (atomic_fetch_sub(&h->left, 1) == 0 ||
            posix_memalign((void **)&base, align, new_size + align) != 0) {
            return NULL;
        }
        const size_t head[2] = {new_size, align};
        fresh = base + align;
        memcpy(fresh - sizeof head, head, sizeof head);
        memset(fresh, 0xa5, new_size);
        memcpy(fresh, p != NULL ? p : fresh, old_size < new_size ? old_size : new_size);
        atomic_fetch_add(&h->held, new_size);
    }
    if (p != NULL) {
        size_t head[2];
        memcpy(head, (char *)p - sizeof head, sizeof head);
        atomic_fetch_add(&h->mistakes, head[0] != old_size);
        atomic_fetch_sub(&h->held, head[0]);
        free((char *)p - head[1]);
    }
    return fresh;
}

static void heap_init(heap *h) {
    memset(h, 0, sizeof *h);
    atomic_store(&h->left, -1);
}

static void heap_check_empty(heap *h) {
    ck_assert_uint_eq(atomic_load(&h->held), 0);
    ck_assert_int_eq(atomic_load(&h->mistakes), 0);
}

static void use_heap(kvc_params *p, heap *h) {
    const kvc_allocator a = {.struct_size = sizeof a, .ctx = h, .realloc = heap_realloc};
    ck_assert_int_eq(kvc_params_set_allocator(p, &a), KVC_OK);
}

/* ---------------------------------------------------------------- a policy of the test's own */

/* An observer that does in each hook what the test has set. */
enum { CREATE, BEGIN, APPEND, PAGE_END, END, TRUNCATE, N_HOOK };

static struct {
    bool allocates;         /* each hook takes memory and gives it back */
    int32_t code[N_HOOK];   /* what hooks answer */
    const char *say;        /* sentence of a failing hook, or NULL */
    int32_t wait_at;        /* not 0: page_end behind it lets the other thread do its part */
    sem_t running, go_on;   /* for it */
    int32_t last_truncate;  /* position of the last */
    uint64_t memory, files; /* accounted in create() */
} spy;

typedef struct spy_stage {
    const kvc_host *host;
    const kvc_host_store *store;
} spy_stage;

static int32_t spy_do(const spy_stage *s, int hook) {
    if (spy.allocates) {
        void *p = s->host->realloc(s->host->ctx, NULL, 0, 100, 64);
        if (p == NULL) {
            return KVC_E_NOMEM;
        }
        s->host->realloc(s->host->ctx, p, 100, 0, 64);
    }
    if (spy.code[hook] != KVC_OK && spy.say != NULL) {
        return (s->host->fail)(s->host->ctx, spy.code[hook],
                               spy.say); /* Check has a macro fail() */
    }
    return spy.code[hook];
}

static int32_t spy_create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                          kvc_plan *plan, void **self) {
    spy_stage *s = host->realloc(host->ctx, NULL, 0, sizeof *s, 64);
    (void)shape, (void)value, (void)plan;
    if (s == NULL) {
        return KVC_E_NOMEM;
    }
    *self = s;
    s->host = host;
    s->store = host->extension(host->ctx, KVC_HOST_STORE);
    host->account(host->ctx, KVC_BYTES_MEMORY, (int64_t)spy.memory);
    host->account(host->ctx, KVC_BYTES_DISK, (int64_t)spy.files);
    host->log(host->ctx, KVC_LOG_INFO, "spy is here");
    return spy_do(s, CREATE);
}

static void spy_destroy(void *self) {
    spy_stage *s = self;
    s->host->realloc(s->host->ctx, s, sizeof *s, 0, 64);
}

static int32_t spy_begin(void *self, const kvc_step *step, int32_t *from) {
    (void)step, (void)from;
    return spy_do(self, BEGIN);
}

static int32_t spy_append(void *self, const kvc_rows *rows) {
    return rows->layer == 1 && rows->head == 1 ? spy_do(self, APPEND) : KVC_OK;
}

static int32_t spy_page_end(void *self, const kvc_step *step, uint32_t layer) {
    const spy_stage *s = self;
    if (spy.wait_at != 0 && layer == 1 && step->pos + (int32_t)step->n > spy.wait_at) {
        spy.wait_at = 0;
        sem_post(&spy.running);
        sem_wait(&spy.go_on);
    }
    if (spy.allocates) {
        float k[2 * 32];
        int32_t rc = s->store->read(s->host->ctx, layer, 0, 0, 2, k, NULL);
        if (rc < 0) {
            return rc;
        }
    }
    return spy_do(self, PAGE_END);
}

static int32_t spy_end(void *self, const kvc_step *step) {
    (void)step;
    return spy_do(self, END);
}

static int32_t spy_truncate(void *self, int32_t pos) {
    spy.last_truncate = pos;
    return spy_do(self, TRUNCATE);
}

static const kvc_policy_api spy_api = {.struct_size = sizeof spy_api,
                                       .create = spy_create,
                                       .destroy = spy_destroy,
                                       .begin = spy_begin,
                                       .append = spy_append,
                                       .page_end = spy_page_end,
                                       .end = spy_end,
                                       .truncate = spy_truncate};

/* A second observer, which has append() alone and never fails. */
static int32_t idle_create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                           kvc_plan *plan, void **self) {
    (void)host, (void)shape, (void)value, (void)plan, (void)self;
    return KVC_OK;
}

static int32_t idle_append(void *self, const kvc_rows *rows) {
    (void)self, (void)rows;
    return KVC_OK;
}

static const kvc_policy_api idle_api = {
    .struct_size = sizeof idle_api, .create = idle_create, .append = idle_append};

static const kvc_policy *spy_entry(uint32_t host_abi, uint32_t index) {
    static const kvc_policy policy[] = {{.struct_size = sizeof(kvc_policy),
                                         .abi = KVC_POLICY_ABI,
                                         .abi_min = KVC_POLICY_ABI_MIN,
                                         .caps = KVC_CAP_CHUNK_INVARIANT,
                                         .name = "spy",
                                         .version = "1.0.0",
                                         .summary = "test: does what the test has set",
                                         .license = "MIT",
                                         .api = &spy_api},
                                        {.struct_size = sizeof(kvc_policy),
                                         .abi = KVC_POLICY_ABI,
                                         .abi_min = KVC_POLICY_ABI_MIN,
                                         .name = "idle",
                                         .version = "1.0.0",
                                         .summary = "test: looks on",
                                         .license = "MIT",
                                         .api = &idle_api}};
    (void)host_abi;
    return index < 2 ? &policy[index] : NULL;
}

/* ---------------------------------------------------------------- opening and running */

static kvc_params *params_for(int n_ctx, heap *h) {
    kvc_params *p = util_params();
    ck_assert_int_eq(kvc_params_add_policy(p, spy_entry), KVC_OK);
    ck_assert_int_eq(kvc_params_set_str(p, "compute", "f32"), KVC_OK);
    ck_assert_int_eq(kvc_params_set_i64(p, "n_ctx", n_ctx), KVC_OK);
    if (h != NULL) {
        use_heap(p, h);
    }
    return p;
}

static kvc_session *open_on(kvc_model *m, const char *spec, int n_ctx, heap *h) {
    kvc_params *p = params_for(n_ctx, h);
    kvc_session *s = NULL;
    int32_t rc = kvc_session_open(m, spec, p, &s);
    ck_assert_msg(rc == KVC_OK, "%s: %s", spec, kvc_params_error(p));
    kvc_params_destroy(p);
    return s;
}

static kvc_session *open_spec(const char *spec) {
    return open_on(model, spec, N_CTX, NULL);
}

/* Logits of the last of n tokens of a session like that, computed in two calls, or in one when
 * first is 0; the caller frees. */
static float *in_two(const char *spec, uint32_t first, uint32_t n) {
    float *out = malloc(VOCAB * sizeof *out);
    kvc_session *s = open_spec(spec);
    ck_assert(first == 0 || kvc_session_decode(s, tokens, first) == KVC_OK);
    ck_assert_int_eq(kvc_session_decode(s, tokens + first, n - first), KVC_OK);
    memcpy(out, kvc_session_logits(s, 0), VOCAB * sizeof *out);
    kvc_session_close(s);
    return out;
}

static float *alone(const char *spec, uint32_t n) {
    return in_two(spec, 0, n);
}

/* Goes on from where the session is to n tokens and compares the last logits. */
static void goes_on(kvc_session *s, uint32_t n, const float *want, const char *what) {
    const uint32_t past = kvc_session_n_past(s);
    ck_assert_msg(kvc_session_decode(s, tokens + past, n - past) == KVC_OK, "%s: %s", what,
                  kvc_session_error(s));
    util_same(want, kvc_session_logits(s, 0), 1, VOCAB, what);
}

static kvc_run run_of(kvc_session *s, const int32_t *token, uint32_t n) {
    return (kvc_run){.struct_size = sizeof(kvc_run), .session = s, .token = token, .n_token = n};
}

static kvc_session_stats stats_of(const kvc_session *s) {
    kvc_session_stats st = {.struct_size = sizeof st};
    ck_assert_int_eq(kvc_session_get_stats(s, &st), KVC_OK);
    return st;
}

static void has(const char *text, const char *word) {
    ck_assert_msg(strstr(text, word) != NULL, "no '%s' in: %s", word, text);
}

static void setup(void) {
    memset(&spy, 0, sizeof spy);
    model = util_model("tiny-f16.gguf", 2, 0);
    ck_assert_uint_eq(util_vocab(model), VOCAB);
    util_tokens(tokens, N_CTX + 1, VOCAB, 5);
}

static void teardown(void) {
    kvc_model_close(model);
}

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
                 {"", 100, 36},
                 {"", 64, 0},
                 {"", 0, 0},
                 {"window:size=100", 195, 0},
                 {"window:size=100", 191, 63},
                 {"window:size=10:sinks=0", 130, 2},
                 {"window:size=10:sinks=0", 100, 100},
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
    const int before = atomic_load(&h.calls) + atomic_load(&hm.calls);
    ck_assert_int_eq(kvc_session_decode(s, tokens, 120), KVC_OK);
    for (uint32_t i = 120; i < 320; i++) {
        ck_assert_int_eq(kvc_session_decode(s, tokens + i, 1), KVC_OK);
    }
    ck_assert_int_eq(kvc_session_truncate(s, 150), KVC_OK);
    ck_assert_int_eq(kvc_session_decode(s, tokens, 1), KVC_OK);
    ck_assert_int_eq(atomic_load(&h.calls) + atomic_load(&hm.calls), before);
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
        ck_assert_int_eq(spy.last_truncate, 64);
        if (n == 0) {
            ck_assert_int_eq(rc, KVC_E_POLICY);
            has(kvc_session_error(s), "policy 'spy' failed in truncate (position 64)");
            ck_assert_int_eq(kvc_session_decode(s, tokens, 1), KVC_E_DEAD);
            has(kvc_session_error(s), "policy 'spy' failed in truncate (position 64)");
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
        {"b_plan_where", KVC_E_UNSUPPORTED, "tier"},
        {"b_plan_quantum", KVC_E_POLICY, "quantum"},
        {"b_plan_columns", KVC_E_POLICY, "columns"},
        {"b_plan_observe", KVC_E_POLICY, "flags"},
        {"b_plan_positions", KVC_E_POLICY, "flags"},
        {"b_plan_cache_evicts", KVC_E_POLICY, "positions in the cache"},
        {"b_plan_type", KVC_E_POLICY, "format"},
        {"b_plan_unsaid", KVC_E_POLICY, "without answering 'format'"},
        {"b_codec_page0", KVC_E_POLICY, "page_bytes"},
        {"b_codec_page_huge", KVC_E_POLICY, "page_bytes"},
        {"b_codec_size", KVC_E_POLICY, "codec"},
        {"b_codec_move", KVC_E_POLICY, "move"},
        {"b_codec_page_bytes", KVC_E_POLICY, "page_bytes"},
        {"b_codec_encode", KVC_E_POLICY, "encode"},
        {"b_codec_decode", KVC_E_POLICY, "decode"},
        {"b_create_fails", KVC_E_PARAM, "create says no on purpose"},
        {"b_create_mute", KVC_E_POLICY, "can't be created"},
        {"b_create_nomem", KVC_E_NOMEM, "can't be created"},
        {"b_create_code", KVC_E_POLICY, "can't be created"},
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
        {"b_visible_order", 0, "visible (layer 0, head 0, position", "KVC_E_POLICY"},
        {"b_visible_many", 0, "visible (layer 0, head 0, position", "KVC_E_POLICY"},
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

/* ---------------------------------------------------------------- */

static TCase *add_case(Suite *suite, const char *name) {
    TCase *tc = tcase_create(name);
    suite_add_tcase(suite, tc);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 120);
    return tc;
}

static void add_policy_cases(Suite *suite) {
    TCase *tc = add_case(suite, "policies");
    tcase_add_test(tc, log_reaches_the_program);
    tcase_add_test(tc, specs_that_are_refused);
    tcase_add_test(tc, plans_that_are_refused);
    tcase_add_test(tc, odd_plans_that_are_legal);
    tcase_add_loop_test(tc, hooks_that_fail, 0, 16);
    tcase_add_test(tc, rewind_that_fails);
    tcase_add_test(tc, begin_without_memory);
    tcase_add_loop_test(tc, the_right_stage_is_blamed, 0, 3);
    tcase_add_loop_test(tc, answers_of_hooks, 0, END - BEGIN + 1);
}

static void add_memory_cases(Suite *suite) {
    TCase *tc = add_case(suite, "memory");
    tcase_add_loop_test(tc, all_is_given_back, 0, N_SPEC);
    tcase_add_test(tc, failing_opens_give_back);
    tcase_add_loop_test(tc, decoding_takes_no_memory, 0, N_SPEC);
    tcase_add_loop_test(tc, open_without_memory, 0, N_SPEC);
    tcase_add_test(tc, open_without_memory_of_the_model);
    tcase_add_loop_test(tc, decode_without_memory, 0, 6);
    tcase_add_test(tc, truncate_without_memory);
}

int main(void) {
    Suite *suite = suite_create("session");
    TCase *tc = add_case(suite, "calls");
    tcase_add_test(tc, null_is_refused);
    tcase_add_test(tc, sizes_of_structs);
    tcase_add_test(tc, bad_runs_change_nothing);
    tcase_add_test(tc, a_session_is_taken_once_a_call);
    tcase_add_test(tc, sessions_of_a_call_share_model_and_way);
    tcase_add_loop_test(tc, the_context_is_full, 0, 5);
    tcase_add_test(tc, wanted_logits);
    tcase_add_loop_test(tc, many_sessions, 0, 2);
    tc = add_case(suite, "threads");
    tcase_add_loop_test(tc, cancel_in_a_prompt, 0, 2 * N_SPEC);
    tcase_add_loop_test(tc, cancel_before_a_call, 0, N_SPEC);
    tcase_add_test(tc, busy_in_a_call);
    tcase_add_test(tc, threads_share_a_model);
    tcase_add_test(tc, a_model_lives_as_long_as_its_sessions);
    tc = add_case(suite, "figures");
    tcase_add_loop_test(tc, bytes_of_formats, 0, 9);
    tcase_add_loop_test(tc, window_is_flat_in_context, 0, 4);
    tcase_add_loop_test(tc, none_keeps_nothing, 0, 2);
    tcase_add_loop_test(tc, replayed_tokens_are_counted, 0, 12);
    tcase_add_test(tc, stages_are_counted);
    add_memory_cases(suite);
    add_policy_cases(suite);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}

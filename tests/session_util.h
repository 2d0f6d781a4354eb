/* SPDX-License-Identifier: MIT
 * session_util.h: what tests of sessions share: memory that counts and fails, a policy that does
 * what the test has set, opening and comparing. */
#ifndef KVC_TESTS_SESSION_UTIL_H
#define KVC_TESTS_SESSION_UTIL_H

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
    "quant4",
    "kivi:bits=2",
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
    "t_tier",
    "t_mass:budget=70+quant8+t_tier",
    "quant8+offload:dir=/tmp",
    "window:size=100+quant8+offload:dir=/tmp",
    "h2o:budget=128",
    "tova:budget=10%+quant8",
    "snapkv:budget=100",
    "h2o:budget=100+quant8+offload:dir=/tmp",
    "snapkv:budget=64KiB:pyramid=4+quant8+t_tier",
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
static inline void *heap_realloc(void *ctx, void *p, size_t old_size, size_t new_size,
                                 size_t align) {
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

static inline void heap_init(heap *h) {
    memset(h, 0, sizeof *h);
    atomic_store(&h->left, -1);
}

static inline void heap_check_empty(heap *h) {
    ck_assert_uint_eq(atomic_load(&h->held), 0);
    ck_assert_int_eq(atomic_load(&h->mistakes), 0);
}

static inline void use_heap(kvc_params *p, heap *h) {
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

static inline int32_t spy_do(const spy_stage *s, int hook) {
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

static inline int32_t spy_create(const kvc_host *host, const kvc_shape *shape,
                                 const kvc_value *value, kvc_plan *plan, void **self) {
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

static inline void spy_destroy(void *self) {
    spy_stage *s = self;
    s->host->realloc(s->host->ctx, s, sizeof *s, 0, 64);
}

static inline int32_t spy_begin(void *self, const kvc_step *step, int32_t *from) {
    (void)step, (void)from;
    return spy_do(self, BEGIN);
}

static inline int32_t spy_append(void *self, const kvc_rows *rows) {
    return rows->layer == 1 && rows->head == 1 ? spy_do(self, APPEND) : KVC_OK;
}

static inline int32_t spy_page_end(void *self, const kvc_step *step, uint32_t layer) {
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

static inline int32_t spy_end(void *self, const kvc_step *step) {
    (void)step;
    return spy_do(self, END);
}

static inline int32_t spy_truncate(void *self, int32_t pos) {
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
static inline int32_t idle_create(const kvc_host *host, const kvc_shape *shape,
                                  const kvc_value *value, kvc_plan *plan, void **self) {
    (void)host, (void)shape, (void)value, (void)plan, (void)self;
    return KVC_OK;
}

static inline int32_t idle_append(void *self, const kvc_rows *rows) {
    (void)self, (void)rows;
    return KVC_OK;
}

static const kvc_policy_api idle_api = {
    .struct_size = sizeof idle_api, .create = idle_create, .append = idle_append};

static inline const kvc_policy *spy_entry(uint32_t host_abi, uint32_t index) {
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

static inline kvc_params *params_for(int n_ctx, heap *h) {
    kvc_params *p = util_params();
    ck_assert_int_eq(kvc_params_add_policy(p, spy_entry), KVC_OK);
    ck_assert_int_eq(kvc_params_set_str(p, "compute", "f32"), KVC_OK);
    ck_assert_int_eq(kvc_params_set_i64(p, "n_ctx", n_ctx), KVC_OK);
    if (h != NULL) {
        use_heap(p, h);
    }
    return p;
}

static inline kvc_session *open_on(kvc_model *m, const char *spec, int n_ctx, heap *h) {
    kvc_params *p = params_for(n_ctx, h);
    kvc_session *s = NULL;
    int32_t rc = kvc_session_open(m, spec, p, &s);
    ck_assert_msg(rc == KVC_OK, "%s: %s", spec, kvc_params_error(p));
    kvc_params_destroy(p);
    return s;
}

static inline kvc_session *open_spec(const char *spec) {
    return open_on(model, spec, N_CTX, NULL);
}

/* Logits of the last of n tokens of a session like that, computed in two calls, or in one when
 * first is 0; the caller frees. */
static inline float *in_two(const char *spec, uint32_t first, uint32_t n) {
    float *out = malloc(VOCAB * sizeof *out);
    kvc_session *s = open_spec(spec);
    ck_assert(first == 0 || kvc_session_decode(s, tokens, first) == KVC_OK);
    ck_assert_int_eq(kvc_session_decode(s, tokens + first, n - first), KVC_OK);
    memcpy(out, kvc_session_logits(s, 0), VOCAB * sizeof *out);
    kvc_session_close(s);
    return out;
}

static inline float *alone(const char *spec, uint32_t n) {
    return in_two(spec, 0, n);
}

/* Goes on from where the session is to n tokens and compares the last logits. */
static inline void goes_on(kvc_session *s, uint32_t n, const float *want, const char *what) {
    const uint32_t past = kvc_session_n_past(s);
    ck_assert_msg(kvc_session_decode(s, tokens + past, n - past) == KVC_OK, "%s: %s", what,
                  kvc_session_error(s));
    util_same(want, kvc_session_logits(s, 0), 1, VOCAB, what);
}

static inline kvc_run run_of(kvc_session *s, const int32_t *token, uint32_t n) {
    return (kvc_run){.struct_size = sizeof(kvc_run), .session = s, .token = token, .n_token = n};
}

static inline kvc_session_stats stats_of(const kvc_session *s) {
    kvc_session_stats st = {.struct_size = sizeof st};
    ck_assert_int_eq(kvc_session_get_stats(s, &st), KVC_OK);
    return st;
}

static inline void has(const char *text, const char *word) {
    ck_assert_msg(strstr(text, word) != NULL, "no '%s' in: %s", word, text);
}

static inline void setup(void) {
    memset(&spy, 0, sizeof spy);
    model = util_model("tiny-f16.gguf", 2, 0);
    ck_assert_uint_eq(util_vocab(model), VOCAB);
    util_tokens(tokens, N_CTX + 1, VOCAB, 5);
}

static inline void teardown(void) {
    kvc_model_close(model);
}

/* A case whose tests have a model of their own. */
static inline TCase *add_case(Suite *suite, const char *name) {
    TCase *tc = tcase_create(name);
    suite_add_tcase(suite, tc);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 120);
    return tc;
}

static inline int run_suite(Suite *suite) {
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}

#endif

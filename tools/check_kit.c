/* SPDX-License-Identifier: MIT
 * check_kit.c: memory, models, sessions and comparisons for the tests. State is the process's,
 * which is one test's. It knows no test and no policy. */
#include "check_kit.h"

#include "check_stages.h"

#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const chk_shape chk_base = {.n_layer = 3,
                            .n_embd = 64,
                            .n_ff = 64,
                            .n_head_kv = 2,
                            .group = 2,
                            .dim_k = 64,
                            .dim_v = 64,
                            .n_ctx = 8192,
                            .seed = 1};

/* ---------------------------------------------------------------- saying things */

void chk_say(chk *c, char kind, const char *format, ...) {
    char text[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    c->failed |= kind == CHK_FAIL;
    c->put(c->put_ctx, kind, text);
}

uint64_t chk_random(chk *c) {
    uint64_t x = c->rng += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

uint32_t chk_below(chk *c, uint32_t n) {
    return (uint32_t)(chk_random(c) % n);
}

/* A tool without memory for its own tables has nothing more to say. */
static void *must(void *p) {
    if (p == NULL) {
        fprintf(stderr, "kvcheck: out of memory\n");
        exit(3);
    }
    return p;
}

/* ---------------------------------------------------------------- memory */

chk_heap chk_memory = {.wrong_lock = ATOMIC_FLAG_INIT};
char chk_leak[256];

#define LIVE     UINT64_C(0x6c69766520626c6b)
#define END_BYTE 0xc3
#define N_END    16u

/* In front of every block. */
typedef struct head {
    void *whole; /* what free() wants */
    uint64_t size, mark;
    uint64_t pad;
} head;

static head *head_of(void *p) {
    return (head *)p - 1;
}

static void blame(const char *format, size_t a, size_t b) {
    if (!atomic_flag_test_and_set(&chk_memory.wrong_lock)) {
        snprintf(chk_memory.wrong, sizeof chk_memory.wrong, format, a, b);
    }
}

static void *take(size_t size, size_t align) {
    void *whole = NULL;
    align = align < 64 ? 64 : align;
    if (size > SIZE_MAX / 2 || posix_memalign(&whole, align, align + size + N_END) != 0) {
        return NULL;
    }
    char *p = (char *)whole + align;
    *head_of(p) = (head){.whole = whole, .size = size, .mark = LIVE};
    memset(p + size, END_BYTE, N_END);
    atomic_fetch_add(&chk_memory.used, (int_least64_t)size);
    return p;
}

/* Checks a block that comes back; what was in it is destroyed, so that who still reads it is
 * found. */
static void give(void *p, size_t said) {
    head *h = head_of(p);
    if (h->mark != LIVE) {
        blame("a block of %zu bytes was given back twice, or was never taken", said, 0);
        return;
    }
    if (h->size != said) {
        blame("a block of %zu bytes was given back as one of %zu", (size_t)h->size, said);
    }
    for (uint32_t i = 0; i < N_END; i++) {
        if (((unsigned char *)p)[h->size + i] != END_BYTE) {
            blame("something was written %zu bytes past the end of a block of %zu bytes", i + 1,
                  (size_t)h->size);
            break;
        }
    }
    atomic_fetch_sub(&chk_memory.used, (int_least64_t)h->size);
    void *whole = h->whole;
    h->mark = 0;
    memset(p, 0xdd, h->size);
    free(whole);
}

static void *heap_realloc(void *ctx, void *p, size_t old_size, size_t new_size, size_t align) {
    (void)ctx;
    if (new_size == 0) {
        if (p != NULL) {
            give(p, old_size);
        }
        return NULL;
    }
    const unsigned long n = atomic_fetch_add(&chk_memory.n_taken, 1) + 1;
    if (n == atomic_load(&chk_memory.fail_at)) {
        atomic_store(&chk_memory.hit, true);
        return NULL;
    }
    void *fresh = take(new_size, align);
    if (fresh != NULL && p != NULL) {
        const size_t size =
            (size_t)head_of(p)->size < new_size ? (size_t)head_of(p)->size : new_size;
        memcpy(fresh, p, size);
        give(p, old_size);
    }
    return fresh;
}

void chk_memory_fail(unsigned long n) {
    atomic_store(&chk_memory.hit, false);
    atomic_store(&chk_memory.fail_at, n > 0 ? atomic_load(&chk_memory.n_taken) + n : 0);
}

void chk_memory_judge(chk *c, const char *when) {
    const long long used = (long long)atomic_load(&chk_memory.used);
    if (used != 0) {
        chk_fail(c, "%s: %lld bytes are still taken when all is closed", when, used);
    }
    if (chk_leak[0] != '\0') {
        chk_fail(c, "%s: %s", when, chk_leak);
    }
    if (chk_memory.wrong[0] != '\0') {
        chk_fail(c, "%s: %s", when, chk_memory.wrong);
    }
}

/* What the library and policies log. */
static void keep_log(void *user, uint32_t level, const char *text) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    (void)user;
    pthread_mutex_lock(&lock);
    if (level >= KVC_LOG_WARN && strstr(text, "didn't give back") != NULL) {
        snprintf(chk_leak, sizeof chk_leak, "%s", text);
    }
    pthread_mutex_unlock(&lock);
}

/* ---------------------------------------------------------------- models and sessions */

kvc_params *chk_params(chk *c, const char *compute, uint32_t n_ctx, bool counted) {
    static const kvc_allocator allocator = {.struct_size = sizeof allocator,
                                            .realloc = heap_realloc};
    kvc_params *p = NULL;
    kvc_params_create(&p);
    must(p);
    kvc_params_set_i64(p, "n_ctx", n_ctx);
    kvc_params_set_str(p, "compute", compute);
    kvc_params_set_i64(p, "policy_env", 0);
    kvc_params_set_i64(p, "seed", (int64_t)(c->seed & INT64_MAX));
    kvc_params_set_log(p, keep_log, NULL);
    int32_t rc = counted ? kvc_params_set_allocator(p, &allocator) : KVC_OK;
    rc = rc < 0 ? rc : kvc_params_add_policy(p, chk_shim_entry);
    rc = rc < 0 ? rc : kvc_params_add_policy(p, chk_stages_entry);
    must(rc < 0 ? NULL : p);
    return p;
}

kvc_model *chk_open_model(chk *c, const chk_shape *shape, uint32_t n_threads) {
    size_t n = 0;
    char *bytes = must(chk_model_bytes(shape, &n));
    kvc_params *p = NULL;
    kvc_model *model = NULL;
    kvc_params_create(&p);
    must(p);
    kvc_params_set_i64(p, "n_threads", n_threads);
    if (kvc_model_open_memory(bytes, n, p, &model) < 0) {
        chk_fail(c, "a model for the test can't be opened: %s", kvc_params_error(p));
    }
    kvc_params_destroy(p);
    free(bytes);
    return model;
}

kvc_session *chk_open(chk *c, kvc_model *model, const char *spec, const char *compute,
                      uint32_t n_ctx) {
    kvc_params *p = chk_params(c, compute, n_ctx, false);
    kvc_session *s = NULL;
    const int32_t rc = kvc_session_open(model, spec, p, &s);
    if (rc < 0) {
        chk_fail(c, "%s can't be opened: %s (%s)", spec, kvc_params_error(p), kvc_status_name(rc));
    }
    kvc_params_destroy(p);
    return s;
}

const int32_t *chk_text(chk *c, uint32_t which) {
    static int32_t text[4][CHK_N_TOKEN];
    int32_t *t = text[which % 4];
    const uint64_t saved = c->rng;
    c->rng = c->seed * 31 + which;
    for (uint32_t i = 0; i < CHK_N_TOKEN; i++) {
        t[i] = (int32_t)chk_below(c, CHK_N_VOCAB);
    }
    c->rng = saved;
    return t;
}

/* ---------------------------------------------------------------- computing */

static bool said(chk *c, const kvc_session *s, int32_t rc, const char *what, uint32_t n) {
    if (rc == KVC_OK) {
        return true;
    }
    chk_fail(c, "%s: %s of %u tokens after %u answers %s: %s", kvc_session_spec(s), what, n,
             kvc_session_n_past(s), kvc_status_name(rc), kvc_session_error(s));
    return false;
}

bool chk_prefill(chk *c, kvc_session *s, const int32_t *token, uint32_t n, uint32_t chunk) {
    for (uint32_t at = 0; at < n;) {
        const uint32_t part = chunk > 0 && chunk < n - at ? chunk : n - at;
        if (!said(c, s, kvc_session_prefill(s, token + at, part), "a prompt", part)) {
            return false;
        }
        at += part;
    }
    return true;
}

static bool decode(chk *c, kvc_session *s, const int32_t *token, uint32_t n, float *out) {
    if (!said(c, s, kvc_session_decode(s, token, n), "decoding", n)) {
        return false;
    }
    const float *row = kvc_session_logits(s, 0);
    for (uint32_t i = 0; row != NULL && i < CHK_N_VOCAB; i++) {
        if (!isfinite(row[i])) {
            row = NULL;
        }
    }
    if (row == NULL) {
        chk_fail(c, "%s: the logits after %u tokens are missing or not finite", kvc_session_spec(s),
                 kvc_session_n_past(s));
        return false;
    }
    memcpy(out, row, CHK_N_VOCAB * sizeof *out);
    return true;
}

/* The last piece of the prompt asks for logits, so the prompt ends there and nowhere else. */
bool chk_go(chk *c, kvc_session *s, const int32_t *token, chk_way way, float *out) {
    const uint32_t chunk = way.chunk > 0 ? way.chunk : way.n_prompt;
    const uint32_t last = (way.n_prompt - 1) % chunk + 1, before = way.n_prompt - last;
    if (!chk_prefill(c, s, token, before, chunk) || !decode(c, s, token + before, last, out)) {
        return false;
    }
    for (uint32_t i = 0; i < way.n_step; i++) {
        if (!decode(c, s, token + way.n_prompt + i, 1, out + (size_t)(i + 1) * CHK_N_VOCAB)) {
            return false;
        }
    }
    return true;
}

bool chk_alone(chk *c, kvc_model *model, const char *spec, const char *compute, uint32_t n_ctx,
               const int32_t *token, chk_way way, float *out) {
    kvc_session *s = chk_open(c, model, spec, compute, n_ctx);
    const bool good = s != NULL && chk_go(c, s, token, way, out);
    kvc_session_close(s);
    return good;
}

void *chk_take(size_t n, size_t size) {
    return must(calloc(n, size));
}

float *chk_rows(uint32_t n) {
    return chk_take(n, CHK_N_VOCAB * sizeof(float));
}

/* ---------------------------------------------------------------- comparing */

bool chk_equal(const float *a, const float *b, uint32_t n_row, char *why, size_t cap) {
    if (memcmp(a, b, (size_t)n_row * CHK_N_VOCAB * sizeof *a) == 0) {
        return true;
    }
    uint32_t first = n_row;
    float most = 0;
    for (uint32_t i = 0; i < n_row * CHK_N_VOCAB; i++) {
        const float d = fabsf(a[i] - b[i]);
        first = d > 0 && first == n_row ? i / CHK_N_VOCAB : first;
        most = d > most ? d : most;
    }
    snprintf(why, cap, "logits differ from row %u of %u on, by up to %.2g", first, n_row,
             (double)most);
    return false;
}

/* The largest of a row, and the logarithm of the sum of its exponentials. */
static double log_sum(const float *row, uint32_t *best) {
    double sum = 0;
    *best = 0;
    for (uint32_t i = 1; i < CHK_N_VOCAB; i++) {
        *best = row[i] > row[*best] ? i : *best;
    }
    for (uint32_t i = 0; i < CHK_N_VOCAB; i++) {
        sum += exp((double)row[i] - (double)row[*best]);
    }
    return (double)row[*best] + log(sum);
}

double chk_kld(const float *a, const float *b, bool *top) {
    uint32_t best_a, best_b;
    const double la = log_sum(a, &best_a), lb = log_sum(b, &best_b);
    double kld = 0;
    for (uint32_t i = 0; i < CHK_N_VOCAB; i++) {
        const double pa = (double)a[i] - la, pb = (double)b[i] - lb;
        kld += exp(pa) * (pa - pb);
    }
    *top = best_a == best_b;
    return kld > 0 ? kld : 0;
}

kvc_session_stats chk_stats(const kvc_session *s) {
    kvc_session_stats st = {.struct_size = sizeof st};
    kvc_session_get_stats(s, &st);
    return st;
}

bool chk_claims(const chk *c, uint64_t cap) {
    return (c->policy.caps & cap) == cap;
}

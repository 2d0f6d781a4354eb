/* SPDX-License-Identifier: MIT
 * test_which.c: the policies that choose which entries are kept by attention: h2o, tova, snapkv.
 * Each against its paper's rule, written down plainly here and fed with the store's own scores: the
 * same entries at every tick of every lane. Two stages of the test's stand around the policy, one
 * foretells, the other looks. A third one follows recorded choices, in any format. */
#include "every.h"
#include "session.h"
#include "session_util.h"

#include <math.h>

enum {
    PROMPT = 300, /* tokens, the last page open */
    SPOKEN = 100, /* one by one */
    TURN = 70,    /* a second prompt */
    ANSWER = 40,
    ROWS = 1 + SPOKEN + 1 + ANSWER, /* logits of a run */
    MAX_LANE = 10,
    MAX_WIDE = 320
};

enum { H2O, TOVA, SNAPKV };

/* A stack and what it is to do: the numbers stand here again, not to be read from the spec. */
static const struct rule {
    const char *policy, *format;
    int kind;
    uint32_t budget; /* entries */
    uint64_t bytes;  /* of all live entries; 0: not said */
    uint32_t recent, age;
    uint32_t window, kernel, max, beta;
    bool ties; /* masses are made coarse, so that many are equal */
} rules[] = {
    {"h2o:budget=128", "", H2O, 128, 0, 32, 0, 0, 0, 0, 0, false},
    {"h2o:budget=160:recent=20", "", H2O, 160, 0, 20, 0, 0, 0, 0, 0, false},
    {"h2o:budget=12.5%:age=on", "", H2O, 128, 0, 32, 1, 0, 0, 0, 0, false},
    {"h2o:budget=48KiB", "", H2O, 96, 48 << 10, 16, 0, 0, 0, 0, 0, false},
    {"h2o:budget=66", "", H2O, 66, 0, 1, 0, 0, 0, 0, 0, false},
    {"h2o:budget=140:recent=9", "", H2O, 140, 0, 9, 0, 0, 0, 0, 0, true},
    {"h2o:budget=128", "+quant8", H2O, 128, 0, 32, 0, 0, 0, 0, 0, false},
    {"h2o:budget=32KiB:age=on", "+quant8+t_tier", H2O, 120, 32 << 10, 28, 1, 0, 0, 0, 0, false},
    {"tova:budget=128", "", TOVA, 128, 0, 0, 0, 0, 0, 0, 0, false},
    {"tova:budget=65", "", TOVA, 65, 0, 0, 0, 0, 0, 0, 0, false},
    {"tova:budget=20%", "+quant8", TOVA, 204, 0, 0, 0, 0, 0, 0, 0, false},
    {"tova:budget=150", "+full:type=f32+t_tier", TOVA, 150, 0, 0, 0, 0, 0, 0, 0, false},
    {"snapkv:budget=128", "", SNAPKV, 128, 0, 0, 0, 32, 7, 0, 0, false},
    {"snapkv:budget=100:window=8:kernel=5:pool=max", "", SNAPKV, 100, 0, 0, 0, 8, 5, 1, 0, false},
    {"snapkv:budget=200:window=100:kernel=1", "+quant8", SNAPKV, 200, 0, 0, 0, 100, 1, 0, 0, false},
    {"snapkv:budget=102:pyramid=3", "", SNAPKV, 102, 0, 0, 0, 32, 7, 0, 3, false},
    {"snapkv:budget=128:pyramid=20", "+quant8+t_tier", SNAPKV, 128, 0, 0, 0, 32, 7, 0, 20, false},
    {"snapkv:budget=33", "+t_tier", SNAPKV, 33, 0, 0, 0, 32, 7, 0, 0, false},
};
enum { N_RULE = sizeof rules / sizeof *rules };

/* Positions of the entries of a lane. */
struct set {
    uint32_t n;
    int32_t pos[N_CTX];
};

static struct {
    const kvc_host *host;
    const kvc_host_store *store;
    const struct rule *rule;
    uint32_t n_layer, n_head_kv, wide;
    uint32_t n_tick, n_cut;        /* ticks of a lane that were foretold; that gave something up */
    struct set want;               /* of the lane at hand */
    struct set next[MAX_LANE];     /* foretold */
    struct set kept[16][MAX_LANE]; /* what was found after each tick, by tick_at */
    uint8_t tick_at[N_CTX + 1];
    uint32_t n_kept;
    float q[MAX_LANE][N_CTX][MAX_WIDE];
    int32_t pos[N_CTX];
} w;

/* ---------------------------------------------------------------- the papers' rules */

static void entries_of(uint32_t layer, uint32_t head, struct set *out) {
    out->n = w.store->count(w.host->ctx, layer, head);
    ck_assert_int_eq(w.store->pos(w.host->ctx, layer, head, 0, out->n, out->pos), KVC_OK);
}

static void column_of(uint32_t layer, uint32_t head, uint32_t column, uint32_t n, float *out) {
    ck_assert_int_eq(w.store->get(w.host->ctx, layer, head, column, 0, n, out), KVC_OK);
}

/* Gives up the least of the first n_old scores until n_keep entries are left; of equal ones the
 * earliest. */
static void drop_least(struct set *s, float *score, uint32_t n_old, uint32_t n_keep) {
    while (s->n > n_keep) {
        uint32_t least = 0;
        for (uint32_t i = 1; i < n_old; i++) {
            least = score[i] < score[least] ? i : least;
        }
        for (uint32_t i = least; i + 1 < s->n; i++) {
            s->pos[i] = s->pos[i + 1];
            score[i] = score[i + 1];
        }
        s->n--;
        n_old--;
    }
}

/* Rounds what h2o is going to read. */
static void make_coarse(uint32_t layer, uint32_t head, uint32_t n) {
    float mass[N_CTX];
    column_of(layer, head, KVC_COLUMN_MASS, n, mass);
    for (uint32_t i = 0; i < n; i++) {
        mass[i] = floorf(mass[i] * 2) / 2;
    }
    ck_assert_int_eq(w.store->set(w.host->ctx, layer, head, KVC_COLUMN_MASS, 0, n, mass), KVC_OK);
}

static void foretell_h2o(uint32_t layer, uint32_t head, int32_t end, struct set *s) {
    static float score[N_CTX];
    const uint32_t keep = w.rule->budget - 64;
    if (w.rule->ties) {
        make_coarse(layer, head, s->n);
    }
    column_of(layer, head, KVC_COLUMN_MASS, s->n, score);
    for (uint32_t i = 0; i < s->n && w.rule->age != 0; i++) {
        score[i] = score[i] / (float)(end - s->pos[i]);
    }
    if (s->n > keep) {
        drop_least(s, score, s->n - w.rule->recent, keep);
    }
}

static void foretell_tova(uint32_t layer, struct set *s) {
    static float score[N_CTX], one[N_CTX];
    memset(score, 0, sizeof score);
    for (uint32_t h = 0; h < w.n_head_kv; h++) {
        column_of(layer, h, KVC_COLUMN_MASS_LAST, s->n, one);
        for (uint32_t i = 0; i < s->n; i++) {
            score[i] += one[i];
        }
    }
    drop_least(s, score, s->n, w.rule->budget - 64);
}

/* What a layer keeps: all the same, or from 2c - c/β in the first to c/β in the last. */
static uint32_t keep_of(uint32_t layer) {
    const uint32_t c = w.rule->budget - w.rule->window;
    if (w.rule->beta == 0) {
        return w.rule->budget;
    }
    const double least = c / w.rule->beta, most = 2 * c - least;
    const double down = ceil((most - least) * layer / (w.n_layer - 1) - 1e-9);
    return w.rule->window + (uint32_t)(most - down);
}

static void foretell_snapkv(uint32_t layer, uint32_t head, int32_t end, struct set *s) {
    static float mass[N_CTX], score[N_CTX];
    const struct rule *r = w.rule;
    const int32_t start = end > PROMPT ? PROMPT + SPOKEN : 0;
    int32_t low = end - (int32_t)r->window;
    low = low > start ? low : start;
    memset(mass, 0, sizeof mass);
    for (int32_t p = low; p < end; p++) {
        const kvc_rows one = {.struct_size = sizeof one,
                              .layer = layer,
                              .head = head,
                              .n = 1,
                              .pos = &w.pos[p],
                              .q = w.q[layer * w.n_head_kv + head][p],
                              .q_stride = w.wide};
        ck_assert_int_eq(w.store->mass(w.host->ctx, &one, mass), KVC_OK);
    }
    const int64_t n_old = (int64_t)s->n - r->window, half = r->kernel / 2;
    for (int64_t i = 0; i < n_old; i++) {
        float sum = 0, max = 0;
        for (int64_t j = i - half; j <= i + half; j++) {
            const float x = j >= 0 && j < n_old ? mass[j] : 0;
            sum += x;
            max = x > max ? x : max;
        }
        score[i] = r->max != 0 ? max : sum / (float)r->kernel;
    }
    if (s->n > keep_of(layer)) {
        drop_least(s, score, (uint32_t)n_old, keep_of(layer));
    }
}

/* ---------------------------------------------------------------- the stages around */

static int32_t before_create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                             kvc_plan *plan, void **self) {
    const kvc_layer_shape *l = kvc_shape_layer(shape, 0);
    (void)value;
    *self = &w;
    w.host = host;
    w.store = host->extension(host->ctx, KVC_HOST_STORE);
    w.n_layer = shape->n_layer;
    w.n_head_kv = l->n_head_kv;
    w.wide = l->n_head / l->n_head_kv * l->dim_k;
    ck_assert_uint_le(w.n_layer * w.n_head_kv, MAX_LANE);
    ck_assert_uint_le(w.wide, MAX_WIDE);
    for (int32_t i = 0; i < N_CTX; i++) {
        w.pos[i] = i;
    }
    plan->observe = w.rule->kind == H2O    ? KVC_OBSERVE_MASS
                    : w.rule->kind == TOVA ? KVC_OBSERVE_MASS_LAST
                                           : KVC_OBSERVE_QUERIES;
    return KVC_OK;
}

static int32_t before_append(void *self, const kvc_rows *rows) {
    (void)self;
    for (uint32_t t = 0; t < rows->n && rows->q != NULL; t++) {
        memcpy(w.q[rows->layer * w.n_head_kv + rows->head][rows->pos[t]],
               rows->q + (size_t)t * rows->q_stride, w.wide * sizeof(float));
    }
    return KVC_OK;
}

/* Live entries never exceed the budget, nor their bytes. */
static void check_budget(uint32_t layer) {
    uint64_t bytes = 0;
    for (uint32_t h = 0; h < w.n_head_kv; h++) {
        if (w.rule->kind != SNAPKV) {
            ck_assert_uint_le(w.store->count(w.host->ctx, layer, h), w.rule->budget);
        }
        bytes += w.store->count(w.host->ctx, layer, h) * w.store->entry_bytes(w.host->ctx, layer);
    }
    ck_assert(w.rule->bytes == 0 || bytes * w.n_layer <= w.rule->bytes);
}

static int32_t before_page_end(void *self, const kvc_step *step, uint32_t layer) {
    const int32_t end = step->pos + (int32_t)step->n;
    (void)self;
    check_budget(layer);
    for (uint32_t h = 0; h < w.n_head_kv; h++) {
        struct set *s = &w.next[layer * w.n_head_kv + h];
        entries_of(layer, h, s);
        const uint32_t n = s->n;
        if (w.rule->kind == H2O) {
            foretell_h2o(layer, h, end, s);
        } else if (w.rule->kind == TOVA) {
            foretell_tova(layer, s);
        } else if (step->phase == KVC_PHASE_PROMPT_END) {
            foretell_snapkv(layer, h, end, s);
        }
        w.n_tick++;
        w.n_cut += s->n < n;
    }
    return KVC_OK;
}

static int32_t after_create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                            kvc_plan *plan, void **self) {
    (void)host, (void)shape, (void)value, (void)plan, (void)self;
    return KVC_OK;
}

static int32_t after_page_end(void *self, const kvc_step *step, uint32_t layer) {
    const int32_t end = step->pos + (int32_t)step->n;
    (void)self;
    if (layer == 0) {
        ck_assert_uint_lt(w.n_kept, 16);
        w.tick_at[end] = (uint8_t)w.n_kept++;
    }
    for (uint32_t h = 0; h < w.n_head_kv; h++) {
        const uint32_t lane = layer * w.n_head_kv + h;
        struct set *s = &w.kept[w.tick_at[end]][lane];
        entries_of(layer, h, s);
        ck_assert_msg(s->n == w.next[lane].n, "%s: lane %u at %d keeps %u entries, not %u",
                      w.rule->policy, lane, end, s->n, w.next[lane].n);
        for (uint32_t i = 0; i < s->n; i++) {
            ck_assert_msg(s->pos[i] == w.next[lane].pos[i], "%s: lane %u at %d: %d is kept, not %d",
                          w.rule->policy, lane, end, s->pos[i], w.next[lane].pos[i]);
        }
    }
    return KVC_OK;
}

/* Keeps what was recorded at that tick. */
static int32_t follow_create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                             kvc_plan *plan, void **self) {
    (void)shape, (void)value;
    *self = (void *)(uintptr_t)host;
    plan->answers = KVC_ANSWERS_WHICH;
    plan->flags = KVC_PLAN_EVICTS;
    return KVC_OK;
}

static int32_t follow_page_end(void *self, const kvc_step *step, uint32_t layer) {
    const kvc_host *host = self;
    const kvc_host_store *store = host->extension(host->ctx, KVC_HOST_STORE);
    for (uint32_t h = 0; h < w.n_head_kv; h++) {
        const struct set *s =
            &w.kept[w.tick_at[step->pos + (int32_t)step->n]][layer * w.n_head_kv + h];
        int32_t pos[N_CTX];
        uint32_t index[N_CTX], m = 0;
        const uint32_t n = store->count(host->ctx, layer, h);
        ck_assert_int_eq(store->pos(host->ctx, layer, h, 0, n, pos), KVC_OK);
        for (uint32_t i = 0; i < n && m < s->n; i++) {
            if (pos[i] == s->pos[m]) {
                index[m++] = i;
            }
        }
        ck_assert_uint_eq(m, s->n);
        ck_assert_int_eq(store->keep(host->ctx, layer, h, index, m), KVC_OK);
    }
    return KVC_OK;
}

static const kvc_policy_api before_api = {.struct_size = sizeof before_api,
                                          .create = before_create,
                                          .append = before_append,
                                          .page_end = before_page_end};
static const kvc_policy_api after_api = {
    .struct_size = sizeof after_api, .create = after_create, .page_end = after_page_end};
static const kvc_policy_api follow_api = {
    .struct_size = sizeof follow_api, .create = follow_create, .page_end = follow_page_end};

#define STAGE(name_, api_)                                                                         \
    {                                                                                              \
        .struct_size = sizeof(kvc_policy), .abi = KVC_POLICY_ABI, .abi_min = KVC_POLICY_ABI_MIN,   \
        .name = name_, .version = "1.0.0", .summary = "test: a stage around", .license = "MIT",    \
        .api = &(api_)                                                                             \
    }

static const kvc_policy *stages_entry(uint32_t host_abi, uint32_t index) {
    static const kvc_policy policy[] = {STAGE("before", before_api), STAGE("after", after_api),
                                        STAGE("follow", follow_api)};
    (void)host_abi;
    return index < 3 ? &policy[index] : NULL;
}

/* ---------------------------------------------------------------- runs */

static kvc_session *open_run(kvc_model *m, const char *spec, const char *compute) {
    kvc_params *p = util_params();
    kvc_session *s = NULL;
    ck_assert_int_eq(kvc_params_add_policy(p, stages_entry), KVC_OK);
    ck_assert_int_eq(kvc_params_set_str(p, "compute", compute), KVC_OK);
    ck_assert_int_eq(kvc_params_set_i64(p, "n_ctx", N_CTX), KVC_OK);
    ck_assert_msg(kvc_session_open(m, spec, p, &s) == KVC_OK, "%s: %s", spec, kvc_params_error(p));
    kvc_params_destroy(p);
    return s;
}

/* Reads n tokens in calls of `chunk`; the logits of the last go to *out. */
static void read_prompt(kvc_session *s, uint32_t n, uint32_t chunk, float **out) {
    for (uint32_t done = 0; done < n;) {
        const uint32_t m = n - done < chunk ? n - done : chunk;
        kvc_run run = run_of(s, tokens + kvc_session_n_past(s), m);
        run.wants = done + m == n ? KVC_WANT_LAST : KVC_WANT_NONE;
        ck_assert_msg(kvc_decode(&run, 1, sizeof run) == KVC_OK, "%s", kvc_session_error(s));
        done += m;
    }
    memcpy(*out, kvc_session_logits(s, 0), VOCAB * sizeof **out);
    *out += VOCAB;
}

/* Entries in memory and out of it never exceed the budget, at no token. A run of all entries has no
 * rule. */
static void check_live(const kvc_session *s) {
    for (uint32_t i = 0; i < s->store.n_lane && w.rule != NULL && w.rule->kind != SNAPKV; i++) {
        ck_assert_uint_le(s->store.lane[i].n_live, w.rule->budget);
    }
}

static void speak(kvc_session *s, uint32_t n, float **out) {
    for (uint32_t i = 0; i < n; i++) {
        read_prompt(s, 1, 1, out);
        check_live(s);
    }
}

/* A prompt, an answer, another prompt, another answer. The logits are the caller's to free. */
static float *run_spec(kvc_model *m, const char *spec, const char *compute, uint32_t chunk) {
    float *out = malloc((size_t)ROWS * VOCAB * sizeof *out), *at = out;
    kvc_session *s = open_run(m, spec, compute);
    w.n_tick = w.n_cut = w.n_kept = 0;
    read_prompt(s, PROMPT, chunk, &at);
    check_live(s);
    speak(s, SPOKEN, &at);
    read_prompt(s, TURN, chunk, &at);
    speak(s, ANSWER, &at);
    kvc_session_close(s);
    return out;
}

/* With the stages around. */
static float *run_watched(kvc_model *m, const struct rule *r, const char *compute, uint32_t chunk) {
    char spec[256];
    w.rule = r;
    snprintf(spec, sizeof spec, "before+%s+after%s", r->policy, r->format);
    float *out = run_spec(m, spec, compute, chunk);
    ck_assert_uint_gt(w.n_cut, 0);
    return out;
}

static const char *compute_of(int i) {
    return i % 2 == 0 ? "f32" : "int8";
}

START_TEST(choices_are_those_of_the_paper) {
    static const char *const names[] = {"tiny-f16.gguf", "tiny-mqa80.gguf", "tiny-deep.gguf"};
    /* An odd shape has another entry size, which budgets in bytes would have to know. */
    const struct rule *r = &rules[_i / 2 % N_RULE];
    const char *name = names[_i / 2 / N_RULE];
    if (r->bytes != 0 && strcmp(name, "tiny-f16.gguf") != 0) {
        return;
    }
    kvc_model *m = util_model(name, 2, 0);
    free(run_watched(m, r, compute_of(_i), PROMPT));
    kvc_model_close(m);
}
END_TEST

START_TEST(chunks_and_threads_do_not_matter) {
    static const uint32_t chunks[] = {1, 7, 64, 100};
    const struct rule *r = &rules[_i / 2];
    char bare[256];
    float *want = run_watched(model, r, compute_of(_i), PROMPT);
    for (int c = _i / 2 % every_inner(4); c < 4; c += every_inner(4)) {
        kvc_model *m = util_model("tiny-f16.gguf", c % 2 == 0 ? 1 : 3, 0);
        float *got = run_watched(m, r, compute_of(_i), chunks[c]);
        util_same(want, got, ROWS, VOCAB, r->policy);
        free(got);
        kvc_model_close(m);
    }
    /* Nor do the stages around, which have hooks of their own, unless they touch the masses. */
    snprintf(bare, sizeof bare, "%s%s", r->policy, r->format);
    if (!r->ties) {
        float *got = run_spec(model, bare, compute_of(_i), 130);
        util_same(want, got, ROWS, VOCAB, bare);
        free(got);
    }
    free(want);
}
END_TEST

/* ---------------------------------------------------------------- the same choices otherwise */

/* Mean KL divergence of the rows of b from those of a. */
static double divergence(const float *a, const float *b) {
    double all = 0;
    for (size_t r = 0; r < ROWS; r++, a += VOCAB, b += VOCAB) {
        double za = 0, zb = 0, sum = 0;
        for (size_t i = 0; i < VOCAB; i++) {
            za += exp((double)a[i]);
            zb += exp((double)b[i]);
        }
        for (size_t i = 0; i < VOCAB; i++) {
            const double la = (double)a[i] - log(za), lb = (double)b[i] - log(zb);
            sum += exp(la) * (la - lb);
        }
        all += sum / ROWS;
    }
    return all;
}

/* Choices alone make the difference: a stage that follows them gives the same bits in the same
 * format, and in plain f32 what the format costs and no more. */
START_TEST(nothing_but_the_choices_matters) {
    const struct rule *r = &rules[_i];
    char spec[256];
    float *want = run_watched(model, r, "f32", PROMPT);
    snprintf(spec, sizeof spec, "follow%s", r->format);
    float *same = run_spec(model, spec, "f32", PROMPT);
    util_same(want, same, ROWS, VOCAB, spec);
    float *plain = run_spec(model, "follow+full:type=f32", "f32", PROMPT);
    w.rule = NULL;
    float *full = run_spec(model, "full:type=f32", "f32", PROMPT);
    const double d = divergence(plain, want), whole = divergence(full, want);
    const double most = strstr(r->format, "quant8") != NULL ? 1e-2 : 1e-4;
    ck_assert_msg(d < most, "%s%s: %g", r->policy, r->format, d);
    ck_assert_msg(whole > 10 * d, "%s%s: %g, and %g from all entries", r->policy, r->format, d,
                  whole);
    free(want);
    free(same);
    free(plain);
    free(full);
}
END_TEST

/* ---------------------------------------------------------------- snapkv's queries */

static void decode_more(kvc_session *s, uint32_t n, uint32_t wants) {
    kvc_run run = run_of(s, tokens + kvc_session_n_past(s), n);
    run.wants = wants;
    ck_assert_msg(kvc_decode(&run, 1, sizeof run) == KVC_OK, "%s", kvc_session_error(s));
}

START_TEST(the_queries_are_given_back) {
    const uint64_t ring = (uint64_t)N_LANE * 32 * 2 * 32 * sizeof(float);
    kvc_session *s = open_run(model, "snapkv:budget=100", "f32");
    const uint64_t all = stats_of(s).stage_bytes;
    decode_more(s, 299, KVC_WANT_NONE);
    ck_assert_uint_eq(stats_of(s).stage_bytes, all);
    decode_more(s, 1, KVC_WANT_LAST);
    ck_assert_uint_eq(stats_of(s).stage_bytes, all - ring);
    ck_assert_uint_eq(stats_of(s).n_entry, 100 * N_LANE);
    decode_more(s, 1, KVC_WANT_LAST);
    ck_assert_uint_eq(stats_of(s).stage_bytes, all - ring);
    ck_assert_uint_eq(stats_of(s).n_entry, 101 * N_LANE);
    decode_more(s, 5, KVC_WANT_NONE);
    ck_assert_uint_eq(stats_of(s).stage_bytes, all);
    decode_more(s, 5, KVC_WANT_LAST);
    ck_assert_uint_eq(stats_of(s).stage_bytes, all - ring);
    ck_assert_uint_eq(stats_of(s).n_entry, 100 * N_LANE);
    kvc_session_close(s);
}
END_TEST

/* A prompt that is cut back a little goes on where it was; one whose queries are gone begins
 * again. */
START_TEST(going_back_keeps_the_window) {
    static const struct {
        uint32_t to;
        bool again; /* from the beginning */
    } cases[] = {{199, false}, {198, true}, {150, true}, {20, true}};
    float *want = alone("snapkv:budget=100", 300);
    for (size_t i = 0; i < 4; i++) {
        kvc_session *s = open_run(model, "snapkv:budget=100", "f32");
        decode_more(s, 200, KVC_WANT_NONE);
        ck_assert_int_eq(kvc_session_truncate(s, cases[i].to), KVC_OK);
        decode_more(s, 300 - cases[i].to, KVC_WANT_LAST);
        util_same(want, kvc_session_logits(s, 0), 1, VOCAB, "cut back in a prompt");
        ck_assert_uint_eq(stats_of(s).n_replayed, cases[i].again ? cases[i].to : 0);
        kvc_session_close(s);
    }
    free(want);
    /* Before the ring has gone round nothing is lost. */
    want = alone("snapkv:budget=100", 300);
    kvc_session *s = open_run(model, "snapkv:budget=100", "f32");
    decode_more(s, 32, KVC_WANT_NONE);
    ck_assert_int_eq(kvc_session_truncate(s, 7), KVC_OK);
    decode_more(s, 293, KVC_WANT_LAST);
    util_same(want, kvc_session_logits(s, 0), 1, VOCAB, "cut back early");
    ck_assert_uint_eq(stats_of(s).n_replayed, 0);
    kvc_session_close(s);
    free(want);
}
END_TEST

/* Generated tokens in front of one that the caller calls the end of a prompt are no part of it,
 * whether or not they come in the same call. */
START_TEST(generated_tokens_are_no_prompt) {
    float want[VOCAB];
    for (uint32_t each = 1; each <= 20; each += 19) {
        kvc_session *s = open_run(model, "snapkv:budget=100", "f32");
        decode_more(s, 200, KVC_WANT_LAST);
        for (uint32_t i = 0; i < 20; i += each) {
            kvc_run run = run_of(s, tokens + 200 + i, each);
            run.wants = KVC_WANT_ALL;
            run.prompt_end = i + each == 20;
            ck_assert_int_eq(kvc_decode(&run, 1, sizeof run), KVC_OK);
        }
        ck_assert_uint_eq(stats_of(s).n_entry, 100 * N_LANE);
        decode_more(s, 1, KVC_WANT_LAST);
        if (each == 1) {
            memcpy(want, kvc_session_logits(s, 0), sizeof want);
        } else {
            util_same(want, kvc_session_logits(s, 0), 1, VOCAB, "in one call");
        }
        kvc_session_close(s);
    }
}
END_TEST

/* A stream of bytes that a test has made. */
struct bytes {
    uint8_t *at;
    size_t n;
};

static int32_t read_bytes(void *ctx, void *out, size_t n) {
    struct bytes *b = ctx;
    if (n > b->n) {
        return KVC_E_FORMAT;
    }
    memcpy(out, b->at, n);
    b->at += n;
    b->n -= n;
    return KVC_OK;
}

/* Whatever the saved state is, it is refused, or the session goes on. */
START_TEST(hostile_state_does_no_harm) {
    static const int32_t odd[] = {-1, 0, 1, 100, 101, N_CTX, N_CTX + 1, INT32_MAX, INT32_MIN, -2};
    enum { N_ODD = 10, ROOM = 1 << 18 };
    uint8_t *room = malloc(ROOM);
    uint32_t accepted = 0;
    for (uint32_t i = 0; i < N_ODD * N_ODD * N_ODD; i += (uint32_t)every()) {
        const int32_t head[] = {odd[i % N_ODD], odd[i / N_ODD % N_ODD], odd[i / N_ODD / N_ODD]};
        kvc_session *s = open_run(model, "snapkv:budget=60:window=8", "f32");
        const kvc__stage *st = s->stack.stage[0];
        memset(room, i % 3 == 0 ? 0xff : 0x3c, ROOM); /* not a number, or one */
        for (size_t lane = 0, at = 0; lane < N_LANE; lane++) {
            int64_t n = (int64_t)head[1] - head[0];
            n = n < 8 ? n : 8;
            memcpy(room + at, head, sizeof head);
            at += sizeof head + (head[0] >= 0 && n > 0 && n <= 8 ? (size_t)n * 64 * 4 : 0);
        }
        struct bytes b = {room, i % 7 == 0 ? 1000 : ROOM};
        const kvc_stream in = {.struct_size = sizeof in, .ctx = &b, .read = read_bytes};
        decode_more(s, 100, KVC_WANT_NONE);
        const int32_t rc = st->policy.api.load(st->self, &in);
        ck_assert(rc == KVC_OK || rc == KVC_E_FORMAT);
        if (rc == KVC_OK) {
            accepted++;
            decode_more(s, 20, KVC_WANT_LAST);
            ck_assert_uint_eq(stats_of(s).n_entry, 60 * N_LANE);
            ck_assert_int_eq(kvc_session_truncate(s, 50), KVC_OK);
            decode_more(s, 20, KVC_WANT_LAST);
        }
        kvc_session_close(s);
    }
    ck_assert_uint_gt(accepted, every() > 1 ? 0 : 20);
    free(room);
}
END_TEST

static void setup_which(void) {
    setup();
    memset(&w, 0, sizeof w);
}

/* ---------------------------------------------------------------- what is refused */

START_TEST(wrong_parameters_are_refused) {
    static const struct {
        const char *spec, *words;
    } wrong[] = {
        {"h2o:budget=65", "policy 'h2o': a budget of 65 is 65 tokens per lane, and it needs 66"},
        {"h2o:budget=128:recent=65", "it needs 129 at least; give 129 or more"},
        {"h2o:budget=1%", "policy 'h2o': a budget of 1% is 10 tokens per lane"},
        {"tova:budget=64", "it needs 65 at least"},
        {"snapkv:budget=32", "it needs 33 at least"},
        {"snapkv:kernel=6", "policy 'snapkv' can't be created: kernel is to be an odd number"},
        {"h2o:budget=0", "policy h2o: budget=0 is not allowed"},
        {"h2o+tova", "policies 'h2o' and 'tova' both answer which tokens are kept"},
        {"window+snapkv", "both answer which tokens are kept"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        kvc_params *p = params_for(N_CTX, NULL);
        kvc_session *s = NULL;
        ck_assert_int_lt(kvc_session_open(model, wrong[i].spec, p, &s), 0);
        has(kvc_params_error(p), wrong[i].words);
        kvc_params_destroy(p);
    }
}
END_TEST

int main(void) {
    Suite *suite = suite_create("which");
    TCase *tc = tcase_create("which");
    tcase_add_checked_fixture(tc, setup_which, teardown);
    tcase_set_timeout(tc, 120);
    every_add(tc, choices_are_those_of_the_paper, 3 * N_RULE * 2, 2);
    every_add(tc, chunks_and_threads_do_not_matter, N_RULE * 2, 4);
    every_add(tc, nothing_but_the_choices_matters, N_RULE, 4);
    tcase_add_test(tc, the_queries_are_given_back);
    tcase_add_test(tc, going_back_keeps_the_window);
    tcase_add_test(tc, generated_tokens_are_no_prompt);
    tcase_add_test(tc, hostile_state_does_no_harm);
    tcase_add_test(tc, wrong_parameters_are_refused);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}

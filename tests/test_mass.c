/* SPDX-License-Identifier: MIT
 * test_mass.c: kvc_host_store.mass(): attention probabilities computed again for a stage. Against a
 * plain softmax over the rows that read() gives, in every format, with evicted entries and with
 * pages in a tier; and bit for bit against the columns that attention itself has filled. */
#include "every.h"
#include "session_util.h"

#include <math.h>

#define LENGTH   300u /* of the text: two ranges of pages, the last page open */
#define MAX_HEAD 4u

/* ---------------------------------------------------------------- a policy that asks */

/* What one lane is asked at a tick. */
typedef void (*ask_fn)(uint32_t layer, uint32_t head, int32_t end);

static struct {
    const kvc_host *host;
    const kvc_host_store *store;
    ask_fn ask;
    bool evicts, last; /* drops entries at ticks; has the column of the last query */
    uint32_t n_layer, n_head_kv, group, dim_k, dim_v, n_asked;
    float scale, soft_cap;
    int32_t window[16]; /* of the model's own, in each layer; 0: none */
    float *q;           /* [n_layer][n_head_kv][N_CTX][group × dim_k] every query so far */
    int32_t pos[N_CTX];
    double far; /* the largest difference that is let pass */
} look;

static uint32_t wide(void) {
    return look.group * look.dim_k;
}

static float *query_at(uint32_t layer, uint32_t head, int32_t pos) {
    return look.q + (((size_t)layer * look.n_head_kv + head) * N_CTX + (size_t)pos) * wide();
}

static int32_t look_create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                           kvc_plan *plan, void **self) {
    const kvc_layer_shape *l = kvc_shape_layer(shape, 0);
    (void)value;
    *self = &look;
    look.host = host;
    look.store = host->extension(host->ctx, KVC_HOST_STORE);
    look.n_layer = shape->n_layer;
    look.n_head_kv = l->n_head_kv;
    look.group = l->n_head / l->n_head_kv;
    look.dim_k = l->dim_k;
    look.dim_v = l->dim_v;
    look.scale = l->scale;
    look.soft_cap = l->soft_cap;
    for (uint32_t i = 0; i < shape->n_layer; i++) {
        look.window[i] = (int32_t)kvc_shape_layer(shape, i)->window;
    }
    free(look.q);
    look.q = calloc((size_t)look.n_layer * look.n_head_kv * N_CTX * wide(), sizeof *look.q);
    for (int32_t i = 0; i < N_CTX; i++) {
        look.pos[i] = i;
    }
    plan->answers = look.evicts ? KVC_ANSWERS_WHICH : 0;
    plan->flags = look.evicts ? KVC_PLAN_EVICTS : 0;
    plan->observe = KVC_OBSERVE_QUERIES | (look.last ? KVC_OBSERVE_MASS_LAST : 0);
    return KVC_OK;
}

static int32_t look_append(void *self, const kvc_rows *rows) {
    (void)self;
    for (uint32_t t = 0; t < rows->n; t++) {
        memcpy(query_at(rows->layer, rows->head, rows->pos[t]), rows->q + t * rows->q_stride,
               wide() * sizeof *look.q);
    }
    return KVC_OK;
}

/* Every head gives up others of its entries. */
static void drop_some(uint32_t layer, int32_t end) {
    for (uint32_t h = 0; h < look.n_head_kv; h++) {
        for (int32_t p = (int32_t)h; p + 10 < end; p += 3 + (int32_t)(layer + h)) {
            ck_assert_int_eq(look.store->drop(look.host->ctx, layer, h, p, p + 1), KVC_OK);
        }
    }
}

static int32_t look_page_end(void *self, const kvc_step *step, uint32_t layer) {
    const int32_t end = step->pos + (int32_t)step->n;
    (void)self;
    for (uint32_t h = 0; h < look.n_head_kv; h++) {
        look.ask(layer, h, end);
        look.n_asked++;
    }
    if (look.evicts && step->phase != KVC_PHASE_PROMPT_END) {
        drop_some(layer, end);
    }
    return KVC_OK;
}

static const kvc_policy_api look_api = {.struct_size = sizeof look_api,
                                        .create = look_create,
                                        .append = look_append,
                                        .page_end = look_page_end};

static const kvc_policy *look_entry(uint32_t host_abi, uint32_t index) {
    static const kvc_policy policy = {.struct_size = sizeof(kvc_policy),
                                      .abi = KVC_POLICY_ABI,
                                      .abi_min = KVC_POLICY_ABI_MIN,
                                      .name = "look",
                                      .version = "1.0.0",
                                      .summary = "test: asks how much queries attend to entries",
                                      .license = "MIT",
                                      .api = &look_api};
    (void)host_abi;
    return index == 0 ? &policy : NULL;
}

/* mass() of queries at n positions from first on. */
static int32_t ask_mass(uint32_t layer, uint32_t head, int32_t first, uint32_t n, float *out) {
    const kvc_rows rows = {.struct_size = sizeof rows,
                           .layer = layer,
                           .head = head,
                           .n = n,
                           .pos = look.pos + first,
                           .q = query_at(layer, head, first),
                           .q_stride = wide()};
    return look.store->mass(look.host->ctx, &rows, out);
}

/* Runs the text under a spec with `ask` at the ticks. */
static void run_look(kvc_model *m, const char *spec, const char *compute, ask_fn ask) {
    kvc_params *p = util_params();
    kvc_session *s = NULL;
    int32_t token[LENGTH];
    look.ask = ask;
    look.n_asked = 0;
    util_tokens(token, LENGTH, util_vocab(m), 5);
    ck_assert_int_eq(kvc_params_add_policy(p, look_entry), KVC_OK);
    ck_assert_int_eq(kvc_params_set_str(p, "compute", compute), KVC_OK);
    ck_assert_int_eq(kvc_params_set_i64(p, "n_ctx", N_CTX), KVC_OK);
    ck_assert_msg(kvc_session_open(m, spec, p, &s) == KVC_OK, "%s", kvc_params_error(p));
    ck_assert_msg(kvc_session_decode(s, token, LENGTH) == KVC_OK, "%s: %s", spec,
                  kvc_session_error(s));
    ck_assert_uint_gt(look.n_asked, 0);
    kvc_session_close(s);
    kvc_params_destroy(p);
    free(look.q);
    look.q = NULL;
}

/* ---------------------------------------------------------------- a plain softmax */

static struct {

    int32_t size; /* of a window; 0: none */
    int32_t sinks;
} window;

static bool sees(uint32_t layer, int32_t query, int32_t pos) {
    const int32_t own = look.window[layer];
    return pos <= query && (own == 0 || pos > query - own) &&
           (window.size == 0 || pos < window.sinks || pos > query - window.size);
}

/* Adds the probabilities of one query head over the rows k[n, dim_k]. */
static void plain_softmax(uint32_t layer, const float *q, const float *k, const int32_t *pos,
                          uint32_t n, int32_t query, double *out) {
    const double cap = (double)look.soft_cap;
    double s[N_CTX], max = -INFINITY, sum = 0;
    for (uint32_t e = 0; e < n; e++) {
        s[e] = -INFINITY;
        if (!sees(layer, query, pos[e])) {
            continue;
        }
        s[e] = 0;
        for (uint32_t d = 0; d < look.dim_k; d++) {
            s[e] += (double)q[d] * (double)k[(size_t)e * look.dim_k + d];
        }
        s[e] *= (double)look.scale;
        s[e] = cap > 0 ? cap * tanh(s[e] / cap) : s[e];
        max = s[e] > max ? s[e] : max;
    }
    for (uint32_t e = 0; e < n; e++) {
        sum += max > -INFINITY ? exp(s[e] - max) : 0;
    }
    for (uint32_t e = 0; e < n && sum > 0; e++) {
        out[e] += exp(s[e] - max) / sum;
    }
}

static void against_softmax(uint32_t layer, uint32_t head, int32_t end) {
    static float k[N_CTX * 128];
    const uint32_t n = look.store->count(look.host->ctx, layer, head), n_query = 40;
    const int32_t first = end - (int32_t)n_query;
    float got[N_CTX] = {0};
    double want[N_CTX] = {0};
    int32_t pos[N_CTX];
    if (first < 0) {
        return;
    }
    ck_assert_int_eq(look.store->pos(look.host->ctx, layer, head, 0, n, pos), KVC_OK);
    ck_assert_int_eq(look.store->read(look.host->ctx, layer, head, 0, n, k, NULL), KVC_OK);
    got[n - 1] = 7; /* it adds */
    want[n - 1] = 7;
    ck_assert_int_eq(ask_mass(layer, head, first, n_query, got), KVC_OK);
    for (uint32_t t = 0; t < n_query; t++) {
        for (uint32_t g = 0; g < look.group; g++) {
            plain_softmax(layer, query_at(layer, head, first + (int32_t)t) + g * look.dim_k, k, pos,
                          n, first + (int32_t)t, want);
        }
    }
    for (uint32_t e = 0; e < n; e++) {
        ck_assert_msg(fabs((double)got[e] - want[e]) < look.far,
                      "layer %u, head %u, %d of %d: %g, not %g", layer, head, pos[e], end,
                      (double)got[e], want[e]);
    }
}

static const char *const models[] = {"tiny-f16.gguf", "tiny-mqa80.gguf", "tiny-kv.gguf",
                                     "tiny-q8_0.gguf", "arch-gemma3-caps.gguf"};
static const char *const formats[] = {
    "look",         "look+full:type=f32", "look+full:type=bf16",      "look+quant8",
    "look+t_codec", "look+t_tier",        "look+quant8:hadamard=off", "look+quant8+t_tier"};
enum { N_MODEL = 5, N_FORMAT = 8 };

/* Under int8 queries are rounded in front of stored integers, which costs up to some percent. */
START_TEST(probabilities_are_those_of_a_plain_softmax) {
    kvc_model *m = util_model(models[_i / 4 / N_FORMAT], 2, 0);
    const char *spec = formats[_i / 4 % N_FORMAT], *compute = _i % 2 == 0 ? "f32" : "int8";
    look.evicts = _i / 2 % 2 != 0;
    look.far = _i % 2 != 0 && strstr(spec, "quant8") != NULL ? 0.1 : 2e-4;
    run_look(m, spec, compute, against_softmax);
    kvc_model_close(m);
}
END_TEST

/* Three layers in four have a window there, and scores are bent. */
START_TEST(a_policy_is_told_the_layers_shapes) {
    kvc_model *m = util_model("arch-gemma3-caps.gguf", 1, 0);
    look.far = 2e-4;
    run_look(m, "look", "f32", against_softmax);
    ck_assert_uint_eq(look.n_layer, 4);
    ck_assert(look.window[0] == 70 && look.window[1] == 70 && look.window[2] == 0);
    ck_assert_int_eq(look.window[3], 70);
    ck_assert(look.soft_cap == 4.0f && look.scale == (float)(1 / sqrt(48.0)));
    ck_assert_uint_eq(look.dim_k, 48);
    kvc_model_close(m);
}
END_TEST

START_TEST(what_visible_hides_counts_for_nothing) {
    static const char *const spec[] = {"window:size=100:sinks=4+look",
                                       "window:size=100:sinks=4+quant8+look",
                                       "window:size=30:sinks=0+look"};
    window.size = _i < 2 ? 100 : 30;
    window.sinks = _i < 2 ? 4 : 0;
    look.far = 2e-4;
    run_look(model, spec[_i], "f32", against_softmax);
}
END_TEST

/* ---------------------------------------------------------------- bit for bit */

static void same(const float *a, const float *b, uint32_t n, const char *what) {
    for (uint32_t e = 0; e < n; e++) {
        ck_assert_msg(memcmp(&a[e], &b[e], sizeof *a) == 0, "%s: entry %u: %.9g is not %.9g", what,
                      e, (double)a[e], (double)b[e]);
    }
}

/* The last query of an open page has seen what mass() reads: the same bits. At a page's end the
 * page is sealed since, which makes a difference unless the format is that of the open page. */
static void against_column(uint32_t layer, uint32_t head, int32_t end) {
    const uint32_t n = look.store->count(look.host->ctx, layer, head);
    float got[N_CTX] = {0}, want[N_CTX];
    if (end % 64 == 0) {
        return;
    }
    ck_assert_int_eq(look.store->get(look.host->ctx, layer, head, KVC_COLUMN_MASS_LAST, 0, n, want),
                     KVC_OK);
    ck_assert_int_eq(ask_mass(layer, head, end - 1, 1, got), KVC_OK);
    same(want, got, n, "the last query");
}

START_TEST(the_last_query_is_that_of_the_column) {
    kvc_model *m = util_model(models[_i / 4 / N_FORMAT], 2, 0);
    look.evicts = _i / 2 % 2 != 0;
    look.last = true;
    run_look(m, formats[_i / 4 % N_FORMAT], _i % 2 == 0 ? "f32" : "int8", against_column);
    kvc_model_close(m);
}
END_TEST

/* All queries at once are the sum of single ones in their order, however they are cut. */
static void against_singles(uint32_t layer, uint32_t head, int32_t end) {
    const uint32_t n = look.store->count(look.host->ctx, layer, head);
    float all[N_CTX] = {0}, single[N_CTX] = {0};
    ck_assert_int_eq(ask_mass(layer, head, 0, (uint32_t)end, all), KVC_OK);
    for (int32_t p = 0; p < end; p++) {
        ck_assert_int_eq(ask_mass(layer, head, p, 1, single), KVC_OK);
    }
    same(all, single, n, "all queries");
    ck_assert_int_eq(ask_mass(layer, head, 0, 0, all), KVC_OK);
    same(all, single, n, "no query");
}

START_TEST(queries_add_up) {
    look.evicts = _i % 2 != 0;
    run_look(model, _i / 2 == 0 ? "look" : "look+quant8", "int8", against_singles);
}
END_TEST

/* ---- on the engine's threads, a lane each */

static struct {
    uint32_t layer;
    int32_t end;
    float out[MAX_HEAD][N_CTX];
} work;

static void ask_item(void *arg, uint32_t head) {
    (void)arg;
    memset(work.out[head], 0, sizeof work.out[head]);
    ck_assert_int_eq(ask_mass(work.layer, head, work.end - 30, 30, work.out[head]), KVC_OK);
}

static void against_threads(uint32_t layer, uint32_t head, int32_t end) {
    float one[N_CTX] = {0};
    if (head == 0) {
        work.layer = layer;
        work.end = end;
        (look.host->parallel_for)(look.host->ctx, look.n_head_kv, ask_item, NULL);
    }
    ck_assert_int_eq(ask_mass(layer, head, end - 30, 30, one), KVC_OK);
    same(one, work.out[head], look.store->count(look.host->ctx, layer, head), "threads");
}

START_TEST(threads_do_not_matter) {
    look.evicts = true;
    run_look(model, _i == 0 ? "look+quant8" : "look+quant8+t_tier", "f32", against_threads);
}
END_TEST

/* ---------------------------------------------------------------- refusals */

static void ask_nonsense(uint32_t layer, uint32_t head, int32_t end) {
    float out[N_CTX] = {0};
    int32_t pos[2] = {0, 1};
    kvc_rows good = {.struct_size = sizeof good,
                     .layer = layer,
                     .head = head,
                     .n = 2,
                     .pos = pos,
                     .q = query_at(layer, head, 0),
                     .q_stride = wide()},
             bad = good;
    void *ctx = look.host->ctx;
    (void)end;
    ck_assert_int_eq(look.store->mass(ctx, &good, out), KVC_OK);
    ck_assert_int_eq(look.store->mass(ctx, NULL, out), KVC_E_ARG);
    ck_assert_int_eq(look.store->mass(ctx, &good, NULL), KVC_E_ARG);
    bad.struct_size = 8;
    ck_assert_int_eq(look.store->mass(ctx, &bad, out), KVC_E_ARG);
    bad = good;
    bad.q = NULL;
    ck_assert_int_eq(look.store->mass(ctx, &bad, out), KVC_E_ARG);
    bad = good;
    bad.pos = NULL;
    ck_assert_int_eq(look.store->mass(ctx, &bad, out), KVC_E_ARG);
    bad = good;
    bad.q_stride = wide() - 1;
    ck_assert_int_eq(look.store->mass(ctx, &bad, out), KVC_E_ARG);
    bad = good;
    bad.head = look.n_head_kv;
    ck_assert_int_eq(look.store->mass(ctx, &bad, out), KVC_E_RANGE);
    bad = good;
    bad.layer = look.n_layer;
    ck_assert_int_eq(look.store->mass(ctx, &bad, out), KVC_E_RANGE);
    static const int32_t outside[] = {-1, N_CTX, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < 4; i++) {
        pos[1] = outside[i];
        ck_assert_int_eq(look.store->mass(ctx, &good, out), KVC_E_ARG);
    }
}

START_TEST(nonsense_is_refused) {
    run_look(model, "look", "f32", ask_nonsense);
}
END_TEST

static void ask_with_a_gap(uint32_t layer, uint32_t head, int32_t end) {
    float out[N_CTX] = {0};
    ck_assert_int_eq(ask_mass(layer, head, end - 1, 1, out),
                     end > 100 ? KVC_E_UNSUPPORTED : KVC_OK);
    ck_assert_int_eq(ask_mass(layer, head, 40, 1, out), KVC_OK);
}

START_TEST(closed_gaps_are_refused) {
    run_look(model, "window:size=96:sinks=4:positions=cache+look", "f32", ask_with_a_gap);
}
END_TEST

static void setup_look(void) {
    setup();
    memset(&look, 0, sizeof look);
    memset(&window, 0, sizeof window);
}

int main(void) {
    Suite *suite = suite_create("mass");
    TCase *tc = tcase_create("mass");
    tcase_add_checked_fixture(tc, setup_look, teardown);
    every_add(tc, probabilities_are_those_of_a_plain_softmax, N_MODEL * N_FORMAT * 4, 2);
    tcase_add_test(tc, a_policy_is_told_the_layers_shapes);
    tcase_add_loop_test(tc, what_visible_hides_counts_for_nothing, 0, 3);
    every_add(tc, the_last_query_is_that_of_the_column, N_MODEL * N_FORMAT * 4, 2);
    tcase_add_loop_test(tc, queries_add_up, 0, 4);
    tcase_add_loop_test(tc, threads_do_not_matter, 0, 2);
    tcase_add_test(tc, nonsense_is_refused);
    tcase_add_test(tc, closed_gaps_are_refused);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}

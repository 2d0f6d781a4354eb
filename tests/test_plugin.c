/* SPDX-License-Identifier: MIT
 * test_plugin.c: policies that answer what no policy should, or act at odd moments: each failure is
 * caught as what it is, names the call, and leaves other sessions alone. */
#include "engine_util.h"

#include <math.h>

#define N     200u
#define N_CTX 256

/* One policy, told by the test what to do. */
static struct {
    int32_t append, score, decode, encode, move; /* what these answer for layer 1, head 1 */
    int draws;                                   /* page_end evicts by random numbers */
    kvc_session *cancel;                         /* end cancels this one */
} odd;

static const kvc_host *host_of;
static uint32_t dim_k, dim_v;

static size_t odd_page_bytes(void *self, uint32_t layer) {
    (void)self, (void)layer;
    return KVC_PAGE * (size_t)(dim_k + dim_v) * sizeof(float);
}

static int32_t at(uint32_t layer, uint32_t head, int32_t code) {
    return layer == 1 && head == 1 ? code : KVC_OK;
}

static int32_t odd_encode(void *self, const kvc_rows *rows, void *dst) {
    float *to = dst;
    (void)self;
    for (uint32_t e = 0; e < KVC_PAGE; e++) {
        memcpy(to + e * dim_k, rows->k + (size_t)e * rows->k_stride, dim_k * sizeof *to);
        memcpy(to + KVC_PAGE * dim_k + e * dim_v, rows->v + (size_t)e * rows->v_stride,
               dim_v * sizeof *to);
    }
    return at(rows->layer, rows->head, odd.encode);
}

static int32_t odd_decode(void *self, const kvc_page *page, float *k, float *v) {
    const float *from = page->bytes;
    (void)self;
    memcpy(k, from, KVC_PAGE * (size_t)dim_k * sizeof *k);
    memcpy(v, from + KVC_PAGE * dim_k, KVC_PAGE * (size_t)dim_v * sizeof *v);
    return at(page->layer, page->head, odd.decode);
}

static int32_t odd_score(void *self, const kvc_page *page, const float *q, uint32_t n_q, float *s) {
    const float *k = page->bytes;
    (void)self;
    for (uint32_t i = 0; i < n_q * KVC_PAGE; i++) {
        s[i] = 0;
        for (uint32_t d = 0; d < dim_k; d++) {
            s[i] += q[i / KVC_PAGE * dim_k + d] * k[i % KVC_PAGE * dim_k + d];
        }
    }
    return at(page->layer, page->head, odd.score);
}

static int32_t odd_move(void *self, uint32_t layer, void *dst, uint32_t to, const void *src,
                        uint32_t from) {
    float *d = dst;
    const float *s = src;
    (void)self;
    memmove(d + to * dim_k, s + from * dim_k, dim_k * sizeof *d);
    memmove(d + KVC_PAGE * dim_k + to * dim_v, s + KVC_PAGE * dim_k + from * dim_v,
            dim_v * sizeof *d);
    return layer == 1 ? odd.move : KVC_OK;
}

static const kvc_codec odd_codec = {.struct_size = sizeof odd_codec,
                                    .flags = KVC_CODEC_MOVABLE,
                                    .page_bytes = odd_page_bytes,
                                    .encode = odd_encode,
                                    .decode = odd_decode,
                                    .score = odd_score,
                                    .move = odd_move};

static int32_t odd_create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                          kvc_plan *plan, void **self) {
    (void)value;
    host_of = host;
    dim_k = kvc_shape_layer(shape, 0)->dim_k;
    dim_v = kvc_shape_layer(shape, 0)->dim_v;
    plan->answers = KVC_ANSWERS_WHICH | KVC_ANSWERS_FORMAT;
    plan->flags = KVC_PLAN_EVICTS;
    plan->codec = &odd_codec;
    *self = &odd;
    return KVC_OK;
}

static int32_t odd_append(void *self, const kvc_rows *rows) {
    (void)self;
    return at(rows->layer, rows->head, odd.append);
}

static int32_t odd_page_end(void *self, const kvc_step *step, uint32_t layer) {
    const kvc_host_store *store = host_of->extension(host_of->ctx, KVC_HOST_STORE);
    (void)self;
    for (int32_t i = 0; odd.draws != 0 && i < 90; i++) {
        const int32_t pos =
            (int32_t)(host_of->rand_u64(host_of->ctx) % (uint64_t)(step->pos + (int32_t)step->n));
        const int32_t rc = store->drop(host_of->ctx, layer, KVC_ALL, pos, pos + 1);
        if (rc < 0) {
            return rc;
        }
    }
    return KVC_OK;
}

static int32_t odd_end(void *self, const kvc_step *step) {
    (void)self, (void)step;
    kvc_session_cancel(odd.cancel);
    return KVC_OK;
}

static const kvc_policy_api odd_api = {.struct_size = sizeof odd_api,
                                       .create = odd_create,
                                       .append = odd_append,
                                       .page_end = odd_page_end,
                                       .end = odd_end};

static const kvc_policy *odd_entry(uint32_t host_abi, uint32_t index) {
    static const kvc_policy policy = {.struct_size = sizeof policy,
                                      .abi = KVC_POLICY_ABI,
                                      .abi_min = KVC_POLICY_ABI_MIN,
                                      .name = "odd",
                                      .version = "1.0.0",
                                      .summary = "test: does odd things",
                                      .license = "MIT",
                                      .api = &odd_api};
    (void)host_abi;
    return index == 0 ? &policy : NULL;
}

/* ---- a second policy, which only looks: rows as append() shows them, and as read() gives them
 * later */

static struct {
    float k[KVC_PAGE * 256], v[KVC_PAGE * 256]; /* of layer 0, head 0, the first page */
    double worst;                               /* relative distance of read() from them */
    uint32_t phase[N];                          /* of the row at each position */
} look;

static const kvc_host *look_host;

static int32_t look_create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                           kvc_plan *plan, void **self) {
    (void)value, (void)plan, (void)self;
    look_host = host;
    dim_k = kvc_shape_layer(shape, 0)->dim_k;
    dim_v = kvc_shape_layer(shape, 0)->dim_v;
    return KVC_OK;
}

static int32_t look_append(void *self, const kvc_rows *rows) {
    (void)self;
    for (uint32_t i = 0; i < rows->n && rows->layer == 0 && rows->head == 0; i++) {
        const uint32_t pos = (uint32_t)rows->pos[i];
        look.phase[pos] = rows->phase;
        if (pos < KVC_PAGE) {
            memcpy(look.k + pos * dim_k, rows->k + (size_t)i * rows->k_stride,
                   dim_k * sizeof *look.k);
            memcpy(look.v + pos * dim_v, rows->v + (size_t)i * rows->v_stride,
                   dim_v * sizeof *look.v);
        }
    }
    return KVC_OK;
}

static double distance(const float *a, const float *b, size_t n) {
    double d = 0, s = 0;
    for (size_t i = 0; i < n; i++) {
        d += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        s += (double)a[i] * (double)a[i];
    }
    return sqrt(d / s);
}

static int32_t look_end(void *self, const kvc_step *step) {
    static float k[KVC_PAGE * 256], v[KVC_PAGE * 256];
    const kvc_host_store *store = look_host->extension(look_host->ctx, KVC_HOST_STORE);
    (void)self, (void)step;
    const int32_t rc = store->read(look_host->ctx, 0, 0, 0, KVC_PAGE, k, v);
    if (rc < 0) {
        return rc;
    }
    const double dk = distance(look.k, k, KVC_PAGE * dim_k),
                 dv = distance(look.v, v, KVC_PAGE * dim_v);
    look.worst = fmax(look.worst, fmax(dk, dv));
    return KVC_OK;
}

static const kvc_policy_api look_api = {
    .struct_size = sizeof look_api, .create = look_create, .append = look_append, .end = look_end};

static const kvc_policy *look_entry(uint32_t host_abi, uint32_t index) {
    static const kvc_policy policy = {.struct_size = sizeof policy,
                                      .abi = KVC_POLICY_ABI,
                                      .abi_min = KVC_POLICY_ABI_MIN,
                                      .name = "look",
                                      .version = "1.0.0",
                                      .summary = "test: looks at rows",
                                      .license = "MIT",
                                      .api = &look_api};
    (void)host_abi;
    return index == 0 ? &policy : NULL;
}

static kvc_model *model;
static int32_t token[N];
static uint32_t n_vocab;

static void setup(void) {
    memset(&odd, 0, sizeof odd);
    model = util_model("tiny-f32.gguf", 2, 0);
    n_vocab = util_vocab(model);
    util_tokens(token, N, n_vocab, 2);
}

static void teardown(void) {
    kvc_model_close(model);
}

static kvc_session *open_spec(const char *spec) {
    kvc_params *p = util_params();
    kvc_session *s = NULL;
    ck_assert_int_eq(kvc_params_add_policy(p, odd_entry), KVC_OK);
    ck_assert_int_eq(kvc_params_add_policy(p, look_entry), KVC_OK);
    ck_assert_int_eq(kvc_params_set_i64(p, "n_ctx", N_CTX), KVC_OK);
    ck_assert_msg(kvc_session_open(model, spec, p, &s) == KVC_OK, "%s", kvc_params_error(p));
    kvc_params_destroy(p);
    return s;
}

static kvc_session *open_odd(void) {
    return open_spec("odd");
}

static const int32_t absurd[] = {-536870912, -536870911, INT32_MIN, INT32_MAX,   5,
                                 1,          -64,        -1000,     KVC_E_POLICY};
#define N_ABSURD ((int)(sizeof absurd / sizeof *absurd))

START_TEST(absurd_statuses_are_failures) {
    static const char *const name[] = {"append", "score", "decode", "encode", "move"};
    int32_t *const code[] = {&odd.append, &odd.score, &odd.decode, &odd.encode, &odd.move};
    for (size_t i = 0; i < sizeof code / sizeof *code; i++) {
        kvc_session *s = open_odd(), *t = util_session(model, "", "int8", N_CTX);
        kvc_run run[2] = {
            {.struct_size = sizeof run[0], .session = s, .token = token, .n_token = N},
            {.struct_size = sizeof run[0], .session = t, .token = token, .n_token = N}};
        odd.draws = 1;
        *code[i] = absurd[_i];
        ck_assert_int_eq(kvc_decode(run, 2, sizeof run[0]), KVC_E_POLICY);
        *code[i] = KVC_OK;
        ck_assert_int_eq(run[1].status, KVC_OK);
        ck_assert_msg(strstr(kvc_session_error(s), name[i]) != NULL &&
                          strstr(kvc_session_error(s), "'odd'") != NULL,
                      "%s: %s", name[i], kvc_session_error(s));
        ck_assert_int_eq(kvc_session_decode(s, token, 1), KVC_E_DEAD);
        kvc_session_close(s);
        kvc_session_close(t);
    }
}
END_TEST

START_TEST(random_numbers_begin_again) {
    float *a = calloc(n_vocab, sizeof *a);
    kvc_session *s = open_odd();
    odd.draws = 1;
    ck_assert_int_eq(kvc_session_decode(s, token, N), KVC_OK);
    memcpy(a, kvc_session_logits(s, 0), n_vocab * sizeof *a);
    ck_assert_int_eq(kvc_session_truncate(s, 0), KVC_OK);
    ck_assert_int_eq(kvc_session_decode(s, token, N), KVC_OK);
    util_same(a, kvc_session_logits(s, 0), 1, n_vocab, "the second time");
    kvc_session_close(s);
    free(a);
}
END_TEST

/* After the last layer no computation looks for a cancel any more; the call must. */
START_TEST(cancelled_at_the_last_moment) {
    kvc_session *s = open_odd();
    ck_assert_int_eq(kvc_session_decode(s, token, 100), KVC_OK);
    odd.cancel = s;
    kvc_run run = {.struct_size = sizeof run, .session = s, .token = token + 100, .n_token = 28};
    ck_assert_int_eq(kvc_decode(&run, 1, sizeof run), KVC_E_CANCELLED);
    odd.cancel = NULL;
    ck_assert_uint_eq(kvc_session_n_past(s), 100);
    ck_assert_int_eq(kvc_session_decode(s, token + 100, 28), KVC_OK);
    kvc_session *t = open_odd();
    ck_assert_int_eq(kvc_session_decode(t, token, 100), KVC_OK);
    ck_assert_int_eq(kvc_session_decode(t, token + 100, 28), KVC_OK);
    util_same(kvc_session_logits(t, 0), kvc_session_logits(s, 0), 1, n_vocab, "after the cancel");
    kvc_session_close(s);
    kvc_session_close(t);
}
END_TEST

START_TEST(strides_and_sizes_of_runs) {
    kvc_session *s = util_session(model, "", "int8", N_CTX),
                *t = util_session(model, "", "int8", N_CTX);
    kvc_run run[2] = {{.struct_size = sizeof run[0], .session = s, .token = token, .n_token = 3},
                      {.struct_size = 8, .session = t, .token = token, .n_token = 3}};
    ck_assert_int_eq(kvc_decode(run, 2, sizeof run[0] + 1), KVC_E_ARG);
    ck_assert_int_eq(kvc_decode(run, 2, sizeof run[0]), KVC_E_ARG);
    ck_assert_int_eq(run[0].status, KVC_OK);
    ck_assert_int_eq(run[1].status, KVC_E_ARG);
    kvc_session_close(s);
    kvc_session_close(t);
}
END_TEST

/* What a policy reads back is what it was shown, up to the format's rounding: a rotation is the
 * format's own matter. */
START_TEST(rows_are_read_as_they_were_shown) {
    static const struct {
        const char *spec;
        double most;
    } test[] = {{"look", 0},
                {"look+full:type=f32", 0},
                {"look+quant8:hadamard=off", 0.02},
                {"look+quant8", 0.02}};
    for (size_t i = 0; i < sizeof test / sizeof *test; i++) {
        memset(&look, 0, sizeof look);
        kvc_session *s = open_spec(test[i].spec);
        ck_assert_msg(kvc_session_decode(s, token, N) == KVC_OK, "%s", kvc_session_error(s));
        ck_assert_msg(look.worst <= test[i].most, "%s: off by %g", test[i].spec, look.worst);
        kvc_session_close(s);
    }
}
END_TEST

/* With none in the stack every call computes all tokens again: their phases are the same then. */
START_TEST(rows_know_their_phase) {
    memset(&look, 0, sizeof look);
    kvc_session *s = open_spec(_i == 0 ? "look" : "look+none");
    ck_assert_int_eq(kvc_session_prefill(s, token, 40), KVC_OK);
    ck_assert_int_eq(kvc_session_decode(s, token + 40, 30), KVC_OK); /* a prompt of 70 */
    for (uint32_t i = 70; i < 100; i++) {
        ck_assert_int_eq(kvc_session_decode(s, token + i, 1), KVC_OK);
    }
    memset(look.phase, 0xff, _i == 0 ? 0 : sizeof look.phase);
    ck_assert_int_eq(kvc_session_decode(s, token + 100, 20), KVC_OK); /* the next turn's */
    for (uint32_t i = 0; i < 120; i++) {
        const uint32_t want = i < 70 || i >= 100 ? KVC_PHASE_PROMPT : KVC_PHASE_DECODE;
        /* Rows of the piece that ends a prompt know it; how many they are depends on the calls. */
        const uint32_t got =
            look.phase[i] == KVC_PHASE_PROMPT_END ? KVC_PHASE_PROMPT : look.phase[i];
        ck_assert_msg(got == want, "position %u is of phase %u", i, look.phase[i]);
    }
    ck_assert_uint_eq(look.phase[69], KVC_PHASE_PROMPT_END);
    ck_assert_uint_eq(look.phase[119], KVC_PHASE_PROMPT_END);
    kvc_session_close(s);
}
END_TEST

START_TEST(pieces_of_a_prompt_end_no_prompt) {
    float *a = calloc(n_vocab, sizeof *a);
    kvc_session *s = open_spec("t_mass:budget=40"), *t = open_spec("t_mass:budget=40");
    ck_assert_int_eq(kvc_session_decode(s, token, N), KVC_OK);
    for (uint32_t i = 0; i + 30 < N; i += 30) {
        ck_assert_int_eq(kvc_session_prefill(t, token + i, 30), KVC_OK);
        ck_assert_ptr_null(kvc_session_logits(t, 0));
    }
    const uint32_t past = kvc_session_n_past(t);
    ck_assert_int_eq(kvc_session_decode(t, token + past, N - past), KVC_OK);
    util_same(kvc_session_logits(s, 0), kvc_session_logits(t, 0), 1, n_vocab, "in pieces");
    kvc_session_close(s);
    kvc_session_close(t);
    free(a);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("plugin");
    TCase *tc = tcase_create("plugin");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, absurd_statuses_are_failures, 0, N_ABSURD);
    tcase_add_test(tc, random_numbers_begin_again);
    tcase_add_test(tc, cancelled_at_the_last_moment);
    tcase_add_test(tc, strides_and_sizes_of_runs);
    tcase_add_test(tc, rows_are_read_as_they_were_shown);
    tcase_add_loop_test(tc, rows_know_their_phase, 0, 2);
    tcase_add_test(tc, pieces_of_a_prompt_end_no_prompt);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}

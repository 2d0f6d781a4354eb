/* SPDX-License-Identifier: MIT
 * test_quant.c: the policies quant4 and kivi against the papers' rule, written out in double: what
 * a page gives back, and the logits of sessions, held against a codec of the test's own that rounds
 * by the rule and keeps plain floats. Uses the real model (KVC_TEST_MODEL) where there is one. */
#include "codec.h"
#include "engine_util.h"
#include "every.h"
#include "kern_util.h"
#include "params.h"
#include "stack.h"

#include <math.h>
#include <stdbool.h>

#define E KVC__ENTRIES

enum { MAX_DIM = 256, N = 512, SCORED = 256 };

/* A policy by the name it has in the paper: numbers of a group are rounded to 2^bits values from
 * its least to its largest. Keys in groups of group_k of a row, 0: of 32 rows of a channel. */
typedef struct rule {
    const char *spec;
    uint32_t bits, group_k, group_v, hadamard;
} rule;

static const rule rules[] = {
    {"quant4", 4, 32, 32, 1},
    {"quant4:hadamard=off:group=16", 4, 16, 16, 0},
    {"kivi", 4, 0, 32, 0},
    {"kivi:bits=2", 2, 0, 32, 0},
};
#define N_RULE ((int)(sizeof rules / sizeof *rules))

static double half(double x) {
    return (double)kvc__f32_of_f16(kvc__f16((float)x));
}

/* Rounds n numbers, stride apart, in place. Scale and least number are kept in binary16; a number
 * in the middle of two codes would else be tipped over by that, which is as good but looks
 * different. */
static void round_group(float *x, double *step, uint32_t n, size_t stride, uint32_t bits) {
    double lo = (double)x[0], hi = lo;
    const double top = (1 << bits) - 1;
    for (uint32_t i = 1; i < n; i++) {
        lo = fmin(lo, (double)x[i * stride]);
        hi = fmax(hi, (double)x[i * stride]);
    }
    lo = half(lo);
    const double s = half((hi - lo) / top);
    for (uint32_t i = 0; i < n; i++) {
        const double code = s > 0 ? rint(((double)x[i * stride] - lo) / s) : 0;
        x[i * stride] = (float)(lo + fmin(fmax(code, 0), top) * s);
        if (step != NULL) {
            step[i * stride] = s;
        }
    }
}

/* Rounds rows [KVC_PAGE][dim] by the rule. */
static void round_rows(const rule *r, uint32_t group, float *x, double *step, uint32_t dim) {
    for (uint32_t e = 0; e < E && group > 0; e++) {
        for (uint32_t d = 0; d < dim; d += group) {
            const size_t at = (size_t)e * dim + d;
            const uint32_t n = dim - d < group ? dim - d : group;
            round_group(x + at, step != NULL ? step + at : NULL, n, 1, r->bits);
        }
    }
    for (uint32_t d = 0; d < dim && group == 0; d++) {
        for (uint32_t e = 0; e < E; e += 32) {
            const size_t at = (size_t)e * dim + d;
            round_group(x + at, step != NULL ? step + at : NULL, 32, dim, r->bits);
        }
    }
}

/* ---- pages */

static float rows_k[E * MAX_DIM], rows_v[E * MAX_DIM];
static double step[E * MAX_DIM];

static const uint32_t dims[][2] = {{64, 64}, {128, 128}, {80, 80}, {36, 100}, {8, 4}, {256, 96}};
#define N_DIM ((int)(sizeof dims / sizeof *dims))

/* A stack of one policy for one layer of one head. */
static void stack_open(kvc__mem *mem, const char *spec, const uint32_t *dim, kvc__stack *out) {
    kvc_params *p = util_params();
    kvc__search search;
    kvc__err err = {""};
    const kvc_layer_shape layer = {.struct_size = sizeof layer,
                                   .n_head = 1,
                                   .n_head_kv = 1,
                                   .dim_k = dim[0],
                                   .dim_v = dim[1],
                                   .scale = 1};
    const kvc_shape shape = {.struct_size = sizeof shape,
                             .n_layer = 1,
                             .n_ctx = 64,
                             .n_thread = 1,
                             .compute = KVC_COMPUTE_F32,
                             .layer_stride = sizeof layer,
                             .layer = &layer};
    const kvc__stack_env env = {
        .mem = mem, .family = mem, .kern = kvc__kern_get(), .shape = &shape};
    kvc__mem_init(mem, NULL, NULL);
    kvc__params_search(p, &search);
    const int32_t rc = kvc__stack_create(&env, &search, NULL, spec, out, &err);
    ck_assert_msg(rc == KVC_OK, "%s: %s", spec, err.text);
    kvc_params_destroy(p);
}

/* Rows as the open page holds them, in binary16: keys with a few channels that are large in every
 * row. */
static void fill(float *x, uint32_t dim, uint32_t seed) {
    uint64_t state = seed;
    for (uint32_t i = 0; i < E * dim; i++) {
        const float big = i % dim % 13 == 5 ? 8.0f : 0.0f;
        x[i] = kvc__f32_of_f16(kvc__f16(big + util_unit(&state)));
    }
}

/* got[] is rows[] rounded by the rule, but for the last bit, and for one in a thousand that lay so
 * near the middle of two codes that it depends on the last bit. */
static void check_rounded(const rule *r, uint32_t group, const float *rows, const float *got,
                          uint32_t dim) {
    static float want[E * MAX_DIM];
    uint32_t n_tipped = 0;
    memcpy(want, rows, E * dim * sizeof *want);
    memset(step, 0, sizeof step);
    round_rows(r, group, want, step, dim);
    for (uint32_t i = 0; i < E * dim; i++) {
        const double off = fabs((double)got[i] - (double)want[i]);
        const double least = fabs((double)want[i]) * 0x1p-22 + 1e-7;
        n_tipped += off > least;
        util_check(off <= least + step[i]);
        util_check(fabs((double)got[i] - (double)rows[i]) <=
                   step[i] * 0.51 + fabs((double)rows[i]) * 0x1p-11);
    }
    util_check(n_tipped <= E * dim / 1000);
}

START_TEST(a_page_is_rounded_by_the_rule) {
    const rule *r = &rules[_i / N_DIM];
    const uint32_t *dim = dims[_i % N_DIM];
    static float k[E * MAX_DIM], v[E * MAX_DIM], t[E * MAX_DIM];
    static float open_k[E * MAX_DIM], open_v[E * MAX_DIM];
    kvc__codec_scratch scratch = {k, v, t};
    int32_t pos[E];
    kvc__mem mem;
    kvc__stack st = {0};
    stack_open(&mem, r->spec, dim, &st);
    const kvc__page_shape *shape = &st.shape[0];
    fill(rows_k, dim[0], 1);
    fill(rows_v, dim[1], 2);
    for (uint32_t e = 0; e < E; e++) {
        pos[e] = (int32_t)e;
        st.codec.kern->put_k(shape->open_type, rows_k + e * dim[0], dim[0], e, open_k);
        st.codec.kern->put_v(shape->open_type, rows_v + e * dim[1], dim[1], e, open_v);
    }
    uint8_t *bytes = aligned_alloc(64, (shape->page_bytes + 63) / 64 * 64);
    const kvc_page page = {.struct_size = sizeof page, .n = E, .bytes = bytes};
    ck_assert_int_eq(kvc__codec_encode(&st.codec, 0, 0, E, pos, open_k, open_v, bytes, &scratch),
                     KVC_OK);
    ck_assert_int_eq(kvc__codec_decode(&st.codec, &page, &scratch), KVC_OK);
    check_rounded(r, r->group_k, rows_k, k, dim[0]);
    check_rounded(r, r->group_v, rows_v, v, dim[1]);
    ck_assert_int_eq(kvc__codec_movable(&st.codec), r->group_k > 0);
    ck_assert_uint_eq(shape->had_k > 0, r->hadamard);
    ck_assert_uint_eq(shape->had_v > 0, r->hadamard);
    free(bytes);
    kvc__stack_destroy(&st);
    ck_assert_uint_eq(mem.used, 0);
}
END_TEST

/* Bytes of a page at 64 elements: codes, and two binary16 for each 32. */
START_TEST(pages_have_the_bytes_that_are_said) {
    static const struct {
        const char *spec;
        size_t bytes;
    } want[] = {{"quant4", 2 * 64 * (32 + 2 * 4)},
                {"quant4:group=64", 2 * 64 * (32 + 4)},
                {"kivi", 2 * 64 * (32 + 2 * 4)},
                {"kivi:bits=2", 2 * 64 * (16 + 2 * 4)},
                {"kivi:bits=2:group=64", 2 * 64 * (16 + 4)}};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        kvc__mem mem;
        kvc__stack st = {0};
        stack_open(&mem, want[i].spec, dims[0], &st);
        ck_assert_uint_eq(st.shape[0].page_bytes, want[i].bytes);
        kvc__stack_destroy(&st);
    }
}
END_TEST

/* ---- a codec that keeps the rounded numbers as floats; the engine scores and mixes them */

static const rule *plain_rule;
static uint32_t plain_dim[2];

static size_t plain_page_bytes(void *self, uint32_t layer) {
    (void)self, (void)layer;
    return E * (size_t)(plain_dim[0] + plain_dim[1]) * sizeof(float);
}

static int32_t plain_encode(void *self, const kvc_rows *rows, void *dst) {
    float *k = dst, *v = k + (size_t)E * plain_dim[0];
    (void)self;
    for (uint32_t e = 0; e < E; e++) {
        memcpy(k + e * plain_dim[0], rows->k + (size_t)e * rows->k_stride, 4 * plain_dim[0]);
        memcpy(v + e * plain_dim[1], rows->v + (size_t)e * rows->v_stride, 4 * plain_dim[1]);
    }
    round_rows(plain_rule, plain_rule->group_k, k, NULL, plain_dim[0]);
    round_rows(plain_rule, plain_rule->group_v, v, NULL, plain_dim[1]);
    return KVC_OK;
}

static int32_t plain_decode(void *self, const kvc_page *page, float *k, float *v) {
    const float *from = page->bytes;
    (void)self;
    memcpy(k, from, (size_t)4 * E * plain_dim[0]);
    memcpy(v, from + (size_t)E * plain_dim[0], (size_t)4 * E * plain_dim[1]);
    return KVC_OK;
}

static const kvc_codec plain_codec = {.struct_size = sizeof plain_codec,
                                      .page_bytes = plain_page_bytes,
                                      .encode = plain_encode,
                                      .decode = plain_decode};

static int32_t plain_create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                            kvc_plan *plan, void **self) {
    (void)host, (void)value, (void)self;
    plain_dim[0] = kvc_shape_layer(shape, 0)->dim_k;
    plain_dim[1] = kvc_shape_layer(shape, 0)->dim_v;
    plan->answers = KVC_ANSWERS_FORMAT;
    plan->codec = &plain_codec;
    for (uint32_t i = 0; i < shape->n_layer; i++) {
        kvc_plan_format(plan, i)->hadamard_k = plain_rule->hadamard;
        kvc_plan_format(plan, i)->hadamard_v = plain_rule->hadamard;
    }
    return KVC_OK;
}

static const kvc_policy_api plain_api = {.struct_size = sizeof plain_api, .create = plain_create};

static const kvc_policy *plain_entry(uint32_t host_abi, uint32_t index) {
    static const kvc_policy policy = {.struct_size = sizeof policy,
                                      .abi = KVC_POLICY_ABI,
                                      .abi_min = KVC_POLICY_ABI_MIN,
                                      .name = "plain",
                                      .version = "1.0.0",
                                      .summary = "test: rounds by the rule, keeps floats",
                                      .license = "MIT",
                                      .api = &plain_api};
    (void)host_abi;
    return index == 0 ? &policy : NULL;
}

/* ---- sessions */

/* The real model, where there is one; under a sanitizer a tiny one shows as much. */
static const char *real_model(void) {
    return every() == 1 ? getenv("KVC_TEST_MODEL") : NULL;
}

static kvc_model *model_open(void) {
    const char *path = real_model();
    if (path == NULL) {
        return util_model("tiny-f32.gguf", 2, 0);
    }
    kvc_params *p = util_params();
    kvc_model *m = NULL;
    const int32_t rc = kvc_model_open(path, p, &m);
    ck_assert_msg(rc == KVC_OK, "%s", kvc_params_error(p));
    kvc_params_destroy(p);
    return m;
}

static const char text[] =
    "The library was built on the hill in the year of the flood, and its first keeper wrote down "
    "what the river had taken: two mills, the bridge, forty sheep, and the road to the north. Each "
    "winter since, someone has read the list aloud. The mills were built again, then sold; the "
    "bridge is of stone now; nobody counts sheep. The road was never mended, and those who want to "
    "go north walk along the water, as their grandparents did, and call it the new way. ";

/* Tokens of a text where the model knows text, else random ones. */
static void tokens_of(kvc_model *m, int32_t *token, uint32_t n_vocab) {
    util_tokens(token, N, n_vocab, 12);
    for (uint32_t at = 0; at < N && real_model() != NULL;) {
        int32_t some[N];
        size_t n = 0;
        ck_assert_int_eq(kvc_model_tokenize(m, text, sizeof text - 1, 0, some, N, &n), KVC_OK);
        for (size_t i = 0; i < n && at < N; i++) {
            token[at++] = some[i];
        }
    }
}

static void logits_of(kvc_model *m, const char *spec, const int32_t *token, uint32_t n_vocab,
                      float *out) {
    kvc_params *p = util_params();
    kvc_session *s = NULL;
    ck_assert_int_eq(kvc_params_set_str(p, "compute", "f32"), KVC_OK);
    ck_assert_int_eq(kvc_params_set_i64(p, "n_ctx", N), KVC_OK);
    ck_assert_int_eq(kvc_params_add_policy(p, plain_entry), KVC_OK);
    const int32_t rc = kvc_session_open(m, spec, p, &s);
    ck_assert_msg(rc == KVC_OK, "%s: %s", spec, kvc_params_error(p));
    util_feed(s, token, N, N - SCORED, N, n_vocab, out);
    kvc_session_close(s);
    kvc_params_destroy(p);
}

static double log_sum(const float *x, uint32_t n) {
    double max = -INFINITY, sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        max = fmax(max, (double)x[i]);
    }
    for (uint32_t i = 0; i < n; i++) {
        sum += exp((double)x[i] - max);
    }
    return max + log(sum);
}

/* Mean over the rows of Σ p ln(p / q), p from a, q from b. */
static double divergence(const float *a, const float *b, uint32_t n_vocab) {
    double total = 0;
    for (uint32_t r = 0; r < SCORED; r++, a += n_vocab, b += n_vocab) {
        const double za = log_sum(a, n_vocab), zb = log_sum(b, n_vocab);
        for (uint32_t i = 0; i < n_vocab; i++) {
            const double la = (double)a[i] - za;
            total += exp(la) * (la - ((double)b[i] - zb));
        }
    }
    return total / SCORED;
}

/* The policy's own arithmetic (sums folded over groups) costs next to nothing beside what rounding
 * by the rule does. In a deep model the last bits of one layer tip numbers of the next over to
 * another code, so there two equally good runs lie further apart. */
START_TEST(sessions_diverge_as_the_rule_does) {
    kvc_model *m = model_open();
    const uint32_t n_vocab = util_vocab(m);
    const size_t n = (size_t)SCORED * n_vocab;
    float *full = calloc(n, sizeof *full), *plain = calloc(n, sizeof *plain),
          *got = calloc(n, sizeof *got);
    int32_t token[N];
    plain_rule = &rules[_i];
    tokens_of(m, token, n_vocab);
    logits_of(m, "full:type=f32", token, n_vocab, full);
    logits_of(m, "plain", token, n_vocab, plain);
    logits_of(m, plain_rule->spec, token, n_vocab, got);
    const double rounding = divergence(full, plain, n_vocab);
    const double policy = divergence(full, got, n_vocab);
    const double apart = divergence(plain, got, n_vocab);
    const bool real = real_model() != NULL;
    ck_assert_double_gt(rounding, 1e-9);
    /* Divergences grow with the square of the distance, so two that lie little apart differ by up
     * to twice their geometric mean with it; for the plain int4, which rounds most coarsely of the
     * formats of 4 bits, that is more than 1e-3. */
    const bool coarse = real && plain_rule->bits == 4 && plain_rule->group_k == 16;
    const double noise = coarse ? 2 * sqrt(apart * fmax(policy, rounding)) : 1e-3;
    ck_assert_double_lt(fabs(policy - rounding),
                        plain_rule->bits == 4 || !real ? noise : 0.1 * rounding);
    ck_assert_double_lt(apart, (real ? 0.15 : 0.02) * rounding);
    kvc_model_close(m);
    free(full);
    free(plain);
    free(got);
}
END_TEST

/* ---- what create() refuses */

START_TEST(bad_parameters_are_named) {
    static const struct {
        const char *spec, *words;
    } bad[] = {{"quant4:group=40", "group"},
               {"quant4:group=8", "group"},
               {"kivi:bits=3", "bits"},
               {"kivi:bits=8", "bits"},
               {"kivi:group=16", "group"}};
    kvc_model *m = util_model("tiny-f16.gguf", 1, 0);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        kvc_params *p = util_params();
        kvc_session *s = NULL;
        ck_assert_int_eq(kvc_session_open(m, bad[i].spec, p, &s), KVC_E_PARAM);
        ck_assert_msg(strstr(kvc_params_error(p), bad[i].words) != NULL, "%s: %s", bad[i].spec,
                      kvc_params_error(p));
        kvc_params_destroy(p);
    }
    kvc_model_close(m);
}
END_TEST

int main(void) {
    Suite *s = suite_create("quant");
    TCase *c = tcase_create("policies");
    tcase_set_timeout(c, 200);
    tcase_add_loop_test(c, a_page_is_rounded_by_the_rule, 0, N_RULE * N_DIM);
    tcase_add_test(c, pages_have_the_bytes_that_are_said);
    tcase_add_loop_test(c, sessions_diverge_as_the_rule_does, 0, N_RULE);
    tcase_add_test(c, bad_parameters_are_named);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    const int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}

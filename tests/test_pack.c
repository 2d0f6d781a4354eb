/* SPDX-License-Identifier: MIT
 * test_pack.c: packed pages: every packing that the host takes, at every kernel level, against the
 * rule of policy.h and the order of kern.h written out plainly; rows moved, fields, extreme
 * numbers; and what check() refuses. int8 by itself: test_kern.c. */
#include "kern_util.h"
#include "stack.h"

#include <stdlib.h>

#define MAX_DIM 256u
#define MAX_Q   13u
#define E       KVC__ENTRIES

/* Heads' sizes: real ones, the least, and ones with ragged tails. */
static const uint32_t dims[] = {4, 8, 12, 16, 20, 32, 36, 48, 64, 68, 80, 100, 112, 128, 252, 256};
#define N_DIM ((uint32_t)(sizeof dims / sizeof dims[0]))

#define PACK(b, gd, ge, f)                                                                         \
    {                                                                                              \
        .struct_size = sizeof(kvc_packing), .bits = (b), .group_dim = (gd), .group_entry = (ge),   \
        .flags = (f)                                                                               \
    }

static const kvc_packing packings[] = {
    PACK(8, 0, 1, 0),
    PACK(4, 0, 1, KVC_PACK_ZERO),
    PACK(4, 16, 1, KVC_PACK_ZERO),
    PACK(4, 32, 1, KVC_PACK_ZERO),
    PACK(4, 48, 1, KVC_PACK_ZERO),
    PACK(4, 32, 1, 0),
    PACK(4, 1, 32, KVC_PACK_ZERO),
    PACK(4, 1, 64, KVC_PACK_ZERO),
    PACK(4, 1, 32, 0),
    PACK(2, 0, 1, 0),
    PACK(2, 16, 1, KVC_PACK_ZERO),
    PACK(2, 32, 1, KVC_PACK_ZERO),
    PACK(2, 1024, 1, KVC_PACK_ZERO),
    PACK(2, 1, 32, KVC_PACK_ZERO),
    PACK(2, 1, 64, 0),
};
#define N_PACKING ((int)(sizeof packings / sizeof packings[0]))

static _Alignas(64) float rows[E * MAX_DIM], query[MAX_Q * MAX_DIM], weight[MAX_Q * E];
static _Alignas(64) uint8_t page[N_LEVEL][E * MAX_DIM * 4], other[E * MAX_DIM * 4];
static float out[N_LEVEL][E * MAX_DIM], first[E * MAX_DIM], second[E * MAX_DIM];

/* What the rule makes of rows. */
static int code[E * MAX_DIM];
static float scale[E * MAX_DIM], least[E * MAX_DIM]; /* of each element's group */

#define EACH_LEVEL(i, k)                                                                           \
    for (uint32_t i = 0; i < N_LEVEL; i++)                                                         \
        for (const kvc__kern *k = util_level(i); k != NULL; k = NULL)

static void check_levels(size_t n) {
    for (uint32_t i = 1; i < N_LEVEL; i++) {
        if (util_level(i) != NULL) {
            util_same(out[i], out[0], n);
        }
    }
}

/* The stage whose host table a policy would have. */
static kvc__stage stage;
static kvc__mem mem;

static void setup(void) {
    const kvc_shape shape = {.struct_size = sizeof shape};
    kvc__mem_init(&mem, NULL, NULL);
    const kvc__stack_env env = {
        .mem = &mem, .family = &mem, .kern = kvc__kern_get(), .shape = &shape};
    memset(&stage, 0, sizeof stage);
    pthread_mutex_init(&stage.lock, NULL);
    kvc__host_init(&stage, &env);
}

static const kvc_host_math *host_math(void) {
    return stage.host.extension(stage.host.ctx, KVC_HOST_MATH);
}

static kvc_packing packing_of(int i, uint32_t dim) {
    kvc_packing p = packings[i];
    p.dim = dim;
    return p;
}

static float half(float x) {
    return kvc__f32_of_f16(kvc__f16(x));
}

/* ---- the rule */

/* Elements within what binary16 holds. */
static float tame(float x) {
    return x > 65504.0f ? 65504.0f : x > -65504.0f ? x : -65504.0f;
}

static uint32_t group_of(const kvc_packing *p, uint32_t e, uint32_t d) {
    if (p->group_entry > 1) {
        return e / p->group_entry * p->dim + d;
    }
    return e * MAX_DIM + (p->group_dim > 0 ? d / p->group_dim : 0);
}

static void rule_scale(const kvc_packing *p, float lo, float hi, float *s, float *m) {
    const float half_range = (float)(1u << (p->bits - 1));
    if ((p->flags & KVC_PACK_ZERO) != 0) {
        *m = half(lo);
        *s = half((hi > *m ? hi - *m : 0) / (2 * half_range - 1));
    } else {
        *s = half((hi >= -lo ? hi : lo) / -half_range);
        *m = *s * -half_range;
    }
}

static void rule_8(const kvc_packing *p) {
    for (uint32_t i = 0; i < E * p->dim; i++) {
        float amax = 0;
        for (uint32_t d = 0; d < p->dim; d++) {
            amax = fmaxf(amax, fabsf(rows[i / p->dim * p->dim + d]));
        }
        scale[i] = half(amax / 127);
        least[i] = 0;
        const double y = scale[i] > 0 ? rint((double)(rows[i] / scale[i])) : 0;
        code[i] = (int)(y > 127 ? 127 : y < -127 ? -127 : y);
    }
}

/* Fills code, scale and least from rows; out_of_8 rows are tame. */
static void rule(const kvc_packing *p) {
    static float lo[E * MAX_DIM], hi[E * MAX_DIM];
    if (p->bits == 8) {
        rule_8(p);
        return;
    }
    for (uint32_t i = 0; i < E * MAX_DIM; i++) {
        lo[i] = INFINITY;
        hi[i] = -INFINITY;
    }
    for (uint32_t i = 0; i < E * p->dim; i++) {
        const uint32_t g = group_of(p, i / p->dim, i % p->dim);
        lo[g] = fminf(lo[g], tame(rows[i]));
        hi[g] = fmaxf(hi[g], tame(rows[i]));
    }
    for (uint32_t i = 0; i < E * p->dim; i++) {
        const uint32_t g = group_of(p, i / p->dim, i % p->dim);
        rule_scale(p, lo[g], hi[g], &scale[i], &least[i]);
        const float over = tame(rows[i]) - least[i], top = (float)((1u << p->bits) - 1);
        const float y = over / scale[i];
        code[i] = (int)rint((double)(y > 0 ? (y < top ? y : top) : 0));
    }
}

/* A sum in 16 lanes and their tree: of x, or by fma of x * y. */
static float lane_sum(const float *x, const float *y, uint32_t step, uint32_t n) {
    float l[16] = {0};
    for (uint32_t i = 0; i < n; i++) {
        l[i % 16] = y == NULL ? l[i % 16] + x[i] : fmaf(x[i], y[i * step], l[i % 16]);
    }
    for (uint32_t h = 8; h > 0; h /= 2) {
        for (uint32_t i = 0; i < h; i++) {
            l[i] += l[i + h];
        }
    }
    return l[0];
}

static float rule_score(const kvc_packing *p, const float *q, uint32_t e) {
    const uint32_t at = e * p->dim;
    float s = 0, acc = 0;
    if (p->group_entry > 1) {
        for (uint32_t d = 0; d < p->dim; d++) {
            acc = fmaf(q[d] * scale[at + d], (float)code[at + d], acc);
        }
        return acc + lane_sum(q, least + at, 1, p->dim);
    }
    const uint32_t size = p->group_dim > 0 ? p->group_dim : p->dim;
    for (uint32_t d0 = 0; d0 < p->dim; d0 += size) {
        const uint32_t n = p->dim - d0 < size ? p->dim - d0 : size;
        acc = 0;
        for (uint32_t d = d0; d < d0 + n; d++) {
            acc = fmaf(q[d], (float)code[at + d], acc);
        }
        s = fmaf(acc, scale[at + d0], s);
        s = fmaf(lane_sum(q + d0, NULL, 0, n), least[at + d0], s);
    }
    return s;
}

/* The same with a query rounded to int8. 4 and 2 bits. */
static int32_t rule_round(const float *q, const float *by, uint32_t n, int32_t *into, float *step) {
    float amax = 0;
    int32_t sum = 0;
    for (uint32_t d = 0; d < n; d++) {
        amax = fmaxf(amax, fabsf(q[d] * (by != NULL ? by[d] : 1)));
    }
    for (uint32_t d = 0; d < n; d++) {
        const float y = q[d] * (by != NULL ? by[d] : 1);
        into[d] = amax > 0 ? (int32_t)rint((double)(y * (127.0f / amax))) : 0;
        sum += into[d];
    }
    *step = amax / 127.0f;
    return sum;
}

static float rule_score_q(const kvc_packing *p, const float *q, uint32_t e) {
    const uint32_t at = e * p->dim;
    int32_t qi[MAX_DIM];
    float step;
    if (p->group_entry > 1) {
        const float c = (float)(1u << (p->bits - 1));
        float base[MAX_DIM];
        int32_t sum = 0;
        (void)rule_round(q, scale + at, p->dim, qi, &step);
        for (uint32_t d = 0; d < p->dim; d++) {
            base[d] = fmaf(c, scale[at + d], least[at + d]);
            sum += qi[d] * (code[at + d] - (int32_t)c);
        }
        return fmaf((float)sum, step, lane_sum(q, base, 1, p->dim));
    }
    const uint32_t size = p->group_dim > 0 ? p->group_dim : p->dim;
    float s = 0;
    (void)rule_round(q, NULL, p->dim, qi, &step);
    for (uint32_t d0 = 0; d0 < p->dim; d0 += size) {
        int32_t sum = 0, sum_q = 0;
        for (uint32_t d = d0; d < p->dim && d < d0 + size; d++) {
            sum += qi[d] * code[at + d];
            sum_q += qi[d];
        }
        s = fmaf((float)sum, step * scale[at + d0], s);
        s = fmaf((float)sum_q, step * least[at + d0], s);
    }
    return s;
}

static float rule_mix(const kvc_packing *p, const float *w, uint32_t d, float acc) {
    if (p->group_entry == 1) {
        acc += p->bits == 8 ? 0 : lane_sum(w, least + d, p->dim, E);
        for (uint32_t e = 0; e < E; e++) {
            acc = fmaf(w[e] * scale[e * p->dim + d], (float)code[e * p->dim + d], acc);
        }
        return acc;
    }
    for (uint32_t e0 = 0; e0 < E; e0 += p->group_entry) {
        float r = 0;
        for (uint32_t e = e0; e < e0 + p->group_entry; e++) {
            r = fmaf(w[e], (float)code[e * p->dim + d], r);
        }
        const float sum = lane_sum(w + e0, NULL, 0, p->group_entry);
        acc = fmaf(r, scale[e0 * p->dim + d], fmaf(sum, least[e0 * p->dim + d], acc));
    }
    return acc;
}

/* ---- packing */

/* Packs rows at every level; the pages are alike. */
static void pack_all(const kvc_packing *p, int keys) {
    EACH_LEVEL(l, k) {
        memset(page[l], 0xa5, sizeof page[l]);
        (keys ? k->pack_k : k->pack_v)(p, rows, p->dim, page[l]);
        util_check(memcmp(page[l], page[0], kvc__pack_bytes(p)) == 0);
    }
}

static void unpack_all(const kvc_packing *p, int keys) {
    EACH_LEVEL(l, k) {
        (keys ? k->unpack_k : k->unpack_v)(p, page[l], out[l]);
    }
    check_levels((size_t)E * p->dim);
}

/* Rows as a model has them: channels of their own size and place, and now and then a row of zeros,
 * of one number, or much larger. */
static void fill_rows(uint64_t *seed, uint32_t dim) {
    for (uint32_t d = 0; d < dim; d++) {
        const float size = expf(2 * util_unit(seed)), middle = 3 * util_unit(seed);
        for (uint32_t e = 0; e < E; e++) {
            rows[e * dim + d] = size * util_unit(seed) + middle;
        }
    }
    for (uint32_t d = 0; d < dim; d++) {
        rows[5 * dim + d] = 0;
        rows[6 * dim + d] = 0.3f;
        rows[40 * dim + d] *= 300;
    }
    for (uint32_t e = 0; e < E; e++) {
        rows[e * dim + 1] = -0.7f;
    }
}

/* Half a step (a whole one at the end of symmetric codes that has one fewer), and what rounding the
 * scale and the minimum to binary16 adds. */
static double error_bound(const kvc_packing *p, uint32_t i) {
    const double s = fabs((double)scale[i]), top = (double)((1u << p->bits) - 1);
    const double steps = p->bits < 8 && (p->flags & KVC_PACK_ZERO) == 0 ? 1 : 0.5;
    return s * steps + (s * top + fabs((double)least[i])) * 0x1p-11 + (top + 1) * 0x1p-25;
}

START_TEST(pages_pack_by_the_rule) {
    uint64_t seed = 20;
    for (uint32_t i = 0; i < 2 * N_DIM; i++) {
        const kvc_packing p = packing_of(_i, dims[i / 2]);
        fill_rows(&seed, p.dim);
        rule(&p);
        pack_all(&p, i % 2);
        unpack_all(&p, i % 2);
        for (uint32_t j = 0; j < E * p.dim; j++) {
            util_check(out[0][j] == fmaf((float)code[j], scale[j], least[j]));
            const double error = fabs((double)out[0][j] - (double)rows[j]);
            util_check(error <= error_bound(&p, j));
        }
    }
}
END_TEST

START_TEST(a_page_has_the_bytes_that_are_said) {
    for (uint32_t i = 0; i < N_DIM; i++) {
        const kvc_packing p = packing_of(_i, dims[i]);
        const uint32_t group = p.group_dim > 0 ? p.group_dim : p.dim;
        const uint32_t n_scale =
            p.group_entry == 1 ? E * ((p.dim + group - 1) / group) : E / p.group_entry * p.dim;
        const uint32_t head = n_scale * ((p.flags & KVC_PACK_ZERO) != 0 ? 4 : 2);
        const uint32_t row = (p.dim * p.bits / 8 + 3) / 4 * 4;
        ck_assert_uint_eq(kvc__pack_bytes(&p), (head + 63) / 64 * 64 + E * row);
        ck_assert_uint_eq(host_math()->bytes(&stage, &p), kvc__pack_bytes(&p));
        /* nothing is written behind them, and all of them are */
        pack_all(&p, (int)i % 2);
        for (size_t j = kvc__pack_bytes(&p); j < kvc__pack_bytes(&p) + 64; j++) {
            util_check(page[0][j] == 0xa5);
        }
        memcpy(other, page[0], kvc__pack_bytes(&p));
        memset(page[0], 0x5a, sizeof page[0]);
        (i % 2 != 0 ? util_level(0)->pack_k : util_level(0)->pack_v)(&p, rows, p.dim, page[0]);
        util_check(memcmp(page[0], other, kvc__pack_bytes(&p)) == 0);
    }
}
END_TEST

/* ---- scores and mixes */

START_TEST(scores_are_exact) {
    uint64_t seed = 21;
    for (uint32_t i = 0; i < N_DIM; i++) {
        const kvc_packing p = packing_of(_i, dims[i]);
        fill_rows(&seed, p.dim);
        rule(&p);
        pack_all(&p, 1);
        util_fill(&seed, query, (size_t)MAX_Q * p.dim, 3.0f);
        memset(query + (size_t)2 * p.dim, 0, p.dim * sizeof *query);
        for (uint32_t j = 0; j < MAX_Q * E; j++) {
            first[j] = rule_score(&p, query + j / E * p.dim, j % E);
        }
        for (uint32_t n_q = 1; n_q <= MAX_Q; n_q += n_q < 7 ? 1 : 6) {
            EACH_LEVEL(l, k) {
                k->pack_score_f(&p, page[l], query, n_q, out[l]);
                for (uint32_t j = 0; j < n_q * E; j++) {
                    util_check(out[l][j] == first[j]);
                }
                k->pack_score_q(&p, page[l], query, n_q, out[l]);
                for (uint32_t j = 0; j < n_q * E && p.bits < 8; j++) {
                    util_check(out[l][j] == rule_score_q(&p, query + j / E * p.dim, j % E));
                }
            }
            check_levels((size_t)n_q * E);
        }
    }
}
END_TEST

START_TEST(mixes_are_exact) {
    uint64_t seed = 22;
    for (uint32_t i = 0; i < N_DIM; i++) {
        const kvc_packing p = packing_of(_i, dims[i]);
        fill_rows(&seed, p.dim);
        rule(&p);
        pack_all(&p, 0);
        util_fill(&seed, weight, MAX_Q * E, 1.0f);
        util_fill(&seed, query, (size_t)MAX_Q * p.dim, 1.0f); /* what is there before */
        for (uint32_t j = 0; j < MAX_Q * p.dim; j++) {
            first[j] = rule_mix(&p, weight + j / p.dim * E, j % p.dim, query[j]);
        }
        for (uint32_t n_q = 1; n_q <= MAX_Q; n_q += n_q < 7 ? 1 : 6) {
            EACH_LEVEL(l, k) {
                memcpy(out[l], query, (size_t)MAX_Q * p.dim * sizeof *query);
                k->pack_mix_f(&p, page[l], weight, n_q, out[l]);
                for (uint32_t j = 0; j < MAX_Q * p.dim; j++) {
                    util_check(out[l][j] == (j < n_q * p.dim ? first[j] : query[j]));
                }
            }
        }
    }
}
END_TEST

/* The most that a number of the group's parts can be. */
static double part_size(const kvc_packing *p, uint32_t i) {
    const double top = p->bits == 8 ? 127 : (double)((1u << p->bits) - 1);
    return fabs((double)least[i]) + top * fabs((double)scale[i]);
}

/* The sums above lie near the plain product with what was unpacked. */
START_TEST(scores_and_mixes_agree_with_what_is_unpacked) {
    uint64_t seed = 23;
    for (uint32_t i = 0; i < N_DIM; i++) {
        const kvc_packing p = packing_of(_i, dims[i]);
        const kvc__kern *k = kvc__kern_get();
        fill_rows(&seed, p.dim);
        rule(&p);
        util_fill(&seed, query, p.dim, 1.0f);
        util_fill(&seed, weight, E, 1.0f);
        k->pack_k(&p, rows, p.dim, page[0]);
        k->unpack_k(&p, page[0], first);
        k->pack_score_f(&p, page[0], query, 1, out[0]);
        k->pack_score_q(&p, page[0], query, 1, out[1]);
        for (uint32_t e = 0; e < E; e++) {
            double sum = 0, size = 0;
            for (uint32_t d = 0; d < p.dim; d++) {
                sum += (double)query[d] * (double)first[e * p.dim + d];
                size += fabs((double)query[d]) * part_size(&p, e * p.dim + d);
            }
            util_near(out[0][e], sum, size, 1e-6);
            util_near(out[1][e], sum, size, 1e-2);
        }
        k->pack_v(&p, rows, p.dim, page[0]);
        k->unpack_v(&p, page[0], first);
        memset(out[0], 0, p.dim * sizeof(float));
        memset(out[1], 0, p.dim * sizeof(float));
        k->pack_mix_f(&p, page[0], weight, 1, out[0]);
        k->pack_mix_q(&p, page[0], weight, 1, out[1]);
        for (uint32_t d = 0; d < p.dim; d++) {
            double sum = 0, size = 0;
            for (uint32_t e = 0; e < E; e++) {
                sum += (double)weight[e] * (double)first[e * p.dim + d];
                size += fabs((double)weight[e]) * part_size(&p, e * p.dim + d);
            }
            util_near(out[0][d], sum, size, 1e-6);
            /* At worst every weight is off by half a step, 1 / 32512 of the largest. */
            util_near(out[1][d], sum, size, 64.0 / 32512);
        }
    }
}
END_TEST

/* ---- extremes */

static void fill_extreme(uint64_t *seed, uint32_t n, float *x, uint32_t kind) {
    static const float odd[] = {NAN,    INFINITY, -INFINITY, 3e38f, -3e38f,
                                1e-45f, -0.0f,    65504.0f,  -7e4f};
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t r = util_rand(seed);
        uint32_t bits = util_rand(seed);
        memcpy(&x[i], &bits, sizeof bits);
        if (kind % 3 != 0) {
            x[i] = kind % 3 == 1 && r % 8 != 0 ? util_unit(seed) : odd[(r >> 8) % 9];
        }
    }
}

START_TEST(extremes_are_borne_and_bounded) {
    uint64_t seed = 24;
    for (uint32_t i = 0; i < 6 * N_DIM; i++) {
        const kvc_packing p = packing_of(_i, dims[i / 6]);
        const int keys = (int)i / 3 % 2;
        fill_extreme(&seed, E * p.dim, rows, i);
        fill_extreme(&seed, 3 * p.dim, query, i);
        fill_extreme(&seed, 3 * E, weight, i);
        pack_all(&p, keys);
        unpack_all(&p, keys);
        for (uint32_t j = 0; j < E * p.dim && p.bits < 8; j++) {
            util_check(fabsf(out[0][j]) <= 65600.0f);
        }
        EACH_LEVEL(l, k) {
            k->pack_score_f(&p, page[l], query, 3, out[l]);
            k->pack_score_q(&p, page[l], query, 3, out[l] + 3 * E);
            memset(out[l] + 6 * E, 0, 3 * p.dim * sizeof **out);
            k->pack_mix_f(&p, page[l], weight, 3, out[l] + 6 * E);
            memset(out[l] + 6 * E + 3 * p.dim, 0, 3 * p.dim * sizeof **out);
            k->pack_mix_q(&p, page[l], weight, 3, out[l] + 6 * E + 3 * p.dim);
        }
        check_levels((size_t)6 * E + 6 * p.dim);
    }
}
END_TEST

/* ---- rows and fields */

static void move_row(const kvc_packing *p, int keys, void *dst, uint32_t to, const void *src,
                     uint32_t from) {
    const kvc_host_math *m = host_math();
    (keys ? m->move_k : m->move_v)(&stage, p, dst, to, src, from);
}

START_TEST(rows_move_exactly) {
    uint64_t seed = 25;
    for (uint32_t i = 0; i < 2 * N_DIM; i++) {
        const kvc_packing p = packing_of(_i, dims[i / 2]);
        const int keys = (int)i % 2;
        const kvc__kern *k = kvc__kern_get();
        if (p.group_entry > 1) {
            return;
        }
        fill_rows(&seed, p.dim);
        (keys ? k->pack_k : k->pack_v)(&p, rows, p.dim, page[0]);
        (keys ? k->unpack_k : k->unpack_v)(&p, page[0], first);
        fill_rows(&seed, p.dim);
        (keys ? k->pack_k : k->pack_v)(&p, rows, p.dim, other);
        (keys ? k->unpack_k : k->unpack_v)(&p, other, second);
        move_row(&p, keys, page[0], 3, other, 60);
        move_row(&p, keys, page[0], 9, page[0], 63);
        move_row(&p, keys, page[0], 17, page[0], 17);
        (keys ? k->unpack_k : k->unpack_v)(&p, page[0], out[0]);
        for (uint32_t e = 0; e < E; e++) {
            const float *want = e == 3 ? second + 60 * p.dim : first + (e == 9 ? 63 : e) * p.dim;
            util_same(out[0] + e * p.dim, want, p.dim);
        }
    }
}
END_TEST

static float field_half(const kvc_field *f, uint32_t c, uint32_t e) {
    uint16_t h;
    const size_t at = f->offset + (size_t)(c / f->run) * f->run_stride +
                      (size_t)e * f->entry_stride + (size_t)(c % f->run) * f->elem;
    memcpy(&h, page[0] + at, sizeof h);
    return kvc__f32_of_f16(h);
}

START_TEST(fields_say_where_scales_lie) {
    uint64_t seed = 26;
    for (uint32_t i = 0; i < 2 * N_DIM; i++) {
        const kvc_packing p = packing_of(_i, dims[i / 2]);
        const kvc_host_math *m = host_math();
        const uint32_t group = p.group_dim > 0 ? p.group_dim : p.dim;
        kvc_field f[2] = {{0}, {0}};
        fill_rows(&seed, p.dim);
        rule(&p);
        (i % 2 != 0 ? m->pack_k : m->pack_v)(&stage, &p, rows, p.dim, page[0] + 64);
        const uint32_t n = (i % 2 != 0 ? m->fields_k : m->fields_v)(&stage, &p, 64, f);
        if (p.group_entry > 1) {
            ck_assert_uint_eq(n, 0);
            continue;
        }
        ck_assert_uint_eq(n, p.bits == 8 || (p.flags & KVC_PACK_ZERO) != 0 ? 2 : 1);
        ck_assert_uint_eq(f[0].n, (p.dim + group - 1) / group);
        for (uint32_t j = 0; j < E * p.dim; j++) {
            const uint32_t e = j / p.dim, d = j % p.dim;
            util_check(field_half(&f[0], d / group, e) == scale[j]);
            if (p.bits == 8) {
                const size_t at = f[1].offset + (size_t)(d / f[1].run) * f[1].run_stride +
                                  (size_t)e * f[1].entry_stride + d % f[1].run;
                util_check((int8_t)page[0][at] == code[j]);
            } else if (n == 2) {
                util_check(field_half(&f[1], d / group, e) == least[j]);
            }
        }
    }
}
END_TEST

/* ---- the host's door */

START_TEST(the_host_calls_the_kernels) {
    const kvc_packing p = packing_of(_i, 64);
    const kvc_host_math *m = host_math();
    uint64_t seed = 27;
    fill_rows(&seed, p.dim);
    util_fill(&seed, query, 3 * p.dim, 1.0f);
    util_fill(&seed, weight, 3 * E, 1.0f);
    ck_assert_int_eq(m->check(&stage, &p), KVC_OK);
    m->pack_k(&stage, &p, rows, p.dim, page[0]);
    stage.kern->pack_k(&p, rows, p.dim, other);
    ck_assert_mem_eq(page[0], other, kvc__pack_bytes(&p));
    m->unpack_k(&stage, &p, page[0], out[0]);
    stage.kern->unpack_k(&p, page[0], first);
    util_same(out[0], first, E * p.dim);
    for (uint32_t compute = 0; compute <= 1; compute++) {
        stage.compute = compute;
        m->score(&stage, &p, page[0], query, 3, out[0]);
        (compute == KVC_COMPUTE_F32 ? stage.kern->pack_score_f
                                    : stage.kern->pack_score_q)(&p, page[0], query, 3, first);
        util_same(out[0], first, 3 * E);
    }
    m->pack_v(&stage, &p, rows, p.dim, page[0]);
    stage.kern->pack_v(&p, rows, p.dim, other);
    ck_assert_mem_eq(page[0], other, kvc__pack_bytes(&p));
    m->unpack_v(&stage, &p, page[0], out[0]);
    stage.kern->unpack_v(&p, page[0], first);
    util_same(out[0], first, E * p.dim);
    for (uint32_t compute = 0; compute <= 1; compute++) {
        stage.compute = compute;
        memset(out, 0, sizeof out);
        m->mix(&stage, &p, page[0], weight, 3, out[0]);
        (compute == KVC_COMPUTE_F32 ? stage.kern->pack_mix_f
                                    : stage.kern->pack_mix_q)(&p, page[0], weight, 3, out[1]);
        util_same(out[0], out[1], 3 * p.dim);
    }
}
END_TEST

static const struct {
    kvc_packing p;
    const char *words;
} refused[] = {
    {{sizeof(kvc_packing) - 1, 64, 8, 0, 1, 0}, "struct_size"},
    {{sizeof(kvc_packing), 0, 8, 0, 1, 0}, "rows of 0 elements"},
    {{sizeof(kvc_packing), 66, 4, 0, 1, 0}, "rows of 66 elements"},
    {{sizeof(kvc_packing), 1028, 4, 0, 1, 0}, "multiples of 4 up to 1024"},
    {{sizeof(kvc_packing), 64, 3, 0, 1, 0}, "to 3 bits"},
    {{sizeof(kvc_packing), 64, 0, 0, 1, 0}, "to 0 bits"},
    {{sizeof(kvc_packing), 64, 8, 32, 1, 0}, "to 8 bits in groups of 32 elements"},
    {{sizeof(kvc_packing), 64, 8, 0, 1, KVC_PACK_ZERO}, "flags 0x1"},
    {{sizeof(kvc_packing), 64, 8, 1, 32, 0}, "of 32 rows"},
    {{sizeof(kvc_packing), 64, 4, 24, 1, 0}, "groups of 24 elements"},
    {{sizeof(kvc_packing), 64, 4, 1, 1, 0}, "groups of 1 elements of 1 rows"},
    {{sizeof(kvc_packing), 64, 4, 0, 32, 0}, "groups of 0 elements of 32 rows"},
    {{sizeof(kvc_packing), 64, 4, 1, 16, 0}, "of 16 rows"},
    {{sizeof(kvc_packing), 64, 4, 1, 0, 0}, "of 0 rows"},
    {{sizeof(kvc_packing), 64, 4, 0, 1, 6}, "flags 0x6"},
};

START_TEST(check_says_why) {
    const kvc_host_math *m = host_math();
    ck_assert_int_eq(m->check(&stage, NULL), KVC_E_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(stage.said.text, "struct_size"));
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        ck_assert_int_eq(m->check(&stage, &refused[i].p), KVC_E_UNSUPPORTED);
        ck_assert_msg(strstr(stage.said.text, refused[i].words) != NULL, "%zu: %s", i,
                      stage.said.text);
    }
    for (uint32_t dim = 4; dim <= 1024; dim += 4) {
        for (int i = 0; i < N_PACKING; i++) {
            const kvc_packing p = packing_of(i, dim);
            ck_assert_int_eq(m->check(&stage, &p), KVC_OK);
        }
    }
}
END_TEST

int main(void) {
    Suite *s = suite_create("pack");
    TCase *c = tcase_create("packings");
    tcase_set_timeout(c, 120);
    tcase_add_checked_fixture(c, setup, NULL);
    tcase_add_loop_test(c, pages_pack_by_the_rule, 0, N_PACKING);
    tcase_add_loop_test(c, a_page_has_the_bytes_that_are_said, 0, N_PACKING);
    tcase_add_loop_test(c, scores_are_exact, 1, N_PACKING);
    tcase_add_loop_test(c, mixes_are_exact, 0, N_PACKING);
    tcase_add_loop_test(c, scores_and_mixes_agree_with_what_is_unpacked, 0, N_PACKING);
    tcase_add_loop_test(c, extremes_are_borne_and_bounded, 0, N_PACKING);
    tcase_add_loop_test(c, rows_move_exactly, 0, N_PACKING);
    tcase_add_loop_test(c, fields_say_where_scales_lie, 0, N_PACKING);
    tcase_add_loop_test(c, the_host_calls_the_kernels, 0, N_PACKING);
    tcase_add_test(c, check_says_why);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    const int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}

/* SPDX-License-Identifier: MIT
 * test_kern.c: every kernel but the products (test_mat.c) against plain sums in double, and the
 * levels against each other bit for bit, over grids of shapes, ordinary and extreme values. */
#define _GNU_SOURCE /* MAP_ANONYMOUS */
#include "kern_util.h"

#include "kvc/policy.h"

#include <stdlib.h>
#include <sys/mman.h>

#define MAX_DIM 256u
#define MAX_Q   13u
#define E       KVC__ENTRIES

#define MAP_BYTES ((size_t)1 << 16) /* a mapping for one buffer; multiples of any page's size */
#define MAP_GUARD ((size_t)1 << 16)

/* Heads' sizes: real ones, the least, and ones with ragged tails. */
static const uint32_t dims[] = {4, 8, 12, 16, 20, 36, 64, 68, 80, 100, 128, 252, 256};
#define N_DIM ((int)(sizeof dims / sizeof dims[0]))

static const uint32_t types[] = {KVC_TYPE_F32, KVC_TYPE_F16, KVC_TYPE_BF16};

static _Alignas(64) float rows[E * MAX_DIM], query[MAX_Q * MAX_DIM], weight[MAX_Q * E];
static _Alignas(64) uint8_t page[N_LEVEL][E * MAX_DIM * 4 + 128];
static float out[N_LEVEL][E * MAX_DIM], plain[E * MAX_DIM];

/* The other levels' results in out[] are those of level 0. */
static void check_levels(size_t n) {
    for (uint32_t i = 1; i < N_LEVEL; i++) {
        if (util_level(i) != NULL) {
            util_same(out[i], out[0], n);
        }
    }
}

#define EACH_LEVEL(i, k)                                                                           \
    for (uint32_t i = 0; i < N_LEVEL; i++)                                                         \
        for (const kvc__kern *k = util_level(i); k != NULL; k = NULL)

/* ---- halves */

static double f16_value(uint32_t h) {
    const int e = (int)(h >> 10 & 31);
    const double m = (double)(h & 1023);
    const double a = e == 0 ? ldexp(m, -24) : ldexp(1024 + m, e - 25);
    return h & 0x8000 ? -a : a;
}

START_TEST(f16_widens_exactly_and_comes_back) {
    for (uint32_t h = 0; h < 65536; h++) {
        const float x = kvc__f32_of_f16((uint16_t)h);
        if ((h & 0x7c00) == 0x7c00) {
            util_check((h & 1023) != 0 ? isnan(x) : isinf(x));
        } else {
            util_check((double)x == f16_value(h));
        }
        util_check(kvc__f16(x) == (isnan(x) ? h | 0x200 : h));
    }
}
END_TEST

START_TEST(f16_rounds_to_nearest_even) {
    for (uint32_t h = 0; h < 0x7c00; h++) {
        const double next = h == 0x7bff ? 65536.0 : f16_value(h + 1);
        const float mid = (float)((f16_value(h) + next) / 2);
        const uint32_t even = h + (h & 1);
        util_check(kvc__f16(mid) == even);
        util_check(kvc__f16(-mid) == (even | 0x8000));
        util_check(kvc__f16(nextafterf(mid, 0.0f)) == h);
        util_check(kvc__f16(nextafterf(mid, INFINITY)) == (h + 1));
    }
    util_check(kvc__f16(1e30f) == 0x7c00);
    util_check(kvc__f16(0x1p-149f) == 0);
}
END_TEST

static float from_bits(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

START_TEST(bf16_rounds_to_nearest_even) {
    for (uint32_t h = 0; h < 65536; h++) {
        const float x = kvc__f32_of_bf16((uint16_t)h);
        uint32_t u;
        memcpy(&u, &x, sizeof u);
        util_check(u == h << 16);
        if (isnan(x)) {
            util_check(kvc__bf16(x) == (h | 0x40));
            continue;
        }
        util_check(kvc__bf16(x) == h);
        if (!isinf(x)) {
            util_check(kvc__bf16(from_bits(u | 0x7fff)) == h);
            util_check(kvc__bf16(from_bits(u | 0x8000)) == (h + (h & 1)));
            util_check(kvc__bf16(from_bits(u | 0x8001)) == (h + 1));
        }
    }
    util_check(isnan(kvc__f32_of_bf16(kvc__bf16(from_bits(0x7f800001)))));
}
END_TEST

/* Bit patterns of every exponent through the vector conversions, both ways. */
START_TEST(levels_convert_alike) {
    uint64_t seed = 1;
    for (uint32_t t = 0; t < 3; t++) {
        for (uint32_t round = 0; round < 200; round++) {
            for (uint32_t i = 0; i < MAX_DIM; i++) {
                rows[i] = from_bits(util_rand(&seed) & (round % 3 == 0 ? 0xfffff000 : 0xffffffff));
            }
            EACH_LEVEL(l, k) {
                k->put_v(types[t], rows, MAX_DIM, round % E, page[l]);
                k->get_v(types[t], page[l], MAX_DIM, out[l]);
            }
            for (uint32_t i = 0; i < MAX_DIM; i++) {
                const float x = rows[i], y = out[0][round % E * MAX_DIM + i];
                /* Pages hold the largest binary16 for what lies beyond it. */
                const float near = x > 65504 ? 65504 : x < -65504 ? -65504 : x;
                const float want = t == 0   ? x
                                   : t == 1 ? kvc__f32_of_f16(kvc__f16(near))
                                            : kvc__f32_of_bf16(kvc__bf16(x));
                util_same(&y, &want, 1);
            }
            check_levels((size_t)E * MAX_DIM);
        }
    }
    uint16_t *h = malloc(65536 * sizeof *h);
    float *wide = malloc(65536 * sizeof *wide), *again = malloc(65536 * sizeof *again);
    for (uint32_t i = 0; i < 65536; i++) {
        h[i] = (uint16_t)i;
        wide[i] = kvc__f32_of_f16((uint16_t)i);
    }
    EACH_LEVEL(l, k) {
        k->get_v(KVC_TYPE_F16, h, 65536 / E, again);
        ck_assert_mem_eq(again, wide, 65536 * sizeof *wide);
    }
    free(h);
    free(wide);
    free(again);
}
END_TEST

/* ---- rows */

START_TEST(exp_is_accurate) {
    EACH_LEVEL(l, k) {
        for (uint32_t i = 0; i <= 87 * 512; i++) {
            const float x = -(float)i / 512.0f;
            util_near(k->exp1(x), exp((double)x), exp((double)x), 2e-7);
        }
        util_check(k->exp1(0.0f) == 1.0f);
        util_check(k->exp1(-0.0f) == 1.0f);
        util_check(k->exp1(-87.0f) > 0.0f);
        util_check(k->exp1(nextafterf(-87.0f, -INFINITY)) == 0.0f);
        util_check(k->exp1(-INFINITY) == 0.0f);
        util_check(isnan(k->exp1(NAN)));
        float x[19], y[20];
        for (uint32_t i = 0; i < 19; i++) {
            x[i] = y[i] = i % 7 == 6 ? -INFINITY : -(float)(i * i) / 3;
        }
        y[19] = 5;
        k->exps(y, 19);
        for (uint32_t i = 0; i < 19; i++) {
            util_check(y[i] == k->exp1(x[i]));
        }
        util_check(y[19] == 5);
    }
}
END_TEST

/* x[n] of ordinary, huge, tiny, and not finite values. */
static void fill_kind(uint64_t *seed, float *x, uint32_t n, uint32_t kind) {
    static const float size[] = {1.0f, 1e38f, 1e-42f, 3.0f, 0.0f, 1e-37f};
    util_fill(seed, x, n, size[kind % 6]);
    if (kind % 6 == 3 && n > 0) {
        static const float wild[] = {INFINITY, -INFINITY, NAN, 3.4e38f};
        x[util_rand(seed) % n] = wild[util_rand(seed) % 4];
    }
}

START_TEST(quantize_rounds_blocks) {
    uint64_t seed = 2;
    for (uint32_t round = 0; round < 300; round++) {
        int8_t q[N_LEVEL][96];
        float d[N_LEVEL][6], x[96];
        int32_t sum[N_LEVEL][6];
        fill_kind(&seed, x, 96, round);
        EACH_LEVEL(l, k) {
            k->quantize(x, 96, q[l], d[l], sum[l]);
            ck_assert_mem_eq(q[l], q[0], sizeof q[0]);
            util_same(d[l], d[0], 6);
            ck_assert_mem_eq(sum[l], sum[0], sizeof sum[0]);
        }
        for (uint32_t b = 0; b < 3; b++) {
            float amax = 0;
            int32_t total = 0, first = 0, finite = 1;
            for (uint32_t i = 32 * b; i < 32 * b + 32; i++) {
                amax = fmaxf(amax, fabsf(x[i]));
                finite = finite && isfinite(x[i]);
                total += q[0][i];
                first += i % 32 < 16 ? q[0][i] : 0;
            }
            ck_assert_int_eq(total, sum[0][2 * b]);
            ck_assert_int_eq(first, sum[0][2 * b + 1]);
            const float f = finite && amax > 0 && isfinite(127.0f / amax) ? 127.0f / amax : 0.0f;
            util_check(!finite || d[0][2 * b] == amax / 127.0f);
            util_check(!finite || d[0][2 * b + 1] == d[0][2 * b] * (float)total);
            for (uint32_t i = 32 * b; i < 32 * b + 32; i++) {
                util_check(q[0][i] == (f > 0 ? (int)rint((double)(x[i] * f)) : 0));
            }
        }
    }
}
END_TEST

START_TEST(row_kernels_are_right) {
    uint64_t seed = 3;
    const uint32_t n = (uint32_t)_i;
    float x[80], y[80], w[80], r[N_LEVEL][7][80];
    util_fill(&seed, x, 80, 4.0f);
    util_fill(&seed, y, 80, 1.0f);
    util_fill(&seed, w, 80, 1.0f);
    EACH_LEVEL(l, k) {
        for (uint32_t j = 0; j < 7; j++) {
            memcpy(r[l][j], x, sizeof x);
        }
        k->rms_norm(x, w, n, 1e-5f, r[l][0]);
        k->add(r[l][1], y, n);
        k->scale(r[l][2], 0.3f, n);
        k->silu_mul(r[l][3], y, n);
        k->axpy(0.7f, y, r[l][4], n);
        k->gelu_mul(r[l][5], y, n);
        k->soft_cap(r[l][6], 2.5f, n);
        util_same(&r[l][0][0], &r[0][0][0], (size_t)7 * 80);
    }
    double squares = 0;
    for (uint32_t i = 0; i < n; i++) {
        squares += (double)x[i] * (double)x[i];
    }
    for (uint32_t i = 0; i < 80; i++) {
        if (i >= n) {
            for (uint32_t j = 0; j < 7; j++) {
                util_check(r[0][j][i] == x[i]);
            }
            continue;
        }
        const double v = (double)x[i], silu = v / (1 + exp(-v)) * (double)y[i];
        const double norm = v / sqrt(squares / n + 1e-5) * (double)w[i];
        util_near(r[0][0][i], norm, fabs(norm), 1e-6);
        util_check(r[0][1][i] == x[i] + y[i]);
        util_check(r[0][2][i] == x[i] * 0.3f);
        util_near(r[0][3][i], silu, fabs(silu), 1e-6);
        util_check(r[0][4][i] == fmaf(0.7f, y[i], x[i]));
        const double arg = sqrt(2 / acos(-1)) * (v + 0.044715 * v * v * v);
        const double gelu = 0.5 * v * (1 + tanh(arg)) * (double)y[i];
        util_near(r[0][5][i], gelu, fabs(gelu) + 1e-9, 1e-5);
        util_near(r[0][6][i], 2.5 * tanh(v / 2.5), 2.5, 1e-6);
    }
}
END_TEST

START_TEST(row_kernels_bear_extremes) {
    uint64_t seed = 4;
    for (uint32_t round = 0; round < 100; round++) {
        float x[48], y[48], r[N_LEVEL][5][48];
        fill_kind(&seed, x, 48, round);
        fill_kind(&seed, y, 48, round / 6);
        EACH_LEVEL(l, k) {
            memcpy(r[l][1], x, sizeof x);
            memcpy(r[l][2], x, sizeof x);
            memcpy(r[l][3], x, sizeof x);
            memcpy(r[l][4], x, sizeof x);
            k->rms_norm(x, y, 48, 1e-5f, r[l][0]);
            k->silu_mul(r[l][1], y, 48);
            k->hadamard(r[l][2], 16, 48);
            k->gelu_mul(r[l][3], y, 48);
            k->soft_cap(r[l][4], 30.0f, 48);
            util_same(&r[l][0][0], &r[0][0][0], (size_t)5 * 48);
        }
        for (uint32_t i = 0; i < 48; i++) {
            util_check(isnan(x[i]) ? isnan(r[0][4][i]) : fabsf(r[0][4][i]) <= 30.0f);
        }
    }
}
END_TEST

START_TEST(rope_turns_pairs) {
    uint64_t seed = 5;
    for (int i = 0; i < N_DIM; i++) {
        for (uint32_t n_rot = 2; n_rot <= dims[i]; n_rot += 6) {
            float x[MAX_DIM], cs[MAX_DIM];
            util_fill(&seed, x, dims[i], 1.0f);
            for (uint32_t p = 0; p < n_rot / 2; p++) {
                cs[p] = cosf((float)p);
                cs[n_rot / 2 + p] = sinf((float)p);
            }
            EACH_LEVEL(l, k) {
                k->rope_norm(x, cs, n_rot, dims[i], out[l]);
                memcpy(plain, x, dims[i] * sizeof *x);
                k->rope_norm(plain, cs, n_rot, dims[i], plain);
                util_same(plain, out[l], dims[i]);
            }
            check_levels(dims[i]);
            for (uint32_t e = 0; e < dims[i]; e++) {
                const float c = cs[e / 2 % (n_rot / 2)], s = cs[n_rot / 2 + e / 2 % (n_rot / 2)];
                const float x0 = x[e & ~1u], x1 = x[e | 1u];
                const float turned = e % 2 == 0 ? fmaf(x0, c, -(x1 * s)) : fmaf(x0, s, x1 * c);
                util_check(out[0][e] == (e < n_rot ? turned : x[e]));
            }
        }
    }
}
END_TEST

START_TEST(rope_turns_halves) {
    uint64_t seed = 5;
    for (int i = 0; i < N_DIM; i++) {
        for (uint32_t n_rot = 2; n_rot <= dims[i]; n_rot += 6) {
            float x[MAX_DIM], cs[MAX_DIM];
            const uint32_t half = n_rot / 2;
            util_fill(&seed, x, dims[i], 1.0f);
            for (uint32_t p = 0; p < half; p++) {
                cs[p] = cosf((float)p);
                cs[half + p] = sinf((float)p);
            }
            EACH_LEVEL(l, k) {
                k->rope_neox(x, cs, n_rot, dims[i], out[l]);
                memcpy(plain, x, dims[i] * sizeof *x);
                k->rope_neox(plain, cs, n_rot, dims[i], plain);
                util_same(plain, out[l], dims[i]);
            }
            check_levels(dims[i]);
            for (uint32_t e = 0; e < half; e++) {
                const float c = cs[e], s = cs[half + e], x0 = x[e], x1 = x[half + e];
                util_check(out[0][e] == fmaf(x0, c, -(x1 * s)));
                util_check(out[0][half + e] == fmaf(x0, s, x1 * c));
            }
            util_check(memcmp(out[0] + n_rot, x + n_rot, (dims[i] - n_rot) * sizeof *x) == 0);
        }
    }
}
END_TEST

START_TEST(hadamard_is_its_own_inverse) {
    uint64_t seed = 6;
    for (uint32_t b = 1; b <= MAX_DIM; b *= 2) {
        const uint32_t n = b < 32 ? 5 * b : MAX_DIM;
        util_fill(&seed, rows, n, 1.0f);
        EACH_LEVEL(l, k) {
            memcpy(out[l], rows, n * sizeof *rows);
            k->hadamard(out[l], b, n);
        }
        check_levels(n);
        for (uint32_t i = 0; i < n; i++) {
            double sum = 0;
            for (uint32_t j = 0; j < b; j++) {
                const uint32_t common = i % b & j;
                const double x = (double)rows[i / b * b + j];
                sum += __builtin_parity(common) ? -x : x;
            }
            util_near(out[0][i], sum / sqrt(b), 1.0, 1e-5);
        }
        util_level(0)->hadamard(out[0], b, n);
        for (uint32_t i = 0; i < n; i++) {
            util_near(out[0][i], (double)rows[i], 1.0, 1e-6);
        }
    }
}
END_TEST

START_TEST(softened_scores_sum_to_their_sum) {
    uint64_t seed = 7;
    for (uint32_t round = 0; round < 60; round++) {
        const uint32_t n_row = 1 + round % 7;
        float max[N_LEVEL][7], sum[N_LEVEL][7], down[N_LEVEL][7];
        util_fill(&seed, rows, n_row * E, round % 2 ? 5.0f : 200.0f);
        for (uint32_t i = 0; i < n_row * E; i += 1 + util_rand(&seed) % 8) {
            rows[i] = -INFINITY;
        }
        /* What came before counts too: nothing, something smaller, something larger. */
        const float before[] = {-INFINITY, -250.0f, 300.0f}, sums[] = {0, 3, 5};
        EACH_LEVEL(l, k) {
            memcpy(out[l], rows, n_row * E * sizeof *rows);
            for (uint32_t r = 0; r < n_row; r++) {
                rows[r * E + 7] = out[l][r * E + 7] = 1.0f;
                max[l][r] = before[(round + r) % 3];
                sum[l][r] = sums[(round + r) % 3];
            }
            k->soften(out[l], n_row, max[l], sum[l], down[l]);
            util_same(max[l], max[0], n_row);
            util_same(sum[l], sum[0], n_row);
            util_same(down[l], down[0], n_row);
        }
        check_levels(n_row * E);
        for (uint32_t r = 0; r < n_row; r++) {
            const float was = before[(round + r) % 3];
            float top = was;
            for (uint32_t i = r * E; i < (r + 1) * E; i++) {
                top = fmaxf(top, rows[i]);
            }
            util_check(max[0][r] == top);
            util_check(down[0][r] ==
                       (was > -INFINITY && was < top ? util_level(0)->exp1(was - top) : 1.0f));
            double total = (double)(sums[(round + r) % 3] * down[0][r]);
            for (uint32_t i = r * E; i < (r + 1) * E; i++) {
                const double want = exp((double)(rows[i] - top));
                if (rows[i] == -INFINITY) {
                    util_check(out[0][i] == 0.0f);
                }
                util_near(out[0][i], want, want < 1e-37 ? 1e-37 : want, 2e-7);
                total += (double)out[0][i];
            }
            util_near(sum[0][r], total, total, 1e-6);
        }
    }
}
END_TEST

START_TEST(softened_scores_of_nothing_and_of_nan) {
    EACH_LEVEL(l, k) {
        float s[64], max = -INFINITY, sum = 0, down = 0;
        for (uint32_t i = 0; i < 64; i++) {
            s[i] = -INFINITY;
        }
        k->soften(s, 1, &max, &sum, &down);
        util_check(max == -INFINITY && sum == 0.0f && down == 1.0f);
        for (uint32_t i = 0; i < 64; i++) {
            util_check(s[i] == 0.0f);
            s[i] = i == 9 ? NAN : (float)i;
        }
        k->soften(s, 1, &max, &sum, &down);
        util_check(max == 63.0f && down == 1.0f);
        util_check(isnan(sum));
    }
}
END_TEST

/* ---- plain pages */

/* A page of both halves from random rows at every level; plain gets what the type makes of them. */
static void fill_page(uint64_t *seed, uint32_t type, uint32_t dim, int keys) {
    util_fill(seed, rows, (size_t)E * dim, 1.0f);
    EACH_LEVEL(l, k) {
        for (uint32_t e = 0; e < E; e++) {
            (keys ? k->put_k : k->put_v)(type, rows + (size_t)e * dim, dim, e, page[l]);
        }
        ck_assert_mem_eq(page[l], page[0], (size_t)E * dim * (type == KVC_TYPE_F32 ? 4 : 2));
        (keys ? k->get_k : k->get_v)(type, page[l], dim, out[l]);
    }
    check_levels((size_t)E * dim);
    memcpy(plain, out[0], (size_t)E * dim * sizeof *plain);
    for (uint32_t i = 0; i < E * dim; i++) {
        const float x = rows[i];
        const float want = type == KVC_TYPE_F32   ? x
                           : type == KVC_TYPE_F16 ? kvc__f32_of_f16(kvc__f16(x))
                                                  : kvc__f32_of_bf16(kvc__bf16(x));
        util_check(plain[i] == want);
    }
}

START_TEST(plain_scores_are_exact) {
    const uint32_t dim = dims[_i];
    uint64_t seed = 8;
    for (uint32_t t = 0; t < 3; t++) {
        fill_page(&seed, types[t], dim, 1);
        util_fill(&seed, query, (size_t)MAX_Q * dim, 1.0f);
        for (uint32_t n_q = 1; n_q <= MAX_Q; n_q++) {
            const size_t stride = E + n_q;
            EACH_LEVEL(l, k) {
                k->score(types[t], page[l], dim, query, n_q, out[l], stride);
                for (uint32_t i = 0; i < n_q * E; i++) {
                    const float *q = query + i / E * dim, *row = plain + i % E * dim;
                    float acc = 0.0f;
                    for (uint32_t d = 0; d < dim; d++) {
                        acc = fmaf(q[d], row[d], acc);
                    }
                    util_check(out[l][i / E * stride + i % E] == acc);
                }
            }
        }
    }
}
END_TEST

START_TEST(plain_mixes_are_exact) {
    const uint32_t dim = dims[_i];
    uint64_t seed = 9;
    for (uint32_t t = 0; t < 3; t++) {
        fill_page(&seed, types[t], dim, 0);
        util_fill(&seed, weight, MAX_Q * E, 1.0f);
        util_fill(&seed, query, (size_t)MAX_Q * dim, 1.0f); /* what is there before */
        for (uint32_t n_q = 1; n_q <= MAX_Q; n_q++) {
            EACH_LEVEL(l, k) {
                memcpy(out[l], query, (size_t)MAX_Q * dim * sizeof *query);
                k->mix(types[t], page[l], dim, weight, E, n_q, out[l]);
                for (uint32_t i = 0; i < MAX_Q * dim; i++) {
                    float acc = query[i];
                    for (uint32_t e = 0; e < E && i < n_q * dim; e++) {
                        acc = fmaf(weight[i / dim * E + e], plain[e * dim + i % dim], acc);
                    }
                    util_check(out[l][i] == acc);
                }
            }
        }
    }
}
END_TEST

/* ---- int8 pages */

static kvc_packing i8_packing(uint32_t dim) {
    return (kvc_packing){
        .struct_size = sizeof(kvc_packing), .dim = dim, .bits = 8, .group_entry = 1};
}

static size_t i8_bytes(uint32_t dim) {
    const kvc_packing p = i8_packing(dim);
    return kvc__pack_bytes(&p);
}

static float i8_scale(const uint8_t *p, uint32_t e) {
    uint16_t h;
    memcpy(&h, p + 2 * e, sizeof h);
    return kvc__f32_of_f16(h);
}

static int i8_at(const uint8_t *p, uint32_t dim, uint32_t e, uint32_t d, int keys) {
    const size_t at = keys ? ((size_t)(d / 4) * E + e) * 4 + d % 4 : (size_t)e * dim + d;
    return (int8_t)p[2 * E + at];
}

/* Packs rows of every size, stride floats apart, at every level. */
static void fill_i8(uint64_t *seed, uint32_t dim, int keys) {
    const kvc_packing p = i8_packing(dim);
    util_fill(seed, rows, (size_t)E * dim, 1.0f);
    for (uint32_t e = 0; e < E; e += 7) {
        fill_kind(seed, rows + (size_t)e * dim, dim, e);
    }
    EACH_LEVEL(l, k) {
        (keys ? k->pack_k : k->pack_v)(&p, rows, dim, page[l]);
        ck_assert_mem_eq(page[l], page[0], i8_bytes(dim));
    }
}

START_TEST(i8_pages_pack_and_unpack) {
    const uint32_t dim = dims[_i];
    const kvc_packing p = i8_packing(dim);
    uint64_t seed = 10;
    ck_assert_uint_eq(i8_bytes(dim), 128 + 64 * dim);
    for (int round = 0; round < 12; round++) {
        const int keys = round % 2;
        fill_i8(&seed, dim, keys);
        EACH_LEVEL(l, k) {
            (keys ? k->unpack_k : k->unpack_v)(&p, page[l], out[l]);
        }
        check_levels((size_t)E * dim);
        for (uint32_t e = 0; e < E; e++) {
            const float s = i8_scale(page[0], e);
            float amax = 0;
            for (uint32_t d = 0; d < dim; d++) {
                amax = fmaxf(amax, fabsf(rows[e * dim + d]));
            }
            for (uint32_t d = 0; d < dim && isfinite(s); d++) {
                const float x = rows[e * dim + d];
                const double y = s > 0 ? rint((double)(x / s)) : 0;
                const int want = (int)(y > 127 ? 127 : y < -127 ? -127 : y);
                util_check(s == kvc__f32_of_f16(kvc__f16(amax / 127.0f)));
                util_check(i8_at(page[0], dim, e, d, keys) == want);
                util_check(out[0][e * dim + d] == (float)want * s);
            }
        }
    }
}
END_TEST

/* Tame rows for what is computed from a page: sums of infinities say nothing. */
static void fill_tame_i8(uint64_t *seed, uint32_t dim, int keys) {
    const kvc_packing p = i8_packing(dim);
    util_fill(seed, rows, (size_t)E * dim, 1.0f);
    memset(rows + (size_t)5 * dim, 0, dim * sizeof *rows);
    EACH_LEVEL(l, k) {
        (keys ? k->pack_k : k->pack_v)(&p, rows, dim, page[l]);
    }
}

static float want_score_f(const float *q, uint32_t dim, uint32_t e) {
    float acc = 0.0f;
    for (uint32_t d = 0; d < dim; d++) {
        acc = fmaf(q[d], (float)i8_at(page[0], dim, e, d, 1), acc);
    }
    return acc * i8_scale(page[0], e);
}

static float want_score_q(const float *q, uint32_t dim, uint32_t e) {
    float amax = 0.0f;
    int32_t sum = 0;
    for (uint32_t d = 0; d < dim; d++) {
        amax = fmaxf(amax, fabsf(q[d]));
    }
    for (uint32_t d = 0; d < dim && amax > 0.0f; d++) {
        sum += (int32_t)rint((double)(q[d] * (127.0f / amax))) * i8_at(page[0], dim, e, d, 1);
    }
    return (float)sum * (amax / 127.0f * i8_scale(page[0], e));
}

START_TEST(i8_scores_are_exact) {
    const uint32_t dim = dims[_i];
    const kvc_packing p = i8_packing(dim);
    uint64_t seed = 11;
    fill_tame_i8(&seed, dim, 1);
    util_fill(&seed, query, (size_t)MAX_Q * dim, 3.0f);
    memset(query + (size_t)2 * dim, 0, dim * sizeof *query);
    for (uint32_t n_q = 1; n_q <= MAX_Q; n_q++) {
        EACH_LEVEL(l, k) {
            float f[MAX_Q * E], q[MAX_Q * E];
            k->pack_score_f(&p, page[l], query, n_q, f);
            k->pack_score_q(&p, page[l], query, n_q, q);
            for (uint32_t i = 0; i < n_q * E; i++) {
                const float *row = query + i / E * dim;
                util_check(f[i] == want_score_f(row, dim, i % E));
                util_check(q[i] == want_score_q(row, dim, i % E));
            }
        }
    }
}
END_TEST

/* A page that came from elsewhere may hold any byte, -128 too, against the largest queries. */
START_TEST(i8_scores_bear_every_byte) {
    const uint32_t dim = dims[_i];
    const kvc_packing p = i8_packing(dim);
    uint64_t seed = 14;
    for (uint32_t round = 0; round < 8; round++) {
        fill_tame_i8(&seed, dim, 1);
        for (uint32_t i = 0; i < E * dim; i++) {
            const uint8_t b = (uint8_t)util_rand(&seed);
            page[0][2 * E + i] = round % 2 ? b : b & 1 ? 0x80 : 0x7f;
        }
        for (uint32_t i = 0; i < MAX_Q * dim; i++) {
            query[i] = round < 4 ? util_unit(&seed) : util_rand(&seed) & 1 ? 1.0f : -1.0f;
        }
        EACH_LEVEL(l, k) {
            float s[MAX_Q * E];
            k->pack_score_q(&p, page[0], query, MAX_Q, s);
            for (uint32_t i = 0; i < MAX_Q * E; i++) {
                util_check(s[i] == want_score_q(query + i / E * dim, dim, i % E));
            }
        }
    }
}
END_TEST

START_TEST(i8_mixes_are_exact) {
    const uint32_t dim = dims[_i];
    const kvc_packing p = i8_packing(dim);
    uint64_t seed = 12;
    fill_tame_i8(&seed, dim, 0);
    util_fill(&seed, weight, MAX_Q * E, 1.0f);
    for (uint32_t n_q = 1; n_q <= MAX_Q; n_q++) {
        EACH_LEVEL(l, k) {
            memset(out[l], 0, (size_t)MAX_Q * dim * sizeof out[l][0]);
            k->pack_mix_f(&p, page[l], weight, n_q, out[l]);
            for (uint32_t i = 0; i < n_q * dim; i++) {
                float acc = 0.0f;
                for (uint32_t e = 0; e < E; e++) {
                    const float w = weight[i / dim * E + e] * i8_scale(page[0], e);
                    acc = fmaf(w, (float)i8_at(page[0], dim, e, i % dim, 0), acc);
                }
                util_check(out[l][i] == acc);
            }
        }
    }
}
END_TEST

/* What is added to acc by weights that are rounded relative to the largest. */
static float want_mix_q(const float *w, uint32_t dim, uint32_t d, float acc) {
    float amax = 0.0f;
    int32_t sum = 0;
    for (uint32_t e = 0; e < E; e++) {
        amax = fmaxf(amax, fabsf(w[e] * i8_scale(page[0], e)));
    }
    for (uint32_t e = 0; e < E && amax > 0.0f; e++) {
        const float x = w[e] * i8_scale(page[0], e) * (16256.0f / amax);
        sum += (int32_t)rint((double)x) * i8_at(page[0], dim, e, d, 0);
    }
    return fmaf((float)sum, amax / 16256.0f, acc);
}

/* Of weights with a sign, then of all bytes with the largest weights there are. */
START_TEST(i8_mixes_of_rounded_weights_are_exact) {
    const uint32_t dim = dims[_i];
    const kvc_packing p = i8_packing(dim);
    uint64_t seed = 18;
    for (uint32_t round = 0; round < 4; round++) {
        fill_tame_i8(&seed, dim, 0);
        util_fill(&seed, weight, MAX_Q * E, 1.0f);
        memset(weight + E, 0, E * sizeof *weight);
        for (uint32_t i = 0; i < E * dim && round > 1; i++) {
            page[0][2 * E + i] = (uint8_t)(round == 2 ? util_rand(&seed) : 0x80);
        }
        for (uint32_t i = 0; i < MAX_Q * E && round == 3; i++) {
            weight[i] = i < 2 * E || util_rand(&seed) & 1 ? 1.0f : -1.0f;
        }
        for (uint32_t n_q = 1; n_q <= MAX_Q; n_q++) {
            EACH_LEVEL(l, k) {
                for (uint32_t i = 0; i < MAX_Q * dim; i++) {
                    out[l][i] = (float)(i % 7);
                }
                k->pack_mix_q(&p, page[0], weight, n_q, out[l]);
                for (uint32_t i = 0; i < MAX_Q * dim; i++) {
                    const float was = (float)(i % 7), *w = weight + i / dim * E;
                    util_check(out[l][i] ==
                               (i < n_q * dim ? want_mix_q(w, dim, i % dim, was) : was));
                }
            }
        }
    }
}
END_TEST

/* Queries and weights that are not finite go through without harm, alike at all levels. */
START_TEST(i8_kernels_bear_extremes) {
    const uint32_t dim = dims[_i];
    const kvc_packing p = i8_packing(dim);
    uint64_t seed = 13;
    for (uint32_t round = 0; round < 12; round++) {
        fill_i8(&seed, dim, 1);
        fill_kind(&seed, query, 3 * dim, round);
        fill_kind(&seed, weight, 3 * E, round);
        EACH_LEVEL(l, k) {
            k->pack_score_q(&p, page[l], query, 3, out[l]);
            k->pack_score_f(&p, page[l], query, 3, out[l] + 3 * E);
            memset(out[l] + 6 * E, 0, 3 * dim * sizeof **out);
            k->pack_mix_f(&p, page[l], weight, 3, out[l] + 6 * E);
            memset(out[l] + 6 * E + 3 * dim, 0, 3 * dim * sizeof **out);
            k->pack_mix_q(&p, page[l], weight, 3, out[l] + 6 * E + 3 * dim);
        }
        check_levels((size_t)6 * E + 6 * dim);
    }
}
END_TEST

/* ---- ends of rows */

/* Buffers that end where the next byte is no memory: size bytes, to be given back by map_drop(). */
static void *map_make(size_t size) {
    uint8_t *p = mmap(NULL, MAP_BYTES + MAP_GUARD, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert_ptr_ne(p, MAP_FAILED);
    ck_assert_int_eq(mprotect(p + MAP_BYTES, MAP_GUARD, PROT_NONE), 0);
    ck_assert(size <= MAP_BYTES);
    return p + MAP_BYTES - size;
}

static void map_drop(void *end, size_t size) {
    ck_assert_int_eq(munmap((uint8_t *)end + size - MAP_BYTES, MAP_BYTES + MAP_GUARD), 0);
}

static void rows_within(const kvc__kern *k, uint32_t n) {
    float *x = map_make(n * sizeof *x), *y = map_make(n * sizeof *y);
    uint64_t seed = 15;
    util_fill(&seed, y, n, 1.0f);
    k->rms_norm(y, y, n, 1e-5f, x);
    k->add(x, y, n);
    k->scale(x, 0.5f, n);
    k->axpy(0.5f, y, x, n);
    k->silu_mul(x, y, n);
    k->gelu_mul(x, y, n);
    k->soft_cap(x, 30.0f, n);
    k->rope_neox(x, y, n & ~1u, n, x);
    k->hadamard(x, n % 4 == 0 ? 4 : 1, n);
    map_drop(x, n * sizeof *x);
    map_drop(y, n * sizeof *y);
}

/* Row 63 is the last of a page: what is read or written behind it is no memory. */
static void plain_page_within(const kvc__kern *k, uint32_t type, uint32_t dim) {
    const size_t size = (size_t)E * dim * (type == KVC_TYPE_F32 ? 4 : 2);
    float *x = map_make(dim * sizeof *x), *o = map_make((size_t)E * dim * sizeof *o);
    void *p = map_make(size);
    uint64_t seed = 16;
    util_fill(&seed, x, dim, 1.0f);
    k->put_k(type, x, dim, 63, p);
    k->put_v(type, x, dim, 63, p);
    k->get_k(type, p, dim, o);
    k->get_v(type, p, dim, o);
    memcpy(o, x, dim * sizeof *x);
    k->score(type, p, dim, x, 1, out[0], E);
    k->mix(type, p, dim, weight, E, 1, x);
    map_drop(x, dim * sizeof *x);
    map_drop(o, (size_t)E * dim * sizeof *o);
    map_drop(p, size);
}

static void packed_page_within(const kvc__kern *k, const kvc_packing *p) {
    const size_t size = kvc__pack_bytes(p), all = (size_t)E * p->dim * sizeof(float);
    float *x = map_make(p->dim * sizeof *x), *o = map_make(all);
    void *page_of = map_make(size);
    uint64_t seed = 17;
    util_fill(&seed, x, p->dim, 1.0f);
    util_fill(&seed, o, (size_t)E * p->dim, 1.0f);
    k->pack_k(p, o, p->dim, page_of);
    k->unpack_k(p, page_of, o);
    k->pack_score_f(p, page_of, x, 1, out[0]);
    k->pack_score_q(p, page_of, x, 1, out[0]);
    k->pack_v(p, o, p->dim, page_of);
    k->unpack_v(p, page_of, o);
    k->pack_mix_f(p, page_of, weight, 1, x);
    k->pack_mix_q(p, page_of, weight, 1, x);
    map_drop(x, p->dim * sizeof *x);
    map_drop(o, all);
    map_drop(page_of, size);
}

/* Each kind of packing: by rows, by groups of a row, by channels. */
static void packed_pages_within(const kvc__kern *k, uint32_t dim) {
    kvc_packing p = i8_packing(dim);
    packed_page_within(k, &p);
    p.flags = KVC_PACK_ZERO;
    p.bits = 4;
    p.group_dim = 16;
    packed_page_within(k, &p);
    p.bits = 2;
    packed_page_within(k, &p);
    p.group_dim = 1;
    p.group_entry = 32;
    packed_page_within(k, &p);
}

START_TEST(nothing_behind_the_end_is_touched) {
    EACH_LEVEL(l, k) {
        for (uint32_t n = 1; n <= 40; n++) {
            rows_within(k, n);
        }
        for (uint32_t dim = 4; dim <= 84; dim += 4) {
            for (uint32_t t = 0; t < 3; t++) {
                plain_page_within(k, types[t], dim);
            }
            packed_pages_within(k, dim);
        }
    }
}
END_TEST

/* ---- levels */

START_TEST(levels_are_chosen) {
    ck_assert_str_eq(kvc__kern_level(KVC__LEVEL_SCALAR)->name, "scalar");
    ck_assert_ptr_null(kvc__kern_level(77));
    ck_assert_ptr_null(kvc__kern_level(-1));
    ck_assert_ptr_eq(kvc__kern_get(), kvc__kern_level(kvc__cpu_level()));
    ck_assert_int_eq(setenv("KVC_CPU", "scalar", 1), 0);
    ck_assert_str_eq(kvc__kern_get()->name, "scalar");
    for (uint32_t i = 0; i < N_LEVEL; i++) {
        const kvc__kern *k = util_level(i), *below = i > 0 ? util_level(i - 1) : k;
        const char *const name[N_LEVEL] = {"scalar", "avx2", "avx512"};
        ck_assert_int_eq(setenv("KVC_CPU", name[i], 1), 0);
        if (k != NULL) {
            ck_assert_str_eq(k->name, name[i]);
            ck_assert_ptr_eq(kvc__kern_get(), k);
            ck_assert_ptr_nonnull(below); /* a machine has the levels below its best */
        } else {
            ck_assert_int_eq(kvc__cpu_level(), kvc__cpu_best());
        }
    }
    ck_assert_int_eq(setenv("KVC_CPU", "abacus", 1), 0);
    ck_assert_int_eq(kvc__cpu_level(), kvc__cpu_best());
    ck_assert_int_eq(unsetenv("KVC_CPU"), 0);
    ck_assert_int_eq(kvc__cpu_level(), kvc__cpu_best());
}
END_TEST

START_TEST(fp_state_is_put_back) {
    const uint32_t before = kvc__fp_enter();
    const uint32_t inside = kvc__fp_enter();
    volatile float tiny = 1e-40f;
    util_check(tiny * 0.5f > 0.0f);
    kvc__fp_leave(before);
    ck_assert_uint_eq(kvc__fp_enter() & ~0x3fu, before & ~0x3fu);
    util_check(inside == 0x1f80u || inside == 0);
    kvc__fp_leave(before);
}
END_TEST

static void add_rows(Suite *s) {
    TCase *c = tcase_create("rows");
    tcase_add_test(c, exp_is_accurate);
    tcase_add_test(c, quantize_rounds_blocks);
    tcase_add_loop_test(c, row_kernels_are_right, 0, 71);
    tcase_add_test(c, row_kernels_bear_extremes);
    tcase_add_test(c, rope_turns_pairs);
    tcase_add_test(c, rope_turns_halves);
    tcase_add_test(c, hadamard_is_its_own_inverse);
    tcase_add_test(c, softened_scores_sum_to_their_sum);
    tcase_add_test(c, softened_scores_of_nothing_and_of_nan);
    suite_add_tcase(s, c);
}

static void add_pages(Suite *s) {
    TCase *c = tcase_create("pages");
    tcase_set_timeout(c, 60);
    tcase_add_loop_test(c, plain_scores_are_exact, 0, N_DIM);
    tcase_add_loop_test(c, plain_mixes_are_exact, 0, N_DIM);
    tcase_add_loop_test(c, i8_pages_pack_and_unpack, 0, N_DIM);
    tcase_add_loop_test(c, i8_scores_are_exact, 0, N_DIM);
    tcase_add_loop_test(c, i8_scores_bear_every_byte, 0, N_DIM);
    tcase_add_loop_test(c, i8_mixes_are_exact, 0, N_DIM);
    tcase_add_loop_test(c, i8_mixes_of_rounded_weights_are_exact, 0, N_DIM);
    tcase_add_loop_test(c, i8_kernels_bear_extremes, 0, N_DIM);
    tcase_add_test(c, nothing_behind_the_end_is_touched);
    suite_add_tcase(s, c);
}

int main(void) {
    Suite *s = suite_create("kern");
    TCase *c = tcase_create("halves");
    tcase_add_test(c, f16_widens_exactly_and_comes_back);
    tcase_add_test(c, f16_rounds_to_nearest_even);
    tcase_add_test(c, bf16_rounds_to_nearest_even);
    tcase_add_test(c, levels_convert_alike);
    suite_add_tcase(s, c);
    add_rows(s);
    add_pages(s);
    c = tcase_create("levels");
    tcase_add_test(c, levels_are_chosen);
    tcase_add_test(c, fp_state_is_put_back);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    const int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}

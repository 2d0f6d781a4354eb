/* SPDX-License-Identifier: MIT
 * test_mat.c: weight matrices: sizes, packing against a plain reading of the file's blocks, and
 * products at every level against sums in double; the levels, the number of tokens and the split of
 * groups must not change a bit. */
#include "kern_util.h"

#include "gguf.h"
#include "mat.h"

#include <stdlib.h>

#define MAX_COL 576u
#define MAX_ROW 100u
#define MAX_TOK 20u
#define OUT     (MAX_TOK * (MAX_ROW + 3))

static const uint32_t types[] = {KVC__T_F32, KVC__T_F16, KVC__T_Q8_0, KVC__T_Q4_0, KVC__T_Q4_1};
#define N_TYPE (sizeof types / sizeof types[0])

/* A file's rows with the matrix packed from them. */
typedef struct fixture {
    kvc__mem mem;
    kvc__mat mat;
    uint8_t *file;
    size_t row_bytes, file_bytes;
} fixture;

static size_t row_bytes_of(uint32_t type, uint32_t n_col) {
    switch (type) {
    case KVC__T_F32:
        return (size_t)n_col * 4;
    case KVC__T_F16:
        return (size_t)n_col * 2;
    case KVC__T_Q8_0:
        return (size_t)n_col / 32 * 34;
    case KVC__T_Q4_0:
        return (size_t)n_col / 32 * 18;
    default:
        return (size_t)n_col / 32 * 20;
    }
}

static void put_half(uint8_t *p, float x) {
    const uint16_t h = kvc__f16(x);
    memcpy(p, &h, sizeof h);
}

static float half_at(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return kvc__f32_of_f16(h);
}

/* Random rows of that type. Any byte is a legal value; scales are sensible numbers. */
static void fill_file(fixture *f, uint64_t *seed, uint32_t type) {
    for (size_t i = 0; i < f->file_bytes; i++) {
        f->file[i] = (uint8_t)util_rand(seed);
    }
    if (type == KVC__T_F32) {
        util_fill(seed, (float *)(void *)f->file, f->file_bytes / 4, 1.0f);
    } else if (type == KVC__T_F16) {
        for (size_t i = 0; i < f->file_bytes; i += 2) {
            put_half(f->file + i, util_unit(seed));
        }
    } else {
        const size_t block = row_bytes_of(type, 32);
        for (size_t i = 0; i < f->file_bytes; i += block) {
            put_half(f->file + i, 0.02f * util_unit(seed));
            if (type == KVC__T_Q4_1) {
                put_half(f->file + i + 2, 0.1f * util_unit(seed));
            }
        }
    }
}

static void make(fixture *f, uint64_t *seed, uint32_t type, uint32_t n_row, uint32_t n_col) {
    *f = (fixture){0};
    kvc__mem_init(&f->mem, NULL, NULL);
    ck_assert_int_eq(kvc__mat_init(&f->mat, type, n_row, n_col, NULL), KVC_OK);
    f->row_bytes = row_bytes_of(type, n_col);
    f->file_bytes = f->row_bytes * n_row;
    f->file = kvc__alloc(&f->mem, f->file_bytes);
    f->mat.data = kvc__alloc(&f->mem, kvc__mat_bytes(&f->mat));
    ck_assert_ptr_nonnull(f->file);
    ck_assert_ptr_nonnull(f->mat.data);
    fill_file(f, seed, type);
    kvc__mat_pack(&f->mat, f->file, 0, f->mat.n_group);
}

static void drop(fixture *f) {
    kvc__free(&f->mem, f->mat.data, kvc__mat_bytes(&f->mat));
    kvc__free(&f->mem, f->file, f->file_bytes);
}

/* The plain reading: element (row, col) of the file; *min gets what is added after the product. */
static float file_value(const fixture *f, uint32_t row, uint32_t col, float *d, float *min) {
    const uint8_t *p = f->file + row * f->row_bytes;
    const uint32_t b = col / 32, k = col % 32;
    float x;
    *min = 0.0f;
    *d = 1.0f;
    switch (f->mat.type) {
    case KVC__T_F32:
        memcpy(&x, p + (size_t)4 * col, sizeof x);
        return x;
    case KVC__T_F16:
        return half_at(p + (size_t)2 * col);
    case KVC__T_Q8_0:
        p += (size_t)34 * b;
        *d = half_at(p);
        return (float)(int8_t)p[2 + k];
    case KVC__T_Q4_0:
        p += (size_t)18 * b;
        *d = half_at(p);
        return (float)((k < 16 ? p[2 + k] & 15 : p[2 + k - 16] >> 4) - 8);
    default:
        p += (size_t)20 * b;
        *d = half_at(p);
        *min = half_at(p + 2);
        return (float)(k < 16 ? p[4 + k] & 15 : p[4 + k - 16] >> 4);
    }
}

START_TEST(known_types) {
    for (uint32_t i = 0; i < N_TYPE; i++) {
        util_check(kvc__mat_known(types[i]));
        ck_assert_int_eq(kvc__mat_quantised(types[i]), i >= 2);
    }
    util_check(!kvc__mat_known(KVC__T_Q4_K));
    util_check(!kvc__mat_known(UINT32_MAX));
    util_check(!kvc__mat_quantised(KVC__T_Q4_K));
}
END_TEST

START_TEST(init_refuses_bad_sizes) {
    static const uint64_t bad[][2] = {{0, 32},
                                      {1, 0},
                                      {1, 33},
                                      {((uint64_t)1 << 31) + 1, 32},
                                      {1, ((uint64_t)1 << 31) + 32},
                                      {(uint64_t)1 << 63, (uint64_t)1 << 63}};
    kvc__err err = {{0}};
    kvc__mat m;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        int32_t rc = kvc__mat_init(&m, KVC__T_Q4_0, bad[i][0], bad[i][1], &err);
        ck_assert_int_eq(rc, KVC_E_FORMAT);
        ck_assert_uint_eq(kvc__mat_bytes(&m), 0);
    }
    ck_assert_ptr_nonnull(strstr(err.text, "rows"));
    ck_assert_int_eq(kvc__mat_init(&m, KVC__T_Q4_K, 1, 256, &err), KVC_E_UNSUPPORTED);
    const uint64_t most = (uint64_t)1 << 31;
    ck_assert_int_eq(kvc__mat_init(&m, KVC__T_F32, most, most, &err), KVC_E_FORMAT);
    ck_assert_ptr_nonnull(strstr(err.text, "addresses"));
    ck_assert_int_eq(kvc__mat_init(&m, KVC__T_F16, most, most, &err), KVC_OK);
    ck_assert_uint_eq(kvc__mat_bytes(&m) >> 62, 2);
    ck_assert_int_eq(kvc__mat_init(&m, KVC__T_Q4_1, 17, 96, NULL), KVC_OK);
    ck_assert_uint_eq(m.n_group, 2);
    ck_assert_uint_eq(m.group_bytes, 960);
}
END_TEST

START_TEST(rows_come_back_from_groups) {
    uint64_t seed = 1;
    float *out = malloc(MAX_COL * sizeof *out);
    for (uint32_t shape = 0; shape < 3; shape++) {
        static const uint32_t rows[] = {1, 16, 37};
        const uint32_t n_col = 32 * (1 + 2 * shape);
        fixture f;
        make(&f, &seed, types[_i], rows[shape], n_col);
        for (uint32_t r = 0; r < rows[shape]; r++) {
            kvc__mat_row(&f.mat, r, out);
            for (uint32_t c = 0; c < n_col; c++) {
                float d, min;
                const float v = file_value(&f, r, c, &d, &min);
                util_check(out[c] == fmaf(d, v, min));
            }
        }
        drop(&f);
    }
    free(out);
}
END_TEST

START_TEST(groups_pack_alone) {
    uint64_t seed = 2;
    fixture f;
    make(&f, &seed, types[_i], 50, 64);
    const size_t n = kvc__mat_bytes(&f.mat);
    uint8_t *whole = malloc(n);
    memcpy(whole, f.mat.data, n);
    memset(f.mat.data, 0x5a, n);
    for (uint32_t g = f.mat.n_group; g-- > 0;) {
        kvc__mat_pack(&f.mat, f.file, g, g + 1);
    }
    ck_assert_mem_eq(whole, f.mat.data, n);
    free(whole);
    drop(&f);
}
END_TEST

/* ---- products */

/* Activations of n tokens, on the heap so that a sanitizer sees every byte too far. */
typedef struct tokens {
    kvc__act a;
    float *f;
} tokens;

static void tokens_make(tokens *t, uint64_t *seed, uint32_t n, uint32_t n_col, const kvc__kern *k) {
    const size_t blocks = (n_col + 31) / 32, stride = n_col + 5;
    *t = (tokens){.f = malloc(n * stride * sizeof(float))};
    t->a = (kvc__act){.n = n, .n_col = n_col, .f = t->f, .f_stride = stride};
    t->a.q = malloc((size_t)n * n_col);
    t->a.d = malloc(n * blocks * sizeof(float));
    t->a.sum = malloc(n * blocks * sizeof(int32_t));
    util_fill(seed, t->f, n * stride, 2.0f);
    for (uint32_t i = 0; i < n && n_col % 32 == 0; i++) {
        k->quantize(t->f + i * stride, n_col, t->a.q + (size_t)i * n_col, t->a.d + i * blocks,
                    t->a.sum + i * blocks);
    }
}

static void tokens_drop(tokens *t) {
    free(t->f);
    free(t->a.q);
    free(t->a.d);
    free(t->a.sum);
}

/* Token t alone. */
static kvc__act one_token(const kvc__act *a, uint32_t t) {
    const size_t blocks = a->n_col / 32;
    kvc__act one = *a;
    one.n = 1;
    one.f += t * a->f_stride;
    one.q += (size_t)t * a->n_col;
    one.d += t * blocks;
    one.sum += t * blocks;
    return one;
}

/* One output in the stated order, operation by operation. */
static float exact_q(const fixture *f, const kvc__act *a, uint32_t t, uint32_t row) {
    const uint32_t blocks = a->n_col / 32;
    float acc = 0.0f, accm = 0.0f, d = 0.0f, min = 0.0f;
    for (uint32_t b = 0; b < blocks; b++) {
        int32_t isum = 0;
        for (uint32_t c = 32 * b; c < 32 * b + 32; c++) {
            isum += (int32_t)file_value(f, row, c, &d, &min) * a->q[(size_t)t * a->n_col + c];
        }
        const float da = a->d[t * blocks + b];
        acc = fmaf(d * da, (float)isum, acc);
        accm = fmaf(min, da * (float)a->sum[t * blocks + b], accm);
    }
    return f->mat.type == KVC__T_Q4_1 ? acc + accm : acc;
}

static float exact_f(const fixture *f, const kvc__act *a, uint32_t t, uint32_t row) {
    float acc = 0.0f, d, min;
    for (uint32_t c = 0; c < a->n_col; c++) {
        const float v = file_value(f, row, c, &d, &min);
        acc = fmaf(fmaf(d, v, min), a->f[t * a->f_stride + c], acc);
    }
    return acc;
}

static void product(const kvc__kern *k, int q, const kvc__mat *m, uint32_t g0, uint32_t g1,
                    const kvc__act *a, float *out, size_t stride) {
    if (q) {
        k->mm_q(m, g0, g1, a, out, stride);
        return;
    }
    float *tile = malloc(kvc__tile_bytes(m));
    k->mm_f(m, g0, g1, a, out, stride, tile);
    free(tile);
}

/* Whole, split in two, and token by token. */
static void check_product(const kvc__kern *k, int q, const fixture *f, const kvc__act *a) {
    static float want[OUT], got[OUT];
    const uint32_t n_row = f->mat.n_row, cut = f->mat.n_group / 2;
    const size_t stride = n_row + 3;
    for (uint32_t i = 0; i < a->n * stride; i++) {
        want[i] = got[i] = -7.0f;
    }
    for (uint32_t t = 0; t < a->n; t++) {
        for (uint32_t r = 0; r < n_row; r++) {
            want[t * stride + r] = q ? exact_q(f, a, t, r) : exact_f(f, a, t, r);
        }
    }
    product(k, q, &f->mat, 0, f->mat.n_group, a, got, stride);
    util_same(got, want, a->n * stride);
    memset(got, 0, a->n * stride * sizeof *got);
    product(k, q, &f->mat, 0, cut, a, got, stride);
    product(k, q, &f->mat, cut, f->mat.n_group, a, got, stride);
    for (uint32_t t = 0; t < a->n; t++) {
        util_same(got + t * stride, want + t * stride, n_row);
        kvc__act one = one_token(a, t);
        product(k, q, &f->mat, 0, f->mat.n_group, &one, got + t * stride, stride);
        util_same(got + t * stride, want + t * stride, n_row);
    }
}

static void check_shapes(const kvc__kern *k, int q, uint32_t type) {
    uint64_t seed = 3 + type;
    for (uint32_t n = 1; n <= MAX_TOK; n++) {
        static const uint32_t rows[] = {1, 15, 16, 33, 64, 100};
        const uint32_t n_col = n % 5 == 0 ? 160 : n % 2 == 0 ? 32 : 64;
        fixture f;
        tokens t;
        make(&f, &seed, type, rows[n % 6], n_col);
        tokens_make(&t, &seed, n, n_col, k);
        check_product(k, q, &f, &t.a);
        tokens_drop(&t);
        drop(&f);
    }
}

START_TEST(int8_products_are_exact) {
    for (uint32_t i = 0; i < N_LEVEL; i++) {
        const kvc__kern *k = util_level(i);
        if (k != NULL) {
            check_shapes(k, 1, types[2 + _i]);
        }
    }
}
END_TEST

START_TEST(float_products_are_exact) {
    for (uint32_t i = 0; i < N_LEVEL; i++) {
        const kvc__kern *k = util_level(i);
        if (k != NULL) {
            check_shapes(k, 0, types[_i]);
        }
    }
}
END_TEST

/* Columns that are no multiple of anything, which float weights may have. */
START_TEST(float_products_of_odd_widths) {
    uint64_t seed = 4;
    for (uint32_t n_col = 1; n_col < 24; n_col++) {
        fixture f;
        tokens t;
        make(&f, &seed, types[_i], 20 + n_col, n_col);
        tokens_make(&t, &seed, 1 + n_col % 14, n_col, util_level(0));
        for (uint32_t i = 0; i < N_LEVEL; i++) {
            const kvc__kern *k = util_level(i);
            float got[14 * 48];
            if (k == NULL) {
                continue;
            }
            product(k, 0, &f.mat, 0, f.mat.n_group, &t.a, got, 48);
            for (uint32_t r = 0; r < f.mat.n_row; r++) {
                util_check(got[r] == exact_f(&f, &t.a, 0, r));
            }
        }
        tokens_drop(&t);
        drop(&f);
    }
}
END_TEST

/* The order stated is also a good sum: both products against double. */
START_TEST(products_approach_double) {
    uint64_t seed = 5;
    fixture f;
    tokens t;
    float q[40], x[40];
    make(&f, &seed, types[_i], 40, MAX_COL);
    tokens_make(&t, &seed, 1, MAX_COL, util_level(0));
    product(util_level(0), 0, &f.mat, 0, f.mat.n_group, &t.a, x, 40);
    memcpy(q, x, sizeof q);
    if (kvc__mat_quantised(types[_i])) {
        product(util_level(0), 1, &f.mat, 0, f.mat.n_group, &t.a, q, 40);
    }
    for (uint32_t r = 0; r < 40; r++) {
        double sum = 0, size = 0;
        for (uint32_t c = 0; c < MAX_COL; c++) {
            float d, min;
            const float v = file_value(&f, r, c, &d, &min);
            const double p = ((double)d * (double)v + (double)min) * (double)t.a.f[c];
            sum += p;
            size += fabs(p);
        }
        util_near(x[r], sum, size, 1e-5);
        util_near(q[r], sum, size, 5e-3);
    }
    tokens_drop(&t);
    drop(&f);
}
END_TEST

/* The largest magnitudes: no saturation anywhere. */
START_TEST(int8_extremes_do_not_saturate) {
    for (uint32_t i = 0; i < N_LEVEL; i++) {
        const kvc__kern *k = util_level(i);
        for (int sign = 0; k != NULL && sign < 4; sign++) {
            uint64_t seed = 6;
            fixture f;
            tokens t;
            make(&f, &seed, KVC__T_Q8_0, 16, 64);
            for (size_t at = 0; at < f.file_bytes; at++) {
                f.file[at] = at % 34 < 2 ? f.file[at] : sign & 1 ? 127 : 128;
            }
            kvc__mat_pack(&f.mat, f.file, 0, 1);
            tokens_make(&t, &seed, 9, 64, k);
            memset(t.a.q, sign & 2 ? 127 : -127, (size_t)9 * 64);
            for (uint32_t b = 0; b < 9 * 2; b++) {
                t.a.sum[b] = sign & 2 ? 127 * 32 : -127 * 32;
            }
            check_product(k, 1, &f, &t.a);
            tokens_drop(&t);
            drop(&f);
        }
    }
}
END_TEST

/* NaN and infinities in scales and activations come out somewhere and harm nothing. */
static void agree_on_wild_weights(const kvc__kern *k, uint32_t type) {
    uint64_t seed = 7;
    for (uint32_t round = 0; round < 20; round++) {
        static float a[12 * 40], b[12 * 40];
        fixture f;
        tokens t;
        make(&f, &seed, type, 40, 64);
        for (size_t at = 0; at < f.file_bytes; at++) {
            f.file[at] = (uint8_t)util_rand(&seed);
        }
        kvc__mat_pack(&f.mat, f.file, 0, f.mat.n_group);
        tokens_make(&t, &seed, 12, 64, k);
        t.f[3] = INFINITY;
        t.f[70] = NAN;
        product(util_level(0), 0, &f.mat, 0, f.mat.n_group, &t.a, a, 40);
        product(k, 0, &f.mat, 0, f.mat.n_group, &t.a, b, 40);
        util_same(a, b, 12 * 40);
        if (kvc__mat_quantised(type)) {
            product(util_level(0), 1, &f.mat, 0, f.mat.n_group, &t.a, a, 40);
            product(k, 1, &f.mat, 0, f.mat.n_group, &t.a, b, 40);
            util_same(a, b, 12 * 40);
        }
        tokens_drop(&t);
        drop(&f);
    }
}

START_TEST(levels_agree_on_wild_weights) {
    for (uint32_t i = 1; i < N_LEVEL; i++) {
        const kvc__kern *k = util_level(i);
        if (k != NULL) {
            agree_on_wild_weights(k, types[_i]);
        }
    }
}
END_TEST

int main(void) {
    Suite *s = suite_create("mat");
    TCase *c = tcase_create("layout");
    tcase_add_test(c, known_types);
    tcase_add_test(c, init_refuses_bad_sizes);
    tcase_add_loop_test(c, rows_come_back_from_groups, 0, (int)N_TYPE);
    tcase_add_loop_test(c, groups_pack_alone, 0, (int)N_TYPE);
    suite_add_tcase(s, c);
    c = tcase_create("products");
    tcase_set_timeout(c, 60);
    tcase_add_loop_test(c, int8_products_are_exact, 0, 3);
    tcase_add_loop_test(c, float_products_are_exact, 0, (int)N_TYPE);
    tcase_add_loop_test(c, float_products_of_odd_widths, 0, 2);
    tcase_add_loop_test(c, products_approach_double, 0, (int)N_TYPE);
    tcase_add_test(c, int8_extremes_do_not_saturate);
    tcase_add_loop_test(c, levels_agree_on_wild_weights, 0, (int)N_TYPE);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    const int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}

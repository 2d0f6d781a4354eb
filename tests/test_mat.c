/* SPDX-License-Identifier: MIT
 * test_mat.c: weight matrices: sizes, packing against a plain reading of the file's blocks, and
 * products at every level against sums in double; the levels, the number of tokens and the split of
 * groups must not change a bit. */
#include "weight_util.h"

#include "mat.h"
#include "os.h"

#include <stdio.h>
#include <stdlib.h>

#define MAX_COL 768u
#define MAX_ROW 100u
#define MAX_TOK 20u
#define OUT     (MAX_TOK * (MAX_ROW + 3))

/* A file's rows with the matrix packed from them. */
typedef struct fixture {
    kvc__mem mem;
    kvc__mat mat;
    uint8_t *file;
    size_t row_bytes, file_bytes;
} fixture;

static void make(fixture *f, uint64_t *seed, uint32_t type, uint32_t n_row, uint32_t n_col) {
    *f = (fixture){0};
    kvc__mem_init(&f->mem, NULL, NULL);
    ck_assert_int_eq(kvc__mat_init(&f->mat, type, n_row, n_col, NULL), KVC_OK);
    f->row_bytes = weight_bytes(type, n_col);
    f->file_bytes = f->row_bytes * n_row;
    f->file = kvc__alloc(&f->mem, f->file_bytes);
    f->mat.data = kvc__alloc(&f->mem, kvc__mat_bytes(&f->mat));
    ck_assert_ptr_nonnull(f->file);
    ck_assert_ptr_nonnull(f->mat.data);
    weight_fill(seed, type, f->file, (uint64_t)n_row * n_col);
    kvc__mat_pack(&f->mat, f->file, 0, f->mat.n_group);
}

static void drop(fixture *f) {
    kvc__free(&f->mem, f->mat.data, kvc__mat_bytes(&f->mat));
    kvc__free(&f->mem, f->file, f->file_bytes);
}

/* Columns that a type's rows can have, about n. */
static uint32_t columns_near(uint32_t type, uint32_t n) {
    const uint32_t columns = weight_columns(type);
    return columns < 32 ? n : (n + columns - 1) / columns * columns;
}

/* Element (row, col) by the plain reading. */
static weight file_weight(const fixture *f, uint32_t row, uint32_t col) {
    return weight_at(f->mat.type, f->file + row * f->row_bytes, col);
}

static float file_float(const fixture *f, uint32_t row, uint32_t col) {
    const weight w = file_weight(f, row, col);
    return weight_has_min(f->mat.type) ? fmaf(w.scale, w.value, w.min) : w.scale * w.value;
}

START_TEST(known_types) {
    for (uint32_t i = 0; i < N_TYPE; i++) {
        util_check(kvc__mat_known(weight_types[i]));
        ck_assert_int_eq(kvc__mat_quantised(weight_types[i]), i >= N_FLOAT);
    }
    util_check(!kvc__mat_known(KVC__T_Q3_K));
    util_check(!kvc__mat_known(UINT32_MAX));
    util_check(!kvc__mat_quantised(KVC__T_Q3_K));
}
END_TEST

/* What is read for a token is no more than what the file has. */
START_TEST(packed_bytes_are_the_files) {
    kvc__mat m;
    ck_assert_int_eq(kvc__mat_init(&m, weight_types[_i], 48, 768, NULL), KVC_OK);
    ck_assert_uint_eq(kvc__mat_bytes(&m), weight_bytes(weight_types[_i], 48 * 768));
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
    ck_assert_int_eq(kvc__mat_init(&m, KVC__T_Q3_K, 1, 256, &err), KVC_E_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(err.text, "Q5_K or Q6_K"));
    static const uint32_t wide[] = {KVC__T_Q4_K, KVC__T_Q5_K, KVC__T_Q6_K};
    for (size_t i = 0; i < 3; i++) {
        ck_assert_int_eq(kvc__mat_init(&m, wide[i], 16, 576, &err), KVC_E_FORMAT);
        ck_assert_ptr_nonnull(strstr(err.text, "columns a multiple of 256"));
        ck_assert_int_eq(kvc__mat_init(&m, wide[i], 16, 768, &err), KVC_OK);
    }
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
        const uint32_t n_col = columns_near(weight_types[_i], 32 + 240 * shape);
        fixture f;
        make(&f, &seed, weight_types[_i], rows[shape], n_col);
        for (uint32_t r = 0; r < rows[shape]; r++) {
            kvc__mat_row(&f.mat, r, out);
            for (uint32_t c = 0; c < n_col; c++) {
                util_check(out[c] == file_float(&f, r, c));
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
    make(&f, &seed, weight_types[_i], 50, columns_near(weight_types[_i], 64));
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
    t->a.d = malloc(2 * n * blocks * sizeof(float));
    t->a.sum = malloc(2 * n * blocks * sizeof(int32_t));
    util_fill(seed, t->f, n * stride, 2.0f);
    for (uint32_t i = 0; i < n && n_col % 32 == 0; i++) {
        k->quantize(t->f + i * stride, n_col, t->a.q + (size_t)i * n_col, t->a.d + 2 * i * blocks,
                    t->a.sum + 2 * i * blocks);
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
    one.d += 2 * t * blocks;
    one.sum += 2 * t * blocks;
    return one;
}

/* One output in the stated order, operation by operation. */
static float exact_q(const fixture *f, const kvc__act *a, uint32_t t, uint32_t row) {
    const uint32_t blocks = a->n_col / 32;
    float acc = 0.0f, accm = 0.0f;
    for (uint32_t b = 0; b < blocks; b++) {
        const float da = a->d[2 * (t * blocks + b)];
        int32_t isum = 0, sum = 0;
        weight w = {0};
        for (uint32_t c = 32 * b; c < 32 * b + 32; c++) {
            const int32_t q = a->q[(size_t)t * a->n_col + c];
            w = file_weight(f, row, c);
            isum += (f->mat.type == KVC__T_Q6_K ? w.sc : 1) * (int32_t)w.value * q;
            sum += q;
        }
        const float scale = f->mat.type == KVC__T_Q6_K ? w.d : w.scale;
        acc = fmaf(scale * da, (float)isum, acc);
        accm = fmaf(w.min, da * (float)sum, accm);
    }
    return weight_has_min(f->mat.type) ? acc + accm : acc;
}

static float exact_f(const fixture *f, const kvc__act *a, uint32_t t, uint32_t row) {
    float acc = 0.0f;
    for (uint32_t c = 0; c < a->n_col; c++) {
        acc = fmaf(file_float(f, row, c), a->f[t * a->f_stride + c], acc);
    }
    return acc;
}

static void product(const kvc__kern *k, int q, const kvc__mat *m, uint32_t g0, uint32_t g1,
                    const kvc__act *a, float *out, size_t stride) {
    const kvc__mat part = kvc__mat_part(m, g0, g1);
    out += (size_t)KVC__GROUP * g0;
    if (q) {
        k->mm_q(&part, a, out, stride);
        return;
    }
    float *tile = malloc(kvc__tile_bytes(m));
    k->mm_f(&part, a, out, stride, tile);
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
        const uint32_t n_col = columns_near(type, n % 5 == 0 ? 260 : n % 2 == 0 ? 32 : 64);
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
            check_shapes(k, 1, weight_types[_i]);
        }
    }
}
END_TEST

START_TEST(float_products_are_exact) {
    for (uint32_t i = 0; i < N_LEVEL; i++) {
        const kvc__kern *k = util_level(i);
        if (k != NULL) {
            check_shapes(k, 0, weight_types[_i]);
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
        make(&f, &seed, weight_types[_i], 20 + n_col, n_col);
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
    make(&f, &seed, weight_types[_i], 40, MAX_COL);
    tokens_make(&t, &seed, 1, MAX_COL, util_level(0));
    product(util_level(0), 0, &f.mat, 0, f.mat.n_group, &t.a, x, 40);
    memcpy(q, x, sizeof q);
    if (kvc__mat_quantised(weight_types[_i])) {
        product(util_level(0), 1, &f.mat, 0, f.mat.n_group, &t.a, q, 40);
    }
    for (uint32_t r = 0; r < 40; r++) {
        double sum = 0, size = 0;
        for (uint32_t c = 0; c < MAX_COL; c++) {
            const weight w = file_weight(&f, r, c);
            const double x_w = (double)w.scale * (double)w.value + (double)w.min;
            const double p = x_w * (double)t.a.f[c];
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

/* The largest magnitudes: no saturation anywhere. `ones`: all bits of the values are set, else
 * none; of Q8_0 all but the sign. */
static void check_extremes(const kvc__kern *k, uint32_t type, bool ones, int8_t q) {
    uint64_t seed = 6;
    fixture f;
    tokens t;
    make(&f, &seed, type, 16, 256);
    const size_t block = weight_bytes(type, weight_columns(type));
    const size_t head = weight_has_min(type) ? 4 : 2;
    for (size_t at = 0; at < f.file_bytes; at++) {
        const size_t in = at % block;
        if (type == KVC__T_Q6_K ? in < 208 : in >= head) {
            f.file[at] = ones ? 255 : 0;
            f.file[at] ^= type == KVC__T_Q8_0 ? 0x80 : 0;
        }
        if (type == KVC__T_Q6_K && in >= 192 && in < 208) {
            f.file[at] = 0x80; /* scales of -128 */
        }
    }
    kvc__mat_pack(&f.mat, f.file, 0, 1);
    tokens_make(&t, &seed, 9, 256, k);
    memset(t.a.q, q, (size_t)9 * 256);
    for (uint32_t b = 0; b < 9 * 8; b++) {
        t.a.sum[2 * b] = q * 32;
        t.a.sum[2 * b + 1] = q * 16;
        t.a.d[2 * b + 1] = t.a.d[2 * b] * (float)(q * 32);
    }
    check_product(k, 1, &f, &t.a);
    tokens_drop(&t);
    drop(&f);
}

START_TEST(int8_extremes_do_not_saturate) {
    for (uint32_t i = 0; i < N_LEVEL; i++) {
        const kvc__kern *k = util_level(i);
        for (int sign = 0; k != NULL && sign < 4; sign++) {
            check_extremes(k, weight_types[_i], sign & 1, sign & 2 ? 127 : -127);
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
        const uint32_t n_col = columns_near(type, 64);
        make(&f, &seed, type, 40, n_col);
        for (size_t at = 0; at < f.file_bytes; at++) {
            f.file[at] = (uint8_t)util_rand(&seed);
        }
        kvc__mat_pack(&f.mat, f.file, 0, f.mat.n_group);
        tokens_make(&t, &seed, 12, n_col, k);
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
            agree_on_wild_weights(k, weight_types[_i]);
        }
    }
}
END_TEST

/* ---- the package gguf's reading */

static kvc__map map;
static kvc__mem map_mem;
static kvc__gguf blocks;

static void open_blocks(void) {
    char path[4096];
    kvc__err err = {{0}};
    (void)snprintf(path, sizeof path, "%s/blocks.gguf", getenv("KVC_TEST_MODELS"));
    ck_assert_msg(kvc__map_file(path, &map, &err) == KVC_OK, "%s", err.text);
    kvc__mem_init(&map_mem, NULL, NULL);
    ck_assert_int_eq(kvc__gguf_open(&map_mem, map.data, map.size, &blocks, NULL), KVC_OK);
}

static void close_blocks(void) {
    kvc__gguf_close(&blocks);
    kvc__unmap(&map);
}

static void pack_tensor(kvc__mat *m, const kvc__gguf_tensor *t) {
    ck_assert_ptr_nonnull(t);
    ck_assert_int_eq(kvc__mat_init(m, t->type, t->dim[1], t->dim[0], NULL), KVC_OK);
    m->data = kvc__alloc(&map_mem, kvc__mat_bytes(m));
    ck_assert_ptr_nonnull(m->data);
    kvc__mat_pack(m, t->data, 0, m->n_group);
}

/* The matrix of that type in blocks.gguf, and of what the package reads in it. */
static void pack_both(uint32_t type, kvc__mat *m, kvc__mat *read) {
    uint32_t columns, bytes;
    const char *name = NULL;
    char other[32];
    util_check(kvc__type_info(type, &columns, &bytes, &name));
    (void)snprintf(other, sizeof other, "%s read", name);
    pack_tensor(m, kvc__gguf_tensor_find(&blocks, name));
    pack_tensor(read, kvc__gguf_tensor_find(&blocks, other));
    ck_assert_uint_eq(m->type, type);
    ck_assert_uint_eq(read->type, KVC__T_F32);
}

START_TEST(rows_are_what_gguf_reads) {
    kvc__mat m, read;
    float got[MAX_COL], want[MAX_COL];
    pack_both(weight_types[_i], &m, &read);
    for (uint32_t r = 0; r < m.n_row; r++) {
        kvc__mat_row(&m, r, got);
        kvc__mat_row(&read, r, want);
        util_same(got, want, m.n_col);
    }
    kvc__free(&map_mem, m.data, kvc__mat_bytes(&m));
    kvc__free(&map_mem, read.data, kvc__mat_bytes(&read));
}
END_TEST

/* Float products equal those of the reading bit for bit; int8 ones come near the sum in double. */
static void check_against_reading(const kvc__kern *k, const kvc__mat *m, const kvc__mat *read,
                                  uint32_t n_tok) {
    uint64_t seed = 8;
    static float got[OUT], want[OUT];
    tokens t;
    tokens_make(&t, &seed, n_tok, m->n_col, k);
    product(k, 0, m, 0, m->n_group, &t.a, got, m->n_row);
    product(util_level(0), 0, read, 0, m->n_group, &t.a, want, m->n_row);
    util_same(got, want, (size_t)n_tok * m->n_row);
    if (kvc__mat_quantised(m->type)) {
        product(k, 1, m, 0, m->n_group, &t.a, got, m->n_row);
    }
    for (uint32_t r = 0; r < m->n_row && kvc__mat_quantised(m->type); r++) {
        float row[MAX_COL];
        double sum = 0, size = 0;
        kvc__mat_row(read, r, row);
        for (uint32_t c = 0; c < m->n_col; c++) {
            const double x = (double)t.a.d[c / 32 * 2] * t.a.q[c];
            sum += x * (double)row[c];
            size += fabs(x * (double)row[c]);
        }
        util_near(got[r], sum, size, 1e-5);
    }
    tokens_drop(&t);
}

START_TEST(products_are_those_of_what_gguf_reads) {
    kvc__mat m, read;
    pack_both(weight_types[_i], &m, &read);
    for (uint32_t i = 0; i < N_LEVEL; i++) {
        for (uint32_t n = 1; util_level(i) != NULL && n <= 13; n += 4) {
            check_against_reading(util_level(i), &m, &read, n);
        }
    }
    kvc__free(&map_mem, m.data, kvc__mat_bytes(&m));
    kvc__free(&map_mem, read.data, kvc__mat_bytes(&read));
}
END_TEST

int main(void) {
    Suite *s = suite_create("mat");
    TCase *c = tcase_create("layout");
    tcase_add_test(c, known_types);
    tcase_add_test(c, init_refuses_bad_sizes);
    tcase_add_loop_test(c, rows_come_back_from_groups, 0, (int)N_TYPE);
    tcase_add_loop_test(c, groups_pack_alone, 0, (int)N_TYPE);
    tcase_add_loop_test(c, packed_bytes_are_the_files, 0, (int)N_TYPE);
    suite_add_tcase(s, c);
    c = tcase_create("products");
    tcase_set_timeout(c, 60);
    tcase_add_loop_test(c, int8_products_are_exact, (int)N_FLOAT, (int)N_TYPE);
    tcase_add_loop_test(c, float_products_are_exact, 0, (int)N_TYPE);
    tcase_add_loop_test(c, float_products_of_odd_widths, 0, (int)N_FLOAT);
    tcase_add_loop_test(c, products_approach_double, 0, (int)N_TYPE);
    tcase_add_loop_test(c, int8_extremes_do_not_saturate, (int)N_FLOAT, (int)N_TYPE);
    tcase_add_loop_test(c, levels_agree_on_wild_weights, 0, (int)N_TYPE);
    suite_add_tcase(s, c);
    c = tcase_create("gguf");
    tcase_add_unchecked_fixture(c, open_blocks, close_blocks);
    tcase_add_loop_test(c, rows_are_what_gguf_reads, 0, (int)N_TYPE);
    tcase_add_loop_test(c, products_are_those_of_what_gguf_reads, 0, (int)N_TYPE);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    const int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}

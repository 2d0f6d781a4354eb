/* SPDX-License-Identifier: MIT
 * mat.c: brings weight matrices from the file's rows into the engine's groups of 16 rows, at
 * load or in use, and takes single rows out again (embeddings). Sizes are checked; it never
 * computes a product. */
#include "mat.h"

#include "gguf.h"
#include "half.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#define MAT_MAX  ((uint64_t)1 << 31) /* most rows, most columns */
#define MAT_UNIT 256u                /* a unit of a type has no more bytes */

/* One type. 16 rows' blocks have as many bytes here as in the file. */
typedef struct mat_type {
    uint32_t type;
    uint32_t columns;   /* of what shares a head */
    uint32_t row_bytes; /* of one row's, in the file */
    uint32_t bits;      /* of a value; 0 for floats */
    uint32_t head;      /* bytes of one row's head, in front of the blocks */
    bool has_min;
} mat_type;

static const mat_type mat_types[] = {
    {KVC__T_F32, 1, 4, 0, 0, false},      {KVC__T_F16, 1, 2, 0, 0, false},
    {KVC__T_BF16, 1, 2, 0, 0, false},     {KVC__T_Q8_0, 32, 34, 8, 2, false},
    {KVC__T_Q4_0, 32, 18, 4, 2, false},   {KVC__T_Q4_1, 32, 20, 4, 4, true},
    {KVC__T_Q5_0, 32, 22, 5, 2, false},   {KVC__T_Q5_1, 32, 24, 5, 4, true},
    {KVC__T_Q4_K, 256, 144, 4, 16, true}, {KVC__T_Q5_K, 256, 176, 5, 16, true},
    {KVC__T_Q6_K, 256, 210, 6, 2, false},
};

static const mat_type *mat_find(uint32_t type) {
    for (size_t i = 0; i < sizeof mat_types / sizeof mat_types[0]; i++) {
        if (mat_types[i].type == type) {
            return &mat_types[i];
        }
    }
    return NULL;
}

/* Where block s of 16 rows begins below its head. */
static size_t mat_block_at(const mat_type *t, uint32_t s) {
    const size_t shared = t->columns / KVC__BLOCK;
    const size_t body = ((size_t)t->row_bytes - t->head) / shared;
    return KVC__GROUP * (t->head + s * body);
}

bool kvc__mat_known(uint32_t type) {
    return mat_find(type) != NULL;
}

bool kvc__mat_quantised(uint32_t type) {
    const mat_type *t = mat_find(type);
    return t != NULL && t->bits > 0;
}

int32_t kvc__mat_init(kvc__mat *m, uint32_t type, uint64_t n_row, uint64_t n_col, kvc__err *err) {
    const mat_type *t = mat_find(type);
    *m = (kvc__mat){0};
    if (t == NULL) {
        return kvc__fail(err, KVC_E_UNSUPPORTED,
                         "weights of type %" PRIu32
                         " are not supported; convert the model to " KVC__MAT_TYPES,
                         type);
    }
    if (n_row < 1 || n_row > MAT_MAX || n_col < 1 || n_col > MAT_MAX || n_col % t->columns != 0) {
        return kvc__fail(err, KVC_E_FORMAT,
                         "a matrix of %" PRIu64 " rows and %" PRIu64 " columns can't be held: both "
                         "must be 1 to 2^31, and columns a multiple of %" PRIu32,
                         n_row, n_col, t->columns);
    }
    const uint64_t n_group = (n_row + KVC__GROUP - 1) / KVC__GROUP;
    size_t group_bytes, bytes;
    if (!kvc__mul_size((size_t)(n_col / t->columns), KVC__GROUP * t->row_bytes, &group_bytes) ||
        !kvc__mul_size((size_t)n_group, group_bytes, &bytes)) {
        return kvc__fail(err, KVC_E_FORMAT,
                         "a matrix of %" PRIu64 " rows and %" PRIu64 " columns is too large for "
                         "this machine's addresses",
                         n_row, n_col);
    }
    *m = (kvc__mat){.type = type,
                    .n_row = (uint32_t)n_row,
                    .n_col = (uint32_t)n_col,
                    .n_group = (uint32_t)n_group,
                    .group_bytes = group_bytes,
                    .stride = group_bytes};
    return KVC_OK;
}

size_t kvc__mat_bytes(const kvc__mat *m) {
    return (size_t)m->n_group * m->group_bytes;
}

/* ---------------------------------------------------------------- the file's blocks */

static uint32_t mat_word(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static void mat_put_word(uint8_t *p, uint32_t v) {
    memcpy(p, &v, sizeof v);
}

/* A byte each for the four bits of x, the lowest in the first. */
static uint32_t mat_spread(uint32_t x) {
    return (x & 15) * 0x00204081u & 0x01010101u;
}

/* The low four bits of columns 4i to 4i + 3 of block s, a byte each. Two halves of a block share
 * bytes, of K types two blocks, of Q6_K blocks s and s + 2. */
static uint32_t mat_low(const mat_type *t, const uint8_t *src, uint32_t s, uint32_t i) {
    switch (t->type) {
    case KVC__T_Q4_K:
        return mat_word(src + 16 + 32 * (s / 2) + 4 * i) >> 4 * (s % 2) & 0x0f0f0f0fu;
    case KVC__T_Q5_K:
        return mat_word(src + 48 + 32 * (s / 2) + 4 * i) >> 4 * (s % 2) & 0x0f0f0f0fu;
    case KVC__T_Q6_K:
        return mat_word(src + 64 * (s / 4) + 32 * (s % 2) + 4 * i) >> 4 * (s % 4 / 2) & 0x0f0f0f0fu;
    default:
        return mat_word(src + t->row_bytes - 16 + 4 * (i % 4)) >> 4 * (i / 4) & 0x0f0f0f0fu;
    }
}

/* The bits above those. */
static uint32_t mat_high(const mat_type *t, const uint8_t *src, uint32_t s, uint32_t i) {
    switch (t->type) {
    case KVC__T_Q5_K:
        return mat_word(src + 16 + 4 * i) >> s & 0x01010101u;
    case KVC__T_Q6_K:
        return mat_word(src + 128 + 32 * (s / 4) + 4 * i) >> 2 * (s % 4) & 0x03030303u;
    default:
        return mat_spread(mat_word(src + t->head) >> 4 * i);
    }
}

/* ---------------------------------------------------------------- packing */

/* Row r of a head: two bytes or four of every row in turn. Q6_K has its own at the end. */
static void mat_pack_head(const mat_type *t, const uint8_t *src, uint32_t r, uint8_t *dst) {
    const uint32_t halves = t->head < 4 ? t->head : 4;
    src += t->type == KVC__T_Q6_K ? t->row_bytes - t->head : 0;
    for (uint32_t i = 0; i < halves; i += 2) {
        memcpy(dst + KVC__GROUP * i + 2 * r, src + i, 2);
    }
    for (uint32_t i = halves; i < t->head; i += 4) {
        memcpy(dst + KVC__GROUP * i + 4 * r, src + i, 4);
    }
}

/* Row r of a block's upper bits, in front of the low ones; returns where those begin. */
static uint8_t *mat_pack_high(const mat_type *t, const uint8_t *src, uint32_t s, uint32_t r,
                              uint8_t *dst) {
    const uint32_t each = t->bits - 4, planes = each; /* four or eight words fill a plane */
    for (uint32_t p = 0; p < planes; p++, dst += 4 * KVC__GROUP) {
        uint32_t v = 0;
        for (uint32_t i = 0; i < 8 / planes; i++) {
            v |= mat_high(t, src, s, 8 / planes * p + i) << each * i;
        }
        mat_put_word(dst + 4 * r, v);
    }
    return dst;
}

/* Row r of block s. */
static void mat_pack_block(const mat_type *t, const uint8_t *src, uint32_t s, uint32_t r,
                           uint8_t *dst) {
    if (t->bits == 8) {
        for (uint32_t i = 0; i < 32; i += 4) {
            mat_put_word(dst + KVC__GROUP * i + 4 * r, mat_word(src + t->head + i) ^ 0x80808080u);
        }
        return;
    }
    if (t->type == KVC__T_Q6_K) {
        dst[r] = src[192 + 2 * s];
        dst[KVC__GROUP + r] = src[192 + 2 * s + 1];
        dst += 2 * KVC__GROUP;
    }
    dst = mat_pack_high(t, src, s, r, dst);
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t v = mat_low(t, src, s, i) | mat_low(t, src, s, i + 4) << 4;
        mat_put_word(dst + (size_t)4 * KVC__GROUP * i + 4 * r, v);
    }
}

/* Row r of a head and its blocks, or of a column of floats. */
static void mat_pack_unit(const mat_type *t, const uint8_t *src, uint32_t r, uint8_t *dst) {
    if (t->bits == 0) {
        /* Of a size that the compiler knows: a call for each weight would take longest of all. */
        if (t->row_bytes == 4) {
            memcpy(dst + 4 * r, src, 4);
        } else {
            memcpy(dst + 2 * r, src, 2);
        }
        return;
    }
    mat_pack_head(t, src, r, dst);
    for (uint32_t s = 0; s < t->columns / KVC__BLOCK; s++) {
        mat_pack_block(t, src, s, r, dst + mat_block_at(t, s));
    }
}

void kvc__mat_pack(kvc__mat *m, const uint8_t *src, uint32_t first, uint32_t end) {
    const mat_type *t = mat_find(m->type);
    if (t == NULL) {
        return;
    }
    const size_t n_unit = m->n_col / t->columns;
    for (uint32_t g = first; g < end && g < m->n_group; g++) {
        uint8_t *dst = m->data + g * m->stride;
        const uint32_t left = m->n_row - KVC__GROUP * g;
        if (left < KVC__GROUP) {
            memset(dst, 0, m->group_bytes);
        }
        for (uint32_t r = 0; r < KVC__GROUP && r < left; r++) {
            const uint8_t *row = src + ((size_t)KVC__GROUP * g + r) * n_unit * t->row_bytes;
            for (size_t u = 0; u < n_unit; u++) {
                mat_pack_unit(t, row + u * t->row_bytes, r, dst + u * KVC__GROUP * t->row_bytes);
            }
        }
    }
}

void kvc__mat_group(const kvc__mat *m, uint32_t g, uint8_t *dst, kvc__mat *out) {
    const mat_type *t = mat_find(m->type);
    const uint32_t left = m->n_row - KVC__GROUP * g;
    *out = *m;
    out->data = dst;
    out->rows = NULL;
    out->n_row = left < KVC__GROUP ? left : KVC__GROUP;
    out->n_group = 1;
    if (t != NULL) {
        const size_t row_bytes = m->n_col / t->columns * (size_t)t->row_bytes;
        kvc__mat_pack(out, m->rows + KVC__GROUP * (size_t)g * row_bytes, 0, 1);
    }
}

/* ---------------------------------------------------------------- rows */

static float mat_half(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return half_of_f16(h);
}

/* Scale or minimum (what 1) of block s in row r of the twelve bytes of Q4_K and Q5_K, six bits. */
static uint32_t mat_six_bits(const uint8_t *words, uint32_t what, uint32_t s, uint32_t r) {
    const uint8_t *of_row = words + 4 * r + s % 4;
    const uint32_t own = of_row[64 * what];
    return s < 4 ? own & 63 : (of_row[128] >> 4 * what & 15) | (own >> 2 & 0x30);
}

/* Value k of row r in a block, as a number. */
static int32_t mat_value(const mat_type *t, const uint8_t *block, uint32_t r, uint32_t k) {
    const uint32_t i = k / 4, in = 4 * r + k % 4;
    if (t->bits == 8) {
        return block[64 * i + in] - 128;
    }
    const uint8_t *low = block + 64 * (t->bits - 4);
    int32_t v = low[64 * (i % 4) + in] >> 4 * (i / 4) & 15;
    if (t->bits == 5) {
        v |= (block[in] >> i & 1) << 4;
    } else if (t->bits == 6) {
        v |= (block[64 * (i / 4) + in] >> 2 * (i % 4) & 3) << 4;
    }
    return t->has_min ? v : v - (1 << (t->bits - 1));
}

/* Row r of block s below a head: 32 floats, rounded once at most (kern.h). */
static void mat_block_row(const mat_type *t, const uint8_t *head, uint32_t s, uint32_t r,
                          float *out) {
    const uint8_t *block = head + mat_block_at(t, s);
    float d = mat_half(head + 2 * r);
    float min = t->has_min ? mat_half(head + 32 + 2 * r) : 0.0f;
    float scale[2];
    if (t->head == 16) {
        d *= (float)mat_six_bits(head + 64, 0, s, r);
        min *= -(float)mat_six_bits(head + 64, 1, s, r);
    }
    scale[0] = scale[1] = d;
    if (t->type == KVC__T_Q6_K) {
        scale[0] *= (float)(int8_t)block[r];
        scale[1] *= (float)(int8_t)block[KVC__GROUP + r];
        block += 2 * KVC__GROUP;
    }
    for (uint32_t k = 0; k < KVC__BLOCK; k++) {
        const float v = (float)mat_value(t, block, r, k);
        out[k] = t->has_min ? fmaf(scale[k / 16], v, min) : scale[k / 16] * v;
    }
}

/* The float of row r in a column of 16. */
static float mat_float(uint32_t type, const uint8_t *column, uint32_t r) {
    uint16_t h;
    float x;
    switch (type) {
    case KVC__T_F32:
        memcpy(&x, column + 4 * r, sizeof x);
        return x;
    case KVC__T_F16:
        return mat_half(column + 2 * r);
    default:
        memcpy(&h, column + 2 * r, sizeof h);
        return half_of_bf16(h);
    }
}

void kvc__mat_row(const kvc__mat *m, uint32_t row, float *out) {
    uint8_t own[KVC__GROUP * MAT_UNIT] = {0};
    const mat_type *t = mat_find(m->type);
    if (t == NULL) {
        return;
    }
    const size_t n_unit = m->n_col / t->columns;
    for (size_t u = 0; u < n_unit; u++, out += t->columns) {
        const uint8_t *unit = own;
        uint32_t r = 0;
        if (m->data != NULL) {
            unit = m->data + row / KVC__GROUP * m->stride + u * KVC__GROUP * t->row_bytes;
            r = row % KVC__GROUP;
        } else {
            mat_pack_unit(t, m->rows + ((size_t)row * n_unit + u) * t->row_bytes, 0, own);
        }
        if (t->bits == 0) {
            *out = mat_float(m->type, unit, r);
        }
        for (uint32_t s = 0; s < t->columns / KVC__BLOCK; s++) {
            mat_block_row(t, unit, s, r, out + (size_t)KVC__BLOCK * s);
        }
    }
}

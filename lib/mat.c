/* SPDX-License-Identifier: MIT
 * mat.c: brings weight matrices from the file's rows into the engine's groups of 16 rows, once, at
 * load, and takes single rows out again (embeddings). Sizes are checked; it never computes a
 * product. */
#include "mat.h"

#include "gguf.h"
#include "half.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#define MAT_MAX ((uint64_t)1 << 31) /* most rows, most columns */

/* One type: a block in the file and the same block of 16 rows here. */
typedef struct mat_type {
    uint32_t type;
    uint32_t columns;     /* of a block */
    uint32_t file_bytes;  /* of one row's block */
    uint32_t head_bytes;  /* of one row's block: scales in front of the values */
    uint32_t group_bytes; /* of 16 rows' block */
} mat_type;

static const mat_type mat_types[] = {
    {KVC__T_F32, 1, 4, 0, 64},
    {KVC__T_F16, 1, 2, 0, 32},
    {KVC__T_Q8_0, KVC__BLOCK, 34, 2, 544},
    {KVC__T_Q4_0, KVC__BLOCK, 18, 2, 288},
    {KVC__T_Q4_1, KVC__BLOCK, 20, 4, 320},
};

static const mat_type *mat_find(uint32_t type) {
    for (size_t i = 0; i < sizeof mat_types / sizeof mat_types[0]; i++) {
        if (mat_types[i].type == type) {
            return &mat_types[i];
        }
    }
    return NULL;
}

bool kvc__mat_known(uint32_t type) {
    return mat_find(type) != NULL;
}

bool kvc__mat_quantised(uint32_t type) {
    const mat_type *t = mat_find(type);
    return t != NULL && t->columns > 1;
}

int32_t kvc__mat_init(kvc__mat *m, uint32_t type, uint64_t n_row, uint64_t n_col, kvc__err *err) {
    const mat_type *t = mat_find(type);
    *m = (kvc__mat){0};
    if (t == NULL) {
        return kvc__fail(err, KVC_E_UNSUPPORTED,
                         "weights of type %" PRIu32 " are not supported; convert the model to F32, "
                         "F16, Q8_0, Q4_0 or Q4_1",
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
    if (!kvc__mul_size((size_t)(n_col / t->columns), t->group_bytes, &group_bytes) ||
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
                    .group_bytes = group_bytes};
    return KVC_OK;
}

size_t kvc__mat_bytes(const kvc__mat *m) {
    return (size_t)m->n_group * m->group_bytes;
}

/* A row's block of quantised values: scales first, then four bytes of every row in turn. Nibbles
 * need no change: byte 4g + j holds columns 4g + j and 16 + 4g + j in the file too. */
static void mat_pack_block(const mat_type *t, const uint8_t *src, uint32_t r, uint8_t *dst) {
    for (uint32_t i = 0; i < t->head_bytes; i += 2) {
        memcpy(dst + KVC__GROUP * i + 2 * r, src + i, 2);
    }
    src += t->head_bytes;
    dst += KVC__GROUP * t->head_bytes;
    const uint32_t turn = t->type == KVC__T_Q8_0 ? 0x80808080u : 0;
    for (uint32_t i = 0; i < t->file_bytes - t->head_bytes; i += 4) {
        uint32_t v;
        memcpy(&v, src + i, sizeof v);
        v ^= turn;
        memcpy(dst + KVC__GROUP * i + 4 * r, &v, sizeof v);
    }
}

void kvc__mat_pack(kvc__mat *m, const uint8_t *src, uint32_t first, uint32_t end) {
    const mat_type *t = mat_find(m->type);
    if (t == NULL) {
        return;
    }
    const size_t n_block = m->n_col / t->columns;
    const size_t row_bytes = n_block * t->file_bytes;
    for (uint32_t g = first; g < end && g < m->n_group; g++) {
        uint8_t *dst = m->data + g * m->group_bytes;
        const uint32_t left = m->n_row - KVC__GROUP * g;
        if (left < KVC__GROUP) {
            memset(dst, 0, m->group_bytes);
        }
        for (uint32_t r = 0; r < KVC__GROUP && r < left; r++) {
            const uint8_t *row = src + ((size_t)KVC__GROUP * g + r) * row_bytes;
            for (size_t b = 0; b < n_block; b++) {
                if (t->columns == 1) {
                    memcpy(dst + b * t->group_bytes + r * t->file_bytes, row + b * t->file_bytes,
                           t->file_bytes);
                } else {
                    mat_pack_block(t, row + b * t->file_bytes, r, dst + b * t->group_bytes);
                }
            }
        }
    }
}

static float mat_half(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return half_of_f16(h);
}

/* Row r of a block of 16: 32 floats. */
static void mat_block_row(uint32_t type, const uint8_t *block, uint32_t r, float *out) {
    const float d = mat_half(block + 2 * r);
    const float min = type == KVC__T_Q4_1 ? mat_half(block + 32 + 2 * r) : 0.0f;
    const uint8_t *v = block + (type == KVC__T_Q4_1 ? 64 : 32) + 4 * r;
    for (uint32_t k = 0; k < KVC__BLOCK; k++) {
        if (type == KVC__T_Q8_0) {
            out[k] = d * (float)(v[(size_t)64 * (k / 4) + k % 4] - 128);
            continue;
        }
        const uint8_t byte = v[(size_t)64 * (k % 16 / 4) + k % 4];
        const int nibble = k < 16 ? byte & 15 : byte >> 4;
        out[k] = type == KVC__T_Q4_1 ? fmaf(d, (float)nibble, min) : d * (float)(nibble - 8);
    }
}

void kvc__mat_row(const kvc__mat *m, uint32_t row, float *out) {
    const uint8_t *group = m->data + row / KVC__GROUP * m->group_bytes;
    const mat_type *t = mat_find(m->type);
    const uint32_t r = row % KVC__GROUP;
    if (t == NULL) {
        return;
    }
    for (uint32_t c = 0; c < m->n_col; c += t->columns) {
        const uint8_t *block = group + (size_t)(c / t->columns) * t->group_bytes;
        if (m->type == KVC__T_F32) {
            memcpy(out + c, block + 4 * r, sizeof *out);
        } else if (m->type == KVC__T_F16) {
            out[c] = mat_half(block + 2 * r);
        } else {
            mat_block_row(m->type, block, r, out + c);
        }
    }
}

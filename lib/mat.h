/* SPDX-License-Identifier: MIT
 * mat.h: weight matrices in the engine's own layout, and activations. Rows of a matrix are held in
 * groups of 16, so that a vector's lanes are output rows and no sum is ever taken across lanes.
 * Packing happens once at load, or at each use when the weights are left in the file.
 *
 * Layout of one group of 16 rows (r = row in the group), by type. Rows past n_row are zero weights.
 *   F32        [n_col][16] float
 *   F16, BF16  [n_col][16] of two bytes
 * Quantised types have blocks of 32 columns, ascending: a head of scales (binary16), then values
 * without sign, as in the file. The low four bits of a block's values are
 *   low[4][16][4] bytes: byte [i][r][j] has column 4i + j below and column 16 + 4i + j above
 * and, where a value has five bits,
 *   high[16][4] bytes: bit i of byte [r][j] is the fifth of column 4i + j
 *   Q8_0       d[16]; [8][16][4] bytes, [k/4][r][k%4]: value + 128
 *   Q4_0       d[16]; low
 *   Q4_1       d[16], m[16]; low
 *   Q5_0       d[16]; high, low
 *   Q5_1       d[16], m[16]; high, low
 * Of the K types eight blocks share a head:
 *   Q4_K       d[16], dmin[16], scales[3][16][4] bytes: the file's twelve of each row, four by
 *              four; then eight times low
 *   Q5_K       the same head; then eight times high, low
 *   Q6_K       d[16]; then eight times: sc[2][16] int8 (scales of columns 0 to 15, 16 to 31),
 *              high[2][16][4] bytes (two bits at 2i of byte [h][r][j] are the upper ones of column
 *              16h + 4i + j), low
 * So a group has exactly the bytes that its rows have in the file. */
#ifndef KVC_MAT_H
#define KVC_MAT_H

#include "err.h"
#include "mem.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KVC__GROUP 16u /* rows of a group */
#define KVC__BLOCK 32u /* columns of a quantised block */

/** The types that can be packed, for sentences. */
#define KVC__MAT_TYPES "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K or Q6_K"

/** A weight matrix [n_row, n_col]: y[n_row] = W x[n_col]. */
typedef struct kvc__mat {
    uint32_t type; /* KVC__T_… of the file */
    uint32_t n_row;
    uint32_t n_col;   /* a multiple of 32 for quantised types, of 256 for K types */
    uint32_t n_group; /* n_row / 16, rounded up */
    size_t group_bytes;
    size_t stride;       /* bytes from a group to the next: another matrix's may lie between */
    uint8_t *data;       /* [n_group][group_bytes], 64-byte aligned; NULL: not packed */
    const uint8_t *rows; /* then the file's rows */
} kvc__mat;

/** Activations of n rows (tokens): floats, int8 in blocks of 32, or both, as those who read them
 * want; what nobody reads holds anything. */
typedef struct kvc__act {
    uint32_t n;     /* rows */
    uint32_t n_col; /* a multiple of 4; blocks of 32 when quantised */
    const float *f; /* [n, n_col], f_stride floats apart */
    size_t f_stride;
    int8_t *q;    /* [n, n_col] dense */
    float *d;     /* [n, n_col / 32, 2] a block's scale, absolute maximum / 127; scale × sum */
    int32_t *sum; /* [n, n_col / 32, 2] sum of q over the block, and over its first 16 columns */
} kvc__act;

/** True when that type can be packed. */
bool kvc__mat_known(uint32_t type);
/** True when activations are rounded to int8 in front of it under KVC_COMPUTE_INT8. */
bool kvc__mat_quantised(uint32_t type);
/** Fills shape and sizes of m (data NULL). KVC_E_UNSUPPORTED for a type, KVC_E_FORMAT for a size.
 */
int32_t kvc__mat_init(kvc__mat *m, uint32_t type, uint64_t n_row, uint64_t n_col, kvc__err *err);
/** Bytes of m's data. */
size_t kvc__mat_bytes(const kvc__mat *m);
/** Packs groups [first, end) from the file's rows at src. [any] for different groups. */
void kvc__mat_pack(kvc__mat *m, const uint8_t *src, uint32_t first, uint32_t end);
/** The rows of groups [first, end), as a matrix that shares m's data. m is packed. */
static inline kvc__mat kvc__mat_part(const kvc__mat *m, uint32_t first, uint32_t end) {
    const uint32_t left = m->n_row - KVC__GROUP * first, n = KVC__GROUP * (end - first);
    kvc__mat part = *m;
    part.data += first * m->stride;
    part.n_row = left < n ? left : n;
    part.n_group = end - first;
    return part;
}
/** Packs group g of a matrix that isn't packed into dst[group_bytes], 64-byte aligned: *out becomes
 * a matrix of these rows alone. [any] */
void kvc__mat_group(const kvc__mat *m, uint32_t g, uint8_t *dst, kvc__mat *out);
/** Row `row` as floats: out[n_col]. */
void kvc__mat_row(const kvc__mat *m, uint32_t row, float *out);

#endif

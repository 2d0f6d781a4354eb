/* SPDX-License-Identifier: MIT
 * pack.h: where things lie in a packed half page (kvc_packing of policy.h, which says what they
 * mean). It sits under the kernels, which read and write the numbers, and under host_math.c, which
 * moves them; it knows nothing of either.
 *
 *   scales   binary16: of row groups [group][64], of channels [64 / group_entry][dim]
 *   minima   the same, with KVC_PACK_ZERO; then zeros up to a multiple of 64 bytes
 *   codes    keys:   [word][64] words of 4 bytes. Byte i of a word holds in its bits from
 *                    bits × j on the code of element 4 × (planes × word + j) + i of that entry
 *            values: [64] rows of n_word × 4 bytes, in pieces of 16 bytes, at the row's end of 8,
 * 4, 2 and 1 as needed. Byte l of a piece of n bytes holds in its bits from bits × j on the code of
 * the piece's element n × j + l What is over in the last word or row is 0. */
#ifndef KVC_PACK_H
#define KVC_PACK_H

#include "kvc/policy.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KVC__PACK_MAX_DIM 1024u

typedef struct pack_layout {
    uint32_t dim, bits;
    uint32_t planes;  /* codes in a byte */
    uint32_t n_word;  /* words of a key, and of a row of values */
    uint32_t group;   /* elements of a row group; 0: a scale per channel */
    uint32_t n_group; /* row groups, or blocks of entries */
    uint32_t n_scale; /* in all */
    bool zero;
    size_t at_min, at_code; /* bytes in front of the minima and of the codes */
} pack_layout;

static inline pack_layout pack_layout_of(const kvc_packing *p) {
    pack_layout l = {.dim = p->dim, .bits = p->bits, .planes = 8 / p->bits};
    const uint32_t per_word = 4 * l.planes;
    l.n_word = (p->dim + per_word - 1) / per_word;
    l.zero = (p->flags & KVC_PACK_ZERO) != 0;
    if (p->group_entry == 1) {
        l.group = p->group_dim == 0 ? p->dim : p->group_dim;
        l.n_group = (p->dim + l.group - 1) / l.group;
        l.n_scale = l.n_group * KVC_PAGE;
    } else {
        l.n_group = KVC_PAGE / p->group_entry;
        l.n_scale = l.n_group * p->dim;
    }
    l.at_min = 2 * (size_t)l.n_scale;
    l.at_code = ((l.zero ? 2 : 1) * l.at_min + 63) & ~(size_t)63;
    return l;
}

/* Bytes of a packed half page: a multiple of 64. */
static inline size_t pack_bytes(const pack_layout *l) {
    return l->at_code + (size_t)l->n_word * 4 * KVC_PAGE;
}

/* Bytes of the next piece of a row of values that has `left` more elements, a multiple of 4. */
static inline uint32_t pack_piece(uint32_t left, uint32_t planes) {
    uint32_t n = 16;
    while (n * planes > left) {
        n /= 2;
    }
    return n;
}

#endif

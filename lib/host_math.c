/* SPDX-License-Identifier: MIT
 * host_math.c: the extension KVC_HOST_MATH of a stage's host table: packed pages, by the kernels of
 * the level and the way to compute that the stage was made for, and a choice among scores. What a
 * packing may be is decided in check(); the other functions trust it, for they run for every page
 * of every step. */
#include "kern.h"
#include "pack.h"
#include "stack.h"
#include "top.h"

#include <string.h>

static const kvc__kern *kern_of(void *ctx) {
    const kvc__stage *st = ctx;
    return st->kern;
}

/* ---------------------------------------------------------------- what is supported */

static bool groups_known(const kvc_packing *p) {
    if (p->bits == 8) {
        return p->group_dim == 0 && p->group_entry == 1 && p->flags == 0;
    }
    if (p->bits != 4 && p->bits != 2) {
        return false;
    }
    if ((p->flags & ~(uint32_t)KVC_PACK_ZERO) != 0) {
        return false;
    }
    if (p->group_entry == 1) {
        return p->group_dim % 16 == 0;
    }
    return p->group_dim == 1 && (p->group_entry == 32 || p->group_entry == 64);
}

static int32_t math_check(void *ctx, const kvc_packing *p) {
    const kvc__stage *st = ctx;
    kvc__err err;
    if (p == NULL || p->struct_size < sizeof *p) {
        kvc__fail(&err, KVC_E_UNSUPPORTED,
                  "the packing is shorter than this host's kvc_packing; set its struct_size");
    } else if (p->dim == 0 || p->dim % 4 != 0 || p->dim > KVC__PACK_MAX_DIM) {
        kvc__fail(&err, KVC_E_UNSUPPORTED,
                  "rows of %u elements can't be packed, multiples of 4 up to %u can; use plain "
                  "floats",
                  p->dim, KVC__PACK_MAX_DIM);
    } else if (!groups_known(p)) {
        kvc__fail(&err, KVC_E_UNSUPPORTED,
                  "this host can't pack to %u bits in groups of %u elements of %u rows with flags "
                  "%#x; kvc_packing in kvc/policy.h lists what it can",
                  p->bits, p->group_dim, p->group_entry, p->flags);
    } else {
        return KVC_OK;
    }
    return st->host.fail(ctx, KVC_E_UNSUPPORTED, err.text);
}

static size_t math_bytes(void *ctx, const kvc_packing *p) {
    (void)ctx;
    return kvc__pack_bytes(p);
}

/* ---------------------------------------------------------------- kernels */

static void math_pack_k(void *ctx, const kvc_packing *p, const float *rows, uint32_t stride,
                        void *dst) {
    kern_of(ctx)->pack_k(p, rows, stride, dst);
}

static void math_pack_v(void *ctx, const kvc_packing *p, const float *rows, uint32_t stride,
                        void *dst) {
    kern_of(ctx)->pack_v(p, rows, stride, dst);
}

static void math_unpack_k(void *ctx, const kvc_packing *p, const void *src, float *out) {
    kern_of(ctx)->unpack_k(p, src, out);
}

static void math_unpack_v(void *ctx, const kvc_packing *p, const void *src, float *out) {
    kern_of(ctx)->unpack_v(p, src, out);
}

static void math_score(void *ctx, const kvc_packing *p, const void *src, const float *q,
                       uint32_t n_q, float *s) {
    const kvc__stage *st = ctx;
    if (st->compute == KVC_COMPUTE_INT8) {
        st->kern->pack_score_q(p, src, q, n_q, s);
    } else {
        st->kern->pack_score_f(p, src, q, n_q, s);
    }
}

static void math_mix(void *ctx, const kvc_packing *p, const void *src, const float *w, uint32_t n_q,
                     float *acc) {
    const kvc__stage *st = ctx;
    if (st->compute == KVC_COMPUTE_INT8) {
        st->kern->pack_mix_q(p, src, w, n_q, acc);
    } else {
        st->kern->pack_mix_f(p, src, w, n_q, acc);
    }
}

/* ---------------------------------------------------------------- rows and fields */

/* Copies `count` pieces of `size` bytes of a row, each KVC_PAGE × size behind the one before. */
static void move_pieces(uint8_t *dst, uint32_t to, const uint8_t *src, uint32_t from, size_t count,
                        size_t size) {
    for (size_t i = 0; i < count; i++) {
        const size_t at = i * KVC_PAGE;
        memmove(dst + (at + to) * size, src + (at + from) * size, size);
    }
}

static void move_row(const kvc_packing *p, void *dst, uint32_t to, const void *src, uint32_t from,
                     bool keys) {
    const pack_layout l = pack_layout_of(p);
    uint8_t *d = dst;
    const uint8_t *s = src;
    move_pieces(d, to, s, from, (l.zero ? 2 : 1) * (size_t)l.n_group, 2);
    if (keys) {
        move_pieces(d + l.at_code, to, s + l.at_code, from, l.n_word, 4);
    } else {
        move_pieces(d + l.at_code, to, s + l.at_code, from, 1, 4 * (size_t)l.n_word);
    }
}

static void math_move_k(void *ctx, const kvc_packing *p, void *dst, uint32_t to, const void *src,
                        uint32_t from) {
    (void)ctx;
    move_row(p, dst, to, src, from, true);
}

static void math_move_v(void *ctx, const kvc_packing *p, void *dst, uint32_t to, const void *src,
                        uint32_t from) {
    (void)ctx;
    move_row(p, dst, to, src, from, false);
}

/* Scales and minima of all row groups, which have one shape; then whole bytes: of keys four of an
 * entry side by side, of values all. */
static uint32_t fields(const kvc_packing *p, uint32_t run, uint32_t offset, kvc_field *out) {
    const pack_layout l = pack_layout_of(p);
    if (l.group == 0) {
        return 0;
    }
    out[0] = (kvc_field){.struct_size = sizeof *out,
                         .kind = KVC_FIELD_FLOAT,
                         .elem = 2,
                         .n = l.n_group,
                         .run = 1,
                         .run_stride = 2 * KVC_PAGE,
                         .entry_stride = 2,
                         .offset = offset};
    out[1] = out[0];
    out[1].offset = offset + (uint32_t)l.at_min;
    if (l.bits < 8) {
        return l.zero ? 2 : 1;
    }
    out[1] = (kvc_field){.struct_size = sizeof *out,
                         .kind = KVC_FIELD_INT,
                         .elem = 1,
                         .n = l.dim,
                         .run = run,
                         .run_stride = run * KVC_PAGE,
                         .entry_stride = run,
                         .offset = offset + (uint32_t)l.at_code};
    return 2;
}

static uint32_t math_fields_k(void *ctx, const kvc_packing *p, uint32_t offset, kvc_field *out) {
    (void)ctx;
    return fields(p, 4, offset, out);
}

static uint32_t math_fields_v(void *ctx, const kvc_packing *p, uint32_t offset, kvc_field *out) {
    (void)ctx;
    return fields(p, p->dim, offset, out);
}

/* ---------------------------------------------------------------- scores */

static uint32_t math_top(void *ctx, const float *score, uint32_t n, uint32_t n_top,
                         uint32_t *index) {
    (void)ctx;
    return kvc__top(score, n, n_top, index);
}

const kvc_host_math kvc__host_math = {.struct_size = sizeof(kvc_host_math),
                                      .check = math_check,
                                      .bytes = math_bytes,
                                      .pack_k = math_pack_k,
                                      .pack_v = math_pack_v,
                                      .unpack_k = math_unpack_k,
                                      .unpack_v = math_unpack_v,
                                      .score = math_score,
                                      .mix = math_mix,
                                      .move_k = math_move_k,
                                      .move_v = math_move_v,
                                      .fields_k = math_fields_k,
                                      .fields_v = math_fields_v,
                                      .top = math_top};

/* SPDX-License-Identifier: MIT
 * kern_pack.h: rows to half pages of 4 or 2 bits and back, in groups along rows or along entries. A
 * part of kern_impl.h, written in the words of vec_*.h. Layout: pack.h; rounding: kern.h. It knows
 * nothing of policies. */
#ifndef KVC_KERN_PACK_H
#define KVC_KERN_PACK_H

#define PACK_LARGEST 65504.0f /* binary16 */

/* A packed half page: its layout and where its parts begin. */
typedef struct pack_page {
    pack_layout l;
    uint8_t *scale, *min, *code;
} pack_page;

INLINE pack_page pack_open(const kvc_packing *p, const void *src) {
    pack_page x = {.l = pack_layout_of(p)};
    x.scale = (uint8_t *)(uintptr_t)src;
    x.min = x.scale + x.l.at_min;
    x.code = x.scale + x.l.at_code;
    return x;
}

INLINE vf pack_scale(const pack_page *x, size_t i, uint32_t n) {
    return vf_load_f16_n(x->scale + 2 * i, n);
}

/* The minima that belong to those scales. Symmetric codes count from -2^(bits - 1) times the
 * scale. */
INLINE vf pack_min(const pack_page *x, size_t i, uint32_t n, vf scale) {
    return x->l.zero ? vf_load_f16_n(x->min + 2 * i, n)
                     : vf_mul(scale, vf_set1(-(float)(1u << (x->l.bits - 1))));
}

/* ---- packing */

/* Elements within binary16; NaN becomes the least. Lanes from n on repeat the first. */
INLINE vf pack_load(const float *x, uint32_t n) {
    float t[16];
    vf y;
    if (n >= 16) {
        y = vf_load(x);
    } else {
        for (uint32_t l = 0; l < 16; l++) {
            t[l] = x[l < n ? l : 0];
        }
        y = vf_load(t);
    }
    return vf_min(vf_max(y, vf_set1(-PACK_LARGEST)), vf_set1(PACK_LARGEST));
}

/* Scales (and minima) of groups whose least and largest elements are given, stored from i on. */
INLINE void pack_put_scales(pack_page *x, size_t i, uint32_t n, vf lo, vf hi) {
    vf scale;
    if (x->l.zero) {
        vf_store_f16_n(x->min + 2 * i, lo, n);
        vf range = vf_max(vf_sub(hi, vf_load_f16_n(x->min + 2 * i, n)), vf_zero());
        scale = vf_div(range, vf_set1((float)((1u << x->l.bits) - 1)));
    } else {
        vf amax = vf_max(hi, vf_sub(vf_zero(), lo));
        vi sign = vi_and(vi_bits(vf_add(hi, lo)), vi_set1((int32_t)0x80000000u));
        vf peak = vf_bits(vi_xor(vi_bits(amax), sign));
        scale = vf_mul(peak, vf_set1(-1.0f / (float)(1u << (x->l.bits - 1))));
    }
    vf_store_f16_n(x->scale + 2 * i, scale, n);
}

static void pack_row_groups(pack_page *x, const float *rows, uint32_t stride) {
    for (uint32_t e = 0; e < KVC__ENTRIES; e++, rows += stride) {
        for (uint32_t g = 0; g < x->l.n_group; g++) {
            const uint32_t d0 = g * x->l.group;
            const uint32_t end = x->l.dim - d0 < x->l.group ? x->l.dim : d0 + x->l.group;
            vf lo = vf_set1(PACK_LARGEST), hi = vf_set1(-PACK_LARGEST);
            for (uint32_t d = d0; d < end; d += 16) {
                vf y = pack_load(rows + d, end - d);
                lo = vf_min(lo, y);
                hi = vf_max(hi, y);
            }
            const float least = -vf_max_all(vf_sub(vf_zero(), lo));
            pack_put_scales(x, (size_t)g * KVC__ENTRIES + e, 1, vf_set1(least),
                            vf_set1(vf_max_all(hi)));
        }
    }
}

static void pack_channels(pack_page *x, const float *rows, uint32_t stride) {
    const uint32_t n_entry = KVC__ENTRIES / x->l.n_group;
    for (uint32_t b = 0; b < x->l.n_group; b++) {
        for (uint32_t d = 0; d < x->l.dim; d += 16) {
            vf lo = vf_set1(PACK_LARGEST), hi = vf_set1(-PACK_LARGEST);
            for (uint32_t e = b * n_entry; e < (b + 1) * n_entry; e++) {
                vf y = pack_load(rows + (size_t)e * stride + d, x->l.dim - d);
                lo = vf_min(lo, y);
                hi = vf_max(hi, y);
            }
            pack_put_scales(x, (size_t)b * x->l.dim + d, x->l.dim - d, lo, hi);
        }
    }
}

/* Scales and minima of elements d to d + 15 of entry e; row groups are multiples of 16. */
INLINE void pack_scales_at(const pack_page *x, uint32_t e, uint32_t d, vf *scale, vf *min) {
    if (x->l.group > 0) {
        const size_t i = (size_t)(d / x->l.group) * KVC__ENTRIES + e;
        *scale = pack_scale(x, i, 1);
        *min = vf_set1(vf_first(pack_min(x, i, 1, *scale)));
        *scale = vf_set1(vf_first(*scale));
    } else {
        const size_t i = (size_t)(e * x->l.n_group / KVC__ENTRIES) * x->l.dim + d;
        *scale = pack_scale(x, i, x->l.dim - d);
        *min = pack_min(x, i, x->l.dim - d, *scale);
    }
}

/* A row's codes by the scales that are stored. 0 / 0 becomes 0. */
static void pack_round(const pack_page *x, uint32_t e, const float *row, int8_t *code) {
    const vf top = vf_set1((float)((1u << x->l.bits) - 1));
    for (uint32_t d = 0; d < x->l.dim; d += 16) {
        vf scale, min;
        pack_scales_at(x, e, d, &scale, &min);
        vf y = vf_div(vf_sub(pack_load(row + d, x->l.dim - d), min), scale);
        vi_store_s8_n(code + d, vi_from_vf(vf_min(vf_max(y, vf_zero()), top)), x->l.dim - d);
    }
}

INLINE uint8_t *pack_word(const pack_page *x, uint32_t word, uint32_t e) {
    return x->code + 4 * ((size_t)word * KVC__ENTRIES + e);
}

INLINE uint8_t *pack_value_row(const pack_page *x, uint32_t e) {
    return x->code + 4 * (size_t)x->l.n_word * e;
}

static void pack_put_key(const pack_page *x, uint32_t e, const int8_t *code) {
    for (uint32_t w = 0; w < x->l.n_word; w++) {
        uint32_t word = 0;
        for (uint32_t j = 0; j < x->l.planes; j++) {
            const uint32_t d = 4 * (w * x->l.planes + j);
            uint32_t quad = 0;
            memcpy(&quad, code + d, d < x->l.dim ? sizeof quad : 0);
            word |= quad << x->l.bits * j;
        }
        memcpy(pack_word(x, w, e), &word, sizeof word);
    }
}

static void pack_put_value(const pack_page *x, uint32_t e, const int8_t *code) {
    uint8_t *to = pack_value_row(x, e), *end = to + 4 * (size_t)x->l.n_word;
    for (uint32_t d = 0; d < x->l.dim;) {
        const uint32_t n = pack_piece(x->l.dim - d, x->l.planes);
        vi byte = vi_zero();
        for (uint32_t j = 0; j < x->l.planes; j++, d += n) {
            byte = vi_add(byte, vi_shl(vi_load_s8_n(code + d, n), x->l.bits * j));
        }
        vi_store_s8_n((int8_t *)to, byte, n);
        to += n;
    }
    memset(to, 0, (size_t)(end - to));
}

static void pack_rows(const kvc_packing *p, bool keys, const float *rows, uint32_t stride,
                      void *dst) {
    pack_page x = pack_open(p, dst);
    int8_t code[KVC__PACK_MAX_DIM];
    memset(dst, 0, x.l.at_code);
    if (x.l.group > 0) {
        pack_row_groups(&x, rows, stride);
    } else {
        pack_channels(&x, rows, stride);
    }
    for (uint32_t e = 0; e < KVC__ENTRIES; e++) {
        pack_round(&x, e, rows + (size_t)e * stride, code);
        if (keys) {
            pack_put_key(&x, e, code);
        } else {
            pack_put_value(&x, e, code);
        }
    }
}

/* ---- unpacking */

static void pack_get_key(const pack_page *x, uint32_t e, int8_t *code) {
    const uint32_t ones = 0x01010101u * ((1u << x->l.bits) - 1);
    for (uint32_t w = 0; w < x->l.n_word; w++) {
        uint32_t word;
        memcpy(&word, pack_word(x, w, e), sizeof word);
        for (uint32_t j = 0; j < x->l.planes; j++) {
            const uint32_t d = 4 * (w * x->l.planes + j), quad = word >> x->l.bits * j & ones;
            memcpy(code + d, &quad, d < x->l.dim ? sizeof quad : 0);
        }
    }
}

static void pack_get_value(const pack_page *x, uint32_t e, int8_t *code) {
    const vi ones = vi_set1((1 << x->l.bits) - 1);
    const int8_t *from = (const int8_t *)pack_value_row(x, e);
    for (uint32_t d = 0; d < x->l.dim;) {
        const uint32_t n = pack_piece(x->l.dim - d, x->l.planes);
        const vi byte = vi_load_s8_n(from, n);
        for (uint32_t j = 0; j < x->l.planes; j++, d += n) {
            vi_store_s8_n(code + d, vi_and(vi_shr(byte, x->l.bits * j), ones), n);
        }
        from += n;
    }
}

static void pack_unrows(const kvc_packing *p, bool keys, const void *src, float *out) {
    const pack_page x = pack_open(p, src);
    int8_t code[KVC__PACK_MAX_DIM];
    for (uint32_t e = 0; e < KVC__ENTRIES; e++, out += x.l.dim) {
        if (keys) {
            pack_get_key(&x, e, code);
        } else {
            pack_get_value(&x, e, code);
        }
        for (uint32_t d = 0; d < x.l.dim; d += 16) {
            vf scale, min;
            pack_scales_at(&x, e, d, &scale, &min);
            vf y = vf_from_vi(vi_load_s8_n(code + d, x.l.dim - d));
            vf_store_n(out + d, vf_fma(y, scale, min), x.l.dim - d);
        }
    }
}

#endif

/* SPDX-License-Identifier: MIT
 * kern_row.h: kernels over one row of floats: rounding to int8, norm, gate, RoPE, Hadamard,
 * softmax. A part of kern_impl.h, written in the words of vec_*.h; contracts and order stand in
 * kern.h. It knows nothing of weights and pages. */
#ifndef KVC_KERN_ROW_H
#define KVC_KERN_ROW_H

/* ---- rounding to int8 */

/* Bits of the largest |x|: as integers NaN is above infinity is above every number. */
INLINE vi row_abs_bits(vf x) {
    return vi_and(vi_bits(x), vi_set1(0x7fffffff));
}

INLINE int32_t row_amax_bits(const float *x, uint32_t n) {
    vi m = vi_zero();
    for (uint32_t i = 0; i < n; i += 16) {
        m = vi_max(m, row_abs_bits(vf_load_n(x + i, n - i)));
    }
    return vi_max_all(m);
}

/* The factor to int8, 0 where all is to become 0: nothing in it, or so little that the factor
 * overflows. */
INLINE float row_inverse(float amax) {
    float inverse = amax > 0.0f ? 127.0f / amax : 0.0f;
    return inverse < INFINITY ? inverse : 0.0f;
}

/* x times inverse as integers; 0 where amax is not finite, for x may then not be either. */
INLINE vi row_round(vf x, float inverse, int32_t amax_bits) {
    if (amax_bits >= 0x7f800000) {
        return vi_zero();
    }
    return vi_from_vf(vf_mul(x, vf_set1(inverse)));
}

static void quantize(const float *x, uint32_t n, int8_t *q, float *d, int32_t *sum) {
    for (uint32_t b = 0; b < n / KVC__BLOCK; b++, x += KVC__BLOCK, q += KVC__BLOCK) {
        vf x0 = vf_load(x);
        vf x1 = vf_load(x + 16);
        int32_t bits = vi_max_all(vi_max(row_abs_bits(x0), row_abs_bits(x1)));
        float amax = half_float((uint32_t)bits);
        float inverse = row_inverse(amax);
        vi q0 = row_round(x0, inverse, bits);
        vi q1 = row_round(x1, inverse, bits);
        vi_store_s8_n(q, q0, 16);
        vi_store_s8_n(q + 16, q1, 16);
        sum[2 * b + 1] = vi_sum(q0);
        sum[2 * b] = sum[2 * b + 1] + vi_sum(q1);
        d[2 * b] = amax / 127.0f;
        d[2 * b + 1] = d[2 * b] * (float)sum[2 * b];
    }
}

/* ---- sums, norm, gate */

static void rms_norm(const float *x, const float *w, uint32_t n, float eps, float *y) {
    vf s = vf_zero();
    for (uint32_t i = 0; i < n; i += 16) {
        vf v = vf_load_n(x + i, n - i);
        s = vf_fma(v, v, s);
    }
    vf r = vf_set1(1.0f / sqrtf(vf_sum(s) / (float)n + eps));
    for (uint32_t i = 0; i < n; i += 16) {
        vf v = vf_mul(vf_load_n(x + i, n - i), r);
        vf_store_n(y + i, vf_mul(v, vf_load_n(w + i, n - i)), n - i);
    }
}

static void add(float *x, const float *y, uint32_t n) {
    for (uint32_t i = 0; i < n; i += 16) {
        vf_store_n(x + i, vf_add(vf_load_n(x + i, n - i), vf_load_n(y + i, n - i)), n - i);
    }
}

static void scale(float *x, float s, uint32_t n) {
    for (uint32_t i = 0; i < n; i += 16) {
        vf_store_n(x + i, vf_mul(vf_load_n(x + i, n - i), vf_set1(s)), n - i);
    }
}

static void axpy(float a, const float *x, float *y, uint32_t n) {
    for (uint32_t i = 0; i < n; i += 16) {
        vf v = vf_fma(vf_load_n(x + i, n - i), vf_set1(a), vf_load_n(y + i, n - i));
        vf_store_n(y + i, v, n - i);
    }
}

/* exp(x) for x in [-87, 88]: x = k ln 2 + r, |r| <= ln 2 / 2; exp(r) = 1 + r + r² P(r), P of degree
 * 4 with the least largest relative error on that interval (3.1e-9). Adding 1.5 * 2^23 rounds to
 * the integer k and leaves it in the low bits; ln 2 is taken in two parts, the first short enough
 * that k times it is exact. */
INLINE vf row_exp(vf x) {
    const float ln2_hi = 0x1.62e4p-1f;
    const float ln2_lo = 0x1.7f7d1cp-20f;
    vf magic = vf_set1(12582912.0f);
    vf t = vf_fma(x, vf_set1(0x1.715476p+0f), magic);
    vf k = vf_sub(t, magic);
    vf r = vf_fma(k, vf_set1(-ln2_hi), x);
    r = vf_fma(k, vf_set1(-ln2_lo), r);
    vf p = vf_set1(0x1.6a2434p-10f);
    p = vf_fma(p, r, vf_set1(0x1.1239e2p-7f));
    p = vf_fma(p, r, vf_set1(0x1.5558f2p-5f));
    p = vf_fma(p, r, vf_set1(0x1.555492p-3f));
    p = vf_fma(p, r, vf_set1(0x1.fffffcp-2f));
    p = vf_fma(vf_mul(r, r), p, r);
    p = vf_add(p, vf_set1(1.0f));
    vi e = vi_sub(vi_bits(t), vi_set1(0x4b400000 - 127));
    return vf_mul(p, vf_bits(vi_shl(e, 23)));
}

/* The same for x <= 0, with 0 below -87. */
INLINE vf row_exp_neg(vf x) {
    return vf_zero_below(row_exp(x), x, vf_set1(-87.0f));
}

static float exp1(float x) {
    return vf_first(row_exp_neg(vf_set1(x)));
}

static void exps(float *x, uint32_t n) {
    for (uint32_t i = 0; i < n; i += 16) {
        vf_store_n(x + i, row_exp_neg(vf_load_n(x + i, n - i)), n - i);
    }
}

/* The same for any x, as if it were in the interval. */
INLINE vf row_exp_clamped(vf x) {
    return row_exp(vf_min(vf_max(x, vf_set1(-87.0f)), vf_set1(88.0f)));
}

static void silu_mul(float *gate, const float *up, uint32_t n) {
    for (uint32_t i = 0; i < n; i += 16) {
        vf g = vf_load_n(gate + i, n - i);
        vf e = row_exp_clamped(vf_sub(vf_zero(), g));
        vf y = vf_div(g, vf_add(vf_set1(1.0f), e));
        vf_store_n(gate + i, vf_mul(y, vf_load_n(up + i, n - i)), n - i);
    }
}

/* 2 sqrt(2 / pi), and that times 0.044715. */
#define GELU_A 1.5957691216057308f
#define GELU_B 0.07135481627159826f

static void gelu_mul(float *gate, const float *up, uint32_t n) {
    for (uint32_t i = 0; i < n; i += 16) {
        vf g = vf_load_n(gate + i, n - i);
        vf z = vf_mul(g, vf_fma(vf_set1(GELU_B), vf_mul(g, g), vf_set1(GELU_A)));
        vf e = row_exp_clamped(vf_sub(vf_zero(), z));
        vf y = vf_div(g, vf_add(vf_set1(1.0f), e));
        vf_store_n(gate + i, vf_mul(y, vf_load_n(up + i, n - i)), n - i);
    }
}

/* tanh(y) = 1 - 2 / (1 + exp(2 y)). A number that isn't one must reach whoever looks for it, so the
 * bounds stand first. */
static void soft_cap(float *x, float cap, uint32_t n) {
    for (uint32_t i = 0; i < n; i += 16) {
        vf v = vf_mul(vf_load_n(x + i, n - i), vf_set1(2.0f / cap));
        vf e = row_exp(vf_min(vf_set1(88.0f), vf_max(vf_set1(-87.0f), v)));
        vf t = vf_sub(vf_set1(1.0f), vf_div(vf_set1(2.0f), vf_add(vf_set1(1.0f), e)));
        vf_store_n(x + i, vf_mul(vf_set1(cap), t), n - i);
    }
}

/* One row. Rows are independent of each other, so that the latencies of several overlap. */
INLINE void soften_row(float *s, float *max, float *sum, float *down) {
    const float before = *max;
    vf x[KVC__ENTRIES / 16], m = vf_set1(before), total = vf_zero();
    UNROLL for (uint32_t i = 0; i < KVC__ENTRIES / 16; i++) {
        x[i] = vf_load(s + 16 * i);
        m = vf_max(x[i], m); /* skips NaN, which reaches the sum below */
    }
    const float top = vf_max_all(m);
    const vf shift = vf_set1(top > -INFINITY ? top : 0.0f);
    UNROLL for (uint32_t i = 0; i < KVC__ENTRIES / 16; i++) {
        x[i] = row_exp_neg(vf_sub(x[i], shift));
        vf_store(s + 16 * i, x[i]);
        total = vf_add(total, x[i]);
    }
    *down = before < top && before > -INFINITY ? exp1(before - top) : 1.0f;
    *max = top;
    *sum = *sum * *down + vf_sum(total);
}

static void soften(float *s, uint32_t n_row, float *max, float *sum, float *down) {
    for (uint32_t r = 0; r < n_row; r++) {
        soften_row(s + (size_t)r * KVC__ENTRIES, &max[r], &sum[r], &down[r]);
    }
}

/* ---- rotations */

static void rope_norm(const float *x, const float *cs, uint32_t n_rot, uint32_t n, float *y) {
    const float *sn = cs + n_rot / 2;
    for (uint32_t i = 0; i < n_rot / 2; i++) {
        float x0 = x[2 * i];
        float x1 = x[2 * i + 1];
        float y0 = fmaf(x0, cs[i], -(x1 * sn[i]));
        float y1 = fmaf(x0, sn[i], x1 * cs[i]);
        y[2 * i] = y0;
        y[2 * i + 1] = y1;
    }
    if (y != x && n > n_rot) {
        memcpy(y + n_rot, x + n_rot, (n - n_rot) * sizeof *y);
    }
}

static void rope_neox(const float *x, const float *cs, uint32_t n_rot, uint32_t n, float *y) {
    const uint32_t half = n_rot / 2;
    for (uint32_t i = 0; i < half; i += 16) {
        vf c = vf_load_n(cs + i, half - i), s = vf_load_n(cs + half + i, half - i);
        vf x0 = vf_load_n(x + i, half - i), x1 = vf_load_n(x + half + i, half - i);
        vf y0 = vf_fma(x0, c, vf_sub(vf_zero(), vf_mul(x1, s)));
        vf_store_n(y + half + i, vf_fma(x0, s, vf_mul(x1, c)), half - i);
        vf_store_n(y + i, y0, half - i);
    }
    if (y != x && n > n_rot) {
        memcpy(y + n_rot, x + n_rot, (n - n_rot) * sizeof *y);
    }
}

/* Butterflies of distance 1 to 8 stay within a vector. */
INLINE vf row_hadamard16(vf v, uint32_t b) {
    v = b > 1 ? vf_butterfly(v, 1) : v;
    v = b > 2 ? vf_butterfly(v, 2) : v;
    v = b > 4 ? vf_butterfly(v, 4) : v;
    return b > 8 ? vf_butterfly(v, 8) : v;
}

static void hadamard(float *x, uint32_t b, uint32_t n) {
    for (uint32_t i = 0; i < n; i += 16) {
        vf_store_n(x + i, row_hadamard16(vf_load_n(x + i, n - i), b), n - i);
    }
    for (uint32_t h = 16; h < b; h *= 2) {
        for (uint32_t i = 0; i < n; i += 2 * h) {
            for (uint32_t j = i; j < i + h; j += 16) {
                vf lo = vf_load(x + j);
                vf hi = vf_load(x + j + h);
                vf_store(x + j, vf_add(lo, hi));
                vf_store(x + j + h, vf_sub(lo, hi));
            }
        }
    }
    scale(x, (float)(1.0 / sqrt((double)b)), n);
}

#endif

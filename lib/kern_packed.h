/* SPDX-License-Identifier: MIT
 * kern_packed.h: scores and mixes over half pages of 4 or 2 bits with float queries and weights. A
 * part of kern_impl.h, after kern_pack.h. As in kern_page.h, what is loaded
 * serves several query rows. The order of operations stands in kern.h. It knows nothing of
 * policies. */
#ifndef KVC_KERN_PACKED_H
#define KVC_KERN_PACKED_H

/* ---- scores, float query */

/* The code in the low bits of each lane, as a float. */
INLINE vf pack_widen(uint32_t bits, vi x) {
    static const float four[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    static const float two[16] = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};
    return vf_pick(vf_load(bits == 4 ? four : two), x);
}

/* Adds the products of one word's elements, `left` of which are the row's. The upper half of the
 * entries may have another query: block floats behind. */
INLINE void pack_score_word(uint32_t bits, uint32_t n_q, const uint8_t *word, const float *q,
                            size_t stride, size_t block, uint32_t left, vf acc[PAGE_ROWS][4]) {
    for (uint32_t shift = 0; shift < 8 && left > 0; shift += bits, left -= 4, q += 4) {
        UNROLL for (uint32_t k = 0; k < 4; k++) {
            vf kv[4];
            UNROLL for (uint32_t v = 0; v < 4; v++) {
                kv[v] = pack_widen(bits, vi_shr(vi_load(word + 64 * v), shift + 8 * k));
            }
            UNROLL for (uint32_t i = 0; i < n_q; i++) {
                vf lower = vf_set1(q[i * stride + k]);
                vf upper = block == 0 ? lower : vf_set1(q[i * stride + block + k]);
                UNROLL for (uint32_t v = 0; v < 4; v++) {
                    acc[i][v] = vf_fma(v < 2 ? lower : upper, kv[v], acc[i][v]);
                }
            }
        }
    }
}

INLINE void pack_clear(uint32_t n_q, vf acc[PAGE_ROWS][4]) {
    UNROLL for (uint32_t i = 0; i < n_q; i++) {
        UNROLL for (uint32_t v = 0; v < 4; v++) {
            acc[i][v] = vf_zero();
        }
    }
}

INLINE float pack_sum(const float *x, uint32_t n) {
    vf s = vf_zero();
    for (uint32_t i = 0; i < n; i += 16) {
        s = vf_add(s, vf_load_n(x + i, n - i));
    }
    return vf_sum(s);
}

/* Scores grow in memory, group by group, so that the registers are free for one group's sums. */
INLINE void pack_score_groups(uint32_t bits, uint32_t n_q, const pack_page *x, const float *q,
                              float *s) {
    const uint32_t per_word = 32 / bits, dim = x->l.dim;
    memset(s, 0, n_q * KVC__ENTRIES * sizeof *s);
    for (uint32_t g = 0; g < x->l.n_group; g++) {
        const uint32_t d0 = g * x->l.group;
        const uint32_t end = dim - d0 < x->l.group ? dim : d0 + x->l.group;
        vf acc[PAGE_ROWS][4];
        pack_clear(n_q, acc);
        for (uint32_t d = d0; d < end; d += per_word) {
            pack_score_word(bits, n_q, pack_word(x, d / per_word, 0), q + d, dim, 0, end - d, acc);
        }
        float sum[PAGE_ROWS];
        for (uint32_t i = 0; i < n_q; i++) {
            sum[i] = pack_sum(q + (size_t)i * dim + d0, end - d0);
        }
        UNROLL for (uint32_t v = 0; v < 4; v++) {
            const size_t at = (size_t)g * KVC__ENTRIES + 16 * v;
            const vf scale = pack_scale(x, at, 16), min = pack_min(x, at, 16, scale);
            UNROLL for (uint32_t i = 0; i < n_q; i++) {
                float *to = s + i * KVC__ENTRIES + 16 * v;
                vf y = vf_fma(acc[i][v], scale, vf_load(to));
                vf_store(to, vf_fma(vf_set1(sum[i]), min, y));
            }
        }
    }
}

/* Queries that have taken up the scales of 16 channels, for both halves of the entries, and the
 * sums of what the minima add. */
typedef struct pack_query {
    float q[PAGE_ROWS][2][16];
    vf base[PAGE_ROWS][2];
} pack_query;

INLINE void pack_query_next(pack_query *t, uint32_t n_q, const pack_page *x, const float *q,
                            uint32_t d) {
    const uint32_t n = x->l.dim - d;
    for (uint32_t b = 0; b < 2; b++) {
        const size_t at = (size_t)(b * x->l.n_group / 2) * x->l.dim + d;
        const vf scale = pack_scale(x, at, n), min = pack_min(x, at, n, scale);
        for (uint32_t i = 0; i < n_q; i++) {
            vf y = vf_load_n(q + (size_t)i * x->l.dim + d, n);
            vf_store(t->q[i][b], vf_mul(y, scale));
            t->base[i][b] = vf_fma(y, min, t->base[i][b]);
        }
    }
}

INLINE void pack_score_channels(uint32_t bits, uint32_t n_q, const pack_page *x, const float *q,
                                float *s) {
    const uint32_t per_word = 32 / bits;
    pack_query t;
    vf acc[PAGE_ROWS][4];
    pack_clear(n_q, acc);
    for (uint32_t i = 0; i < n_q; i++) {
        t.base[i][0] = t.base[i][1] = vf_zero();
    }
    for (uint32_t d = 0; d < x->l.dim; d += per_word) {
        if (d % 16 == 0) {
            pack_query_next(&t, n_q, x, q, d);
        }
        pack_score_word(bits, n_q, pack_word(x, d / per_word, 0), t.q[0][0] + d % 16, 32, 16,
                        x->l.dim - d, acc);
    }
    UNROLL for (uint32_t i = 0; i < n_q; i++) {
        UNROLL for (uint32_t v = 0; v < 4; v++) {
            vf base = vf_set1(vf_sum(t.base[i][v / 2]));
            vf_store(s + i * KVC__ENTRIES + 16 * v, vf_add(acc[i][v], base));
        }
    }
}

INLINE void pack_score(uint32_t bits, const kvc_packing *p, const void *src, const float *q,
                       uint32_t n_q, float *s) {
    const pack_page x = pack_open(p, src);
#define PACK_GROUPS(n)   pack_score_groups(bits, n, &x, q, s)
#define PACK_CHANNELS(n) pack_score_channels(bits, n, &x, q, s)
    while (n_q > 0) {
        const uint32_t n = n_q < PAGE_ROWS ? n_q : PAGE_ROWS;
        if (x.l.group > 0) {
            PAGE_BY_ROWS(n, PACK_GROUPS)
        } else {
            PAGE_BY_ROWS(n, PACK_CHANNELS)
        }
        n_q -= n;
        q += n * x.l.dim;
        s += n * KVC__ENTRIES;
    }
#undef PACK_GROUPS
#undef PACK_CHANNELS
}

/* ---- mix */

/* r[i][v] += Σ w[v][i, e] × elements v × n and on of n_piece pieces of n bytes, e in [e, end). */
INLINE void pack_mix_tile(uint32_t bits, uint32_t n_q, uint32_t n_piece, uint32_t n,
                          const uint8_t *rows, size_t row_bytes, uint32_t e, uint32_t end,
                          const float *const *w, vf r[PAGE_ROWS][4]) {
    const uint32_t planes = 8 / bits;
    for (; e < end; e++) {
        const int8_t *row = (const int8_t *)rows + e * row_bytes;
        vf x[4];
        UNROLL for (uint32_t c = 0; c < n_piece; c++) {
            const vi byte = n == 16 ? vi_load_s8(row + 16 * c) : vi_load_s8_n(row, n);
            UNROLL for (uint32_t j = 0; j < planes; j++) {
                x[c * planes + j] = pack_widen(bits, vi_shr(byte, bits * j));
            }
        }
        UNROLL for (uint32_t i = 0; i < n_q; i++) {
            UNROLL for (uint32_t v = 0; v < n_piece * planes; v++) {
                vf p = vf_set1(w[v][i * KVC__ENTRIES + e]);
                r[i][v] = vf_fma(p, x[v], r[i][v]);
            }
        }
    }
}

/* Weights times the scales of one row group, and what the minima add to each of its elements. */
static void pack_weigh(const pack_page *x, uint32_t g, const float *p, uint32_t n_q, float *w,
                       float *add_min) {
    for (uint32_t i = 0; i < n_q; i++) {
        vf sum = vf_zero();
        for (uint32_t e = 0; e < KVC__ENTRIES; e += 16) {
            const size_t at = (size_t)g * KVC__ENTRIES + e;
            const vf scale = pack_scale(x, at, 16), y = vf_load(p + i * KVC__ENTRIES + e);
            sum = vf_fma(y, pack_min(x, at, 16, scale), sum);
            vf_store(w + i * KVC__ENTRIES + e, vf_mul(y, scale));
        }
        add_min[i] = vf_sum(sum);
    }
}

/* Elements from d on, in n_piece pieces of n bytes; they lie in at most 4 row groups. */
INLINE void pack_mix_groups(uint32_t bits, uint32_t n_q, uint32_t n_piece, uint32_t n,
                            const pack_page *x, uint32_t d, const float *p, float *acc) {
    const uint32_t n_vec = n_piece * 8 / bits;
    float weight[4][PAGE_ROWS * KVC__ENTRIES], add_min[4][PAGE_ROWS];
    const float *w[4], *m[4];
    vf r[PAGE_ROWS][4];
    UNROLL for (uint32_t v = 0; v < n_vec; v++) {
        const uint32_t group = (d + v * n) / x->l.group;
        if (v > 0 && group == (d + (v - 1) * n) / x->l.group) {
            w[v] = w[v - 1];
            m[v] = m[v - 1];
        } else {
            pack_weigh(x, group, p, n_q, weight[v], add_min[v]);
            w[v] = weight[v];
            m[v] = add_min[v];
        }
        UNROLL for (uint32_t i = 0; i < n_q; i++) {
            const float *from = acc + (size_t)i * x->l.dim + d + v * n;
            r[i][v] = vf_add(vf_load_n(from, n), vf_set1(m[v][i]));
        }
    }
    pack_mix_tile(bits, n_q, n_piece, n, x->code + d * bits / 8, 4 * (size_t)x->l.n_word, 0,
                  KVC__ENTRIES, w, r);
    UNROLL for (uint32_t i = 0; i < n_q; i++) {
        UNROLL for (uint32_t v = 0; v < n_vec; v++) {
            vf_store_n(acc + (size_t)i * x->l.dim + d + v * n, r[i][v], n);
        }
    }
}

INLINE void pack_mix_channels(uint32_t bits, uint32_t n_q, uint32_t n_piece, uint32_t n,
                              const pack_page *x, uint32_t d, const float *p, float *acc) {
    const uint32_t n_vec = n_piece * 8 / bits, n_entry = KVC__ENTRIES / x->l.n_group;
    const float *w[4] = {p, p, p, p};
    for (uint32_t b = 0; b < x->l.n_group; b++) {
        vf r[PAGE_ROWS][4];
        pack_clear(n_q, r);
        pack_mix_tile(bits, n_q, n_piece, n, x->code + d * bits / 8, 4 * (size_t)x->l.n_word,
                      b * n_entry, (b + 1) * n_entry, w, r);
        for (uint32_t i = 0; i < n_q; i++) {
            const vf sum = vf_set1(pack_sum(p + i * KVC__ENTRIES + b * n_entry, n_entry));
            UNROLL for (uint32_t v = 0; v < n_vec; v++) {
                float *to = acc + (size_t)i * x->l.dim + d + v * n;
                const size_t at = (size_t)b * x->l.dim + d + v * n;
                const vf scale = pack_scale(x, at, n), min = pack_min(x, at, n, scale);
                vf_store_n(to, vf_fma(r[i][v], scale, vf_fma(sum, min, vf_load_n(to, n))), n);
            }
        }
    }
}

INLINE void pack_mix_rows(uint32_t bits, uint32_t n_q, const pack_page *x, const float *p,
                          float *acc) {
#define PACK_TILE(n_piece, n)                                                                      \
    if (x->l.group > 0) {                                                                          \
        pack_mix_groups(bits, n_q, n_piece, n, x, d, p, acc);                                      \
    } else {                                                                                       \
        pack_mix_channels(bits, n_q, n_piece, n, x, d, p, acc);                                    \
    }
    uint32_t d = 0;
    for (; x->l.dim - d >= 64; d += 64) {
        PACK_TILE(bits / 2, 16)
    }
    while (d < x->l.dim) {
        const uint32_t n = pack_piece(x->l.dim - d, 8 / bits);
        PACK_TILE(1, n)
        d += n * 8 / bits;
    }
#undef PACK_TILE
}

INLINE void pack_mix_page(uint32_t bits, const kvc_packing *p, const void *src, const float *w,
                          uint32_t n_q, float *acc) {
    const pack_page x = pack_open(p, src);
#define PACK_ROWS(n) pack_mix_rows(bits, n, &x, w, acc)
    while (n_q > 0) {
        const uint32_t n = n_q < PAGE_ROWS ? n_q : PAGE_ROWS;
        PAGE_BY_ROWS(n, PACK_ROWS)
        n_q -= n;
        w += n * KVC__ENTRIES;
        acc += n * x.l.dim;
    }
#undef PACK_ROWS
}

#endif

/* SPDX-License-Identifier: MIT
 * check_page.c: calls of a policy's codec on an open session, as the engine would make them. Each
 * runs twice, with other bytes in all memory that it must not depend on, and gives the same. */
#include "check_page.h"

#include "check_stages.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_CTX = CHK_CTX, N_WARM = 140, ZONE = 16384, GAP = 4 };

/* What memory holds that a call must neither read nor write: two bytes, so that whatever is written
 * differs from one of them. */
static const unsigned char fills[2] = {0xa5, 0x5a};

/* ---------------------------------------------------------------- memory that is lent */

/* Room for size bytes; all of it, and what lies around it, holds fills[turn]. */
static void *room_lend(chk_room *m, size_t size, uint32_t turn) {
    const size_t cap = 2 * (size_t)ZONE + (size + 63) / 64 * 64;
    if (cap > m->cap) {
        free(m->whole);
        m->whole = NULL;
        if (posix_memalign((void **)&m->whole, 64, cap) != 0) {
            m->whole = NULL;
        }
        m->cap = m->whole != NULL ? cap : 0;
    }
    if (m->whole == NULL) {
        fprintf(stderr, "kvcheck: out of memory\n");
        exit(3);
    }
    m->size = size;
    m->fill = fills[turn % 2];
    memset(m->whole, m->fill, m->cap);
    return m->whole + ZONE;
}

static void *room_copy(chk_room *m, const void *bytes, size_t size, uint32_t turn) {
    return memcpy(room_lend(m, size, turn), bytes, size);
}

/* Whether what lies around the room is as it was. */
static bool room_kept(chk_rig *r, const chk_room *m, const char *call, const char *name) {
    const unsigned char *end = m->whole + ZONE + m->size;
    size_t before = 0, behind = 0;
    for (size_t i = 1; i <= ZONE; i++) {
        before = m->whole[ZONE - i] != m->fill ? i : before;
    }
    for (size_t i = 0; i < m->cap - ZONE - m->size; i++) {
        behind = end[i] != m->fill ? i + 1 : behind;
    }
    if (behind > 0) {
        chk_rig_fail(r, "%s: %s writes up to %zu bytes past the end of %s, which has %zu", r->where,
                     call, behind, name, m->size);
    } else if (before > 0) {
        chk_rig_fail(r, "%s: %s writes up to %zu bytes before the beginning of %s", r->where, call,
                     before, name);
    }
    return before == 0 && behind == 0;
}

static bool answered(chk_rig *r, const char *call, int32_t rc) {
    if (rc != KVC_OK) {
        chk_rig_fail(r, "%s: %s answers %d (%s)", r->where, call, (int)rc, kvc_status_name(rc));
    }
    return rc == KVC_OK;
}

static bool unchanged(chk_rig *r, const chk_room *m, const void *bytes, const char *call,
                      const char *name) {
    if (memcmp(m->whole + ZONE, bytes, m->size) != 0) {
        chk_rig_fail(r, "%s: %s changes %s, which it may only read", r->where, call, name);
        return false;
    }
    return room_kept(r, m, call, name);
}

/* ---------------------------------------------------------------- pages */

static size_t n_k(const chk_rig *r) {
    return (size_t)KVC_PAGE * r->shape.dim_k;
}

static size_t n_v(const chk_rig *r) {
    return (size_t)KVC_PAGE * r->shape.dim_v;
}

void chk_sealed_make(const chk_rig *r, uint32_t layer, chk_sealed *out) {
    *out = (chk_sealed){.layer = layer,
                        .n = KVC_PAGE,
                        .bytes = chk_take(r->bytes[layer], 1),
                        .k = chk_take(n_k(r), sizeof *out->k),
                        .v = chk_take(n_v(r), sizeof *out->v)};
}

void chk_sealed_copy(const chk_rig *r, chk_sealed *to, const chk_sealed *from) {
    to->n = from->n;
    memcpy(to->bytes, from->bytes, r->bytes[from->layer]);
    memcpy(to->k, from->k, n_k(r) * sizeof *to->k);
    memcpy(to->v, from->v, n_v(r) * sizeof *to->v);
}

void chk_sealed_free(chk_sealed *p) {
    free(p->bytes);
    free(p->k);
    free(p->v);
    *p = (chk_sealed){0};
}

static kvc_page page_of(const chk_rig *r, const chk_sealed *p, const void *bytes) {
    return (kvc_page){.struct_size = sizeof(kvc_page),
                      .layer = p->layer,
                      .head = p->layer % r->shape.n_head_kv,
                      .n = p->n,
                      .bytes = bytes};
}

/* ---------------------------------------------------------------- a session */

bool chk_rig_open(chk_rig *r, chk *c, const chk_shape *shape, const char *compute) {
    memset(r, 0, sizeof *r);
    r->c = c;
    r->shape = *shape;
    r->compute = compute;
    snprintf(r->where, sizeof r->where, "compute %s, heads of %u and %u", compute, shape->dim_k,
             shape->dim_v);
    r->model = chk_open_model(c, shape, 1);
    kvc_params *p = chk_params(c, compute, N_CTX, false);
    const int32_t rc =
        r->model != NULL ? kvc_session_open(r->model, c->spec, p, &r->session) : KVC_E_ARG;
    if (rc == KVC_E_UNSUPPORTED) {
        chk_info(c, "%s: refused: %s", r->where, kvc_params_error(p));
    } else if (rc < 0) {
        chk_fail(c, "%s: can't be opened: %s (%s)", r->where, kvc_params_error(p),
                 kvc_status_name(rc));
    }
    kvc_params_destroy(p);
    r->api = chk_shim_codec.api;
    r->self = chk_shim_codec.self;
    if (rc < 0 || r->api.struct_size == 0) {
        return false;
    }
    for (uint32_t i = 0; i < shape->n_layer; i++) {
        r->bytes[i] = r->api.page_bytes(r->self, i);
    }
    return chk_prefill(c, r->session, chk_text(c, 0), N_WARM, 0) && chk_rig_size(r);
}

void chk_rig_close(chk_rig *r) {
    kvc_session_close(r->session);
    kvc_model_close(r->model);
    free(r->page.whole);
    free(r->other.whole);
    free(r->out.whole);
    free(r->more.whole);
    memset(r, 0, sizeof *r);
}

bool chk_rig_size(chk_rig *r) {
    for (uint32_t i = 0; i < r->shape.n_layer; i++) {
        const size_t now = r->api.page_bytes(r->self, i);
        if (now != r->bytes[i]) {
            chk_rig_fail(
                r, "%s: page_bytes() isn't constant: it answered %zu for layer %u, and now %zu",
                r->where, r->bytes[i], i, now);
            return false;
        }
    }
    return true;
}

/* ---------------------------------------------------------------- rows */

float chk_uniform(chk *c) {
    return (float)(chk_random(c) >> 40) / (float)(1 << 23) - 1.0f;
}

/* Seven bits and a sign, near a normal distribution of width 1. */
static float plain_number(chk *c) {
    const float x = chk_uniform(c) + chk_uniform(c) + chk_uniform(c);
    return (float)(int)(x * 32.0f) / 32.0f;
}

/* One element of a row. Some channels lie far from the others, as keys' do. */
static float number(chk *c, uint32_t pattern, uint32_t e, uint32_t i) {
    switch (pattern) {
    case CHK_ZEROS:
        return 0.0f;
    case CHK_EQUAL:
        return (float)e / 16.0f - 1.0f;
    case CHK_SINGLE:
        return i == e % 8 ? 2.0f : 0.0f;
    case CHK_LARGE:
        return plain_number(c) * 256.0f;
    case CHK_TINY:
        return ldexpf(plain_number(c), -19);
    default:
        return i % 16 == 5 ? 3.0f + plain_number(c) / 4.0f : plain_number(c);
    }
}

/* Dense rows to rows with a gap that holds no numbers. */
static void spread(const float *rows, uint32_t dim, float *out) {
    for (size_t e = 0; e < KVC_PAGE; e++) {
        memcpy(out + e * (dim + GAP), rows + e * dim, dim * sizeof *out);
        for (size_t i = dim; i < dim + GAP; i++) {
            out[e * (dim + GAP) + i] = NAN;
        }
    }
}

/* ---------------------------------------------------------------- decode */

static bool decode_once(chk_rig *r, const chk_sealed *p, float *k, float *v, uint32_t turn) {
    const void *bytes = room_copy(&r->page, p->bytes, r->bytes[p->layer], turn);
    float *out_k = room_lend(&r->out, n_k(r) * sizeof *k, turn);
    float *out_v = room_lend(&r->more, n_v(r) * sizeof *v, turn);
    const kvc_page page = page_of(r, p, bytes);
    if (!answered(r, "decode()", r->api.decode(r->self, &page, out_k, out_v)) ||
        !room_kept(r, &r->out, "decode()", "k") || !room_kept(r, &r->more, "decode()", "v") ||
        !unchanged(r, &r->page, p->bytes, "decode()", "the page")) {
        return false;
    }
    memcpy(k, out_k, n_k(r) * sizeof *k);
    memcpy(v, out_v, n_v(r) * sizeof *v);
    return true;
}

/* The first row with a number that isn't finite, or KVC_PAGE. */
static uint32_t first_odd(const float *rows, uint32_t dim) {
    for (uint32_t i = 0; i < KVC_PAGE * dim; i++) {
        if (!isfinite(rows[i])) {
            return i / dim;
        }
    }
    return KVC_PAGE;
}

bool chk_rig_decode(chk_rig *r, chk_sealed *p) {
    float *k = chk_take(n_k(r), sizeof *k), *v = chk_take(n_v(r), sizeof *v);
    bool good = decode_once(r, p, p->k, p->v, 0) && decode_once(r, p, k, v, 1);
    if (good &&
        (memcmp(k, p->k, n_k(r) * sizeof *k) != 0 || memcmp(v, p->v, n_v(r) * sizeof *v) != 0)) {
        chk_rig_fail(
            r,
            "%s: decode() of the same page gives other numbers the second time: it leaves part "
            "of k or v as it was, reads past the page, or isn't pure",
            r->where);
        good = false;
    }
    const uint32_t odd_k = good ? first_odd(p->k, r->shape.dim_k) : KVC_PAGE;
    const uint32_t odd_v = good ? first_odd(p->v, r->shape.dim_v) : KVC_PAGE;
    if (odd_k < KVC_PAGE || odd_v < KVC_PAGE) {
        chk_rig_fail(r, "%s: decode() gives numbers that aren't finite, first in row %u of %s",
                     r->where, odd_k < KVC_PAGE ? odd_k : odd_v, odd_k < KVC_PAGE ? "k" : "v");
        good = false;
    }
    free(k);
    free(v);
    return good;
}

/* ---------------------------------------------------------------- encode */

static bool encode_once(chk_rig *r, const kvc_rows *rows, chk_sealed *out, uint32_t turn) {
    void *dst = room_lend(&r->page, r->bytes[out->layer], turn);
    if (!answered(r, "encode()", r->api.encode(r->self, rows, dst)) ||
        !room_kept(r, &r->page, "encode()", "the page")) {
        return false;
    }
    memcpy(out->bytes, dst, r->bytes[out->layer]);
    return chk_rig_decode(r, out);
}

static double mean_error(const float *got, const float *want, uint32_t dim, uint32_t n) {
    double sum = 0;
    for (uint32_t e = 0; e < n; e++) {
        double d2 = 0, w2 = 0;
        for (size_t i = (size_t)e * dim; i < (size_t)(e + 1) * dim; i++) {
            const double d = (double)got[i] - (double)want[i];
            d2 += d * d;
            w2 += (double)want[i] * (double)want[i];
        }
        sum += w2 > 0 ? sqrt(d2 / w2) : sqrt(d2);
    }
    return sum / n;
}

/* Whether a second page of the same rows decodes as the first. */
static bool same_page(chk_rig *r, const chk_sealed *a, const chk_sealed *b, const char *why) {
    if (memcmp(a->k, b->k, n_k(r) * sizeof *a->k) != 0 ||
        memcmp(a->v, b->v, n_v(r) * sizeof *a->v) != 0) {
        chk_rig_fail(r, "%s: encode() of the same rows gives another page when %s", r->where, why);
        return false;
    }
    return true;
}

bool chk_rig_encode(chk_rig *r, uint32_t pattern, uint32_t layer, uint32_t n, chk_sealed *out,
                    double error[2]) {
    const uint32_t dim_k = r->shape.dim_k, dim_v = r->shape.dim_v;
    float *k = chk_take(n_k(r), sizeof *k), *v = chk_take(n_v(r), sizeof *v);
    float *wide_k = chk_take((size_t)KVC_PAGE * (dim_k + GAP), sizeof *k);
    float *wide_v = chk_take((size_t)KVC_PAGE * (dim_v + GAP), sizeof *v);
    int32_t pos[KVC_PAGE];
    chk_sealed again;
    for (uint32_t i = 0; i < KVC_PAGE; i++) {
        pos[i] = (int32_t)(KVC_PAGE * (1 + pattern % 2) + i);
    }
    for (uint32_t i = 0; i < n_k(r); i++) {
        k[i] = number(r->c, pattern, i / dim_k, i % dim_k);
    }
    for (uint32_t i = 0; i < n_v(r); i++) {
        v[i] = number(r->c, pattern, i / dim_v, i % dim_v);
    }
    kvc_rows rows = {.struct_size = sizeof rows,
                     .layer = layer,
                     .head = layer % r->shape.n_head_kv,
                     .n = n,
                     .pos = pos,
                     .k = k,
                     .v = v,
                     .k_stride = dim_k,
                     .v_stride = dim_v};
    chk_sealed_make(r, layer, out);
    chk_sealed_make(r, layer, &again);
    out->n = again.n = n;
    bool good = encode_once(r, &rows, out, 0) && encode_once(r, &rows, &again, 1) &&
                same_page(r, out, &again, "the memory that it fills held other bytes before");
    spread(rows.k, dim_k, wide_k);
    spread(rows.v, dim_v, wide_v);
    rows.k = wide_k;
    rows.v = wide_v;
    rows.k_stride += GAP;
    rows.v_stride += GAP;
    good = good && encode_once(r, &rows, &again, 0) &&
           same_page(r, out, &again, "k_stride and v_stride are larger than the rows");
    if (good && error != NULL) {
        error[0] = mean_error(out->k, k, dim_k, n);
        error[1] = mean_error(out->v, v, dim_v, n);
    }
    chk_sealed_free(&again);
    free(k);
    free(v);
    free(wide_k);
    free(wide_v);
    return good;
}

/* ---------------------------------------------------------------- score, mix, move */

static bool score_once(chk_rig *r, const chk_sealed *p, const float *q, uint32_t n_q, float *s,
                       uint32_t turn) {
    const size_t size = (size_t)n_q * KVC_PAGE * sizeof *s;
    const void *bytes = room_copy(&r->page, p->bytes, r->bytes[p->layer], turn);
    const float *lent = room_copy(&r->other, q, (size_t)n_q * r->shape.dim_k * sizeof *q, turn);
    float *out = room_lend(&r->out, size, turn);
    const kvc_page page = page_of(r, p, bytes);
    if (!answered(r, "score()", r->api.score(r->self, &page, lent, n_q, out)) ||
        !room_kept(r, &r->out, "score()", "s") ||
        !unchanged(r, &r->page, p->bytes, "score()", "the page") ||
        !unchanged(r, &r->other, q, "score()", "q")) {
        return false;
    }
    memcpy(s, out, size);
    return true;
}

/* Scores of rows beyond the page's entries have no meaning. */
bool chk_rig_score(chk_rig *r, const chk_sealed *p, const float *q, uint32_t n_q, float *s) {
    float *again = chk_take((size_t)n_q * KVC_PAGE, sizeof *again);
    bool good = score_once(r, p, q, n_q, s, 0) && score_once(r, p, q, n_q, again, 1);
    for (size_t i = 0; good && i < n_q; i++) {
        if (memcmp(s + i * KVC_PAGE, again + i * KVC_PAGE, p->n * sizeof *s) != 0) {
            chk_rig_fail(
                r,
                "%s: score() of the same page and queries gives other numbers the second time, "
                "in query %zu of %u: it leaves part of s as it was, reads past what it is "
                "given, or isn't pure",
                r->where, i, n_q);
            good = false;
        }
    }
    free(again);
    return good;
}

static bool mix_once(chk_rig *r, const chk_sealed *page_in, const float *p, uint32_t n_q,
                     const float *from, float *acc, uint32_t turn) {
    const size_t size = (size_t)n_q * r->shape.dim_v * sizeof *acc;
    const void *bytes = room_copy(&r->page, page_in->bytes, r->bytes[page_in->layer], turn);
    const float *lent = room_copy(&r->other, p, (size_t)n_q * KVC_PAGE * sizeof *p, turn);
    float *out = room_copy(&r->out, from, size, turn);
    const kvc_page page = page_of(r, page_in, bytes);
    if (!answered(r, "mix()", r->api.mix(r->self, &page, lent, n_q, out)) ||
        !room_kept(r, &r->out, "mix()", "acc") ||
        !unchanged(r, &r->page, page_in->bytes, "mix()", "the page") ||
        !unchanged(r, &r->other, p, "mix()", "p")) {
        return false;
    }
    memcpy(acc, out, size);
    return true;
}

bool chk_rig_mix(chk_rig *r, const chk_sealed *page, const float *p, uint32_t n_q, float *acc) {
    const size_t n = (size_t)n_q * r->shape.dim_v;
    float *from = chk_take(n, sizeof *from), *again = chk_take(n, sizeof *again);
    memcpy(from, acc, n * sizeof *from);
    bool good =
        mix_once(r, page, p, n_q, from, acc, 0) && mix_once(r, page, p, n_q, from, again, 1);
    if (good && memcmp(acc, again, n * sizeof *acc) != 0) {
        chk_rig_fail(
            r,
            "%s: mix() of the same page, probabilities and sums gives other numbers the second "
            "time: it reads past what it is given, or isn't pure",
            r->where);
        good = false;
    }
    free(from);
    free(again);
    return good;
}

bool chk_rig_move(chk_rig *r, chk_sealed *dst, uint32_t to, const chk_sealed *src, uint32_t from) {
    const size_t size = r->bytes[dst->layer];
    void *d = room_copy(&r->page, dst->bytes, size, to);
    const void *s = src == dst ? d : room_copy(&r->other, src->bytes, size, to);
    if (!answered(r, "move()", r->api.move(r->self, dst->layer, d, to, s, from)) ||
        !room_kept(r, &r->page, "move()", "the page") ||
        (src != dst && !unchanged(r, &r->other, src->bytes, "move()", "the page that it copies"))) {
        return false;
    }
    memcpy(dst->bytes, d, size);
    return true;
}

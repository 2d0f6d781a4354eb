/* SPDX-License-Identifier: MIT
 * check_codec.c: the group "codec": a page format of the policy's own. decode() is what a page
 * holds; the other functions must agree with it, and none may touch what isn't its own. The calls
 * themselves are in check_page.c. */
#include "check_page.h"
#include "check_stages.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* How far a product may lie from what decode() implies, as a share of the largest that it could be:
 * rounding of f32 sums; and of the int8 that queries may be rounded to. */
static const double tolerance_f32 = 1e-3, tolerance_int8 = 0.03;
/* A mean error of entries from which a format is worth a look. */
static const double coarse = 0.75;

static const char *const pattern_name[CHK_N_PATTERN] = {
    [CHK_PLAIN] = "random rows",        [CHK_ZEROS] = "rows of zeros",
    [CHK_EQUAL] = "rows of one number", [CHK_SINGLE] = "rows of zeros but one",
    [CHK_LARGE] = "large rows",         [CHK_TINY] = "tiny rows"};

/* ---------------------------------------------------------------- sessions and pages */

static double tolerance(const chk_rig *r) {
    return strcmp(r->compute, "f32") == 0 ? tolerance_f32 : tolerance_int8;
}

static void name_where(chk_rig *r, const char *rows, uint32_t n) {
    snprintf(r->where, sizeof r->where, "compute %s, heads of %u and %u, %u entries, %s",
             r->compute, r->shape.dim_k, r->shape.dim_v, n, rows);
}

/* Runs fn on sessions of both ways to compute and of two shapes. have: whether the codec has what
 * the test is about; lacks: what is said if not. */
static void each_rig(chk *c, bool (*have)(const kvc_codec *api), const char *lacks,
                     void (*fn)(chk_rig *r)) {
    static const char *const computes[] = {"f32", "int8"};
    chk_shape shape[2] = {chk_base, chk_base};
    shape[1].n_layer = 2;
    shape[1].n_head_kv = 1;
    shape[1].group = 3;
    shape[1].dim_k = 96;
    shape[1].dim_v = 128;
    if (!chk_prepare(c)) {
        return;
    }
    if (chk_shim_codec.api.struct_size == 0) {
        chk_skip(c, "it has no codec: its pages are the engine's floats, or another stage's");
        return;
    }
    if (!have(&chk_shim_codec.api)) {
        chk_skip(c, "%s", lacks);
        return;
    }
    for (uint32_t i = 0; i < 4 && !c->failed; i++) {
        chk_rig r;
        if (chk_rig_open(&r, c, &shape[i / 2], computes[i % 2])) {
            fn(&r);
        }
        chk_rig_close(&r);
    }
}

static bool have_any(const kvc_codec *api) {
    return api->page_bytes != NULL && api->encode != NULL && api->decode != NULL;
}

static bool have_move(const kvc_codec *api) {
    return have_any(api) && (api->flags & KVC_CODEC_MOVABLE) != 0 && api->move != NULL;
}

/* Copies the row of an entry to where it is to be found after a move. */
static void expect(const chk_rig *r, chk_sealed *want, uint32_t to, const chk_sealed *src,
                   uint32_t from) {
    const size_t dk = r->shape.dim_k, dv = r->shape.dim_v;
    memmove(want->k + to * dk, src->k + from * dk, dk * sizeof *want->k);
    memmove(want->v + to * dv, src->v + from * dv, dv * sizeof *want->v);
}

/* Fills page `to` from entry *at on with about half of the entries of src, up to n, as the engine
 * does when it compacts; want has what must be there. */
static bool compact(chk_rig *r, chk_sealed *to, chk_sealed *want, uint32_t *at, uint32_t n,
                    const chk_sealed *src) {
    bool good = true;
    for (uint32_t e = 0; good && e < KVC_PAGE && *at < n; e++) {
        if (chk_below(r->c, 2) != 0 || n - *at >= KVC_PAGE - e) {
            good = chk_rig_move(r, to, *at, src, e);
            expect(r, want, (*at)++, src, e);
        }
    }
    return good;
}

/* A page that was never encoded: entries of two others were moved to it, while it held zeros. */
static bool moved_page(chk_rig *r, uint32_t layer, uint32_t n, chk_sealed *out, chk_sealed *want) {
    chk_sealed a = {0}, b = {0};
    uint32_t at = 0;
    chk_sealed_make(r, layer, out);
    chk_sealed_make(r, layer, want);
    bool good = chk_rig_encode(r, CHK_PLAIN, layer, KVC_PAGE, &a, NULL) &&
                chk_rig_encode(r, CHK_PLAIN, layer, KVC_PAGE, &b, NULL);
    name_where(r, "moved to a page of zeros", n);
    out->n = want->n = n;
    good = good && compact(r, out, want, &at, n / 2, &a) && compact(r, out, want, &at, n, &b) &&
           chk_rig_decode(r, out);
    chk_sealed_free(&a);
    chk_sealed_free(&b);
    return good;
}

/* Runs fn on pages of all patterns, on some that aren't full, and on one that was moved together.
 */
static void each_page(chk_rig *r, bool (*fn)(chk_rig *r, const chk_sealed *page)) {
    static const uint32_t sizes[] = {KVC_PAGE, 37, 1};
    const uint32_t n_page = CHK_N_PATTERN + 2;
    bool good = true;
    for (uint32_t i = 0; good && i < n_page; i++) {
        const uint32_t pattern = i < CHK_N_PATTERN ? i : CHK_PLAIN;
        const uint32_t n = sizes[i < CHK_N_PATTERN ? 0 : i - CHK_N_PATTERN + 1];
        chk_sealed page = {0};
        name_where(r, pattern_name[pattern], n);
        good = chk_rig_encode(r, pattern, i % r->shape.n_layer, n, &page, NULL) && fn(r, &page);
        chk_sealed_free(&page);
    }
    if (good && have_move(&r->api)) {
        chk_sealed page = {0}, want = {0};
        r->quiet = true; /* codec/move says what is wrong with it */
        good = moved_page(r, 0, 41, &page, &want);
        r->quiet = false;
        good = good && fn(r, &page);
        chk_sealed_free(&page);
        chk_sealed_free(&want);
    }
}

/* ---------------------------------------------------------------- pages */

/* A fork, and a session that was loaded, read pages that another instance has made. */
static bool read_by_another(chk_rig *r, chk_sealed *page) {
    kvc_session *s = chk_open(r->c, r->model, r->c->spec, r->compute, CHK_CTX);
    chk_sealed again;
    void *const self = r->self;
    chk_sealed_make(r, page->layer, &again);
    chk_sealed_copy(r, &again, page);
    r->self = chk_shim_codec.self;
    snprintf(r->where, sizeof r->where, "compute %s, a second instance", r->compute);
    bool good = s != NULL && chk_rig_size(r);
    if (good && (r->c->plan.flags & KVC_PLAN_STATE) == 0) {
        good = chk_rig_decode(r, &again);
        if (good &&
            (memcmp(again.k, page->k, (size_t)KVC_PAGE * r->shape.dim_k * sizeof(float)) != 0 ||
             memcmp(again.v, page->v, (size_t)KVC_PAGE * r->shape.dim_v * sizeof(float)) != 0)) {
            chk_rig_fail(
                r,
                "%s decodes a page otherwise than the one that encoded it, and the plan isn't "
                "KVC_PLAN_STATE: forks share pages",
                r->where);
            good = false;
        }
    }
    r->self = self;
    chk_sealed_free(&again);
    kvc_session_close(s);
    return good;
}

static void pages(chk_rig *r) {
    static const uint32_t sizes[] = {KVC_PAGE, 37, 1};
    double error[2] = {0, 0};
    bool good = true;
    for (uint32_t i = 0; good && i < 3 * CHK_N_PATTERN; i++) {
        const uint32_t pattern = i % CHK_N_PATTERN, n = sizes[i / CHK_N_PATTERN];
        chk_sealed page = {0};
        name_where(r, pattern_name[pattern], n);
        good = chk_rig_encode(r, pattern, i % r->shape.n_layer, n, &page, i == 0 ? error : NULL);
        good = good && (i > 0 || read_by_another(r, &page));
        chk_sealed_free(&page);
    }
    snprintf(r->where, sizeof r->where, "compute %s, heads of %u and %u", r->compute,
             r->shape.dim_k, r->shape.dim_v);
    if (good && chk_rig_size(r)) {
        chk_info(r->c, "%s: %zu bytes; error of random keys %.1e, of values %.1e", r->where,
                 r->bytes[0], error[0], error[1]);
    }
    if (good && fmax(error[0], error[1]) > coarse) {
        chk_warn(
            r->c,
            "%s: what decode() gives has little to do with what was encoded: the mean error of "
            "%s is %.2f times their length",
            r->where, error[0] > coarse ? "keys" : "values",
            error[0] > coarse ? error[0] : error[1]);
    }
}

void chk_codec_pages(chk *c) {
    each_rig(c, have_any, "its codec isn't whole", pages);
}

/* ---------------------------------------------------------------- score */

/* Where each page's worst product is remembered, for the report. */
static double worst;

/* Whether got is what it should be; most is the largest that it could be. */
static bool near(chk_rig *r, double got, double want, double most, const char *call, uint32_t query,
                 const char *of, uint32_t which) {
    const double share = fabs(got - want) / (most + 1e-20);
    worst = share > worst ? share : worst;
    if (share <= tolerance(r)) {
        return true;
    }
    chk_rig_fail(
        r,
        "%s: %s of query %u, %s %u, gives %.6g, where what decode() gives makes %.6g; that "
        "differs by %.2g of the largest that it could be, and %.2g is allowed",
        r->where, call, query, of, which, got, want, share, tolerance(r));
    return false;
}

/* Queries of many sizes, every fourth along one of the keys. */
static void make_queries(chk_rig *r, const chk_sealed *page, float *q) {
    static const float size[] = {1.0f, 0.01f, 30.0f};
    const uint32_t dim = r->shape.dim_k;
    for (uint32_t i = 0; i < CHK_MAX_ROW; i++) {
        const float *key = page->k + (size_t)(i % page->n) * dim;
        for (uint32_t d = 0; d < dim; d++) {
            const float x = i % 4 == 3 ? key[d] : 0.0f;
            q[(size_t)i * dim + d] = (x + chk_uniform(r->c)) * size[i % 3];
        }
    }
}

static bool judge_scores(chk_rig *r, const chk_sealed *page, const float *q, const float *s) {
    const size_t dim = r->shape.dim_k;
    bool good = true;
    for (uint32_t i = 0; good && i < CHK_MAX_ROW; i++) {
        for (uint32_t e = 0; good && e < page->n; e++) {
            double dot = 0, qq = 0, kk = 0;
            for (size_t d = 0; d < dim; d++) {
                const double a = (double)q[i * dim + d], b = (double)page->k[e * dim + d];
                dot += a * b;
                qq += a * a;
                kk += b * b;
            }
            good =
                near(r, (double)s[i * KVC_PAGE + e], dot, sqrt(qq * kk), "score()", i, "entry", e);
        }
    }
    return good;
}

/* Says that row `row` of a call of n_q is otherwise than in a call of CHK_MAX_ROW. */
static bool depends(chk_rig *r, const char *call, uint32_t row, uint32_t n_q) {
    chk_rig_fail(r,
                 "%s: %s gives a query other numbers as row %u of %u than as one of %u; the result "
                 "must not depend on n_q, to the last bit",
                 r->where, call, row, n_q, CHK_MAX_ROW);
    return false;
}

static const uint32_t counts[] = {1, 2, 3, 4, 7, 16, 33}; /* of queries at once */
#define N_COUNT (sizeof counts / sizeof *counts)

static bool score_page(chk_rig *r, const chk_sealed *page) {
    const size_t dim = r->shape.dim_k;
    float *q = chk_take(CHK_MAX_ROW * dim, sizeof *q);
    float *s = chk_take((size_t)CHK_MAX_ROW * KVC_PAGE, sizeof *s);
    float *part = chk_take((size_t)CHK_MAX_ROW * KVC_PAGE, sizeof *part);
    make_queries(r, page, q);
    bool good = chk_rig_score(r, page, q, CHK_MAX_ROW, s) && judge_scores(r, page, q, s);
    for (size_t i = 0; good && i < N_COUNT; i++) {
        const uint32_t first = chk_below(r->c, CHK_MAX_ROW - counts[i] + 1);
        good = chk_rig_score(r, page, q + first * dim, counts[i], part);
        for (uint32_t j = 0; good && j < counts[i]; j++) {
            good = memcmp(part + (size_t)j * KVC_PAGE, s + (size_t)(first + j) * KVC_PAGE,
                          page->n * sizeof *s) == 0 ||
                   depends(r, "score()", j, counts[i]);
        }
    }
    free(q);
    free(s);
    free(part);
    return good;
}

static bool have_score(const kvc_codec *api) {
    return have_any(api) && api->score != NULL;
}

static void tell_worst(chk_rig *r, const char *call) {
    if (!r->c->failed) {
        chk_info(
            r->c,
            "compute %s, heads of %u and %u: %s differs from what decode() makes by %.1e of the "
            "largest that it could be",
            r->compute, r->shape.dim_k, r->shape.dim_v, call, worst);
    }
}

static void scores(chk_rig *r) {
    worst = 0;
    each_page(r, score_page);
    tell_worst(r, "score()");
}

void chk_codec_score(chk *c) {
    each_rig(c, have_score, "its codec has no score(): the engine decodes", scores);
}

/* ---------------------------------------------------------------- mix */

/* Probabilities as a softmax gives them: some large, some 0, none beyond the page's entries. */
static void make_weights(chk_rig *r, const chk_sealed *page, float *p, float *acc) {
    for (uint32_t i = 0; i < CHK_MAX_ROW; i++) {
        for (uint32_t e = 0; e < page->n; e++) {
            const float x = chk_uniform(r->c);
            p[(size_t)i * KVC_PAGE + e] = x < -0.5f ? 0.0f : expf(6.0f * x - 6.0f);
        }
    }
    for (size_t i = 0; i < (size_t)CHK_MAX_ROW * r->shape.dim_v; i++) {
        acc[i] = chk_uniform(r->c);
    }
}

static bool judge_sums(chk_rig *r, const chk_sealed *page, const float *p, const float *from,
                       const float *acc) {
    const size_t dim = r->shape.dim_v;
    bool good = true;
    for (uint32_t i = 0; good && i < CHK_MAX_ROW; i++) {
        for (uint32_t d = 0; good && d < dim; d++) {
            double sum = (double)from[i * dim + d], most = fabs(sum);
            for (size_t e = 0; e < page->n; e++) {
                const double x = (double)p[i * KVC_PAGE + e] * (double)page->v[e * dim + d];
                sum += x;
                most += fabs(x);
            }
            good = near(r, (double)acc[i * dim + d], sum, most, "mix()", i, "element", d);
        }
    }
    return good;
}

static bool mix_page(chk_rig *r, const chk_sealed *page) {
    const size_t dim = r->shape.dim_v;
    float *p = chk_take((size_t)CHK_MAX_ROW * KVC_PAGE, sizeof *p);
    float *from = chk_take(CHK_MAX_ROW * dim, sizeof *from);
    float *acc = chk_take(CHK_MAX_ROW * dim, sizeof *acc);
    float *part = chk_take(CHK_MAX_ROW * dim, sizeof *part);
    make_weights(r, page, p, from);
    memcpy(acc, from, CHK_MAX_ROW * dim * sizeof *acc);
    bool good = chk_rig_mix(r, page, p, CHK_MAX_ROW, acc) && judge_sums(r, page, p, from, acc);
    for (size_t i = 0; good && i < N_COUNT; i++) {
        const uint32_t first = chk_below(r->c, CHK_MAX_ROW - counts[i] + 1);
        memcpy(part, from + first * dim, counts[i] * dim * sizeof *part);
        good = chk_rig_mix(r, page, p + (size_t)first * KVC_PAGE, counts[i], part);
        for (uint32_t j = 0; good && j < counts[i]; j++) {
            good = memcmp(part + j * dim, acc + (first + j) * dim, dim * sizeof *acc) == 0 ||
                   depends(r, "mix()", j, counts[i]);
        }
    }
    free(p);
    free(from);
    free(acc);
    free(part);
    return good;
}

static bool have_mix(const kvc_codec *api) {
    return have_any(api) && api->mix != NULL;
}

static void sums(chk_rig *r) {
    worst = 0;
    each_page(r, mix_page);
    tell_worst(r, "mix()");
}

void chk_codec_mix(chk *c) {
    each_rig(c, have_mix, "its codec has no mix(): the engine decodes", sums);
}

/* ---------------------------------------------------------------- move */

/* Whether the first n rows of a page are what they should be. */
static bool judge_moved(chk_rig *r, const chk_sealed *got, const chk_sealed *want, uint32_t n) {
    const size_t dk = r->shape.dim_k, dv = r->shape.dim_v;
    for (uint32_t e = 0; e < n; e++) {
        const bool k = memcmp(got->k + e * dk, want->k + e * dk, dk * sizeof *got->k) == 0;
        const bool v = memcmp(got->v + e * dv, want->v + e * dv, dv * sizeof *got->v) == 0;
        if (!k || !v) {
            chk_rig_fail(
                r,
                "%s: entry %u of the page doesn't decode to the %s that move() was to copy or "
                "to leave there",
                r->where, e,
                k   ? "value"
                : v ? "key"
                    : "key and value");
            return false;
        }
    }
    return true;
}

/* One page to its own front. */
static bool move_within(chk_rig *r, uint32_t layer) {
    chk_sealed page = {0}, want = {0};
    uint32_t at = 0;
    chk_sealed_make(r, layer, &want);
    bool good = chk_rig_encode(r, CHK_PLAIN, layer, KVC_PAGE, &page, NULL);
    if (good) {
        chk_sealed_copy(r, &want, &page);
    }
    name_where(r, "moved within a page", KVC_PAGE);
    for (uint32_t e = 0; good && e < KVC_PAGE; e++) {
        if (e < 2 || chk_below(r->c, 2) != 0) {
            good = chk_rig_move(r, &page, at, &page, e);
            expect(r, &want, at++, &want, e);
        }
    }
    good = good && chk_rig_decode(r, &page) && judge_moved(r, &page, &want, KVC_PAGE);
    chk_sealed_free(&page);
    chk_sealed_free(&want);
    return good;
}

/* Some entries of one page to another one, whose others stay. */
static bool move_between(chk_rig *r, uint32_t layer) {
    chk_sealed page = {0}, from = {0}, want = {0};
    chk_sealed_make(r, layer, &want);
    bool good = chk_rig_encode(r, CHK_PLAIN, layer, KVC_PAGE, &page, NULL) &&
                chk_rig_encode(r, CHK_LARGE, layer, KVC_PAGE, &from, NULL);
    if (good) {
        chk_sealed_copy(r, &want, &page);
    }
    name_where(r, "moved to another page", KVC_PAGE);
    for (uint32_t i = 0; good && i < 20; i++) {
        const uint32_t to = i == 0 ? KVC_PAGE - 1 : chk_below(r->c, KVC_PAGE);
        const uint32_t e = i == 0 ? 0 : chk_below(r->c, KVC_PAGE);
        good = chk_rig_move(r, &page, to, &from, e);
        expect(r, &want, to, &from, e);
    }
    good = good && chk_rig_decode(r, &page) && judge_moved(r, &page, &want, KVC_PAGE);
    chk_sealed_free(&page);
    chk_sealed_free(&from);
    chk_sealed_free(&want);
    return good;
}

/* As the engine compacts: to a page that was new, full and not. */
static bool move_together(chk_rig *r, uint32_t layer, uint32_t n) {
    chk_sealed page = {0}, want = {0};
    const bool good = moved_page(r, layer, n, &page, &want) && judge_moved(r, &page, &want, n);
    chk_sealed_free(&page);
    chk_sealed_free(&want);
    return good;
}

static void moves(chk_rig *r) {
    bool good = true;
    for (uint32_t i = 0; good && i < r->shape.n_layer; i++) {
        good = move_within(r, i) && move_between(r, i) && move_together(r, i, KVC_PAGE) &&
               move_together(r, i, 29);
    }
}

void chk_codec_move(chk *c) {
    each_rig(c, have_move, "its codec isn't KVC_CODEC_MOVABLE: entries stay where they are", moves);
}

/* ---------------------------------------------------------------- fields */

/* What is wrong with a field by itself, or NULL. */
static const char *field_wrong(const kvc_field *f) {
    return f->struct_size != sizeof *f ? "struct_size isn't sizeof(kvc_field)"
           : f->kind != KVC_FIELD_FLOAT && f->kind != KVC_FIELD_INT ? "kind is no KVC_FIELD_…"
           : f->elem != 1 && f->elem != 2 && f->elem != 4 && f->elem != 8
               ? "elem isn't 1, 2, 4 or 8"
           : f->n == 0                            ? "n is 0"
           : f->run == 0 || f->n % f->run != 0    ? "run doesn't divide n"
           : f->entry_stride == 0                 ? "entry_stride is 0"
           : f->run != f->n && f->run_stride == 0 ? "run_stride is 0"
                                                  : NULL;
}

/* Marks the bytes of a field in used[size]; what is wrong, or NULL. Each element takes bytes of its
 * own, so this ends after size of them. */
static const char *field_take(const kvc_field *f, unsigned char *used, size_t size) {
    for (uint64_t e = 0; e < KVC_PAGE; e++) {
        for (uint64_t i = 0; i < f->n; i++) {
            const uint64_t at =
                f->offset + i / f->run * f->run_stride + e * f->entry_stride + i % f->run * f->elem;
            if (at + f->elem > size) {
                return "it leaves the page";
            }
            for (uint32_t b = 0; b < f->elem; b++) {
                if (used[at + b]++ != 0) {
                    return "some of its bytes are another element's too";
                }
            }
        }
    }
    return NULL;
}

static bool fields_of(chk_rig *r, uint32_t layer, uint32_t *count) {
    const size_t size = r->bytes[layer], n_out = 2 * KVC_MAX_FIELDS;
    kvc_field out[2 * KVC_MAX_FIELDS];
    unsigned char *used = chk_take(size, 1);
    memset(out, 0xa5, sizeof out);
    const uint32_t n = r->api.fields(r->self, layer, out, KVC_MAX_FIELDS);
    const char *what = n > KVC_MAX_FIELDS ? "it answers more than cap" : NULL;
    for (size_t i = KVC_MAX_FIELDS * sizeof *out; i < n_out * sizeof *out; i++) {
        what = ((const unsigned char *)out)[i] != 0xa5 ? "it writes more than cap fields" : what;
    }
    if (what != NULL) {
        chk_rig_fail(r, "%s: layer %u, fields(): %s (%u)", r->where, layer, what, n);
    }
    for (uint32_t i = 0; what == NULL && i < n; i++) {
        what = field_wrong(&out[i]);
        what = what != NULL ? what : field_take(&out[i], used, size);
        if (what != NULL) {
            chk_rig_fail(r, "%s: layer %u, field %u of %u: %s", r->where, layer, i, n, what);
        }
    }
    *count = n;
    free(used);
    return what == NULL;
}

static void layouts(chk_rig *r) {
    uint32_t n = 0;
    bool good = true;
    for (uint32_t i = 0; good && i < r->shape.n_layer; i++) {
        good = fields_of(r, i, &n);
    }
    if (good) {
        chk_info(r->c, "%s: %u fields", r->where, n);
    }
}

static bool have_fields(const kvc_codec *api) {
    return have_any(api) && api->fields != NULL;
}

void chk_codec_fields(chk *c) {
    each_rig(c, have_fields, "its codec has no fields(): pages are opaque to a tier", layouts);
}

/* SPDX-License-Identifier: MIT
 * codec.c: calls of page codecs, and the plain floats as one of them. A plain page is K as
 * [dim_k][64] then V as [64][dim_v], the layout that the kernels score and mix without a sum across
 * lanes. */
#include "codec.h"

#include "os.h"

#include <string.h>

size_t kvc__type_bytes(uint32_t type) {
    return type == KVC_TYPE_F32 ? 4 : 2;
}

/* Where V begins in a plain page. */
static size_t plain_v(const kvc__page_shape *s) {
    size_t k = KVC_PAGE * s->dim_k * kvc__type_bytes(s->type_k);
    return (k + 63) & ~(size_t)63;
}

size_t kvc__plain_bytes(const kvc__page_shape *s) {
    size_t v = KVC_PAGE * s->dim_v * kvc__type_bytes(s->type_v);
    return plain_v(s) + ((v + 63) & ~(size_t)63);
}

static size_t plain_page_bytes(void *self, uint32_t layer) {
    const kvc__codec *c = self;
    return kvc__plain_bytes(&c->shape[layer]);
}

static int32_t plain_encode(void *self, const kvc_rows *rows, void *dst) {
    const kvc__codec *c = self;
    const kvc__page_shape *s = &c->shape[rows->layer];
    uint8_t *v = (uint8_t *)dst + plain_v(s);
    for (uint32_t e = 0; e < KVC_PAGE; e++) {
        c->kern->put_k(s->type_k, rows->k + (size_t)e * rows->k_stride, s->dim_k, e, dst);
        c->kern->put_v(s->type_v, rows->v + (size_t)e * rows->v_stride, s->dim_v, e, v);
    }
    return KVC_OK;
}

static int32_t plain_decode(void *self, const kvc_page *page, float *k, float *v) {
    const kvc__codec *c = self;
    const kvc__page_shape *s = &c->shape[page->layer];
    c->kern->get_k(s->type_k, page->bytes, s->dim_k, k);
    c->kern->get_v(s->type_v, (const uint8_t *)page->bytes + plain_v(s), s->dim_v, v);
    return KVC_OK;
}

static int32_t plain_score(void *self, const kvc_page *page, const float *q, uint32_t n_q,
                           float *out) {
    const kvc__codec *c = self;
    const kvc__page_shape *s = &c->shape[page->layer];
    c->kern->score(s->type_k, page->bytes, s->dim_k, q, n_q, out, KVC_PAGE);
    return KVC_OK;
}

static int32_t plain_mix(void *self, const kvc_page *page, const float *p, uint32_t n_q,
                         float *acc) {
    const kvc__codec *c = self;
    const kvc__page_shape *s = &c->shape[page->layer];
    const uint8_t *v = (const uint8_t *)page->bytes + plain_v(s);
    c->kern->mix(s->type_v, v, s->dim_v, p, KVC_PAGE, n_q, acc);
    return KVC_OK;
}

static int32_t plain_move(void *self, uint32_t layer, void *dst, uint32_t to, const void *src,
                          uint32_t from) {
    const kvc__codec *c = self;
    const kvc__page_shape *s = &c->shape[layer];
    size_t bk = kvc__type_bytes(s->type_k), row = s->dim_v * kvc__type_bytes(s->type_v);
    uint8_t *d = dst;
    const uint8_t *from_k = src;
    for (size_t i = 0; i < s->dim_k; i++) {
        memmove(d + (i * KVC_PAGE + to) * bk, from_k + (i * KVC_PAGE + from) * bk, bk);
    }
    memmove(d + plain_v(s) + to * row, from_k + plain_v(s) + from * row, row);
    return KVC_OK;
}

static uint32_t plain_fields(void *self, uint32_t layer, kvc_field *out, uint32_t cap) {
    const kvc__codec *c = self;
    const kvc__page_shape *s = &c->shape[layer];
    const uint32_t bk = (uint32_t)kvc__type_bytes(s->type_k),
                   bv = (uint32_t)kvc__type_bytes(s->type_v);
    (void)cap;
    out[0] = (kvc_field){.kind = KVC_FIELD_FLOAT,
                         .elem = bk,
                         .n = s->dim_k,
                         .run = 1,
                         .run_stride = KVC_PAGE * bk,
                         .entry_stride = bk};
    out[1] = (kvc_field){.kind = KVC_FIELD_FLOAT,
                         .elem = bv,
                         .n = s->dim_v,
                         .run = s->dim_v,
                         .entry_stride = s->dim_v * bv,
                         .offset = (uint32_t)plain_v(s)};
    return 2;
}

void kvc__codec_plain(kvc__codec *c, const kvc__kern *kern, const kvc__page_shape *shape) {
    c->api = (kvc_codec){.struct_size = sizeof(kvc_codec),
                         .flags = KVC_CODEC_MOVABLE,
                         .page_bytes = plain_page_bytes,
                         .encode = plain_encode,
                         .decode = plain_decode,
                         .score = plain_score,
                         .mix = plain_mix,
                         .move = plain_move,
                         .fields = plain_fields};
    c->self = c;
    c->owner = NULL;
    c->ns = NULL;
    c->kern = kern;
    c->shape = shape;
}

/* What a plugin's codec answered, as one of our statuses: only memory can run out without it being
 * broken. */
static int32_t checked(int32_t rc) {
    return rc == KVC_OK || rc == KVC_E_NOMEM ? rc : KVC_E_POLICY;
}

/* Whether a layer's sealed pages have the bytes of open ones. */
static bool is_open_layout(const kvc__codec *c, const kvc__page_shape *s) {
    return c->self == c && s->type_k == s->open_type && s->type_v == s->open_type;
}

int32_t kvc__codec_encode(const kvc__codec *c, uint32_t layer, uint32_t head, uint32_t n,
                          const int32_t *pos, const void *open_k, const void *open_v, void *dst,
                          kvc__codec_scratch *scratch) {
    const kvc__page_shape *s = &c->shape[layer];
    if (is_open_layout(c, s)) {
        /* The open page has the sealed layout already; the general way gives the same bytes. */
        memcpy(dst, open_k, s->open_k_bytes);
        memcpy((uint8_t *)dst + plain_v(s), open_v, s->open_v_bytes);
        return KVC_OK;
    }
    c->kern->get_k(s->open_type, open_k, s->dim_k, scratch->k);
    c->kern->get_v(s->open_type, open_v, s->dim_v, scratch->v);
    kvc_rows rows = {.struct_size = sizeof(kvc_rows),
                     .layer = layer,
                     .head = head,
                     .n = n,
                     .pos = pos,
                     .k = scratch->k,
                     .v = scratch->v,
                     .k_stride = s->dim_k,
                     .v_stride = s->dim_v};
    const uint64_t t0 = kvc__clock_ns();
    const int32_t rc = c->api.encode(c->self, &rows, dst);
    if (c->ns != NULL) {
        atomic_fetch_add(c->ns, kvc__clock_ns() - t0);
    }
    return checked(rc);
}

int32_t kvc__codec_decode(const kvc__codec *c, const kvc_page *page, kvc__codec_scratch *scratch) {
    return checked(c->api.decode(c->self, page, scratch->k, scratch->v));
}

int32_t kvc__codec_score(const kvc__codec *c, const kvc_page *page, const float *q, uint32_t n_q,
                         float *s, kvc__codec_scratch *scratch) {
    if (c->api.score != NULL) {
        return checked(c->api.score(c->self, page, q, n_q, s));
    }
    const uint32_t dim = c->shape[page->layer].dim_k;
    KVC_TRY(kvc__codec_decode(c, page, scratch));
    for (uint32_t e = 0; e < KVC_PAGE; e++) {
        c->kern->put_k(KVC_TYPE_F32, scratch->k + (size_t)e * dim, dim, e, scratch->t);
    }
    c->kern->score(KVC_TYPE_F32, scratch->t, dim, q, n_q, s, KVC_PAGE);
    return KVC_OK;
}

int32_t kvc__codec_mix(const kvc__codec *c, const kvc_page *page, const float *p, uint32_t n_q,
                       float *acc, kvc__codec_scratch *scratch) {
    if (c->api.mix != NULL) {
        return checked(c->api.mix(c->self, page, p, n_q, acc));
    }
    KVC_TRY(kvc__codec_decode(c, page, scratch));
    c->kern->mix(KVC_TYPE_F32, scratch->v, c->shape[page->layer].dim_v, p, KVC_PAGE, n_q, acc);
    return KVC_OK;
}

bool kvc__codec_reopens(const kvc__codec *c, uint32_t n_layer) {
    for (uint32_t i = 0; i < n_layer; i++) {
        if (!is_open_layout(c, &c->shape[i])) {
            return false;
        }
    }
    return true;
}

void kvc__codec_reopen(const kvc__codec *c, uint32_t layer, const void *bytes, void *open_k,
                       void *open_v) {
    const kvc__page_shape *s = &c->shape[layer];
    memcpy(open_k, bytes, s->open_k_bytes);
    memcpy(open_v, (const uint8_t *)bytes + plain_v(s), s->open_v_bytes);
}

uint32_t kvc__codec_fields(const kvc__codec *c, uint32_t layer, kvc_field *out) {
    return c->api.fields != NULL ? c->api.fields(c->self, layer, out, KVC_MAX_FIELDS) : 0;
}

bool kvc__codec_movable(const kvc__codec *c) {
    return (c->api.flags & KVC_CODEC_MOVABLE) != 0 && c->api.move != NULL;
}

int32_t kvc__codec_move(const kvc__codec *c, uint32_t layer, void *dst, uint32_t to,
                        const void *src, uint32_t from) {
    return checked(c->api.move(c->self, layer, dst, to, src, from));
}

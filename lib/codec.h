/* SPDX-License-Identifier: MIT
 * codec.h: sealed pages, whoever defines their bytes. Plain floats are a codec like any other; a
 * policy's codec is called from here and from nowhere else. It knows pages, not lanes, sessions or
 * time. */
#ifndef KVC_CODEC_H
#define KVC_CODEC_H

#include "err.h"
#include "kern.h"
#include "mem.h"

#include "kvc/policy.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KVC__RANGE_PAGES 4u /* pages that are attended to, and brought back, together */

/** One layer as the cache sees it. */
typedef struct kvc__page_shape {
    uint32_t dim_k, dim_v;
    uint32_t group;          /* query heads per KV head */
    uint32_t type_k, type_v; /* sealed plain floats; unused with a policy's codec */
    uint32_t open_type;
    uint32_t had_k, had_v; /* Hadamard block, 0: none */
    uint32_t window;       /* the model's own, 0: none */
    float scale;
    float soft_cap;      /* on scores, 0: none */
    size_t page_bytes;   /* of a sealed page */
    size_t open_k_bytes; /* of an open page's keys */
    size_t open_v_bytes;
} kvc__page_shape;

/** The codec of a session: a table, its instance and the shapes. */
typedef struct kvc__codec {
    kvc_codec api; /* the host's own copy */
    void *self;
    const char *owner;         /* policy's name, NULL for plain floats */
    atomic_uint_least64_t *ns; /* counts the owner's time in encode(), or NULL */
    const kvc__kern *kern;
    const kvc__page_shape *shape; /* [n_layer] */
} kvc__codec;

/** Scratch of one thread: rows of a decoded page. */
typedef struct kvc__codec_scratch {
    float *k; /* [64][max dim_k] */
    float *v; /* [64][max dim_v] */
    float *t; /* [max dim_k][64]: k with elements side by side, as plain pages hold it */
} kvc__codec_scratch;

/** Makes c the plain-float codec over shape. */
void kvc__codec_plain(kvc__codec *c, const kvc__kern *kern, const kvc__page_shape *shape);
/** Bytes of a plain page. */
size_t kvc__plain_bytes(const kvc__page_shape *s);
/** Bytes of one element of a plain type. */
size_t kvc__type_bytes(uint32_t type);

/** Seals an open page (k as [dim_k][64], v as [64][dim_v], both open_type) of n entries into dst.
 */
int32_t kvc__codec_encode(const kvc__codec *c, uint32_t layer, uint32_t head, uint32_t n,
                          const int32_t *pos, const void *open_k, const void *open_v, void *dst,
                          kvc__codec_scratch *scratch);
/** Decodes to k[64][dim_k] and v[64][dim_v] in scratch. */
int32_t kvc__codec_decode(const kvc__codec *c, const kvc_page *page, kvc__codec_scratch *scratch);
/** s[n_q][64]: scores of a page, before a soft cap. */
int32_t kvc__codec_score(const kvc__codec *c, const kvc_page *page, const float *q, uint32_t n_q,
                         float *s, kvc__codec_scratch *scratch);
/** acc[n_q][dim_v] += p[n_q][64] × values. */
int32_t kvc__codec_mix(const kvc__codec *c, const kvc_page *page, const float *p, uint32_t n_q,
                       float *acc, kvc__codec_scratch *scratch);
/** Puts scores s[n_q][64] under the layer's soft cap. */
static inline void kvc__cap_scores(const kvc__kern *kern, const kvc__page_shape *shape, float *s,
                                   uint32_t n_q) {
    if (shape->soft_cap > 0.0f) {
        kern->soft_cap(s, shape->soft_cap, n_q * KVC_PAGE);
    }
}
/** True when a sealed page of every layer holds the very bytes of the open one: plain floats of the
 * open type. Then a page can be opened again. */
bool kvc__codec_reopens(const kvc__codec *c, uint32_t n_layer);
/** Copies a sealed page back into an open one's halves; only if kvc__codec_reopens(). */
void kvc__codec_reopen(const kvc__codec *c, uint32_t layer, const void *bytes, void *open_k,
                       void *open_v);
/** What is where in a page of a layer, into out[KVC_MAX_FIELDS]; returns the number of fields,
 * which a policy may have got wrong. */
uint32_t kvc__codec_fields(const kvc__codec *c, uint32_t layer, kvc_field *out);
/** True when entries can be moved. */
bool kvc__codec_movable(const kvc__codec *c);
/** Moves entry `from` of src to entry `to` of dst. */
int32_t kvc__codec_move(const kvc__codec *c, uint32_t layer, void *dst, uint32_t to,
                        const void *src, uint32_t from);

#endif

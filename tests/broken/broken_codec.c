/* SPDX-License-Identifier: MIT
 * broken_codec.c: page formats that load and run, and break a promise of kvc_codec that shows only
 * when their functions are held against each other, one each, as broken.c does it for the rest.
 * tests/cli/kvcheck.sh says which test of kvcheck finds which. The sound form keeps rows as f32,
 * keys, then values, then one scale for each entry. */
#include <kvc/policy.h>

#include <string.h>

enum { MAX_LAYER = 8 };

typedef struct format {
    const kvc_host *host;
    uint32_t dim_k[MAX_LAYER], dim_v[MAX_LAYER];
    uint32_t number, calls; /* of this instance; of page_bytes() */
    float scale;
} format;

#if defined(BROKEN_DEEP_CODEC_BYTES_DIFFER)
static uint32_t n_made;
#endif

/* ---------------------------------------------------------------- pages */

static size_t n_float(const format *f, uint32_t layer) {
    return (size_t)KVC_PAGE * (f->dim_k[layer] + f->dim_v[layer] + 1);
}

static float *values(const format *f, uint32_t layer, void *page) {
    return (float *)page + (size_t)KVC_PAGE * f->dim_k[layer];
}

static float *scales(const format *f, uint32_t layer, void *page) {
    return values(f, layer, page) + (size_t)KVC_PAGE * f->dim_v[layer];
}

static void *bytes_of(const kvc_page *page) {
    return (void *)(uintptr_t)page->bytes;
}

static size_t page_bytes(void *self, uint32_t layer) {
    format *f = self;
    size_t more = 0;
    f->calls++;
#if defined(BROKEN_DEEP_CODEC_BYTES_GROW)
    more = 64 * (size_t)f->calls;
#elif defined(BROKEN_DEEP_CODEC_BYTES_DIFFER)
    more = 64 * (size_t)(f->number % 2);
#endif
    return n_float(f, layer) * sizeof(float) + more;
}

static int32_t encode(void *self, const kvc_rows *rows, void *dst) {
    format *f = self;
    const uint32_t dim_k = f->dim_k[rows->layer], dim_v = f->dim_v[rows->layer];
    size_t stride_k = rows->k_stride, stride_v = rows->v_stride;
    float *k = dst, *v = values(f, rows->layer, dst), *scale = scales(f, rows->layer, dst);
#if defined(BROKEN_DEEP_CODEC_ENCODE_STRIDE)
    stride_k = dim_k;
    stride_v = dim_v;
#endif
    for (size_t e = 0; e < KVC_PAGE; e++) {
        memcpy(k + e * dim_k, rows->k + e * stride_k, dim_k * sizeof *k);
        memcpy(v + e * dim_v, rows->v + e * stride_v, dim_v * sizeof *v);
        scale[e] = 1.0f;
    }
#if defined(BROKEN_DEEP_CODEC_ENCODE_OVER)
    scale[KVC_PAGE] = 1.0f;
#elif defined(BROKEN_DEEP_CODEC_INSTANCE)
    f->scale = 0.75f;             /* and another instance doesn't know */
#endif
    return KVC_OK;
}

static int32_t decode(void *self, const kvc_page *page, float *k, float *v) {
    const format *f = self;
    const uint32_t dim_k = f->dim_k[page->layer], dim_v = f->dim_v[page->layer];
    const float *from_k = page->bytes, *from_v = values(f, page->layer, bytes_of(page));
    const float *scale = scales(f, page->layer, bytes_of(page));
    size_t n = KVC_PAGE;
#if defined(BROKEN_DEEP_CODEC_DECODE_PART)
    n = page->n;
#endif
    for (size_t e = 0; e < n; e++) {
        for (size_t i = e * dim_k; i < (e + 1) * dim_k; i++) {
            k[i] = from_k[i] * f->scale;
        }
        for (size_t i = e * dim_v; i < (e + 1) * dim_v; i++) {
            v[i] = from_v[i];
        }
#if defined(BROKEN_DEEP_CODEC_DECODE_NAN)
        const float size = k[e * dim_k] * k[e * dim_k];
        k[e * dim_k] = k[e * dim_k] * size / size; /* of a key that begins with 0 */
#elif defined(BROKEN_DEEP_CODEC_MOVE_SCALE)
        v[e * dim_v] *= scale[e]; /* which a moved entry leaves behind */
#endif
    }
    (void)scale;
#if defined(BROKEN_DEEP_CODEC_DECODE_OVER)
    v[KVC_PAGE * dim_v] = 0.0f;
#elif defined(BROKEN_DEEP_CODEC_DECODE_FAR)
    memset(v, 0, KVC_PAGE * dim_v * sizeof *v);
#elif defined(BROKEN_DEEP_CODEC_DECODE_WRITES)
    ((float *)bytes_of(page))[0] += 0.5f;
#endif
    return KVC_OK;
}

/* ---------------------------------------------------------------- products */

static int32_t score(void *self, const kvc_page *page, const float *q, uint32_t n_q, float *s) {
    const format *f = self;
    const size_t dim = f->dim_k[page->layer];
    const float *k = page->bytes;
    size_t n = KVC_PAGE;
    float factor = f->scale;
#if defined(BROKEN_DEEP_CODEC_SCORE_HALF)
    factor = 0.5f;
#elif defined(BROKEN_DEEP_CODEC_SCORE_PART)
    n = page->n - 1;
#endif
    for (size_t i = 0; i < n_q; i++) {
        for (size_t e = 0; e < n; e++) {
            float sum = 0;
            for (size_t d = 0; d < dim; d++) {
                size_t at = d;
#if defined(BROKEN_DEEP_CODEC_SCORE_ROWS)
                at = n_q > 3 ? dim - 1 - d : d; /* the same sum in another order */
#endif
                sum += q[i * dim + at] * k[e * dim + at];
            }
            s[i * KVC_PAGE + e] = sum * factor;
        }
    }
#if defined(BROKEN_DEEP_CODEC_SCORE_OVER)
    s[(size_t)n_q * KVC_PAGE] = 0.0f;
#endif
    return KVC_OK;
}

static int32_t mix(void *self, const kvc_page *page, const float *p, uint32_t n_q, float *acc) {
    const format *f = self;
    const size_t dim = f->dim_v[page->layer];
    const float *v = values(f, page->layer, bytes_of(page));
    const float *scale = scales(f, page->layer, bytes_of(page));
    (void)scale;
    for (size_t i = 0; i < n_q; i++) {
#if defined(BROKEN_DEEP_CODEC_MIX_SETS)
        memset(acc + i * dim, 0, dim * sizeof *acc);
#endif
        for (size_t e = 0; e < KVC_PAGE; e++) {
#if defined(BROKEN_DEEP_CODEC_MIX_LAST)
            if (e + 1 == page->n) {
                continue;
            }
#endif
            for (size_t d = 0; d < dim; d++) {
                float x = v[e * dim + d];
#if defined(BROKEN_DEEP_CODEC_MIX_NAN)
                x = x * scale[e] / scale[e]; /* beside p = 0, where no entry was moved to */
#endif
                acc[i * dim + d] += p[i * KVC_PAGE + e] * x;
            }
        }
    }
#if defined(BROKEN_DEEP_CODEC_MIX_OVER)
    acc[n_q * dim] = 0.0f;
#endif
    return KVC_OK;
}

/* ---------------------------------------------------------------- move and fields */

static int32_t move(void *self, uint32_t layer, void *dst, uint32_t to, const void *src,
                    uint32_t from) {
    const format *f = self;
    void *source = (void *)(uintptr_t)src;
    const size_t dk = f->dim_k[layer], dv = f->dim_v[layer];
    (void)dv;
#if defined(BROKEN_DEEP_CODEC_MOVE_NOTHING)
    (void)dst, (void)to, (void)from, (void)source, (void)dk;
    return KVC_OK;
#elif defined(BROKEN_DEEP_CODEC_MOVE_FAILS)
    (void)dst, (void)to, (void)from, (void)source, (void)dk;
    return KVC_E_UNSUPPORTED;
#else
    memmove((float *)dst + to * dk, (const float *)src + from * dk, dk * sizeof(float));
#if !defined(BROKEN_DEEP_CODEC_MOVE_KEYS)
    memmove(values(f, layer, dst) + to * dv, values(f, layer, source) + from * dv,
            dv * sizeof(float));
#endif
#if !defined(BROKEN_DEEP_CODEC_MOVE_SCALE)
    scales(f, layer, dst)[to] = scales(f, layer, source)[from];
#endif
#if defined(BROKEN_DEEP_CODEC_MOVE_OVER)
    scales(f, layer, dst)[KVC_PAGE] = 0.0f;
#elif defined(BROKEN_DEEP_CODEC_MOVE_TAKES)
    memset((float *)source + from * dk, 0, src != dst ? dk * sizeof(float) : 0);
#endif
    return KVC_OK;
#endif
}

static uint32_t fields(void *self, uint32_t layer, kvc_field *out, uint32_t cap) {
    const format *f = self;
    const uint32_t dk = f->dim_k[layer], dv = f->dim_v[layer];
    uint32_t n = 2;
    (void)cap;
    out[0] = (kvc_field){.struct_size = sizeof *out,
                         .kind = KVC_FIELD_FLOAT,
                         .elem = 4,
                         .n = dk,
                         .run = dk,
                         .entry_stride = dk * 4};
    out[1] = out[0];
    out[1].n = out[1].run = dv;
    out[1].entry_stride = dv * 4;
    out[1].offset = KVC_PAGE * dk * 4;
#if defined(BROKEN_DEEP_CODEC_FIELDS_OVERLAP)
    out[1].offset -= 4;
#elif defined(BROKEN_DEEP_CODEC_FIELDS_BEYOND)
    out[1].offset += KVC_PAGE * 4 + 4;
#elif defined(BROKEN_DEEP_CODEC_FIELDS_STRIDE)
    out[1].entry_stride = 0;
#elif defined(BROKEN_DEEP_CODEC_FIELDS_KIND)
    out[1].kind = 7;
#elif defined(BROKEN_DEEP_CODEC_FIELDS_SIZE)
    out[1].struct_size = 0;
#elif defined(BROKEN_DEEP_CODEC_FIELDS_MANY)
    n = cap + 1;
#endif
    return n;
}

static const kvc_codec codec = {.struct_size = sizeof codec,
                                .flags = KVC_CODEC_MOVABLE,
                                .page_bytes = page_bytes,
                                .encode = encode,
                                .decode = decode,
                                .score = score,
                                .mix = mix,
                                .move = move,
                                .fields = fields};

/* ---------------------------------------------------------------- create and destroy */

static int32_t create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                      kvc_plan *plan, void **self) {
    (void)value;
    if (shape->n_layer > MAX_LAYER) {
        return host->fail(host->ctx, KVC_E_UNSUPPORTED, "this test knows eight layers");
    }
    format *f = host->realloc(host->ctx, NULL, 0, sizeof *f, 64);
    if (f == NULL) {
        return KVC_E_NOMEM;
    }
    *self = f;
    f->host = host;
    f->scale = 1.0f;
#if defined(BROKEN_DEEP_CODEC_BYTES_DIFFER)
    f->number = n_made++;
#endif
    for (uint32_t i = 0; i < shape->n_layer; i++) {
        f->dim_k[i] = kvc_shape_layer(shape, i)->dim_k;
        f->dim_v[i] = kvc_shape_layer(shape, i)->dim_v;
    }
    plan->answers = KVC_ANSWERS_FORMAT;
    plan->codec = &codec;
    return KVC_OK;
}

static void destroy(void *self) {
    format *f = self;
    f->host->realloc(f->host->ctx, f, sizeof *f, 0, 64);
}

static const kvc_policy_api api = {.struct_size = sizeof api, .create = create, .destroy = destroy};

static const kvc_policy policy = {
    .struct_size = sizeof policy,
    .abi = KVC_POLICY_ABI,
    .abi_min = KVC_POLICY_ABI_MIN,
    .param_stride = sizeof(kvc_param),
    .caps = KVC_CAP_CHUNK_INVARIANT,
    .name = BROKEN_NAME,
    .version = "1.0.0",
    .summary = "test: a page format that breaks a promise",
    .license = "MIT",
    .api = &api,
};

KVC_POLICY_EXPORT const kvc_policy *kvc_policy_entry(uint32_t host_abi, uint32_t index) {
    (void)host_abi;
    return index == 0 ? &policy : NULL;
}

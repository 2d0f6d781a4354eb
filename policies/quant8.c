/* SPDX-License-Identifier: MIT
 * quant8: sealed pages hold int8 numbers with one scale per row, about half the bytes of f16, and
 * are read at the speed of the host's own kernels (KVC_HOST_MATH). A page is its keys, packed, then
 * its values.
 *
 * hadamard=on spreads the few large elements of a row over all of it before it is rounded, so that
 * they don't cost the others their precision; the engine rotates and undoes it. The idea is that of
 * Ashkboos et al., "QuaRot", arXiv:2404.00456. */
#include <kvc/policy.h>

static const kvc_param params[] = {{
    .struct_size = sizeof(kvc_param),
    .type = KVC_PARAM_BOOL,
    .name = "hadamard",
    .help = "rotate rows before they are rounded",
    .def = {.i = 1},
}};

typedef struct layer {
    kvc_packing k, v;
    size_t bytes_k, bytes_v;
} layer;

typedef struct quant8 {
    const kvc_host *host;
    const kvc_host_math *math;
    size_t bytes; /* of this */
    layer layer[];
} quant8;

static size_t page_bytes(void *self, uint32_t i) {
    const quant8 *q = self;
    return q->layer[i].bytes_k + q->layer[i].bytes_v;
}

static int32_t encode(void *self, const kvc_rows *rows, void *dst) {
    const quant8 *q = self;
    const layer *l = &q->layer[rows->layer];
    q->math->pack_k(q->host->ctx, &l->k, rows->k, rows->k_stride, dst);
    q->math->pack_v(q->host->ctx, &l->v, rows->v, rows->v_stride, (char *)dst + l->bytes_k);
    return KVC_OK;
}

static int32_t decode(void *self, const kvc_page *page, float *k, float *v) {
    const quant8 *q = self;
    const layer *l = &q->layer[page->layer];
    q->math->unpack_k(q->host->ctx, &l->k, page->bytes, k);
    q->math->unpack_v(q->host->ctx, &l->v, (const char *)page->bytes + l->bytes_k, v);
    return KVC_OK;
}

static int32_t score(void *self, const kvc_page *page, const float *query, uint32_t n_q, float *s) {
    const quant8 *q = self;
    q->math->score(q->host->ctx, &q->layer[page->layer].k, page->bytes, query, n_q, s);
    return KVC_OK;
}

static int32_t mix(void *self, const kvc_page *page, const float *p, uint32_t n_q, float *acc) {
    const quant8 *q = self;
    const layer *l = &q->layer[page->layer];
    q->math->mix(q->host->ctx, &l->v, (const char *)page->bytes + l->bytes_k, p, n_q, acc);
    return KVC_OK;
}

static int32_t move(void *self, uint32_t i, void *dst, uint32_t to, const void *src,
                    uint32_t from) {
    const quant8 *q = self;
    const layer *l = &q->layer[i];
    q->math->move_k(q->host->ctx, &l->k, dst, to, src, from);
    q->math->move_v(q->host->ctx, &l->v, (char *)dst + l->bytes_k, to,
                    (const char *)src + l->bytes_k, from);
    return KVC_OK;
}

static uint32_t fields(void *self, uint32_t i, kvc_field *out, uint32_t cap) {
    const quant8 *q = self;
    const layer *l = &q->layer[i];
    (void)cap;
    const uint32_t n = q->math->fields_k(q->host->ctx, &l->k, 0, out);
    return n + q->math->fields_v(q->host->ctx, &l->v, (uint32_t)l->bytes_k, out + n);
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

static int32_t packing_of(const quant8 *q, uint32_t dim, kvc_packing *out, size_t *bytes) {
    *out = (kvc_packing){.struct_size = sizeof *out, .dim = dim, .bits = 8, .group_entry = 1};
    const int32_t rc = q->math->check(q->host->ctx, out);
    *bytes = rc < 0 ? 0 : q->math->bytes(q->host->ctx, out);
    return rc;
}

static int32_t create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                      kvc_plan *plan, void **self) {
    const kvc_host_math *math = host->extension(host->ctx, KVC_HOST_MATH);
    if (math == NULL || math->struct_size < sizeof *math) {
        return host->fail(host->ctx, KVC_E_UNSUPPORTED,
                          "this host lacks " KVC_HOST_MATH "; use quant8 with a newer kvc");
    }
    size_t bytes = sizeof(quant8) + shape->n_layer * sizeof(layer);
    quant8 *q = host->realloc(host->ctx, NULL, 0, bytes, _Alignof(quant8));
    if (q == NULL) {
        return KVC_E_NOMEM;
    }
    *self = q;
    q->host = host;
    q->math = math;
    q->bytes = bytes;
    plan->answers = KVC_ANSWERS_FORMAT;
    plan->codec = &codec;
    for (uint32_t i = 0; i < shape->n_layer; i++) {
        const kvc_layer_shape *s = kvc_shape_layer(shape, i);
        layer *l = &q->layer[i];
        int32_t rc = packing_of(q, s->dim_k, &l->k, &l->bytes_k);
        rc = rc < 0 ? rc : packing_of(q, s->dim_v, &l->v, &l->bytes_v);
        if (rc < 0) {
            return rc;
        }
        kvc_format *format = kvc_plan_format(plan, i);
        format->hadamard_k = format->hadamard_v = (uint32_t)value[0].i;
    }
    return KVC_OK;
}

static void destroy(void *self) {
    quant8 *q = self;
    q->host->realloc(q->host->ctx, q, q->bytes, 0, _Alignof(quant8));
}

static const kvc_policy_api api = {.struct_size = sizeof api, .create = create, .destroy = destroy};

static const kvc_policy policy = {
    .struct_size = sizeof policy,
    .abi = KVC_POLICY_ABI,
    .abi_min = KVC_POLICY_ABI_MIN,
    .n_param = 1,
    .param_stride = sizeof params[0],
    .caps = KVC_CAP_CHUNK_INVARIANT,
    .name = "quant8",
    .version = "1.0.0",
    .summary = "8-bit integers with one scale per row, after a Hadamard rotation",
    .license = "MIT",
    .param = params,
    .api = &api,
};

KVC_POLICY_EXPORT const kvc_policy *kvc_policy_entry(uint32_t host_abi, uint32_t index) {
    (void)host_abi;
    return index == 0 ? &policy : NULL;
}

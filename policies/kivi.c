/* SPDX-License-Identifier: MIT
 * kivi: sealed pages hold 4- or 2-bit integers, keys with a scale and a minimum per channel and
 * `group` tokens, values with a scale and a minimum per token and `group` channels. Keys of most
 * models have a few channels that are large in every token, values don't; so keys are rounded along
 * tokens, where a channel's numbers are alike. No rotation: it would mix the channels. A page is
 * its keys, packed, then its values (KVC_HOST_MATH).
 *
 * Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", arXiv:2402.02750.
 * The paper keeps the latest R tokens (32 to 128) as they are. Here that part is the open page, so
 * a query sees the 0 to 63 tokens of its own page in f16 and all before it packed. More can't be
 * had by a codec: a page is sealed when it is full, and is then never read unpacked again.
 *
 * Entries of a page share scales, so none can be moved; a lane from which a stage evicts gives back
 * memory by whole pages only. */
#include <kvc/policy.h>

enum { BITS, GROUP, N_PARAM }; /* rows of the table */

static const char *const bits[] = {"4", "2", NULL};
static const char *const group[] = {"32", "64", NULL};

static const kvc_param params[N_PARAM] = {
    [BITS] = {.struct_size = sizeof(kvc_param),
              .type = KVC_PARAM_ENUM,
              .name = "bits",
              .unit = "bits",
              .help = "of a packed number",
              .choice = bits,
              .def = {.i = 0}},
    [GROUP] = {.struct_size = sizeof(kvc_param),
               .type = KVC_PARAM_ENUM,
               .name = "group",
               .help = "numbers that share a scale: tokens of keys, channels of values",
               .choice = group,
               .def = {.i = 0}},
};

typedef struct layer {
    kvc_packing k, v;
    size_t bytes_k, bytes_v;
} layer;

typedef struct kivi {
    const kvc_host *host;
    const kvc_host_math *math;
    size_t bytes; /* of this */
    layer layer[];
} kivi;

static size_t page_bytes(void *self, uint32_t i) {
    const kivi *q = self;
    return q->layer[i].bytes_k + q->layer[i].bytes_v;
}

static int32_t encode(void *self, const kvc_rows *rows, void *dst) {
    const kivi *q = self;
    const layer *l = &q->layer[rows->layer];
    q->math->pack_k(q->host->ctx, &l->k, rows->k, rows->k_stride, dst);
    q->math->pack_v(q->host->ctx, &l->v, rows->v, rows->v_stride, (char *)dst + l->bytes_k);
    return KVC_OK;
}

static int32_t decode(void *self, const kvc_page *page, float *k, float *v) {
    const kivi *q = self;
    const layer *l = &q->layer[page->layer];
    q->math->unpack_k(q->host->ctx, &l->k, page->bytes, k);
    q->math->unpack_v(q->host->ctx, &l->v, (const char *)page->bytes + l->bytes_k, v);
    return KVC_OK;
}

static int32_t score(void *self, const kvc_page *page, const float *query, uint32_t n_q, float *s) {
    const kivi *q = self;
    q->math->score(q->host->ctx, &q->layer[page->layer].k, page->bytes, query, n_q, s);
    return KVC_OK;
}

static int32_t mix(void *self, const kvc_page *page, const float *p, uint32_t n_q, float *acc) {
    const kivi *q = self;
    const layer *l = &q->layer[page->layer];
    q->math->mix(q->host->ctx, &l->v, (const char *)page->bytes + l->bytes_k, p, n_q, acc);
    return KVC_OK;
}

static uint32_t fields(void *self, uint32_t i, kvc_field *out, uint32_t cap) {
    const kivi *q = self;
    const layer *l = &q->layer[i];
    (void)cap;
    const uint32_t n = q->math->fields_k(q->host->ctx, &l->k, 0, out);
    return n + q->math->fields_v(q->host->ctx, &l->v, (uint32_t)l->bytes_k, out + n);
}

static const kvc_codec codec = {.struct_size = sizeof codec,
                                .page_bytes = page_bytes,
                                .encode = encode,
                                .decode = decode,
                                .score = score,
                                .mix = mix,
                                .fields = fields};

static int32_t layer_init(const kivi *q, const kvc_value *value, const kvc_layer_shape *s,
                          layer *l) {
    const uint32_t n = value[GROUP].i == 0 ? 32 : 64;
    l->k = (kvc_packing){.struct_size = sizeof l->k,
                         .dim = s->dim_k,
                         .bits = value[BITS].i == 0 ? 4 : 2,
                         .group_dim = 1,
                         .group_entry = n,
                         .flags = KVC_PACK_ZERO};
    l->v = l->k;
    l->v.dim = s->dim_v;
    l->v.group_dim = n;
    l->v.group_entry = 1;
    int32_t rc = q->math->check(q->host->ctx, &l->k);
    rc = rc < 0 ? rc : q->math->check(q->host->ctx, &l->v);
    if (rc < 0) {
        return rc;
    }
    l->bytes_k = q->math->bytes(q->host->ctx, &l->k);
    l->bytes_v = q->math->bytes(q->host->ctx, &l->v);
    return KVC_OK;
}

static int32_t create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                      kvc_plan *plan, void **self) {
    const kvc_host_math *math = host->extension(host->ctx, KVC_HOST_MATH);
    if (math == NULL || math->struct_size < sizeof *math) {
        return host->fail(host->ctx, KVC_E_UNSUPPORTED,
                          "this host lacks " KVC_HOST_MATH "; use kivi with a newer kvc");
    }
    size_t bytes = sizeof(kivi) + shape->n_layer * sizeof(layer);
    kivi *q = host->realloc(host->ctx, NULL, 0, bytes, _Alignof(kivi));
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
        const int32_t rc = layer_init(q, value, kvc_shape_layer(shape, i), &q->layer[i]);
        if (rc < 0) {
            return rc;
        }
    }
    return KVC_OK;
}

static void destroy(void *self) {
    kivi *q = self;
    q->host->realloc(q->host->ctx, q, q->bytes, 0, _Alignof(kivi));
}

static const kvc_policy_api api = {.struct_size = sizeof api, .create = create, .destroy = destroy};

static const kvc_policy policy = {
    .struct_size = sizeof policy,
    .abi = KVC_POLICY_ABI,
    .abi_min = KVC_POLICY_ABI_MIN,
    .n_param = N_PARAM,
    .param_stride = sizeof params[0],
    .caps = KVC_CAP_CHUNK_INVARIANT,
    .name = "kivi",
    .version = "1.0.0",
    .summary = "4- or 2-bit integers, keys scaled per channel, values per token",
    .license = "MIT",
    .param = params,
    .api = &api,
};

KVC_POLICY_EXPORT const kvc_policy *kvc_policy_entry(uint32_t host_abi, uint32_t index) {
    (void)host_abi;
    return index == 0 ? &policy : NULL;
}

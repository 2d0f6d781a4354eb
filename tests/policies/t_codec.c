/* SPDX-License-Identifier: MIT
 * t_codec: a policy for tests of page formats that have encode() and decode() alone. A page is its
 * rows as f32, keys then values, and a checksum that decode() verifies. What is stored is what the
 * open page held, so results equal those of plain floats of the open type bit for bit.
 * corrupt=on writes a wrong checksum into every page whose first position isn't 0. */
#include <kvc/policy.h>

#include <string.h>

enum { TYPE, CORRUPT, N_PARAM }; /* rows of the table */

static const char *const types[] = {"f16", "f32", "bf16", NULL};
static const uint32_t type_of[] = {KVC_TYPE_F16, KVC_TYPE_F32, KVC_TYPE_BF16};

static const kvc_param params[N_PARAM] = {
    [TYPE] = {.struct_size = sizeof(kvc_param),
              .type = KVC_PARAM_ENUM,
              .name = "type",
              .help = "number format of open pages",
              .choice = types,
              .def = {.i = 0}},
    [CORRUPT] = {.struct_size = sizeof(kvc_param),
                 .type = KVC_PARAM_BOOL,
                 .name = "corrupt",
                 .help = "write wrong checksums",
                 .def = {.i = 0}},
};

typedef struct layer {
    size_t n_k, n_v; /* floats of all keys and of all values of a page */
} layer;

typedef struct t_codec {
    const kvc_host *host;
    size_t bytes; /* of this */
    uint32_t corrupt;
    layer layer[];
} t_codec;

static uint32_t checksum(const float *data, size_t n) {
    uint32_t sum = 2166136261u, word;
    for (size_t i = 0; i < n; i++) {
        memcpy(&word, &data[i], sizeof word);
        sum = (sum ^ word) * 16777619u;
    }
    return sum;
}

static size_t page_bytes(void *self, uint32_t i) {
    const t_codec *c = self;
    return (c->layer[i].n_k + c->layer[i].n_v) * sizeof(float) + sizeof(uint32_t);
}

static void rows_copy(float *dst, const float *src, uint32_t stride, size_t dim) {
    for (size_t i = 0; i < KVC_PAGE; i++) {
        memcpy(dst + i * dim, src + i * stride, dim * sizeof(float));
    }
}

static int32_t encode(void *self, const kvc_rows *rows, void *dst) {
    const t_codec *c = self;
    const layer *l = &c->layer[rows->layer];
    float *data = dst;
    rows_copy(data, rows->k, rows->k_stride, l->n_k / KVC_PAGE);
    rows_copy(data + l->n_k, rows->v, rows->v_stride, l->n_v / KVC_PAGE);
    uint32_t sum = checksum(data, l->n_k + l->n_v);
    if (c->corrupt && rows->pos[0] != 0) {
        sum ^= 1;
    }
    memcpy(data + l->n_k + l->n_v, &sum, sizeof sum);
    return KVC_OK;
}

static int32_t decode(void *self, const kvc_page *page, float *k, float *v) {
    const t_codec *c = self;
    const layer *l = &c->layer[page->layer];
    const float *data = page->bytes;
    uint32_t sum;
    memcpy(&sum, data + l->n_k + l->n_v, sizeof sum);
    if (sum != checksum(data, l->n_k + l->n_v)) {
        return c->host->fail(c->host->ctx, KVC_E_POLICY, "a page's checksum is wrong");
    }
    memcpy(k, data, l->n_k * sizeof(float));
    memcpy(v, data + l->n_k, l->n_v * sizeof(float));
    return KVC_OK;
}

static const kvc_codec codec = {
    .struct_size = sizeof codec, .page_bytes = page_bytes, .encode = encode, .decode = decode};

static int32_t create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                      kvc_plan *plan, void **self) {
    size_t bytes = sizeof(t_codec) + shape->n_layer * sizeof(layer);
    t_codec *c = host->realloc(host->ctx, NULL, 0, bytes, _Alignof(t_codec));
    if (c == NULL) {
        return KVC_E_NOMEM;
    }
    *self = c;
    c->host = host;
    c->bytes = bytes;
    c->corrupt = (uint32_t)value[CORRUPT].i;
    plan->answers = KVC_ANSWERS_FORMAT;
    plan->codec = &codec;
    for (uint32_t i = 0; i < shape->n_layer; i++) {
        const kvc_layer_shape *s = kvc_shape_layer(shape, i);
        c->layer[i] = (layer){(size_t)s->dim_k * KVC_PAGE, (size_t)s->dim_v * KVC_PAGE};
        kvc_plan_format(plan, i)->open_type = type_of[value[TYPE].i];
    }
    return KVC_OK;
}

static void destroy(void *self) {
    t_codec *c = self;
    c->host->realloc(c->host->ctx, c, c->bytes, 0, _Alignof(t_codec));
}

static const kvc_policy_api api = {.struct_size = sizeof api, .create = create, .destroy = destroy};

static const kvc_policy policy = {
    .struct_size = sizeof policy,
    .abi = KVC_POLICY_ABI,
    .abi_min = KVC_POLICY_ABI_MIN,
    .n_param = N_PARAM,
    .param_stride = sizeof params[0],
    .caps = KVC_CAP_CHUNK_INVARIANT | KVC_CAP_LOSSLESS,
    .name = "t_codec",
    .version = "1.0.0",
    .summary = "test: f32 pages with a checksum, by encode and decode alone",
    .license = "MIT",
    .param = params,
    .api = &api,
};

KVC_POLICY_EXPORT const kvc_policy *kvc_policy_entry(uint32_t host_abi, uint32_t index) {
    (void)host_abi;
    return index == 0 ? &policy : NULL;
}

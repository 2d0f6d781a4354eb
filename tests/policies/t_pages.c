/* SPDX-License-Identifier: MIT
 * t_pages: a policy for tests of select(). It keeps everything, and each query reads the `pages`
 * sealed pages that may hold the best keys for it: those with the largest bound on q·k over the
 * heads of the group, from each page's least and greatest key elements. The idea is that of Tang et
 * al., "Quest", arXiv:2406.10774.
 *
 * Going back. append() copies rows of the open page, each to its place (pos modulo a page), and
 * takes the bounds of a page from the copy when its last row arrives; bounds are read of sealed
 * pages only. So rows that are computed again, or that a cancelled step left behind, are simply
 * overwritten before they count, and truncate() has nothing to do. rewind() answers pos when the
 * copy still holds that page, else the page's start, from where the engine appends all of it again.
 */
#include <kvc/policy.h>

#include <string.h>

static const kvc_param params[] = {{
    .struct_size = sizeof(kvc_param),
    .type = KVC_PARAM_INT,
    .name = "pages",
    .unit = "pages",
    .help = "sealed pages that a query reads",
    .def = {.i = 4},
    .min = {.i = 0},
    .max = {.i = 1 << 20},
}};

typedef struct layer {
    uint32_t lane;    /* first of its lanes */
    uint32_t n_group; /* query heads of a KV head */
    uint32_t dim;
} layer;

typedef struct lane {
    int32_t page;       /* that the copy holds */
    uint64_t n_skipped; /* pages, by select() */
    float *open;        /* [KVC_PAGE, dim] copy of the open page's keys */
    float *bound;       /* [n_page, 2, dim] least and greatest elements of sealed pages */
    float *score;       /* [n_page] for select() */
} lane;

typedef struct t_pages {
    const kvc_host *host;
    uint32_t n_read, n_layer, n_lane, n_page;
    layer *layer; /* [n_layer] */
    lane *lane;   /* [n_lane] */
    float *data;  /* of all lanes */
    size_t n_data;
} t_pages;

static int32_t append(void *self, const kvc_rows *rows) {
    t_pages *p = self;
    uint32_t dim = p->layer[rows->layer].dim;
    lane *l = &p->lane[p->layer[rows->layer].lane + rows->head];
    for (uint32_t i = 0; i < rows->n; i++) {
        uint32_t at = (uint32_t)rows->pos[i] % KVC_PAGE;
        memcpy(l->open + at * dim, rows->k + (size_t)i * rows->k_stride, dim * sizeof(float));
    }
    l->page = rows->pos[0] / (int32_t)KVC_PAGE;
    if ((uint32_t)rows->pos[rows->n - 1] % KVC_PAGE != KVC_PAGE - 1) {
        return KVC_OK;
    }
    float *least = l->bound + (size_t)l->page * 2 * dim, *most = least + dim;
    memcpy(least, l->open, dim * sizeof(float));
    memcpy(most, l->open, dim * sizeof(float));
    for (uint32_t i = 1; i < KVC_PAGE; i++) {
        const float *k = l->open + i * dim;
        for (uint32_t d = 0; d < dim; d++) {
            least[d] = k[d] < least[d] ? k[d] : least[d];
            most[d] = k[d] > most[d] ? k[d] : most[d];
        }
    }
    return KVC_OK;
}

/* The largest that q·k can be for a key within the bounds, over the heads of the group. */
static float score(const float *q, uint32_t n_group, uint32_t dim, const float *bound) {
    float best = 0;
    for (uint32_t h = 0; h < n_group; h++, q += dim) {
        float sum = 0;
        for (uint32_t d = 0; d < dim; d++) {
            float low = q[d] * bound[d], high = q[d] * bound[dim + d];
            sum += low > high ? low : high;
        }
        best = h == 0 || sum > best ? sum : best;
    }
    return best;
}

static int32_t select_pages(void *self, const kvc_rows *query, uint64_t *page, uint32_t n_page) {
    t_pages *p = self;
    const layer *y = &p->layer[query->layer];
    lane *l = &p->lane[y->lane + query->head];
    if (n_page <= p->n_read) {
        return KVC_OK;
    }
    for (uint32_t i = 0; i < n_page; i++) {
        l->score[i] = score(query->q, y->n_group, y->dim, l->bound + (size_t)i * 2 * y->dim);
    }
    /* The least goes until n_read are left; of equal ones the older goes. */
    for (uint32_t n = n_page; n > p->n_read; n--) {
        uint32_t least = UINT32_MAX;
        for (uint32_t i = 0; i < n_page; i++) {
            if ((page[i / 64] >> (i % 64) & 1) &&
                (least == UINT32_MAX || l->score[i] < l->score[least])) {
                least = i;
            }
        }
        page[least / 64] &= ~((uint64_t)1 << (least % 64));
    }
    l->n_skipped += n_page - p->n_read;
    return KVC_OK;
}

static int32_t rewind(void *self, int32_t pos) {
    const t_pages *p = self;
    int32_t page = pos / (int32_t)KVC_PAGE;
    for (uint32_t i = 0; i < p->n_lane; i++) {
        if (p->lane[i].page != page) {
            return page * (int32_t)KVC_PAGE;
        }
    }
    return pos;
}

static int32_t save(void *self, const kvc_stream *out) {
    const t_pages *p = self;
    for (uint32_t i = 0; i < p->n_lane; i++) {
        int32_t rc = out->write(out->ctx, &p->lane[i].page, sizeof p->lane[i].page);
        if (rc < 0) {
            return rc;
        }
    }
    return out->write(out->ctx, p->data, p->n_data * sizeof *p->data);
}

/* Bounds may be any floats, which only misleads the choice; a page number leads into memory. */
static int32_t load(void *self, const kvc_stream *in) {
    t_pages *p = self;
    for (uint32_t i = 0; i < p->n_lane; i++) {
        int32_t rc = in->read(in->ctx, &p->lane[i].page, sizeof p->lane[i].page);
        if (rc < 0) {
            return rc;
        }
        if (p->lane[i].page < -1 || p->lane[i].page >= (int32_t)p->n_page) {
            return KVC_E_FORMAT;
        }
    }
    return in->read(in->ctx, p->data, p->n_data * sizeof *p->data);
}

static int32_t stats(void *self, kvc_claims *out) {
    const t_pages *p = self;
    for (uint32_t i = 0; i < p->n_lane; i++) {
        out->n_skipped += p->lane[i].n_skipped;
    }
    return KVC_OK;
}

static size_t lane_floats(const t_pages *p, uint32_t dim) {
    return (size_t)KVC_PAGE * dim + (size_t)p->n_page * 2 * dim + p->n_page;
}

/* Gives every lane its part of data. */
static void lanes_set(t_pages *p, const kvc_shape *shape) {
    float *data = p->data;
    for (uint32_t i = 0, n = 0; i < p->n_layer; i++) {
        const kvc_layer_shape *s = kvc_shape_layer(shape, i);
        uint32_t dim = s->dim_k;
        p->layer[i] = (layer){.lane = n, .n_group = s->n_head / s->n_head_kv, .dim = dim};
        for (uint32_t end = n + s->n_head_kv; n < end; n++) {
            lane *l = &p->lane[n];
            l->page = -1;
            l->open = data;
            l->bound = data + (size_t)KVC_PAGE * dim;
            l->score = l->bound + (size_t)p->n_page * 2 * dim;
            data += lane_floats(p, dim);
        }
    }
}

static int32_t create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                      kvc_plan *plan, void **self) {
    t_pages *p = host->realloc(host->ctx, NULL, 0, sizeof *p, 64);
    if (p == NULL) {
        return KVC_E_NOMEM;
    }
    *self = p;
    p->host = host;
    p->n_read = (uint32_t)value[0].i;
    p->n_page = (shape->n_ctx + KVC_PAGE - 1) / KVC_PAGE;
    p->n_layer = shape->n_layer;
    for (uint32_t i = 0; i < shape->n_layer; i++) {
        const kvc_layer_shape *s = kvc_shape_layer(shape, i);
        p->n_lane += s->n_head_kv;
        p->n_data += s->n_head_kv * lane_floats(p, s->dim_k);
    }
    p->layer = host->realloc(host->ctx, NULL, 0, p->n_layer * sizeof *p->layer, 64);
    p->lane = host->realloc(host->ctx, NULL, 0, p->n_lane * sizeof *p->lane, 64);
    p->data = host->realloc(host->ctx, NULL, 0, p->n_data * sizeof *p->data, 64);
    if (p->layer == NULL || p->lane == NULL || p->data == NULL) {
        return KVC_E_NOMEM;
    }
    lanes_set(p, shape);
    plan->answers = KVC_ANSWERS_WHICH;
    plan->flags = KVC_PLAN_STATE;
    return KVC_OK;
}

static void destroy(void *self) {
    t_pages *p = self;
    const kvc_host *host = p->host;
    host->realloc(host->ctx, p->layer, p->n_layer * sizeof *p->layer, 0, 64);
    host->realloc(host->ctx, p->lane, p->n_lane * sizeof *p->lane, 0, 64);
    host->realloc(host->ctx, p->data, p->n_data * sizeof *p->data, 0, 64);
    host->realloc(host->ctx, p, sizeof *p, 0, 64);
}

static const kvc_policy_api api = {.struct_size = sizeof api,
                                   .create = create,
                                   .destroy = destroy,
                                   .append = append,
                                   .select = select_pages,
                                   .rewind = rewind,
                                   .stats = stats,
                                   .save = save,
                                   .load = load};

static const kvc_policy policy = {
    .struct_size = sizeof policy,
    .abi = KVC_POLICY_ABI,
    .abi_min = KVC_POLICY_ABI_MIN,
    .n_param = 1,
    .param_stride = sizeof params[0],
    .caps = KVC_CAP_CHUNK_INVARIANT,
    .name = "t_pages",
    .version = "1.0.0",
    .summary = "test: reads the sealed pages whose key bounds promise most",
    .license = "MIT",
    .param = params,
    .api = &api,
};

KVC_POLICY_EXPORT const kvc_policy *kvc_policy_entry(uint32_t host_abi, uint32_t index) {
    (void)host_abi;
    return index == 0 ? &policy : NULL;
}

/* SPDX-License-Identifier: MIT
 * check_stages.c: the policy under test behind a copy of its table, and kvcheck's own stages. The
 * probe answers no question: it keeps what append() shows, and at every tick compares it with what
 * the store says. Its state is the process's; one session at a time has it. */
#include "check_stages.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- the policy under test */

static struct {
    chk *c;
    kvc_policy policy;
    kvc_policy_api api;
    bool cold;
    uint64_t damage; /* 0: none */
} shim;

chk_codec chk_shim_codec;

/* Copies what this host knows of a codec's table. */
static void keep_codec(const kvc_codec *theirs, void *self) {
    chk_shim_codec = (chk_codec){.self = self};
    if (theirs != NULL && theirs->struct_size >= 2 * sizeof(uint32_t)) {
        const size_t n = theirs->struct_size;
        memcpy(&chk_shim_codec.api, theirs, n < sizeof *theirs ? n : sizeof *theirs);
    }
}

static int32_t shim_create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                           kvc_plan *plan, void **self) {
    const int32_t rc = shim.c->api.create(host, shape, value, plan, self);
    if (rc == KVC_OK) {
        if (shim.cold && plan->tier != NULL) {
            plan->hot_bytes = KVC_HOT_LEAST;
        }
        keep_codec(plan->codec, *self);
        const bool format = plan->format_stride >= sizeof(kvc_format) && plan->format != NULL;
        shim.c->plan = (chk_plan){.known = true,
                                  .answers = plan->answers,
                                  .flags = plan->flags,
                                  .open_type = format ? kvc_plan_format(plan, 0)->open_type : 0};
    }
    return rc;
}

/* Reads like the host, and flips about one bit in sixteen bytes, or makes a number extreme. */
static int32_t damaged_read(void *ctx, void *bytes, size_t n) {
    static const unsigned char extreme[] = {0x00, 0xff, 0x7f, 0x80};
    const kvc_stream *inner = ctx;
    const int32_t rc = inner->read(inner->ctx, bytes, n);
    unsigned char *p = bytes;
    for (size_t i = 0; rc == KVC_OK && i < n; i++) {
        shim.damage = shim.damage * 6364136223846793005u + 1442695040888963407u;
        const uint64_t r = shim.damage >> 33;
        if (r % 16 == 0) {
            const unsigned flipped = p[i] ^ 1u << (r >> 9) % 8;
            const unsigned far = extreme[(r >> 9) % sizeof extreme];
            p[i] = (unsigned char)((r >> 8) % 2 != 0 ? flipped : far);
        }
    }
    return rc;
}

static int32_t shim_load(void *self, const kvc_stream *in) {
    const kvc_stream damaged = {
        .struct_size = sizeof damaged, .ctx = (void *)(uintptr_t)in, .read = damaged_read};
    return shim.c->api.load(self, shim.damage != 0 ? &damaged : in);
}

void chk_shim_damage(uint64_t seed) {
    shim.damage = seed;
}

void chk_shim_cold(bool cold) {
    shim.cold = cold;
}

void chk_shim_set(chk *c) {
    shim.c = c;
    shim.policy = c->policy;
    shim.api = c->api;
    shim.policy.struct_size = sizeof shim.policy;
    shim.policy.api = &shim.api;
    shim.api.struct_size = sizeof shim.api;
    shim.api.create = shim_create;
    if (c->api.load != NULL) {
        shim.api.load = shim_load;
    }
}

const kvc_policy *chk_shim_entry(uint32_t host_abi, uint32_t index) {
    (void)host_abi;
    return index == 0 && shim.c != NULL ? &shim.policy : NULL;
}

/* ---------------------------------------------------------------- plain floats */

static int32_t plain(const kvc_shape *shape, kvc_plan *plan, uint32_t type) {
    plan->answers = KVC_ANSWERS_FORMAT;
    for (uint32_t i = 0; i < shape->n_layer; i++) {
        kvc_format *f = kvc_plan_format(plan, i);
        f->type_k = f->type_v = f->open_type = type;
    }
    return KVC_OK;
}

static int32_t create_f32(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                          kvc_plan *plan, void **self) {
    (void)host, (void)value, (void)self;
    return plain(shape, plan, KVC_TYPE_F32);
}

static int32_t create_bf16(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                           kvc_plan *plan, void **self) {
    (void)host, (void)value, (void)self;
    return plain(shape, plan, KVC_TYPE_BF16);
}

/* ---------------------------------------------------------------- the probe */

/* What is known of a position of a lane. */
enum { UNSEEN = 0, SEEN, DROPPED };

typedef struct lane {
    uint32_t dim_k, dim_v;
    unsigned char *state; /* [n_ctx] */
    float *k, *v;         /* [n_ctx, dim] as append() showed them */
    uint32_t n_live;      /* at the last tick */
} lane;

static struct {
    const kvc_host *host;
    const kvc_host_store *store;
    uint32_t n_ctx, n_layer, n_lane;
    uint32_t *first; /* [n_layer + 1]: of a layer's lanes */
    lane *lane;
    int32_t *pos; /* [n_ctx] */
    float *k, *v; /* [n_ctx, largest dim] */
    bool whole;
} probe;

chk_probe chk_seen;

static void probe_free(void) {
    for (uint32_t i = 0; probe.lane != NULL && i < probe.n_lane; i++) {
        free(probe.lane[i].state);
        free(probe.lane[i].k);
        free(probe.lane[i].v);
    }
    free(probe.first);
    free(probe.lane);
    free(probe.pos);
    free(probe.k);
    free(probe.v);
    probe.first = NULL;
    probe.lane = NULL;
    probe.pos = NULL;
    probe.k = probe.v = NULL;
}

void chk_probe_reset(bool whole) {
    chk_seen = (chk_probe){.wrong = ""};
    probe.whole = whole;
}

static bool lane_make(lane *l, const kvc_layer_shape *s) {
    l->dim_k = s->dim_k;
    l->dim_v = s->dim_v;
    l->state = calloc(probe.n_ctx, 1);
    l->k = calloc((size_t)probe.n_ctx * s->dim_k, sizeof *l->k);
    l->v = calloc((size_t)probe.n_ctx * s->dim_v, sizeof *l->v);
    return l->state != NULL && l->k != NULL && l->v != NULL;
}

static int32_t probe_create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                            kvc_plan *plan, void **self) {
    size_t dim = 1;
    (void)value, (void)plan, (void)self;
    probe_free();
    probe.host = host;
    probe.store = host->extension(host->ctx, KVC_HOST_STORE);
    probe.n_ctx = shape->n_ctx;
    probe.n_layer = shape->n_layer;
    probe.n_lane = 0;
    probe.first = calloc(shape->n_layer + 1u, sizeof *probe.first);
    for (uint32_t i = 0; probe.first != NULL && i < shape->n_layer; i++) {
        const kvc_layer_shape *s = kvc_shape_layer(shape, i);
        probe.first[i] = probe.n_lane;
        probe.first[i + 1] = probe.n_lane += s->n_head_kv;
        dim = s->dim_k > dim ? s->dim_k : dim;
        dim = s->dim_v > dim ? s->dim_v : dim;
    }
    probe.lane = calloc(probe.n_lane + 1u, sizeof *probe.lane);
    probe.pos = calloc(probe.n_ctx, sizeof *probe.pos);
    probe.k = calloc(probe.n_ctx * dim, sizeof *probe.k);
    probe.v = calloc(probe.n_ctx * dim, sizeof *probe.v);
    bool good = probe.store != NULL && probe.first != NULL && probe.lane != NULL &&
                probe.pos != NULL && probe.k != NULL && probe.v != NULL;
    for (uint32_t i = 0; good && i < probe.n_layer; i++) {
        for (uint32_t j = probe.first[i]; good && j < probe.first[i + 1]; j++) {
            good = lane_make(&probe.lane[j], kvc_shape_layer(shape, i));
        }
    }
    return good ? KVC_OK : KVC_E_NOMEM;
}

static void probe_destroy(void *self) {
    (void)self;
    probe_free();
}

static int32_t probe_append(void *self, const kvc_rows *rows) {
    (void)self;
    lane *l = &probe.lane[probe.first[rows->layer] + rows->head];
    for (uint32_t i = 0; i < rows->n; i++) {
        const size_t pos = (size_t)rows->pos[i];
        if (pos < probe.n_ctx) {
            l->state[pos] = SEEN;
            memcpy(l->k + pos * l->dim_k, rows->k + (size_t)i * rows->k_stride,
                   l->dim_k * sizeof *l->k);
            memcpy(l->v + pos * l->dim_v, rows->v + (size_t)i * rows->v_stride,
                   l->dim_v * sizeof *l->v);
        }
    }
    return KVC_OK;
}

static void wrong(const char *what, uint32_t layer, uint32_t head, int32_t pos) {
    if (chk_seen.wrong[0] == '\0') {
        snprintf(chk_seen.wrong, sizeof chk_seen.wrong, "%s (layer %u, head %u, position %d)", what,
                 layer, head, (int)pos);
    }
}

/* The error of a row against its length; infinite when it isn't finite. */
static double row_error(const float *got, const float *want, uint32_t dim) {
    double d2 = 0, w2 = 0;
    for (uint32_t i = 0; i < dim; i++) {
        const double d = (double)got[i] - (double)want[i];
        d2 += d * d;
        w2 += (double)want[i] * (double)want[i];
    }
    if (!isfinite(d2)) {
        return (double)INFINITY;
    }
    return w2 > 0 ? sqrt(d2 / w2) : sqrt(d2);
}

static void compare_entries(lane *l, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        const size_t pos = (size_t)probe.pos[i];
        const float *k = probe.k + (size_t)i * l->dim_k, *v = probe.v + (size_t)i * l->dim_v;
        const float *want_k = l->k + pos * l->dim_k, *want_v = l->v + pos * l->dim_v;
        const double ek = row_error(k, want_k, l->dim_k), ev = row_error(v, want_v, l->dim_v);
        chk_seen.worst_k = fmax(chk_seen.worst_k, ek);
        chk_seen.worst_v = fmax(chk_seen.worst_v, ev);
        chk_seen.sum_k += ek;
        chk_seen.sum_v += ev;
        chk_seen.n_read++;
        chk_seen.n_inexact += memcmp(k, want_k, l->dim_k * sizeof *k) != 0 ||
                              memcmp(v, want_v, l->dim_v * sizeof *v) != 0;
    }
}

/* Positions of live entries against what was appended and dropped before. */
static bool look_positions(lane *l, uint32_t layer, uint32_t head, uint32_t n, int32_t present) {
    int32_t before = -1;
    uint32_t next = 0;
    for (uint32_t i = 0; i < n; i++) {
        const int32_t pos = probe.pos[i];
        const char *what = pos <= before              ? "live positions don't ascend"
                           : pos > present            ? "a live position lies above the present one"
                           : l->state[pos] == UNSEEN  ? "a live position was never appended"
                           : l->state[pos] == DROPPED ? "an entry that was gone is live again"
                                                      : NULL;
        if (what != NULL) {
            wrong(what, layer, head, pos);
            return false;
        }
        before = pos;
    }
    for (int32_t pos = 0; pos <= present; pos++) {
        const bool live = next < n && probe.pos[next] == pos;
        next += live;
        if (!live && l->state[pos] == SEEN) {
            l->state[pos] = DROPPED;
            chk_seen.n_dropped++;
            if (probe.whole) {
                wrong("an entry is gone, and no stage answers which", layer, head, pos);
            }
        }
    }
    return true;
}

static int32_t probe_page_end(void *self, const kvc_step *step, uint32_t layer) {
    const int32_t present = step->pos + (int32_t)step->n - 1;
    (void)self;
    for (uint32_t i = probe.first[layer]; i < probe.first[layer + 1]; i++) {
        const uint32_t head = i - probe.first[layer];
        lane *l = &probe.lane[i];
        const uint32_t n = probe.store->count(probe.host->ctx, layer, head);
        if (n > probe.n_ctx || present >= (int32_t)probe.n_ctx) {
            wrong("more live entries than positions", layer, head, present);
            continue;
        }
        int32_t rc = probe.store->pos(probe.host->ctx, layer, head, 0, n, probe.pos);
        if (rc < 0) {
            return rc;
        }
        chk_seen.n_live += n - (uint64_t)l->n_live;
        l->n_live = n;
        chk_seen.n_look++;
        if (look_positions(l, layer, head, n, present)) {
            rc = probe.store->read(probe.host->ctx, layer, head, 0, n, probe.k, probe.v);
            if (rc < 0) {
                return rc;
            }
            compare_entries(l, n);
        }
    }
    return KVC_OK;
}

static int32_t probe_truncate(void *self, int32_t pos) {
    (void)self;
    for (uint32_t i = 0; i < probe.n_lane; i++) {
        memset(probe.lane[i].state + pos, UNSEEN, probe.n_ctx - (size_t)pos);
    }
    return KVC_OK;
}

/* ---------------------------------------------------------------- tables */

static const kvc_policy_api api_f32 = {.struct_size = sizeof api_f32, .create = create_f32};
static const kvc_policy_api api_bf16 = {.struct_size = sizeof api_bf16, .create = create_bf16};
static const kvc_policy_api api_probe = {.struct_size = sizeof api_probe,
                                         .create = probe_create,
                                         .destroy = probe_destroy,
                                         .append = probe_append,
                                         .page_end = probe_page_end,
                                         .truncate = probe_truncate};

#define OWN(word, what, functions)                                                                 \
    {                                                                                              \
        .struct_size = sizeof(kvc_policy), .abi = KVC_POLICY_ABI, .abi_min = KVC_POLICY_ABI_MIN,   \
        .param_stride = sizeof(kvc_param), .caps = KVC_CAP_CHUNK_INVARIANT, .name = word,          \
        .version = "1.0.0", .summary = what, .license = "MIT", .api = functions                    \
    }

const kvc_policy *chk_stages_entry(uint32_t host_abi, uint32_t index) {
    static const kvc_policy own[] = {
        OWN(CHK_F32, "kvcheck: plain f32", &api_f32),
        OWN(CHK_BF16, "kvcheck: plain bf16", &api_bf16),
        OWN(CHK_PROBE, "kvcheck: observes what a cache holds", &api_probe),
    };
    (void)host_abi;
    return index < sizeof own / sizeof *own ? &own[index] : NULL;
}

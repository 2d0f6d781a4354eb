/* SPDX-License-Identifier: MIT
 * stack_plan.c: the plans of stages, checked one by one and against each other, and merged into the
 * one that the store, the codec and the tier of a session are made from. */
#include "stack.h"

#include "budget.h"

#include <stdio.h>
#include <string.h>

#define MAX_OWN_COLUMN 8u

/* ---------------------------------------------------------------- checking */

static int32_t plan_bad(const kvc__stage *st, const char *what, kvc__err *err) {
    return kvc__fail(err, KVC_E_POLICY, "policy '%s': its plan %s; the policy must be mended",
                     st->policy.desc.name, what);
}

/* The same for a member or a call that is named. */
static int32_t plan_lacks(const kvc__stage *st, const char *what, const char *member,
                          kvc__err *err) {
    return kvc__fail(err, KVC_E_POLICY,
                     "policy '%s': its plan has %s %s; the policy must be mended",
                     st->policy.desc.name, what, member);
}

static int32_t check_codec(kvc__stage *st, const kvc_codec *theirs, kvc_codec *out, kvc__err *err) {
    uint32_t size = theirs->struct_size;
    if (size < sizeof(uint32_t) * 2) {
        return plan_bad(st, "has a codec without a size", err);
    }
    memset(out, 0, sizeof *out);
    memcpy(out, theirs, size < sizeof *out ? size : sizeof *out);
    out->struct_size = sizeof *out;
    const char *lacks = out->page_bytes == NULL ? "page_bytes"
                        : out->encode == NULL   ? "encode"
                        : out->decode == NULL   ? "decode"
                                                : NULL;
    if (lacks != NULL) {
        return plan_lacks(st, "a codec without", lacks, err);
    }
    if ((out->flags & KVC_CODEC_MOVABLE) != 0 && out->move == NULL) {
        return plan_bad(st, "has a movable codec without move", err);
    }
    return KVC_OK;
}

/* A stage that doesn't answer 'format' leaves the formats and the codec alone. */
static int32_t check_format(const kvc__stage *st, uint32_t n_layer, kvc__err *err) {
    static const kvc_format unsaid = {.struct_size = sizeof unsaid};
    if ((st->plan.answers & KVC_ANSWERS_FORMAT) != 0) {
        return KVC_OK;
    }
    if (st->plan.codec != NULL) {
        return plan_bad(st, "has a codec without answering 'format'", err);
    }
    bool said = false;
    for (uint32_t i = 0; i < n_layer; i++) {
        said |= memcmp(&st->format[i], &unsaid, sizeof unsaid) != 0;
    }
    return said ? plan_bad(st, "has a format without answering 'format'", err) : KVC_OK;
}

/* What a stage with a tier has beside it, or NULL. */
static const char *beside_tier(const kvc__stage *st) {
    const kvc_plan *p = &st->plan;
    const kvc_policy_api *api = &st->policy.api;
    const struct {
        bool there;
        const char *name;
    } beside[] = {{p->answers != KVC_ANSWERS_WHERE, "another answer"},
                  {p->flags != 0, "flags"},
                  {p->observe != 0, "something to observe"},
                  {p->n_column > 0, "columns"},
                  {p->quantum != KVC_PAGE, "a quantum"},
                  {p->positions != KVC_POSITIONS_ORIGINAL, "positions"},
                  {api->visible != NULL, "visible()"},
                  {api->begin != NULL, "begin()"},
                  {api->append != NULL, "append()"},
                  {api->select != NULL, "select()"},
                  {api->page_end != NULL, "page_end()"},
                  {api->end != NULL, "end()"},
                  {api->rewind != NULL, "rewind()"},
                  {api->truncate != NULL, "truncate()"}};
    for (size_t i = 0; i < sizeof beside / sizeof *beside; i++) {
        if (beside[i].there) {
            return beside[i].name;
        }
    }
    return NULL;
}

/* A stage with a tier does nothing else: its instance serves several sessions. */
static int32_t check_tier(kvc__stage *st, kvc__err *err) {
    const kvc_plan *p = &st->plan;
    kvc_tier *api = &st->tier.api;
    const bool where = (p->answers & KVC_ANSWERS_WHERE) != 0;
    if (where != (p->tier != NULL)) {
        return plan_bad(
            st, where ? "answers 'where' without a tier" : "has a tier without answering 'where'",
            err);
    }
    if (!where) {
        return KVC_OK;
    }
    const char *beside = beside_tier(st);
    if (beside != NULL) {
        return plan_lacks(st, "a tier, which stands alone, and", beside, err);
    }
    const uint32_t size = p->tier->struct_size;
    if (size < 2 * sizeof(uint32_t)) {
        return plan_bad(st, "has a tier without a size", err);
    }
    memcpy(api, p->tier, size < sizeof *api ? size : sizeof *api);
    const char *lacks = api->put == NULL    ? "put"
                        : api->get == NULL  ? "get"
                        : api->drop == NULL ? "drop"
                                            : NULL;
    if (lacks != NULL) {
        return plan_lacks(st, "a tier without", lacks, err);
    }
    st->tier.self = st->self;
    st->stack = NULL; /* it outlives this one */
    return KVC_OK;
}

/* What a stage does that is for those that answer 'which', or NULL. */
static const char *does_which(const kvc__stage *st) {
    return st->policy.api.visible != NULL            ? "has visible() without answering 'which'"
           : st->policy.api.select != NULL           ? "has select() without answering 'which'"
           : (st->plan.flags & KVC_PLAN_EVICTS) != 0 ? "evicts without answering 'which'"
                                                     : NULL;
}

static int32_t check_budget(const kvc__stage *st, kvc__err *err) {
    if (st->plan.budget == 0) {
        return KVC_OK;
    }
    if (!kvc__budget_valid(st->plan.budget)) {
        return plan_bad(st, "has a budget that KVC_BUDGET() doesn't make", err);
    }
    return (st->plan.flags & KVC_PLAN_EVICTS) != 0
               ? KVC_OK
               : plan_bad(st, "has a budget without KVC_PLAN_EVICTS", err);
}

static int32_t check_positions(const kvc__stage *st, kvc__err *err) {
    if (st->plan.positions != KVC_POSITIONS_CACHE) {
        return KVC_OK;
    }
    if (st->policy.api.visible == NULL) {
        return plan_bad(st, "wants positions in the cache without visible()", err);
    }
    return (st->plan.flags & KVC_PLAN_EVICTS) == 0
               ? KVC_OK
               : plan_bad(st, "wants positions in the cache with KVC_PLAN_EVICTS", err);
}

/* Checks one plan on its own. */
static int32_t check_plan(kvc__stage *st, uint32_t n_layer, kvc__err *err) {
    kvc_plan *p = &st->plan;
    const uint32_t known = KVC_ANSWERS_WHICH | KVC_ANSWERS_FORMAT | KVC_ANSWERS_WHERE;
    if (p->quantum == 0) {
        p->quantum = KVC_PAGE;
    }
    if ((p->answers & ~known) != 0) {
        return plan_bad(st, "answers a question that this host doesn't know", err);
    }
    if (p->quantum != 1 && p->quantum % KVC_PAGE != 0) {
        return plan_bad(st, "has a quantum that is neither 1 nor a multiple of 64", err);
    }
    if (p->format != st->format || p->format_stride != sizeof(kvc_format)) {
        return plan_bad(st, "replaced the host's array of formats", err);
    }
    if (p->n_column > MAX_OWN_COLUMN) {
        return plan_bad(st, "asks for more than 8 columns", err);
    }
    if (p->positions > KVC_POSITIONS_CACHE) {
        return plan_bad(st, "has positions that this host doesn't know", err);
    }
    if ((p->observe & ~15u) != 0) {
        return plan_bad(st, "has bits to observe that this host doesn't know", err);
    }
    if ((p->flags & ~15u) != 0) {
        return plan_bad(st, "has flags that this host doesn't know", err);
    }
    const char *does = (p->answers & KVC_ANSWERS_WHICH) == 0 ? does_which(st) : NULL;
    if (does != NULL) {
        return plan_bad(st, does, err);
    }
    KVC_TRY(check_budget(st, err));
    KVC_TRY(check_positions(st, err));
    KVC_TRY(check_format(st, n_layer, err));
    return check_tier(st, err);
}

/* A stage's answers must be its own: names both stages when they aren't. */
static int32_t check_conflict(kvc__stack *s, uint32_t index, kvc__err *err) {
    static const char *const question[] = {"which tokens are kept", "in what format pages are held",
                                           "where pages live"};
    for (uint32_t j = 0; j < index; j++) {
        uint32_t both = s->stage[j]->plan.answers & s->stage[index]->plan.answers;
        for (uint32_t b = 0; b < 3; b++) {
            if ((both & (1u << b)) != 0) {
                return kvc__fail(
                    err, KVC_E_CONFLICT,
                    "policies '%s' and '%s' both answer %s; take one of them out of the stack",
                    s->stage[j]->policy.desc.name, s->stage[index]->policy.desc.name, question[b]);
            }
        }
    }
    return KVC_OK;
}

/* ---------------------------------------------------------------- merging */

static uint32_t hadamard_block(uint32_t dim) {
    return dim & (~dim + 1u);
}

/* One layer's shape from the model's and the format stage's (NULL: f16). */
static int32_t merge_layer(kvc__stack *s, const kvc_shape *shape, uint32_t i, kvc__stage *fs,
                           kvc__err *err) {
    const kvc_layer_shape *l = kvc_shape_layer(shape, i);
    kvc_format f = {0};
    if (fs != NULL) {
        f = fs->format[i];
    }
    if (f.type_k > KVC_TYPE_BF16 || f.type_v > KVC_TYPE_BF16 || f.open_type > KVC_TYPE_BF16) {
        return plan_bad(fs, "has a type in a format that this host doesn't know", err);
    }
    if (f.hadamard_k > 1 || f.hadamard_v > 1) {
        return plan_bad(fs, "has a format whose rotation is neither 0 nor 1", err);
    }
    kvc__page_shape *o = &s->shape[i];
    *o = (kvc__page_shape){.dim_k = l->dim_k,
                           .dim_v = l->dim_v,
                           .group = l->n_head / l->n_head_kv,
                           .window = l->window,
                           .scale = l->scale,
                           .soft_cap = l->soft_cap};
    o->type_k = f.type_k != KVC_TYPE_NONE ? f.type_k : KVC_TYPE_F16;
    o->type_v = f.type_v != KVC_TYPE_NONE ? f.type_v : KVC_TYPE_F16;
    o->open_type = f.open_type != KVC_TYPE_NONE ? f.open_type : KVC_TYPE_F16;
    o->had_k = f.hadamard_k != 0 ? hadamard_block(l->dim_k) : 0;
    o->had_v = f.hadamard_v != 0 ? hadamard_block(l->dim_v) : 0;
    o->open_k_bytes = KVC_PAGE * o->dim_k * kvc__type_bytes(o->open_type);
    o->open_v_bytes = KVC_PAGE * o->dim_v * kvc__type_bytes(o->open_type);
    s->n_head_kv[i] = l->n_head_kv;
    return KVC_OK;
}

static int32_t merge_formats(kvc__stack *s, const kvc_shape *shape, kvc__err *err) {
    kvc__stage *fs = NULL;
    for (uint32_t j = 0; j < s->n_stage; j++) {
        if ((s->stage[j]->plan.answers & KVC_ANSWERS_FORMAT) != 0) {
            fs = s->stage[j];
        }
    }
    for (uint32_t i = 0; i < s->n_layer; i++) {
        KVC_TRY(merge_layer(s, shape, i, fs, err));
    }
    kvc__codec_plain(&s->codec, s->kern, s->shape);
    if (fs != NULL && fs->plan.codec != NULL) {
        KVC_TRY(check_codec(fs, fs->plan.codec, &s->codec.api, err));
        s->codec.self = fs->self;
        s->codec.owner = fs->policy.desc.name;
        s->codec.ns = &fs->worker_ns;
    }
    for (uint32_t i = 0; i < s->n_layer; i++) {
        size_t bytes = s->codec.api.page_bytes(s->codec.self, i);
        const kvc__page_shape *o = &s->shape[i];
        const size_t most = (size_t)64 * (o->dim_k + o->dim_v) * KVC_PAGE + 4096;
        if (bytes == 0 || bytes > most) {
            return kvc__fail(err, KVC_E_POLICY,
                             "policy '%s': its codec's page_bytes answered %zu for layer %u; 1 to "
                             "%zu are taken, so the policy must be mended",
                             fs->policy.desc.name, bytes, i, most);
        }
        s->shape[i].page_bytes = (bytes + 63) & ~(size_t)63;
    }
    return KVC_OK;
}

/* A stage's budget in entries per lane. entry_bytes: of one entry of every lane. */
static int32_t merge_budget(const kvc__stack *s, kvc__stage *st, uint64_t entry_bytes,
                            kvc__err *err) {
    const kvc_plan *p = &st->plan;
    const uint32_t least = p->budget_least > 0 ? p->budget_least : 1;
    const uint64_t n = kvc__budget_entries(p->budget, s->n_ctx, entry_bytes);
    if (n >= least) {
        st->budget = n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
        return KVC_OK;
    }
    char given[KVC__BUDGET_TEXT], want[KVC__BUDGET_TEXT];
    const int64_t enough =
        kvc__budget_least(kvc_budget_unit(p->budget), least, s->n_ctx, entry_bytes);
    kvc__budget_text(p->budget, given);
    if (enough == 0) {
        return kvc__fail(
            err, KVC_E_PARAM,
            "policy '%s': no budget of this kind is enough: %s is %u token%s per lane, "
            "and it needs %u at least; raise n_ctx",
            st->policy.desc.name, given, (uint32_t)n, n == 1 ? "" : "s", least);
    }
    kvc__budget_text(enough, want);
    return kvc__fail(
        err, KVC_E_PARAM,
        "policy '%s': a budget of %s is %u token%s per lane, and it needs %u at least; "
        "give %s or more",
        st->policy.desc.name, given, (uint32_t)n, n == 1 ? "" : "s", least, want);
}

/* The budgets of all stages, now that the formats are known. Pages are whole multiples of 64 bytes,
 * so an entry's bytes are exact. */
static int32_t merge_budgets(kvc__stack *s, kvc__err *err) {
    uint64_t entry_bytes = 0;
    for (uint32_t i = 0; i < s->n_layer; i++) {
        entry_bytes += (uint64_t)s->n_head_kv[i] * (s->shape[i].page_bytes / KVC_PAGE);
    }
    for (uint32_t j = 0; j < s->n_stage; j++) {
        if (s->stage[j]->plan.budget != 0) {
            KVC_TRY(merge_budget(s, s->stage[j], entry_bytes, err));
        }
    }
    return KVC_OK;
}

/* Opens the tier of a new stage; one that is shared is open. */
static int32_t merge_tier(kvc__stack *s, kvc__err *err) {
    kvc__stage *st = s->tier;
    if (st == NULL || st->n_holder > 1) {
        return KVC_OK;
    }
    const uint32_t n_thread = kvc__pool_n_thread(s->pool);
    uint32_t heads = 0, layer = 0;
    for (uint32_t i = 0; i < s->n_layer; i++) {
        heads = s->n_head_kv[i] > heads ? s->n_head_kv[i] : heads;
    }
    const kvc__tier_env env = {.mem = st->home,
                               .codec = &s->codec,
                               .shape = s->shape,
                               .n_head_kv = s->n_head_kv,
                               .n_layer = s->n_layer,
                               .n_page = heads * KVC__RANGE_PAGES,
                               /* Who saves a session is one more. */
                               .n_put = n_thread,
                               .n_get = n_thread + KVC__IO_THREADS + 1,
                               .n_unpack = n_thread + 1,
                               .n_lane_page = kvc__stack_max_page(s)};
    KVC_TRY(kvc__tier_describe(&st->tier, &env, err));
    int32_t rc = st->tier.api.open != NULL ? st->tier.api.open(st->self, &st->tier.layout) : KVC_OK;
    if (rc != KVC_OK) {
        return kvc__stage_create_failed(st, "open", rc, err);
    }
    rc = kvc__tier_ask_records(&st->tier, &layer);
    return rc == KVC_OK ? rc
                        : kvc__fail(err, rc,
                                    "policy '%s': record_bytes answered %zu for layer %u, whose "
                                    "pages have %zu bytes",
                                    st->policy.desc.name, st->tier.record[layer], layer,
                                    s->shape[layer].page_bytes);
}

static void merge_hooks(kvc__stack *s) {
    s->chunk_invariant = 1;
    for (uint32_t j = 0; j < s->n_stage; j++) {
        kvc__stage *st = s->stage[j];
        const kvc_policy_api *api = &st->policy.api;
        s->flags |= st->plan.flags;
        s->observe |= st->plan.observe;
        s->tier = st->plan.tier != NULL ? st : s->tier;
        s->visible = api->visible != NULL ? st : s->visible;
        s->select = api->select != NULL ? st : s->select;
        s->positions |= st->plan.positions;
        s->has_begin |= api->begin != NULL;
        s->has_append |= api->append != NULL;
        s->has_page_end |= api->page_end != NULL;
        s->has_end |= api->end != NULL;
        st->column = KVC__N_COL_ENGINE + s->n_column;
        s->n_column += st->plan.n_column;
        if ((st->policy.desc.caps & KVC_CAP_CHUNK_INVARIANT) == 0) {
            s->chunk_invariant = 0;
        }
    }
}

int32_t kvc__stack_check_plan(kvc__stack *s, uint32_t index, kvc__err *err) {
    KVC_TRY(check_plan(s->stage[index], s->n_layer, err));
    return check_conflict(s, index, err);
}

int32_t kvc__stack_merge(kvc__stack *s, const kvc_shape *shape, kvc__err *err) {
    merge_hooks(s);
    KVC_TRY(merge_formats(s, shape, err));
    KVC_TRY(merge_budgets(s, err));
    KVC_TRY(merge_tier(s, err));
    if ((s->flags & KVC_PLAN_EVICTS) != 0 && !kvc__codec_movable(&s->codec) && s->log != NULL) {
        s->log(s->log_user, KVC_LOG_WARN,
               "entries are evicted, but the pages' format can't be compacted: memory is given "
               "back by whole pages only");
    }
    return KVC_OK;
}

/* SPDX-License-Identifier: MIT
 * stack.c: from a spec to stages, from their plans to one, and every call of a hook. What a policy
 * answers is checked here, so that the store and attention can trust it. */
#include "stack.h"

#include "os.h"
#include "store.h"

#include <stdio.h>
#include <string.h>

#define MAX_OWN_COLUMN 8u

/* ---------------------------------------------------------------- making stages */

static uint64_t mix64(uint64_t x) {
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* The plan a stage starts from: zeros and the host's array of formats. */
static int32_t stage_plan_init(kvc__stage *st, kvc__err *err) {
    st->format = kvc__alloc_n(st->home, st->n_layer, sizeof(kvc_format));
    if (st->format == NULL) {
        return kvc__fail(err, KVC_E_NOMEM, "no memory for the plan of policy '%s'",
                         st->policy.desc.name);
    }
    for (uint32_t i = 0; i < st->n_layer; i++) {
        st->format[i].struct_size = sizeof(kvc_format);
    }
    st->plan.struct_size = sizeof(kvc_plan);
    st->plan.format_stride = sizeof(kvc_format);
    st->plan.format = st->format;
    return KVC_OK;
}

/* What a stage said by host->fail(), taken out under its lock. */
static void stage_said(kvc__stage *st, kvc__err *out) {
    pthread_mutex_lock(&st->lock);
    *out = st->said;
    st->said.text[0] = '\0';
    pthread_mutex_unlock(&st->lock);
}

/* The status a failing call gives the session: a lack of memory can be undone, and with a tier what
 * a page on its way may meet; the rest kills the stack. */
static int32_t hook_status(const kvc__stack *s, int32_t code) {
    const bool tier = s->tier != NULL && (code == KVC_E_IO || code == KVC_E_LOST);
    return code == KVC_E_NOMEM || tier ? code : KVC_E_POLICY;
}

static int32_t create_failed(kvc__stage *st, int32_t code, kvc__err *err) {
    kvc__err said;
    stage_said(st, &said);
    if (code > 0) {
        return kvc__fail(err, KVC_E_POLICY, "policy '%s': create answered %d, which is no status",
                         st->policy.desc.name, (int)code);
    }
    const char *text = said.text[0] != '\0' ? said.text : kvc_status_text(code);
    const bool callers = code == KVC_E_PARAM || code == KVC_E_NOMEM || code == KVC_E_UNSUPPORTED ||
                         code == KVC_E_IO || code == KVC_E_NOT_FOUND;
    return kvc__fail(err, callers ? code : KVC_E_POLICY, "policy '%s' can't be created: %s",
                     st->policy.desc.name, text);
}

/* Loads one stage's policy, or takes that of a stage like it; resolves its parameters and calls
 * create. */
static int32_t stage_create(kvc__stack *s, kvc__stage *st, const kvc__stack_env *env,
                            const kvc__search *search, const kvc__stage *like,
                            const kvc__spec_stage *words, uint32_t index, kvc__err *err) {
    st->stack = s;
    st->home = env->family;
    st->n_layer = env->shape->n_layer;
    if (like != NULL) {
        KVC_TRY(
            kvc__policy_check(st->home, &like->policy.desc, like->policy.path, &st->policy, err));
    } else {
        KVC_TRY(kvc__registry_load(st->home, search, words->word, &st->policy, err));
    }
    const uint32_t n = st->policy.desc.n_param;
    if (n > 0) {
        st->value = kvc__alloc_n(st->home, n, sizeof(kvc_value));
        if (st->value == NULL) {
            return kvc__fail(err, KVC_E_NOMEM, "no memory for the parameters of policy '%s'",
                             words->word);
        }
    }
    KVC_TRY(kvc__spec_values(words, &st->policy.desc, st->value, err));
    KVC_TRY(stage_plan_init(st, err));
    st->seed = like != NULL ? like->seed : mix64(env->seed + 0x9e3779b97f4a7c15u * (index + 1));
    st->rng = st->seed;
    kvc__host_init(st, env);
    int32_t rc = st->policy.api.create(&st->host, env->shape, st->value, &st->plan, &st->self);
    st->created = rc == KVC_OK;
    return st->created ? KVC_OK : create_failed(st, rc, err);
}

/* Drops a stack's hold of a stage; the last one destroys it. */
static void stage_drop(kvc__stage *st) {
    if (st == NULL || --st->n_holder > 0) {
        return;
    }
    if (st->policy.api.destroy != NULL && (st->self != NULL || st->created)) {
        st->policy.api.destroy(st->self);
    }
    const int64_t left = (int64_t)atomic_load(&st->mem.used) + atomic_load(&st->other);
    if (st->created && left > 0 && st->log != NULL) {
        char text[128];
        snprintf(text, sizeof text, "policy '%s' didn't give back %lld bytes", st->policy.desc.name,
                 (long long)left);
        st->log(st->log_user, KVC_LOG_WARN, text);
    }
    kvc__tier_close(&st->tier);
    kvc__free(st->home, st->format, st->n_layer * sizeof(kvc_format));
    kvc__free(st->home, st->value, st->policy.desc.n_param * sizeof(kvc_value));
    kvc__policy_free(st->home, &st->policy);
    pthread_mutex_destroy(&st->lock);
    kvc__free(st->home, st, sizeof *st);
}

/* ---------------------------------------------------------------- merging plans */

static int32_t plan_bad(const kvc__stage *st, const char *what, kvc__err *err) {
    return kvc__fail(err, KVC_E_POLICY, "policy '%s': its plan %s; the policy must be mended",
                     st->policy.desc.name, what);
}

static int32_t check_codec(kvc__stage *st, const kvc_codec *theirs, kvc_codec *out, kvc__err *err) {
    uint32_t size = theirs->struct_size;
    if (size < sizeof(uint32_t) * 2) {
        return plan_bad(st, "has a codec without a size", err);
    }
    memset(out, 0, sizeof *out);
    memcpy(out, theirs, size < sizeof *out ? size : sizeof *out);
    out->struct_size = sizeof *out;
    if (out->page_bytes == NULL || out->encode == NULL || out->decode == NULL) {
        return plan_bad(st, "has a codec without page_bytes, encode or decode", err);
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
    bool said = st->plan.codec != NULL;
    for (uint32_t i = 0; i < n_layer; i++) {
        said |= memcmp(&st->format[i], &unsaid, sizeof unsaid) != 0;
    }
    return said ? plan_bad(st, "has a format or a codec without answering 'format'", err) : KVC_OK;
}

/* A stage with a tier does nothing else: its instance serves several sessions. */
static int32_t check_tier(kvc__stage *st, kvc__err *err) {
    const kvc_plan *p = &st->plan;
    const kvc_policy_api *api = &st->policy.api;
    const bool where = (p->answers & KVC_ANSWERS_WHERE) != 0;
    if (where != (p->tier != NULL)) {
        return plan_bad(st, "has a tier without answering 'where', or the other way round", err);
    }
    if (!where) {
        return KVC_OK;
    }
    if (p->answers != KVC_ANSWERS_WHERE || p->flags != 0 || p->observe != 0 || p->n_column > 0 ||
        p->quantum != KVC_PAGE || p->positions != KVC_POSITIONS_ORIGINAL || api->visible != NULL ||
        api->begin != NULL || api->append != NULL || api->select != NULL || api->page_end != NULL ||
        api->end != NULL || api->rewind != NULL || api->truncate != NULL) {
        return plan_bad(st, "has a tier and something else, a hook or another answer", err);
    }
    const uint32_t size = p->tier->struct_size;
    if (size >= 2 * sizeof(uint32_t)) {
        memcpy(&st->tier.api, p->tier, size < sizeof st->tier.api ? size : sizeof st->tier.api);
    }
    if (st->tier.api.put == NULL || st->tier.api.get == NULL || st->tier.api.drop == NULL) {
        return plan_bad(st, "has a tier without put, get or drop", err);
    }
    st->tier.self = st->self;
    st->stack = NULL; /* it outlives this one */
    return KVC_OK;
}

/* Checks one plan on its own. */
static int32_t check_plan(kvc__stage *st, uint32_t n_layer, kvc__err *err) {
    kvc_plan *p = &st->plan;
    const kvc_policy_api *api = &st->policy.api;
    const bool which = (p->answers & KVC_ANSWERS_WHICH) != 0;
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
    if (p->positions > KVC_POSITIONS_CACHE || (p->observe & ~15u) != 0 || (p->flags & ~15u) != 0) {
        return plan_bad(st, "has flags that this host doesn't know", err);
    }
    if ((api->visible != NULL || api->select != NULL || (p->flags & KVC_PLAN_EVICTS) != 0) &&
        !which) {
        return plan_bad(st, "gives up or hides entries without answering 'which'", err);
    }
    if (p->positions == KVC_POSITIONS_CACHE &&
        (api->visible == NULL || (p->flags & KVC_PLAN_EVICTS) != 0)) {
        return plan_bad(
            st, "wants positions in the cache, which go with visible() and without evictions", err);
    }
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
    if (f.type_k > KVC_TYPE_BF16 || f.type_v > KVC_TYPE_BF16 || f.open_type > KVC_TYPE_BF16 ||
        f.hadamard_k > 1 || f.hadamard_v > 1) {
        return plan_bad(fs, "has a format that this host doesn't know", err);
    }
    kvc__page_shape *o = &s->shape[i];
    *o = (kvc__page_shape){.dim_k = l->dim_k,
                           .dim_v = l->dim_v,
                           .group = l->n_head / l->n_head_kv,
                           .window = l->window,
                           .scale = l->scale};
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
    }
    for (uint32_t i = 0; i < s->n_layer; i++) {
        size_t bytes = s->codec.api.page_bytes(s->codec.self, i);
        const kvc__page_shape *o = &s->shape[i];
        const size_t most = (size_t)64 * (o->dim_k + o->dim_v) * KVC_PAGE + 4096;
        if (bytes == 0 || bytes > most) {
            return plan_bad(fs, "has a codec whose page_bytes is 0 or absurdly large", err);
        }
        s->shape[i].page_bytes = (bytes + 63) & ~(size_t)63;
    }
    return KVC_OK;
}

/* Opens the tier of a new stage; one that is shared is open. */
static int32_t merge_tier(kvc__stack *s, kvc__err *err) {
    kvc__stage *st = s->tier;
    if (st == NULL || st->n_holder > 1) {
        return KVC_OK;
    }
    uint32_t heads = 0;
    for (uint32_t i = 0; i < s->n_layer; i++) {
        heads = s->n_head_kv[i] > heads ? s->n_head_kv[i] : heads;
    }
    const kvc__tier_env env = {.mem = st->home,
                               .codec = &s->codec,
                               .shape = s->shape,
                               .n_head_kv = s->n_head_kv,
                               .n_layer = s->n_layer,
                               .n_call = kvc__pool_n_thread(s->pool) + KVC__IO_THREADS + 1,
                               .n_page = heads * KVC__RANGE_PAGES,
                               .n_lane_page = kvc__stack_max_page(s)};
    int32_t rc = kvc__tier_open(&st->tier, &env);
    if (rc == KVC_E_POLICY && st->tier.layout.layer != NULL && st->said.text[0] == '\0') {
        return kvc__fail(err, rc, "policy '%s': its codec's fields leave the page, or it failed",
                         s->codec.owner != NULL ? s->codec.owner : st->policy.desc.name);
    }
    if (rc > 0) {
        return kvc__fail(err, KVC_E_POLICY, "policy '%s': open answered %d, which is no status",
                         st->policy.desc.name, (int)rc);
    }
    return rc == KVC_OK ? KVC_OK : create_failed(st, rc, err);
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

/* The spec in full. A fork takes its original's: a stage that is shared has only the values that
 * create() was given, whose texts are gone. */
static int32_t write_spec(kvc__stack *s, const kvc__stack *like, kvc__err *err) {
    if (like != NULL) {
        s->spec = kvc__alloc(s->mem, like->spec_bytes);
        if (s->spec == NULL) {
            return kvc__fail(err, KVC_E_NOMEM, "no memory for the text of a spec");
        }
        s->spec_bytes = like->spec_bytes;
        memcpy(s->spec, like->spec, like->spec_bytes);
        return KVC_OK;
    }
    size_t need = 1;
    for (uint32_t j = 0; j < s->n_stage; j++) {
        need += kvc__spec_format(&s->stage[j]->policy.desc, s->stage[j]->value, NULL, 0) + 1;
    }
    s->spec = kvc__alloc(s->mem, need);
    if (s->spec == NULL) {
        return kvc__fail(err, KVC_E_NOMEM, "no memory for the text of a spec");
    }
    s->spec_bytes = need;
    size_t at = 0;
    for (uint32_t j = 0; j < s->n_stage; j++) {
        if (j > 0) {
            s->spec[at++] = '+';
        }
        at += kvc__spec_format(&s->stage[j]->policy.desc, s->stage[j]->value, s->spec + at,
                               need - at);
    }
    return KVC_OK;
}

/* Makes all stages of a parsed spec, then the merged plan. */
static int32_t stack_build(kvc__stack *s, const kvc__stack_env *env, const kvc__search *search,
                           const kvc__stack *like, const kvc__spec *spec, kvc__err *err) {
    s->shape = kvc__alloc_n(env->mem, s->n_layer, sizeof *s->shape);
    s->n_head_kv = kvc__alloc_n(env->mem, s->n_layer, sizeof *s->n_head_kv);
    if (spec->n_stage > 0) {
        s->stage = kvc__alloc_n(env->mem, KVC__MAX_STAGE, sizeof *s->stage);
    }
    if (s->shape == NULL || s->n_head_kv == NULL || (spec->n_stage > 0 && s->stage == NULL)) {
        return kvc__fail(err, KVC_E_NOMEM, "no memory for the stages of a session");
    }
    for (uint32_t j = 0; j < spec->n_stage; j++) {
        kvc__stage *other = like != NULL ? like->stage[j] : NULL;
        if (other != NULL && other->plan.tier != NULL) {
            other->n_holder++;
            s->stage[j] = other;
            s->n_stage = j + 1;
            continue;
        }
        kvc__stage *st = kvc__alloc(env->family, sizeof *st);
        if (st == NULL) {
            return kvc__fail(err, KVC_E_NOMEM, "no memory for the stages of a session");
        }
        pthread_mutex_init(&st->lock, NULL);
        st->n_holder = 1;
        st->home = env->family;
        s->stage[j] = st;
        s->n_stage = j + 1;
        KVC_TRY(stage_create(s, st, env, search, other, &spec->stage[j], j, err));
        KVC_TRY(check_plan(st, s->n_layer, err));
        KVC_TRY(check_conflict(s, j, err));
    }
    merge_hooks(s);
    KVC_TRY(merge_formats(s, env->shape, err));
    KVC_TRY(merge_tier(s, err));
    if ((s->flags & KVC_PLAN_EVICTS) != 0 && !kvc__codec_movable(&s->codec) && s->log != NULL) {
        s->log(s->log_user, KVC_LOG_WARN,
               "entries are evicted, but the pages' format can't be compacted: memory is given "
               "back by "
               "whole pages only");
    }
    return write_spec(s, like, err);
}

int32_t kvc__stack_create(const kvc__stack_env *env, const kvc__search *search,
                          const kvc__stack *like, const char *spec, kvc__stack *out,
                          kvc__err *err) {
    memset(out, 0, sizeof *out);
    out->mem = env->mem;
    out->pool = env->pool;
    out->kern = env->kern;
    out->n_layer = env->shape->n_layer;
    out->n_ctx = env->shape->n_ctx;
    out->compute = env->shape->compute;
    out->log = env->log;
    out->log_user = env->log_user;
    kvc__spec words = {0};
    if (spec != NULL && spec[0] != '\0') {
        KVC_TRY(kvc__spec_parse(env->mem, spec, &words, err));
    }
    int32_t rc = stack_build(out, env, search, like, &words, err);
    kvc__spec_free(&words);
    if (rc < 0) {
        kvc__stack_destroy(out);
    }
    return rc;
}

void kvc__stack_destroy(kvc__stack *s) {
    for (uint32_t j = 0; j < s->n_stage; j++) {
        stage_drop(s->stage[j]);
    }
    kvc__free(s->mem, s->stage, KVC__MAX_STAGE * sizeof *s->stage);
    kvc__free(s->mem, s->shape, s->n_layer * sizeof *s->shape);
    kvc__free(s->mem, s->n_head_kv, s->n_layer * sizeof *s->n_head_kv);
    kvc__free(s->mem, s->spec, s->spec_bytes);
    memset(s, 0, sizeof *s);
}

/* ---------------------------------------------------------------- the clock */

static bool stage_ticks(const kvc__stage *st, int32_t pos, bool prompt_end) {
    return prompt_end || ((uint32_t)pos + 1) % st->plan.quantum == 0;
}

bool kvc__stack_ticks(const kvc__stack *s, int32_t pos, bool prompt_end) {
    for (uint32_t j = 0; j < s->n_stage; j++) {
        const kvc_policy_api *api = &s->stage[j]->policy.api;
        if ((api->page_end != NULL || api->end != NULL) &&
            stage_ticks(s->stage[j], pos, prompt_end)) {
            return true;
        }
    }
    return false;
}

bool kvc__stack_cuts(const kvc__stack *s, int32_t pos, bool prompt_end) {
    for (uint32_t j = 0; j < s->n_stage; j++) {
        if (s->stage[j]->policy.api.end != NULL && stage_ticks(s->stage[j], pos, prompt_end)) {
            return true;
        }
    }
    return false;
}

/* ---------------------------------------------------------------- hooks */

/* The sentence for a failed [decode] or [control] hook. layer KVC_ALL: none to name. */
static int32_t hook_failed(kvc__stage *st, int32_t code, const char *call, uint32_t layer,
                           int32_t pos, kvc__err *err) {
    kvc__err said;
    char where[64] = "";
    stage_said(st, &said);
    if (layer != KVC_ALL) {
        snprintf(where, sizeof where, "layer %u, ", layer);
    }
    return kvc__fail(
        err, hook_status(st->stack, code), "policy '%s' failed in %s (%sposition %d): %s [%s]",
        st->policy.desc.name, call, where, (int)pos,
        said.text[0] != '\0' ? said.text : kvc_status_text(code), kvc_status_name(code));
}

int32_t kvc__stack_begin(kvc__stack *s, const kvc_step *step, int32_t *from, kvc__err *err) {
    for (uint32_t j = 0; j < s->n_stage; j++) {
        kvc__stage *st = s->stage[j];
        if (st->policy.api.begin == NULL) {
            continue;
        }
        uint64_t t0 = kvc__clock_ns();
        int32_t mine = step->pos;
        int32_t rc = st->policy.api.begin(st->self, step, &mine);
        st->hook_ns += kvc__clock_ns() - t0;
        if (rc != KVC_OK) {
            return hook_failed(st, rc, "begin", KVC_ALL, step->pos, err);
        }
        if (mine < 0 || mine > step->pos) {
            return kvc__fail(err, KVC_E_POLICY,
                             "policy '%s': begin answered position %d, outside 0 to %d",
                             st->policy.desc.name, (int)mine, (int)step->pos);
        }
        *from = mine < *from ? mine : *from;
    }
    return KVC_OK;
}

int32_t kvc__stack_append(kvc__stack *s, const kvc_rows *rows) {
    for (uint32_t j = 0; j < s->n_stage; j++) {
        kvc__stage *st = s->stage[j];
        if (st->policy.api.append == NULL) {
            continue;
        }
        kvc_rows mine = *rows;
        mine.q = (st->plan.observe & KVC_OBSERVE_QUERIES) != 0 ? rows->q : NULL;
        mine.k_raw = (st->plan.observe & KVC_OBSERVE_K_RAW) != 0 ? rows->k_raw : NULL;
        int32_t rc = st->policy.api.append(st->self, &mine);
        if (rc != KVC_OK) {
            return rc < 0 ? rc : KVC_E_POLICY;
        }
    }
    return KVC_OK;
}

int32_t kvc__stack_select(kvc__stack *s, const kvc_rows *query, uint64_t *page, uint32_t n_page) {
    int32_t rc = s->select->policy.api.select(s->select->self, query, page, n_page);
    return rc > 0 ? KVC_E_POLICY : rc;
}

int32_t kvc__stack_page_end(kvc__stack *s, const kvc_step *step, uint32_t layer, bool prompt_end,
                            kvc__err *err) {
    const int32_t last = step->pos + (int32_t)step->n - 1;
    for (uint32_t j = 0; j < s->n_stage; j++) {
        kvc__stage *st = s->stage[j];
        if (st->policy.api.page_end == NULL || !stage_ticks(st, last, prompt_end)) {
            continue;
        }
        uint64_t t0 = kvc__clock_ns();
        st->evict = KVC__EVICT_LAYER;
        st->evict_layer = layer;
        int32_t rc = st->policy.api.page_end(st->self, step, layer);
        st->evict = KVC__EVICT_NEVER;
        st->hook_ns += kvc__clock_ns() - t0;
        if (rc != KVC_OK) {
            return hook_failed(st, rc, "page_end", layer, last, err);
        }
    }
    return KVC_OK;
}

int32_t kvc__stack_end(kvc__stack *s, const kvc_step *step, bool prompt_end, kvc__err *err) {
    const int32_t last = step->pos + (int32_t)step->n - 1;
    for (uint32_t j = 0; j < s->n_stage; j++) {
        kvc__stage *st = s->stage[j];
        if (st->policy.api.end == NULL || !stage_ticks(st, last, prompt_end)) {
            continue;
        }
        uint64_t t0 = kvc__clock_ns();
        st->evict = KVC__EVICT_ALL;
        int32_t rc = st->policy.api.end(st->self, step);
        st->evict = KVC__EVICT_NEVER;
        st->hook_ns += kvc__clock_ns() - t0;
        if (rc != KVC_OK) {
            return hook_failed(st, rc, "end", KVC_ALL, last, err);
        }
    }
    return KVC_OK;
}

int32_t kvc__stack_rewind(kvc__stack *s, int32_t pos, int32_t *out, kvc__err *err) {
    *out = pos;
    for (uint32_t j = 0; j < s->n_stage; j++) {
        kvc__stage *st = s->stage[j];
        int32_t mine = pos;
        if (st->policy.api.rewind != NULL) {
            mine = st->policy.api.rewind(st->self, pos);
        } else if ((st->plan.flags & KVC_PLAN_EVICTS) != 0 || st->plan.n_column > 0) {
            mine = 0;
        }
        if (mine > pos) {
            return kvc__fail(err, KVC_E_POLICY,
                             "policy '%s': rewind answered position %d, above the %d asked for",
                             st->policy.desc.name, (int)mine, (int)pos);
        }
        if (mine < 0) {
            (void)hook_failed(st, mine, "rewind", KVC_ALL, pos, err);
            return KVC_E_POLICY; /* whatever it was: going back can't be undone */
        }
        *out = mine < *out ? mine : *out;
    }
    return KVC_OK;
}

bool kvc__stack_returns(kvc__stack *s, int32_t pos) {
    bool all = true;
    for (uint32_t j = 0; j < s->n_stage; j++) {
        kvc__stage *st = s->stage[j];
        if (st->policy.api.rewind != NULL) {
            all &= st->policy.api.rewind(st->self, pos) == pos;
        } else {
            all &= (st->plan.flags & KVC_PLAN_STATE) == 0;
        }
    }
    return all;
}

int32_t kvc__stack_truncate(kvc__stack *s, int32_t pos, kvc__err *err) {
    for (uint32_t j = 0; j < s->n_stage; j++) {
        kvc__stage *st = s->stage[j];
        if (pos == 0 && st->plan.tier == NULL) {
            st->rng = st->seed; /* what is computed again draws the same numbers */
        }
        if (st->policy.api.truncate == NULL) {
            continue;
        }
        int32_t rc = st->policy.api.truncate(st->self, pos);
        if (rc != KVC_OK) {
            (void)hook_failed(st, rc, "truncate", KVC_ALL, pos, err);
            return KVC_E_POLICY; /* as for rewind */
        }
    }
    return KVC_OK;
}

/* ---------------------------------------------------------------- state */

static int32_t stream_write(void *ctx, const void *bytes, size_t n) {
    return kvc__stream_write(ctx, bytes, n);
}

static int32_t stream_read(void *ctx, void *bytes, size_t n) {
    return kvc__stream_read(ctx, bytes, n);
}

static bool has_state(const kvc__stage *st) {
    return (st->plan.flags & KVC_PLAN_STATE) != 0;
}

int32_t kvc__stack_can_save(const kvc__stack *s, kvc__err *err) {
    for (uint32_t j = 0; j < s->n_stage; j++) {
        const kvc__stage *st = s->stage[j];
        if (has_state(st) && (st->policy.api.save == NULL || st->policy.api.load == NULL)) {
            return kvc__fail(err, KVC_E_UNSUPPORTED,
                             "policy '%s' has state that it can't save: a session with it can't be "
                             "saved or forked",
                             st->policy.desc.name);
        }
    }
    return KVC_OK;
}

/* One stage's state, with its length in front so that a reader can't go beyond it. */
static int32_t stage_save(kvc__stage *st, kvc__stream *out, kvc__err *err) {
    kvc__stream own = {0};
    /* A tier draws no numbers, and its stage may be another session's too. */
    const uint64_t rng = st->plan.tier == NULL ? st->rng : 0;
    KVC_TRY(kvc__stream_write(out, &rng, sizeof rng));
    KVC_TRY(kvc__stream_memory(out->mem, &own, err));
    int32_t rc = KVC_OK;
    if (has_state(st)) {
        const kvc_stream to = {.struct_size = sizeof to, .ctx = &own, .write = stream_write};
        rc = st->policy.api.save(st->self, &to);
        rc = rc == KVC_OK ? rc : hook_failed(st, rc, "save", KVC_ALL, 0, err);
    }
    const uint64_t n = own.n;
    if (rc == KVC_OK) {
        rc = kvc__stream_write(out, &n, sizeof n);
    }
    if (rc == KVC_OK) {
        rc = kvc__stream_write(out, own.buf, own.n);
    }
    kvc__stream_close(&own);
    return rc;
}

int32_t kvc__stack_save(kvc__stack *s, kvc__stream *out, kvc__err *err) {
    for (uint32_t j = 0; j < s->n_stage; j++) {
        KVC_TRY(stage_save(s->stage[j], out, err));
    }
    return KVC_OK;
}

/* Copies n bytes of a stream to one in memory. */
static int32_t stream_copy(kvc__stream *in, kvc__stream *own, uint64_t n) {
    uint8_t piece[4096];
    while (n > 0) {
        const size_t m = n < sizeof piece ? (size_t)n : sizeof piece;
        KVC_TRY(kvc__stream_read(in, piece, m));
        KVC_TRY(kvc__stream_write(own, piece, m));
        n -= m;
    }
    return KVC_OK;
}

static int32_t stage_load(kvc__stage *st, kvc__stream *in, kvc__err *err) {
    kvc__stream own = {0};
    uint64_t n;
    uint64_t rng;
    KVC_TRY(kvc__stream_read(in, &rng, sizeof rng));
    st->rng = st->plan.tier == NULL ? rng : st->rng;
    KVC_TRY(kvc__stream_read(in, &n, sizeof n));
    if (n > kvc__stream_left(in) || (n > 0 && !has_state(st))) {
        return kvc__fail(err, KVC_E_FORMAT, "the state of policy '%s' is damaged",
                         st->policy.desc.name);
    }
    KVC_TRY(kvc__stream_memory(in->mem, &own, err));
    int32_t rc = stream_copy(in, &own, n);
    if (rc == KVC_OK && has_state(st)) {
        const kvc_stream from = {.struct_size = sizeof from, .ctx = &own, .read = stream_read};
        rc = st->policy.api.load(st->self, &from);
        if (rc != KVC_OK && rc != KVC_E_NOMEM) {
            rc = kvc__fail(err, KVC_E_FORMAT, "policy '%s' refuses the state that was saved",
                           st->policy.desc.name);
        } else if (rc == KVC_OK && own.at != own.n) {
            rc = kvc__fail(err, KVC_E_FORMAT, "policy '%s' left part of its saved state unread",
                           st->policy.desc.name);
        }
    }
    kvc__stream_close(&own);
    return rc;
}

int32_t kvc__stack_load(kvc__stack *s, kvc__stream *in, kvc__err *err) {
    for (uint32_t j = 0; j < s->n_stage; j++) {
        KVC_TRY(stage_load(s->stage[j], in, err));
    }
    return KVC_OK;
}

/* ---------------------------------------------------------------- which positions */

/* Cuts ranges to the layer's own window and to positions below pos + 1. Returns how many are left.
 */
static uint32_t clip_ranges(kvc_range *r, uint32_t n, int32_t low, int32_t pos) {
    uint32_t m = 0;
    for (uint32_t i = 0; i < n; i++) {
        kvc_range x = r[i];
        x.first = x.first > low ? x.first : low;
        x.end = x.end < pos + 1 ? x.end : pos + 1;
        if (x.first < x.end) {
            r[m++] = x;
        }
    }
    return m;
}

int32_t kvc__stack_visible(const kvc__stack *s, uint32_t layer, int32_t pos, kvc_range *out,
                           uint32_t *n) {
    const uint32_t window = s->shape[layer].window;
    const int32_t low = window != 0 && (uint32_t)pos >= window ? pos - (int32_t)window + 1 : 0;
    uint32_t m = 1;
    out[0] = (kvc_range){0, pos + 1};
    if (s->visible != NULL) {
        m = s->visible->policy.api.visible(s->visible->self, layer, pos, out, KVC_MAX_RANGES);
        if (m > KVC_MAX_RANGES) {
            return KVC_E_POLICY;
        }
        for (uint32_t i = 0; i < m; i++) {
            if (out[i].first < (i > 0 ? out[i - 1].end : 0) || out[i].end <= out[i].first) {
                return KVC_E_POLICY;
            }
        }
    }
    m = clip_ranges(out, m, low, pos);
    if (m == 0 || out[m - 1].end != pos + 1) {
        const bool touches = m > 0 && out[m - 1].end == pos;
        if (touches) {
            out[m - 1].end = pos + 1;
        } else {
            out[m++] = (kvc_range){pos, pos + 1};
        }
    }
    *n = m;
    return KVC_OK;
}

/* ---------------------------------------------------------------- failures and figures */

/* The stage that a failed worker call belongs to: of several observers the one that said something.
 */
static kvc__stage *blamed(const kvc__stack *s, const char *call) {
    kvc__stage *first = NULL;
    if (strcmp(call, "visible") == 0 && s->visible != NULL) {
        return s->visible;
    }
    if (strcmp(call, "select") == 0 && s->select != NULL) {
        return s->select;
    }
    if (strcmp(call, "get") == 0 || strcmp(call, "put") == 0) {
        return s->tier;
    }
    const bool append = strcmp(call, "append") == 0;
    for (uint32_t j = 0; j < s->n_stage; j++) {
        kvc__stage *st = s->stage[j];
        if (append ? st->policy.api.append == NULL : st->plan.codec == NULL) {
            continue;
        }
        if (st->said.text[0] != '\0') {
            return st;
        }
        first = first == NULL ? st : first;
    }
    return first;
}

int32_t kvc__stack_blame(const kvc__stack *s, int32_t code, const char *call, uint32_t layer,
                         uint32_t head, int32_t pos, kvc__err *err) {
    const bool tier = s->tier != NULL && (code == KVC_E_IO || code == KVC_E_LOST);
    kvc__stage *st = tier ? s->tier : blamed(s, call);
    const char *text = kvc_status_text(code);
    if (strcmp(call, "finite") == 0) {
        call = "mix";
        text = "what it gives isn't finite";
    }
    if ((strcmp(call, "score") == 0 && s->codec.api.score == NULL) ||
        (strcmp(call, "mix") == 0 && s->codec.api.mix == NULL)) {
        call = "decode"; /* what did it instead */
    }
    if (st == NULL) {
        return kvc__fail(err, code, "%s failed (layer %u, head %u, position %d): %s", call, layer,
                         head, (int)pos, text);
    }
    kvc__err said;
    stage_said(st, &said);
    if (said.text[0] != '\0') {
        text = said.text;
    } else if (strcmp(call, "visible") == 0) {
        text = "its ranges are not ascending, or show again what they had hidden";
    }
    return kvc__fail(err, hook_status(s, code),
                     "policy '%s' failed in %s (layer %u, head %u, position %d): %s [%s]",
                     st->policy.desc.name, call, layer, head, (int)pos, text,
                     kvc_status_name(code));
}

void kvc__stack_claims(const kvc__stage *st, kvc_claims *out) {
    *out = (kvc_claims){.struct_size = sizeof *out};
    if (st->policy.api.stats != NULL && st->policy.api.stats(st->self, out) != KVC_OK) {
        *out = (kvc_claims){.struct_size = sizeof *out};
    }
}

void kvc__stack_bytes(const kvc__stack *s, uint64_t *memory, uint64_t *disk) {
    int64_t m = 0, d = 0;
    for (uint32_t j = 0; j < s->n_stage; j++) {
        kvc__stage *st = s->stage[j];
        m += (int64_t)atomic_load(&st->mem.used) + atomic_load(&st->other);
        d += atomic_load(&st->disk);
    }
    *memory = m > 0 ? (uint64_t)m : 0;
    *disk = d > 0 ? (uint64_t)d : 0;
}

/* SPDX-License-Identifier: MIT
 * stack.c: from a spec to stages, and every call of a hook. What a policy answers is checked here,
 * so that the store and attention can trust it. */
#include "stack.h"

#include "os.h"
#include "store.h"

#include <stdio.h>
#include <string.h>

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

/* Whether a failing answer is a failure of status.h. */
static bool is_status(int32_t code) {
    return code < 0 && strcmp(kvc_status_name(code), "KVC_E_?") != 0;
}

int32_t kvc__stage_create_failed(kvc__stage *st, const char *call, int32_t code, kvc__err *err) {
    kvc__err said;
    stage_said(st, &said);
    if (!is_status(code)) {
        return kvc__fail(err, KVC_E_POLICY, "policy '%s': %s answered %d, which is no status",
                         st->policy.desc.name, call, (int)code);
    }
    const bool callers = code == KVC_E_PARAM || code == KVC_E_NOMEM || code == KVC_E_UNSUPPORTED ||
                         code == KVC_E_IO || code == KVC_E_NOT_FOUND;
    if (said.text[0] == '\0') {
        snprintf(said.text, sizeof said.text, "%s answered %s, %s", call, kvc_status_name(code),
                 kvc_status_text(code));
    }
    return kvc__fail(err, callers ? code : KVC_E_POLICY, "policy '%s' can't be created: %s",
                     st->policy.desc.name, said.text);
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
    return st->created ? KVC_OK : kvc__stage_create_failed(st, "create", rc, err);
}

/* A destroyed instance holds nothing: a warning when its figures say otherwise. */
static void tell_of_rest(const kvc__stage *st) {
    const long long left = (long long)kvc__stage_memory(st);
    const long long other = (long long)atomic_load(&st->other);
    const long long disk = (long long)atomic_load(&st->disk);
    char text[256];
    if (!st->created || st->log == NULL) {
        return;
    }
    if (left > 0) {
        snprintf(text, sizeof text, "policy '%s' didn't give back %lld bytes", st->policy.desc.name,
                 left);
        st->log(st->log_user, KVC_LOG_WARN, text);
    }
    if (other < 0 || disk < 0) {
        snprintf(text, sizeof text,
                 "policy '%s' broke its contract: what it accounted for comes to %lld bytes of %s; "
                 "its figures can't be trusted",
                 st->policy.desc.name, other < 0 ? other : disk, other < 0 ? "memory" : "files");
        st->log(st->log_user, KVC_LOG_WARN, text);
    }
}

/* Drops a stack's hold of a stage; the last one destroys it. */
static void stage_drop(kvc__stage *st) {
    if (st == NULL || --st->n_holder > 0) {
        return;
    }
    if (st->policy.api.destroy != NULL && (st->self != NULL || st->created)) {
        st->policy.api.destroy(st->self);
    }
    tell_of_rest(st);
    kvc__tier_close(&st->tier);
    kvc__free(st->home, st->format, st->n_layer * sizeof(kvc_format));
    kvc__free(st->home, st->value, st->policy.desc.n_param * sizeof(kvc_value));
    kvc__policy_free(st->home, &st->policy);
    pthread_mutex_destroy(&st->lock);
    kvc__free(st->home, st, sizeof *st);
}

/* ---------------------------------------------------------------- making stacks */

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
        KVC_TRY(kvc__stack_check_plan(s, j, err));
    }
    KVC_TRY(kvc__stack_merge(s, env->shape, err));
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

int32_t kvc__stage_failed(kvc__stage *st, int32_t code, const char *call, uint32_t layer,
                          int32_t pos, kvc__err *err) {
    kvc__err said;
    char where[64] = "";
    kvc__stage *tier = st->stack != NULL ? st->stack->tier : NULL;
    stage_said(st, &said);
    if (said.text[0] == '\0' && tier != NULL && (code == KVC_E_IO || code == KVC_E_LOST)) {
        stage_said(tier, &said); /* it met a page that the tier couldn't bring */
        st = said.text[0] != '\0' ? tier : st;
    }
    if (layer != KVC_ALL) {
        snprintf(where, sizeof where, "layer %u, ", layer);
    }
    if (said.text[0] == '\0' && !is_status(code)) {
        snprintf(said.text, sizeof said.text, "it answered %d, which is no status", (int)code);
    }
    const char *text = said.text[0] != '\0' ? said.text : kvc_status_text(code);
    const int32_t status = st == tier ? code : hook_status(st->stack, code);
    return kvc__fail(err, status, "policy '%s' failed in %s (%sposition %d): %s [%s]",
                     st->policy.desc.name, call, where, (int)pos, text, kvc_status_name(code));
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
            return kvc__stage_failed(st, rc, "begin", KVC_ALL, step->pos, err);
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
        const uint64_t t0 = kvc__clock_ns();
        int32_t rc = st->policy.api.append(st->self, &mine);
        atomic_fetch_add(&st->worker_ns, kvc__clock_ns() - t0);
        if (rc != KVC_OK) {
            return rc < 0 ? rc : KVC_E_POLICY;
        }
    }
    return KVC_OK;
}

int32_t kvc__stack_select(kvc__stack *s, const kvc_rows *query, uint64_t *page, uint32_t n_page) {
    const uint64_t t0 = kvc__clock_ns();
    int32_t rc = s->select->policy.api.select(s->select->self, query, page, n_page);
    atomic_fetch_add(&s->select->worker_ns, kvc__clock_ns() - t0);
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
            return kvc__stage_failed(st, rc, "page_end", layer, last, err);
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
            return kvc__stage_failed(st, rc, "end", KVC_ALL, last, err);
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
            (void)kvc__stage_failed(st, mine, "rewind", KVC_ALL, pos, err);
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
            (void)kvc__stage_failed(st, rc, "truncate", KVC_ALL, pos, err);
            return KVC_E_POLICY; /* as for rewind */
        }
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

/* What is wrong with n ranges of a policy's, in words; false when nothing is. */
static bool ranges_wrong(const kvc_range *r, uint32_t n, char *text, size_t cap) {
    if (n > KVC_MAX_RANGES) {
        snprintf(text, cap, "it answered %u ranges, of at most %u", n, KVC_MAX_RANGES);
        return true;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (r[i].end <= r[i].first) {
            snprintf(text, cap, "its range %u, from %d to before %d, is empty", i, (int)r[i].first,
                     (int)r[i].end);
            return true;
        }
        if (r[i].first < (i > 0 ? r[i - 1].end : 0)) {
            snprintf(text, cap, "its range %u begins at %d, before %d, where it may", i,
                     (int)r[i].first, i > 0 ? (int)r[i - 1].end : 0);
            return true;
        }
    }
    return false;
}

int32_t kvc__stack_visible(const kvc__stack *s, uint32_t layer, int32_t pos, kvc_range *out,
                           uint32_t *n) {
    const uint32_t window = s->shape[layer].window;
    const int32_t low = window != 0 && (uint32_t)pos >= window ? pos - (int32_t)window + 1 : 0;
    uint32_t m = 1;
    out[0] = (kvc_range){0, pos + 1};
    if (s->visible != NULL) {
        m = s->visible->policy.api.visible(s->visible->self, layer, pos, out, KVC_MAX_RANGES);
        char text[128];
        if (ranges_wrong(out, m, text, sizeof text)) {
            return s->visible->host.fail(s->visible, KVC_E_POLICY, text);
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
        text = "its ranges show again what they had hidden";
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
    *memory = 0;
    *disk = 0;
    for (uint32_t j = 0; j < s->n_stage; j++) {
        *memory += kvc__stage_memory(s->stage[j]);
        *disk += kvc__stage_disk(s->stage[j]);
    }
}

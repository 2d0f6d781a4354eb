/* SPDX-License-Identifier: MIT
 * session.c: the decode loop. A call gives every session its new tokens, then batches are cut from
 * what the stores lack until nothing is left. A session whose batch fails goes back to where it
 * was; the others go on. */
#include "session.h"

#include "cpu.h"
#include "os.h"

#include <string.h>

#define DEFAULT_N_CTX 8192u

/* ---------------------------------------------------------------- open and close */

/* The shape a stack is made for. layer: [n_layer], the caller's. */
static void shape_init(const kvc_session *s, kvc_layer_shape *layer, kvc_shape *out) {
    const kvc__hparams *hp = &s->model->hp;
    for (uint32_t i = 0; i < hp->n_layer; i++) {
        layer[i] = (kvc_layer_shape){.struct_size = sizeof *layer,
                                     .n_head = hp->n_head,
                                     .n_head_kv = hp->n_head_kv,
                                     .dim_k = hp->dim_k,
                                     .dim_v = hp->dim_v,
                                     .window = s->model->layer[i].window,
                                     .scale = hp->scale,
                                     .soft_cap = hp->soft_cap};
    }
    *out = (kvc_shape){.struct_size = sizeof *out,
                       .n_layer = hp->n_layer,
                       .n_ctx = s->n_ctx,
                       .n_thread = kvc__pool_n_thread(s->model->pool),
                       .compute = s->compute,
                       .layer_stride = sizeof *layer,
                       .layer = layer};
}

static int32_t make_stack(kvc_session *s, const char *spec, const kvc__session_setup *setup,
                          kvc__err *err) {
    const uint32_t n_layer = s->model->hp.n_layer;
    kvc_layer_shape *layer = kvc__alloc_n(&s->mem, n_layer, sizeof *layer);
    if (layer == NULL) {
        return kvc__fail(err, KVC_E_NOMEM, "no memory for a session");
    }
    kvc_shape shape;
    shape_init(s, layer, &shape);
    const kvc__stack_env env = {.mem = &s->mem,
                                .family = &s->model->mem,
                                .kern = s->model->kern,
                                .pool = s->model->pool,
                                .shape = &shape,
                                .seed = setup->seed,
                                .log = setup->log,
                                .log_user = setup->log_user};
    const kvc__stack *like = setup->like != NULL ? &setup->like->stack : NULL;
    int32_t rc = kvc__stack_create(&env, setup->search, like, spec, &s->stack, err);
    kvc__free(&s->mem, layer, n_layer * sizeof *layer);
    return rc;
}

/* Everything but the stack: store, tokens, logits, and the model's scratch for a session like this.
 */
static int32_t make_rest(kvc_session *s, const kvc_session *like, kvc__err *err) {
    if (s->stack.tier != NULL && s->model->io == NULL) {
        KVC_TRY(kvc__io_create(&s->model->mem, &s->model->io, err));
    }
    s->stack.io = s->model->io;
    KVC_TRY(kvc__store_create(&s->mem, &s->model->mem, &s->stack,
                              like != NULL ? &like->store : NULL, &s->store, err));
    s->stack.store = &s->store;
    s->token = kvc__alloc_n(&s->mem, s->n_ctx, sizeof *s->token);
    s->flag = kvc__alloc_n(&s->mem, s->n_ctx, sizeof *s->flag);
    s->logits = kvc__alloc_n(&s->mem, s->model->hp.n_vocab, sizeof *s->logits);
    s->cap_logits = 1; /* at once: what is freed is sized by it */
    if (s->token == NULL || s->flag == NULL || s->logits == NULL) {
        return kvc__fail(err, KVC_E_NOMEM, "no memory for a session of %u positions; lower n_ctx",
                         s->n_ctx);
    }
    const bool observe = (s->stack.observe & (KVC_OBSERVE_MASS | KVC_OBSERVE_MASS_LAST)) != 0;
    KVC_TRY(kvc__model_rope(s->model, s->n_ctx, err));
    return kvc__work_reserve(s->model, s->n_ctx, observe, s->stack.select != NULL, err);
}

static void session_free(kvc_session *s) {
    kvc_model *model = s->model;
    const uint32_t vocab = model->hp.n_vocab;
    s->stack.store = NULL; /* a stage's destroy() has no store to read */
    kvc__store_destroy(&s->store);
    kvc__stack_destroy(&s->stack);
    kvc__free(&s->mem, s->token, s->n_ctx * sizeof *s->token);
    kvc__free(&s->mem, s->flag, s->n_ctx * sizeof *s->flag);
    kvc__free(&s->mem, s->logits, (size_t)s->cap_logits * vocab * sizeof *s->logits);
    kvc__free(&model->mem, s, sizeof *s);
}

int32_t kvc__session_open(kvc_model *model, const char *spec, const kvc__session_setup *setup,
                          kvc_session **out, kvc__err *err) {
    kvc_session *s = kvc__alloc(&model->mem, sizeof *s);
    if (s == NULL) {
        return kvc__fail(err, KVC_E_NOMEM, "no memory for a session");
    }
    s->model = model;
    s->compute = setup->compute;
    s->n_ctx = setup->n_ctx;
    if (s->n_ctx == 0) {
        s->n_ctx = model->hp.n_ctx_train < DEFAULT_N_CTX ? model->hp.n_ctx_train : DEFAULT_N_CTX;
    }
    kvc__mem_init(&s->mem, setup->allocator, NULL);
    atomic_init(&s->cancel, 0);
    atomic_init(&s->busy, 0);
    pthread_mutex_lock(&model->lock);
    int32_t rc = make_stack(s, spec, setup, err);
    if (rc == KVC_OK) {
        rc = make_rest(s, setup->like, err);
    }
    pthread_mutex_unlock(&model->lock);
    if (rc < 0) {
        session_free(s);
        return rc;
    }
    kvc__model_hold(model);
    *out = s;
    return KVC_OK;
}

void kvc__session_close(kvc_session *s) {
    kvc_model *model = s->model;
    pthread_mutex_lock(&model->lock);
    session_free(s);
    pthread_mutex_unlock(&model->lock);
    kvc__model_drop(model);
}

void kvc__session_setup_params(const struct kvc_params *params, kvc__search *search,
                               kvc__session_setup *out) {
    kvc__params_search(params, search);
    *out = (kvc__session_setup){.n_ctx = params->n_ctx,
                                .compute = params->compute,
                                .seed = params->seed,
                                .allocator =
                                    params->allocator.realloc != NULL ? &params->allocator : NULL,
                                .log = params->log,
                                .log_user = params->log_user,
                                .search = search};
}

/* ---------------------------------------------------------------- going back */

/* The store and the stages return to pos or below; n_valid says where they are then. */
static int32_t go_back(kvc_session *s, uint32_t pos) {
    int32_t to = kvc__store_rewind(&s->store, (int32_t)pos);
    for (int32_t want = -1; to != want;) {
        /* A stage's answer may lie inside a page, the store's below what a stage can do: until both
         * agree. */
        want = to;
        KVC_TRY(kvc__stack_rewind(&s->stack, want, &to, &s->err));
        to = kvc__store_rewind(&s->store, to);
    }
    kvc__store_truncate(&s->store, to);
    s->n_valid = (uint32_t)to;
    return kvc__stack_truncate(&s->stack, to, &s->err);
}

static void kill_session(kvc_session *s, int32_t status) {
    s->dead = status;
    s->n_logits = 0;
}

int32_t kvc__session_truncate(kvc_session *s, uint32_t n_past) {
    if (n_past > s->n_token) {
        return kvc__fail(&s->err, KVC_E_RANGE, "can't truncate to %u tokens: the session holds %u",
                         n_past, s->n_token);
    }
    s->n_logits = 0;
    s->n_token = n_past;
    if (n_past >= s->n_valid) {
        return KVC_OK;
    }
    int32_t rc = go_back(s, n_past);
    if (rc < 0) {
        kill_session(s, rc);
    }
    return rc;
}

/* ---------------------------------------------------------------- a call */

/* Takes a session's new tokens in, with their flags, and asks the stages from where to compute. */
static int32_t accept(kvc_session *s) {
    const kvc_run *r = s->run;
    s->n_old = s->n_token;
    s->n_logits = 0;
    s->n_mark = s->n_old;
    s->recovered = false;
    for (uint32_t i = 0; i < r->n_token; i++) {
        const bool last = i + 1 == r->n_token;
        const bool wanted = r->wants == KVC_WANT_ALL || (r->wants == KVC_WANT_LAST && last) ||
                            (r->wants == KVC_WANT_LIST && r->want[i] != 0);
        const uint32_t at = s->n_token + i;
        const bool before = at > 0 && (s->flag[at - 1] & KVC__TOKEN_WANTED) != 0;
        const bool end = (wanted && !before) || (last && r->prompt_end != 0);
        s->token[at] = r->token[i];
        s->flag[at] = (uint8_t)((wanted ? KVC__TOKEN_WANTED : 0) | (end ? KVC__TOKEN_ENDS : 0));
    }
    s->n_token += r->n_token;
    if (s->stack.has_begin == 0) {
        return KVC_OK;
    }
    const kvc_step step = {.struct_size = sizeof step,
                           .n = s->n_token - s->n_valid,
                           .pos = (int32_t)s->n_valid,
                           .phase = kvc__token_phase(s->flag[s->n_token - 1]),
                           .replay = s->n_valid < s->n_old,
                           .last = 1,
                           .token = s->token + s->n_valid};
    int32_t from = step.pos;
    KVC_TRY(kvc__stack_begin(&s->stack, &step, &from, &s->err));
    return from < step.pos ? go_back(s, (uint32_t)from) : KVC_OK;
}

/* Begins to journal a step that can be taken back exactly: its tokens are of one page, nothing is
 * computed again, and it ticks after its last token at most. */
static void begin_journal(kvc_session *s) {
    const uint32_t n = s->n_token - s->n_valid;
    if (s->store.journal.ref == NULL || s->n_valid != s->n_old ||
        (s->stack.flags & KVC_PLAN_TRANSIENT) != 0 ||
        s->n_valid / KVC_PAGE != (s->n_token - 1) / KVC_PAGE) {
        return;
    }
    for (uint32_t i = s->n_valid; i + 1 < s->n_valid + n; i++) {
        if (kvc__stack_ticks(&s->stack, (int32_t)i, (s->flag[i] & KVC__TOKEN_ENDS) != 0)) {
            return;
        }
    }
    kvc__store_journal_begin(&s->store);
}

/* Accepts a journalled step. */
static int32_t commit_journal(kvc_session *s) {
    uint32_t layer = 0;
    if (!s->store.journal.on) {
        return KVC_OK;
    }
    const int32_t rc = kvc__store_journal_commit(&s->store, &layer);
    return rc == KVC_OK ? rc
                        : kvc__stack_blame(&s->stack, rc, "move", layer, 0, (int32_t)s->n_token - 1,
                                           &s->err);
}

/* Takes a journalled step back, if the stages can follow. */
static bool undo_journal(kvc_session *s) {
    if (!s->store.journal.on) {
        return false;
    }
    s->store.journal.on = false;
    if (!kvc__stack_returns(&s->stack, (int32_t)s->n_old)) {
        return false;
    }
    kvc__store_journal_undo(&s->store);
    s->n_valid = s->n_old;
    return true;
}

/* Room for the logits that the run wants. The only allocation of a call, and only when it wants
 * more than before. */
static int32_t reserve_logits(kvc_session *s) {
    const kvc_run *r = s->run;
    uint32_t n = r->wants == KVC_WANT_LAST ? 1 : r->wants == KVC_WANT_ALL ? r->n_token : 0;
    for (uint32_t i = 0; r->wants == KVC_WANT_LIST && i < r->n_token; i++) {
        n += r->want[i] != 0;
    }
    if (n <= s->cap_logits) {
        return KVC_OK;
    }
    const size_t row = s->model->hp.n_vocab * sizeof *s->logits;
    float *fresh = kvc__alloc_n(&s->mem, n, row);
    if (fresh == NULL) {
        return kvc__fail(&s->err, KVC_E_NOMEM,
                         "no memory for the logits of %u tokens; ask for fewer at once", n);
    }
    kvc__free(&s->mem, s->logits, s->cap_logits * row);
    s->logits = fresh;
    s->cap_logits = n;
    return KVC_OK;
}

/* Ends a session's call badly: undone, or dead. */
static void fail_run(kvc_session *s, int32_t status) {
    s->run->status = status;
    s->n_logits = 0;
    s->n_token = s->n_old;
    if (!kvc__stack_can_undo(status)) {
        kill_session(s, status);
        return;
    }
    const kvc__err why = s->err;
    if (undo_journal(s)) {
        const int32_t failed = kvc__stack_truncate(&s->stack, (int32_t)s->n_old, &s->err);
        if (failed < 0) {
            kill_session(s, failed);
            s->run->status = failed;
        } else {
            s->err = why;
        }
        return;
    }
    uint32_t pos = s->n_valid < s->n_old ? s->n_valid : s->n_old;
    if ((s->stack.flags & KVC_PLAN_TRANSIENT) != 0) {
        pos = 0; /* pages go back after every call, good or bad */
    }
    int32_t rc = go_back(s, pos);
    if (rc < 0) {
        kill_session(s, rc);
        s->run->status = rc;
    } else {
        s->err = why;
    }
}

/* Cuts the session's next part: at most room rows. */
static void cut_part(kvc_session *s, uint32_t room, kvc__part *p, int32_t *want) {
    const uint32_t left = s->n_token - s->n_valid;
    uint32_t n = left < room ? left : room;
    n = kvc__part_length(&s->stack, s->flag + s->n_valid, (int32_t)s->n_valid, n);
    for (uint32_t t = 0; t < n; t++) {
        const uint32_t at = s->n_valid + t;
        const bool wanted = at >= s->n_old && (s->flag[at] & KVC__TOKEN_WANTED) != 0;
        want[t] = wanted ? (int32_t)s->n_logits++ : -1;
    }
    *p = (kvc__part){.stack = &s->stack,
                     .store = &s->store,
                     .token = s->token + s->n_valid,
                     .flag = s->flag + s->n_valid,
                     .n = n,
                     .pos0 = (int32_t)s->n_valid,
                     .new_pos = (int32_t)s->n_mark,
                     .last = n == left,
                     .cancel = &s->cancel,
                     .logits = s->logits,
                     .want = want,
                     .err = &s->err};
}

/* Rows of logits that the run wants of tokens below n_valid. */
static uint32_t wanted_below(const kvc_session *s) {
    uint32_t n = 0;
    for (uint32_t i = s->n_old; i < s->n_valid; i++) {
        n += (s->flag[i] & KVC__TOKEN_WANTED) != 0;
    }
    return n;
}

/* A page that the tier has lost is computed again: the session goes back to where it begins, and
 * the call goes on from there. Once a call: a page that is lost again may be lost for ever. */
static bool recover(kvc_session *s) {
    const uint32_t page = kvc__pager_take_lost(s->store.pager);
    if (s->recovered || page == UINT32_MAX) {
        return false;
    }
    s->recovered = true;
    s->n_lost++;
    s->store.journal.on = false;
    const uint64_t pos = atomic_load(&s->store.evicted) != 0 ? 0 : (uint64_t)page * KVC_PAGE;
    if (go_back(s, pos < s->n_valid ? (uint32_t)pos : s->n_valid) < 0) {
        return false;
    }
    s->n_logits = wanted_below(s);
    return true;
}

/* What a part's outcome means for its session. */
static void settle_part(kvc_session *s, const kvc__part *p) {
    if (p->status == KVC_E_LOST && s->store.pager != NULL && recover(s)) {
        return;
    }
    if (p->status < 0) {
        fail_run(s, p->status);
        return;
    }
    const uint32_t old = s->n_valid < s->n_mark ? s->n_mark - s->n_valid : 0;
    s->n_replayed += old < p->n ? old : p->n;
    s->n_computed += p->n;
    const bool prompt_end = (p->flag[p->n - 1] & KVC__TOKEN_ENDS) != 0;
    if (s->stack.has_end != 0 &&
        kvc__stack_cuts(&s->stack, p->pos0 + (int32_t)p->n - 1, prompt_end)) {
        /* What waits in the layers comes before what the end evicts. */
        int32_t rc = commit_journal(s);
        if (rc == KVC_E_LOST && s->store.pager != NULL && recover(s)) {
            return;
        }
        if (rc < 0) {
            fail_run(s, rc);
            return;
        }
        const kvc_step step = {.struct_size = sizeof step,
                               .n = p->n,
                               .pos = p->pos0,
                               .phase = kvc__token_phase(p->flag[p->n - 1]),
                               .replay = p->pos0 < p->new_pos,
                               .last = p->last,
                               .token = p->token};
        rc = kvc__stack_end(&s->stack, &step, prompt_end, &s->err);
        for (uint32_t i = 0;
             rc == KVC_OK && (s->stack.flags & KVC_PLAN_EVICTS) != 0 && i < s->stack.n_layer; i++) {
            rc = kvc__store_settle(&s->store, i);
            if (rc < 0) {
                rc = kvc__stack_blame(&s->stack, rc, "move", i, 0, p->pos0, &s->err);
            }
        }
        if (rc == KVC_E_LOST && s->store.pager != NULL && recover(s)) {
            return;
        }
        if (rc < 0) {
            /* n_valid still is where the part began: its tick is to come again. */
            fail_run(s, rc);
            return;
        }
    }
    s->n_valid += p->n;
    s->n_mark = s->n_valid > s->n_mark ? s->n_valid : s->n_mark;
}

/* One batch over all sessions that lack positions; false when there is none. */
static bool run_batch(kvc_session *const *s, uint32_t n) {
    kvc_model *m = s[0]->model;
    uint32_t n_part = 0, rows = 0, who = 0;
    for (uint32_t i = 0; i < n && rows < m->n_batch; i++) {
        if (s[i]->run->status == KVC_OK && s[i]->n_valid < s[i]->n_token) {
            cut_part(s[i], m->n_batch - rows, &m->work->part[n_part], m->work->want + rows);
            rows += m->work->part[n_part++].n;
        }
    }
    if (n_part == 0) {
        return false;
    }
    kvc__forward(m, n_part, s[0]->compute);
    for (uint32_t i = 0; i < n_part; i++) {
        while (&s[who]->err != m->work->part[i].err) {
            who++;
        }
        settle_part(s[who], &m->work->part[i]);
    }
    return true;
}

/* Accepts the journalled steps of the calls that went well. True when one of them met a page that
 * its tier has lost, so that there is more to compute. */
static bool commit_runs(kvc_session *const *s, uint32_t n) {
    bool more = false;
    for (uint32_t i = 0; i < n; i++) {
        if (s[i]->run->status != KVC_OK || atomic_load(&s[i]->cancel) != 0) {
            continue;
        }
        const int32_t rc = commit_journal(s[i]);
        if (rc == KVC_E_LOST && s[i]->store.pager != NULL && recover(s[i])) {
            more = true;
        } else if (rc < 0) {
            fail_run(s[i], rc);
        }
    }
    return more;
}

/* The end of a good call. */
static void finish_run(kvc_session *s) {
    kvc__store_note_peak(&s->store);
    if ((s->stack.flags & KVC_PLAN_TRANSIENT) != 0) {
        int32_t rc = go_back(s, 0);
        if (rc < 0) {
            s->n_token = s->n_old;
            kill_session(s, rc);
            s->run->status = rc;
        }
    }
    s->run->n_logits = s->n_logits;
}

void kvc__session_decode(kvc_session *const *s, uint32_t n) {
    kvc_model *m = s[0]->model;
    pthread_mutex_lock(&m->lock);
    const uint32_t fp = kvc__fp_enter();
    const uint64_t t0 = kvc__clock_ns();
    m->work->attention_ns = 0;
    m->work->policy_ns = 0;
    for (uint32_t i = 0; i < n; i++) {
        s[i]->n_old = s[i]->n_token;
        int32_t rc = reserve_logits(s[i]);
        if (rc == KVC_OK) {
            rc = accept(s[i]);
        }
        if (rc < 0) {
            fail_run(s[i], rc);
        } else {
            begin_journal(s[i]);
        }
    }
    while (run_batch(s, n) || commit_runs(s, n)) {
    }
    for (uint32_t i = 0; i < n; i++) {
        const bool cancelled = atomic_exchange(&s[i]->cancel, 0) != 0;
        if (s[i]->run->status == KVC_OK && cancelled) {
            fail_run(s[i], kvc__fail(&s[i]->err, KVC_E_CANCELLED, "the call was cancelled"));
        }
        if (s[i]->run->status == KVC_OK) {
            finish_run(s[i]);
        }
        s[i]->compute_ns += kvc__clock_ns() - t0;
        s[i]->attention_ns += m->work->attention_ns;
        s[i]->policy_ns += m->work->policy_ns;
    }
    kvc__fp_leave(fp);
    pthread_mutex_unlock(&m->lock);
}

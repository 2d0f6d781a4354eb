/* SPDX-License-Identifier: MIT
 * divergence.c: the baseline and all policies step over the same tokens in lock step, in one decode
 * call per step, and each step's logits are compared in memory. Memory is read from the same
 * sessions. What follows generation needs no second run: greedy output departs at the first step
 * where, fed with the baseline's own tokens, a policy would pick another. */
#include "measure.h"

#include "interrupt.h"
#include "progress.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TRACK (CMP_MAX_POLICY + 2u)

/* One session and what is gathered on it. */
typedef struct track {
    const char *spec;
    kvc_session *session;
    cmp_row *row;   /* NULL: the baseline */
    uint32_t group; /* sessions of one group compute in one way, and so in one call */
    int transient;
    int active;        /* it takes part in the next call */
    uint32_t n_score;  /* tokens it is scored on */
    uint32_t n_greedy; /* greedy tokens it is compared on */
    double *kld;       /* [n_score] */
    double nll;
    uint32_t n_agree;
    int32_t next;   /* its greedy token after the tokens so far */
    uint64_t *held; /* [ctx / page + 1] payload and stages at whole pages, UINT64_MAX: not seen */
} track;

/* The pass. */
typedef struct pass {
    cmp_job *job;
    uint32_t n;
    track track[MAX_TRACK]; /* [0] is the baseline */
    double *base_nll;       /* [n_score] running sums, for rows that are scored on fewer tokens */
    double *memory;
    uint64_t *held;
    cmp_dist dist;
} pass;

static uint32_t min_u32(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

/* ---------------------------------------------------------------- sessions */

/* The names of the stages, '+' between them, and the spec with all parameters. */
static void name_row(cmp_row *row, const kvc_session *session, const kvc_session_stats *stats) {
    size_t used = 0;
    for (uint32_t i = 0; i < stats->n_stage && used + 1 < sizeof row->name; i++) {
        kvc_stage_stats stage = {.struct_size = sizeof stage};
        if (kvc_session_get_stage(session, i, &stage) < 0 || stage.name == NULL) {
            break;
        }
        int n = snprintf(row->name + used, sizeof row->name - used, "%s%s", i > 0 ? "+" : "",
                         stage.name);
        used += n > 0 ? (size_t)n : 0;
    }
    const char *full = kvc_session_spec(session);
    snprintf(row->full, sizeof row->full, "%s", full != NULL ? full : row->spec);
    row->transient = (stats->flags & KVC_PLAN_TRANSIENT) != 0;
    row->chunked = stats->chunk_invariant == 0;
}

static int32_t open_track(pass *p, const char *spec, cmp_row *row, uint32_t group) {
    cmp_job *job = p->job;
    track *t = &p->track[p->n];
    int32_t rc = cmp_session_open(job, spec, group == 0 ? job->compute : "f32", &t->session);
    if (rc < 0) {
        return rc;
    }
    kvc_session_stats stats = {.struct_size = sizeof stats};
    rc = kvc_session_get_stats(t->session, &stats);
    if (rc < 0) {
        cmp_session_fail(job, spec, t->session, rc);
        cmp_session_close(t->session);
        return rc;
    }
    t->spec = spec;
    t->row = row;
    t->group = group;
    t->transient = (stats.flags & KVC_PLAN_TRANSIENT) != 0;
    /* The baseline must reach as far as any policy, whatever it costs. */
    int cut = t->transient && row != NULL;
    t->n_score = cut ? min_u32(job->n_score, CMP_TRANSIENT_SCORE) : job->n_score;
    t->n_greedy = cut ? min_u32(job->n_greedy, CMP_TRANSIENT_GREEDY) : job->n_greedy;
    t->active = 1;
    if (row != NULL) {
        name_row(row, t->session, &stats);
    }
    p->n++;
    return KVC_OK;
}

static int32_t open_all(pass *p) {
    cmp_job *job = p->job;
    int32_t rc = open_track(p, job->baseline, NULL, 0);
    for (uint32_t i = 0; rc >= 0 && i < job->n_row; i++) {
        rc = open_track(p, job->row[i].spec, &job->row[i], 0);
    }
    if (rc >= 0 && strcmp(job->compute, "int8") == 0) {
        cmp_row_init(&job->twin, job->baseline);
        rc = open_track(p, job->baseline, &job->twin, 1);
        job->has_twin = rc >= 0;
    }
    return rc;
}

static int32_t reserve(pass *p) {
    cmp_job *job = p->job;
    size_t n_page = job->ctx / KVC_PAGE + 1u;
    p->memory = calloc(job->n_vocab + (size_t)(p->n + 1) * job->n_score, sizeof *p->memory);
    p->held = malloc(p->n * n_page * sizeof *p->held);
    if (p->memory == NULL || p->held == NULL) {
        return cmp_session_fail(job, "divergence", NULL, KVC_E_NOMEM);
    }
    memset(p->held, 0xff, p->n * n_page * sizeof *p->held);
    p->dist.p = p->memory;
    p->base_nll = p->memory + job->n_vocab;
    for (uint32_t i = 0; i < p->n; i++) {
        p->track[i].kld = p->base_nll + (size_t)(i + 1) * job->n_score;
        p->track[i].held = p->held + i * n_page;
    }
    return KVC_OK;
}

/* ---------------------------------------------------------------- calls */

/* Notes the payload when the session stands at a whole page, and what the stages hold: a tier may
 * keep its pages in memory. */
static void note_page(track *t) {
    kvc_session_stats stats = {.struct_size = sizeof stats};
    if (kvc_session_get_stats(t->session, &stats) >= 0 && stats.n_past % KVC_PAGE == 0) {
        t->held[stats.n_past / KVC_PAGE] = stats.sealed_bytes + stats.stage_bytes;
    }
}

/* One call for the active tracks of a group; who: -1 both kinds, else transient ones or the rest.
 */
static int32_t decode_group(pass *p, uint32_t group, int who, const int32_t *token, uint32_t n,
                            uint32_t wants, uint32_t prompt_end) {
    kvc_run run[MAX_TRACK];
    track *of[MAX_TRACK];
    uint32_t n_run = 0;
    for (uint32_t i = 0; i < p->n; i++) {
        track *t = &p->track[i];
        if (t->active && t->group == group && (who < 0 || t->transient == who)) {
            of[n_run] = t;
            run[n_run++] = (kvc_run){.struct_size = sizeof run[0],
                                     .wants = wants,
                                     .session = t->session,
                                     .token = token,
                                     .n_token = n,
                                     .prompt_end = prompt_end};
        }
    }
    if (n_run == 0) {
        return KVC_OK;
    }
    int32_t rc = kvc_decode(run, n_run, sizeof run[0]);
    for (uint32_t i = 0; i < n_run; i++) {
        if (run[i].status < 0) {
            return cmp_session_fail(p->job, of[i]->spec, of[i]->session, run[i].status);
        }
    }
    return rc < 0 ? cmp_session_fail(p->job, of[0]->spec, of[0]->session, rc) : KVC_OK;
}

static int32_t decode_all(pass *p, int who, const int32_t *token, uint32_t n, uint32_t wants,
                          uint32_t prompt_end) {
    if (cmp_interrupted()) {
        return KVC_E_CANCELLED;
    }
    int32_t rc = decode_group(p, 0, who, token, n, wants, prompt_end);
    return rc < 0 ? rc : decode_group(p, 1, who, token, n, wants, prompt_end);
}

/* Logits of every active track must be there before any is compared. */
static int32_t check_logits(pass *p) {
    for (uint32_t i = 0; i < p->n; i++) {
        track *t = &p->track[i];
        if (t->active && kvc_session_logits(t->session, 0) == NULL) {
            return cmp_session_fail(p->job, t->spec, t->session, KVC_E_RANGE);
        }
    }
    return KVC_OK;
}

/* The prompt in chunks, cut so that the last whole page is seen; a policy that keeps nothing gets
 * it in one piece, since each chunk would compute all before it again. */
static int32_t prefill(pass *p) {
    cmp_job *job = p->job;
    uint32_t n_prompt = job->ctx - job->n_score;
    for (uint32_t pos = 0; pos < n_prompt;) {
        uint32_t end = min_u32(pos + CMP_CHUNK, n_prompt);
        uint32_t page = end / KVC_PAGE * KVC_PAGE;
        end = page > pos ? page : end;
        uint32_t last = end == n_prompt;
        cmp_progress("prompt, token", pos, n_prompt);
        int32_t rc = decode_all(p, 0, job->token + pos, end - pos,
                                last ? KVC_WANT_LAST : KVC_WANT_NONE, last);
        if (rc < 0) {
            return rc;
        }
        for (uint32_t i = 0; i < p->n; i++) {
            note_page(&p->track[i]);
        }
        pos = end;
    }
    int32_t rc = decode_all(p, 1, job->token, n_prompt, KVC_WANT_LAST, 1);
    if (rc >= 0) {
        rc = check_logits(p);
    }
    for (uint32_t i = 0; rc >= 0 && i < p->n; i++) {
        track *t = &p->track[i];
        note_page(t);
        t->next = cmp_argmax(kvc_session_logits(t->session, 0), job->n_vocab);
    }
    return rc;
}

/* ---------------------------------------------------------------- scoring */

/* Compares the logits before scored token i. */
static void score(pass *p, uint32_t i, int32_t token) {
    uint32_t n_vocab = p->job->n_vocab;
    const float *base = kvc_session_logits(p->track[0].session, 0);
    cmp_dist_set(&p->dist, base, n_vocab);
    int32_t top = cmp_argmax(base, n_vocab);
    p->base_nll[i] = (i > 0 ? p->base_nll[i - 1] : 0) + p->dist.lse - (double)base[token];
    for (uint32_t k = 1; k < p->n; k++) {
        track *t = &p->track[k];
        if (!t->active) {
            continue;
        }
        const float *logits = kvc_session_logits(t->session, 0);
        double lse = cmp_log_sum_exp(logits, n_vocab);
        t->kld[i] = cmp_kld(&p->dist, logits, lse);
        t->nll += lse - (double)logits[token];
        t->n_agree += cmp_argmax(logits, n_vocab) == top;
    }
}

/* Memory that a token adds, over whole pages of the last quarter of what was reached: early pages
 * say how a bounded cache fills, not what it costs from then on. */
static double bytes_per_token(const track *t, uint32_t n_page) {
    uint32_t last = n_page;
    while (last > 0 && t->held[last] == UINT64_MAX) {
        last--;
    }
    uint32_t first = (3 * last + 3) / 4;
    while (first < last && t->held[first] == UINT64_MAX) {
        first++;
    }
    if (first == last) {
        do {
            if (first == 0) {
                return NAN;
            }
            first--;
        } while (first > 0 && t->held[first] == UINT64_MAX);
    }
    if (first == 0 || last == 0) {
        return NAN;
    }
    return ((double)t->held[last] - (double)t->held[first]) / ((last - first) * KVC_PAGE);
}

/* What each stage holds and has taken so far. */
static void note_stages(const track *t, uint32_t n_stage) {
    cmp_row *row = t->row;
    row->n_stage = min_u32(n_stage, CMP_MAX_STAGE);
    for (uint32_t i = 0; i < row->n_stage; i++) {
        kvc_stage_stats s = {.struct_size = sizeof s};
        if (kvc_session_get_stage(t->session, i, &s) < 0) {
            row->n_stage = i;
            return;
        }
        cmp_stage *to = &row->stage[i];
        *to = (cmp_stage){.memory_bytes = s.memory_bytes,
                          .peak_bytes = s.peak_bytes,
                          .payload_bytes = s.payload_bytes,
                          .disk_bytes = s.disk_bytes,
                          .stored_bytes = s.stored_bytes,
                          .hook_ns = s.hook_ns,
                          .worker_ns = s.worker_ns,
                          .tier_ns = s.tier_ns,
                          .n_evicted = s.n_evicted,
                          .n_selected = s.n_selected,
                          .n_skipped = s.n_skipped,
                          .n_put = s.n_put,
                          .n_get = s.n_get};
        snprintf(to->name, sizeof to->name, "%s", s.name);
    }
}

/* The figures of a track that has reached its last scored token. */
static int32_t finish(pass *p, track *t) {
    kvc_session_stats stats = {.struct_size = sizeof stats};
    int32_t rc = kvc_session_get_stats(t->session, &stats);
    if (rc < 0) {
        return cmp_session_fail(p->job, t->spec, t->session, rc);
    }
    if (t->row == NULL) {
        p->job->baseline_ppl = exp(p->base_nll[t->n_score - 1] / t->n_score);
        return KVC_OK;
    }
    double *v = t->row->v;
    v[CMP_KV_BYTES] = (double)stats.kv_bytes;
    v[CMP_KV_PEAK_BYTES] = (double)stats.kv_peak_bytes;
    v[CMP_DISK_BYTES] = (double)stats.disk_bytes;
    /* What holds nothing between calls adds nothing, wherever it stands. */
    v[CMP_BYTES_PER_TOKEN] =
        t->transient && stats.sealed_bytes == 0 ? 0 : bytes_per_token(t, p->job->ctx / KVC_PAGE);
    v[CMP_TOP1] = (double)t->n_agree / t->n_score;
    v[CMP_PPL] = exp(t->nll / t->n_score);
    v[CMP_PPL_RATIO] = v[CMP_PPL] / exp(p->base_nll[t->n_score - 1] / t->n_score);
    v[CMP_SCORED] = t->n_score;
    note_stages(t, stats.n_stage);
    cmp_row_set_kld(t->row, t->kld, t->n_score);
    return KVC_OK;
}

static int32_t score_all(pass *p) {
    cmp_job *job = p->job;
    const int32_t *token = job->token + (job->ctx - job->n_score);
    for (uint32_t i = 0; i < job->n_score; i++) {
        cmp_progress("divergence, token", i, job->n_score);
        score(p, i, token[i]);
        int32_t rc = decode_all(p, -1, token + i, 1, KVC_WANT_LAST, 0);
        if (rc >= 0) {
            rc = check_logits(p);
        }
        for (uint32_t k = 0; rc >= 0 && k < p->n; k++) {
            track *t = &p->track[k];
            if (!t->active) {
                continue;
            }
            note_page(t);
            if (i + 1 == t->n_score) {
                rc = finish(p, t);
                t->active = 0;
            }
        }
        if (rc < 0) {
            return rc;
        }
    }
    return KVC_OK;
}

/* ---------------------------------------------------------------- greedy output */

/* Ends tracks that depart at token i or have been compared for long enough; 1 while some go on. */
static int compare_greedy(pass *p, uint32_t i) {
    int32_t token = p->track[0].next;
    int ended = token < 0 || token == p->job->eos || token == p->job->eot;
    int more = 0;
    for (uint32_t k = 1; k < p->n; k++) {
        track *t = &p->track[k];
        if (!t->active) {
            continue;
        }
        t->row->v[CMP_GENERATED] = i + 1;
        if (t->next != token) {
            t->row->v[CMP_FIRST_DIVERGENCE] = i;
        }
        t->active = t->next == token && i + 1 < t->n_greedy && !ended;
        more |= t->active;
    }
    return more;
}

static int32_t greedy_all(pass *p) {
    cmp_job *job = p->job;
    int32_t rc = KVC_OK;
    for (uint32_t k = 0; k < p->n; k++) {
        track *t = &p->track[k];
        t->active = t->row != &job->twin;
        rc = t->active ? kvc_session_truncate(t->session, job->ctx - job->n_score) : KVC_OK;
        if (rc < 0) {
            return cmp_session_fail(job, t->spec, t->session, rc);
        }
    }
    for (uint32_t i = 0; i < job->n_greedy && compare_greedy(p, i); i++) {
        cmp_progress("greedy output, token", i, job->n_greedy);
        int32_t token = p->track[0].next;
        rc = decode_all(p, -1, &token, 1, KVC_WANT_LAST, 0);
        if (rc >= 0) {
            rc = check_logits(p);
        }
        for (uint32_t k = 0; rc >= 0 && k < p->n; k++) {
            track *t = &p->track[k];
            if (t->active) {
                t->next = cmp_argmax(kvc_session_logits(t->session, 0), job->n_vocab);
            }
        }
        if (rc < 0) {
            return rc;
        }
    }
    return KVC_OK;
}

int32_t cmp_measure_divergence(cmp_job *job) {
    pass p = {.job = job};
    int32_t rc = open_all(&p);
    if (rc >= 0) {
        rc = reserve(&p);
    }
    if (rc >= 0) {
        rc = prefill(&p);
    }
    if (rc >= 0) {
        rc = score_all(&p);
    }
    if (rc >= 0 && job->n_greedy > 0) {
        rc = greedy_all(&p);
    }
    for (uint32_t i = 0; i < p.n; i++) {
        cmp_session_close(p.track[i].session);
    }
    free(p.memory);
    free(p.held);
    return rc;
}

/* SPDX-License-Identifier: MIT
 * bench_run.c: times the rows of `kvcompare bench`. For each depth every policy's sessions are
 * brought one token short of it; a run goes on from a fork of them, or from the sessions
 * themselves, which then go back by truncation. Either way the last token before the clock starts
 * is computed untimed, so what going back costs is no part of a figure. */
#include "bench.h"

#include "interrupt.h"
#include "progress.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* One policy. */
typedef struct subject {
    const char *spec;
    cmp_bench_row *row; /* its rows */
    int transient;
    int tier;
    int forks; /* it can go back by fork */
    uint32_t n_open;
    kvc_session *base[CMP_BENCH_MAX_SESSIONS];
    uint32_t fits; /* sessions that fit into memory at this depth */
} subject;

/* Sessions of one timed run. */
typedef struct team {
    subject *s;
    uint32_t n;
    uint32_t n_past; /* where the sessions came from */
    kvc_session *session[CMP_BENCH_MAX_SESSIONS];
} team;

/* What is read before and after the clock. */
typedef struct reading {
    double open;    /* payload of open pages */
    double payload; /* and of sealed ones, as if select() left out none */
    uint64_t wait_ns, selected, skipped;
} reading;

static int32_t fail(cmp_bench *b, const char *spec, const kvc_session *session, int32_t rc) {
    return cmp_session_fail(&b->job, spec, session, rc);
}

/* ---------------------------------------------------------------- calls */

/* n tokens for each session of the team, from position pos on; every session has its own text. */
static int32_t decode(cmp_bench *b, team *t, uint32_t pos, uint32_t n, uint32_t wants,
                      uint64_t *ns) {
    kvc_run run[CMP_BENCH_MAX_SESSIONS];
    for (uint32_t i = 0; i < t->n; i++) {
        run[i] = (kvc_run){.struct_size = sizeof run[i],
                           .wants = wants,
                           .session = t->session[i],
                           .token = b->token + pos + i,
                           .n_token = n};
    }
    const uint64_t start = cmp_clock_ns();
    const int32_t rc = kvc_decode(run, t->n, sizeof run[0]);
    *ns += cmp_clock_ns() - start;
    for (uint32_t i = 0; i < t->n; i++) {
        if (run[i].status < 0) {
            return fail(b, t->s->spec, t->session[i], run[i].status);
        }
    }
    if (rc < 0) {
        return fail(b, t->s->spec, t->session[0], rc);
    }
    return cmp_interrupted() ? KVC_E_CANCELLED : KVC_OK;
}

/* Brings base session i to n_past tokens; its last call asks for no logits, so no prompt ends. */
static int32_t advance(cmp_bench *b, subject *s, uint32_t i, uint32_t n_past) {
    team t = {.s = s, .n = 1, .session = {s->base[i]}};
    const int32_t *token = b->token;
    int32_t rc = KVC_OK;
    uint64_t ignored = 0;
    char what[64];
    snprintf(what, sizeof what, "%.40s, token", s->spec);
    b->token = token + i;
    for (uint32_t pos = kvc_session_n_past(s->base[i]); rc >= 0 && pos < n_past;) {
        const uint32_t left = n_past - pos;
        /* A policy that keeps nothing would compute each piece again for the next. */
        const uint32_t n = left < CMP_CHUNK || s->transient ? left : CMP_CHUNK;
        cmp_progress(what, pos, n_past);
        rc = decode(b, &t, pos, n, KVC_WANT_NONE, &ignored);
        pos += n;
    }
    b->token = token;
    return rc;
}

/* ---------------------------------------------------------------- sessions */

static int32_t open_base(cmp_bench *b, subject *s) {
    kvc_session *session = NULL;
    int32_t rc = cmp_session_open(&b->job, s->spec, "int8", &session);
    if (rc < 0) {
        return rc;
    }
    kvc_session_stats stats = {.struct_size = sizeof stats};
    s->base[s->n_open++] = session;
    rc = kvc_session_get_stats(session, &stats);
    if (rc < 0) {
        return fail(b, s->spec, session, rc);
    }
    s->transient = (stats.flags & KVC_PLAN_TRANSIENT) != 0;
    s->tier = stats.buffer_bytes > 0;
    /* Forks share a tier's memory with what they were made from, and would time that. */
    s->forks = !s->tier;
    for (uint32_t i = 0; i < b->n_row / b->o->n_spec; i++) {
        s->row[i].notes |= (s->transient ? (uint32_t)CMP_BENCH_TRANSIENT : 0u) |
                           (stats.chunk_invariant == 0 ? (uint32_t)CMP_BENCH_CHUNKED : 0u);
    }
    return KVC_OK;
}

/* Gives the sessions of a run back. What a truncation costs comes with the next call, which is not
 * timed; so does its failure. */
static void leave(team *t) {
    for (uint32_t i = 0; i < t->n; i++) {
        if (t->session[i] != t->s->base[i]) {
            cmp_session_close(t->session[i]);
        } else {
            (void)kvc_session_truncate(t->session[i], t->n_past);
        }
    }
    t->n = 0;
}

/* Session i of a run. */
static int32_t enter(cmp_bench *b, team *t, uint32_t i) {
    subject *s = t->s;
    if (s->forks) {
        const int32_t rc = kvc_session_fork(s->base[i], &t->session[i]);
        if (rc >= 0) {
            cmp_interrupt_watch(t->session[i]);
            return rc;
        }
        if (rc != KVC_E_UNSUPPORTED) {
            return fail(b, s->spec, s->base[i], rc);
        }
        s->forks = 0;
    }
    t->session[i] = s->base[i];
    return KVC_OK;
}

/* A run of n sessions at that depth, the clock about to start. */
static int32_t begin(cmp_bench *b, team *t, subject *s, uint32_t n, uint32_t depth,
                     uint32_t wants) {
    *t = (team){.s = s, .n_past = depth > 0 ? depth - 1 : 0};
    uint64_t ignored = 0;
    for (uint32_t i = 0; i < n; i++) {
        const int32_t rc = enter(b, t, i);
        if (rc < 0) {
            leave(t);
            return rc;
        }
        t->n++;
    }
    const int32_t rc = depth > 0 ? decode(b, t, depth - 1, 1, wants, &ignored) : KVC_OK;
    if (rc < 0) {
        leave(t);
    }
    return rc;
}

/* Counters of all sessions of a run. */
static void read_team(const team *t, reading *r) {
    *r = (reading){0};
    for (uint32_t i = 0; i < t->n; i++) {
        kvc_session_stats stats = {.struct_size = sizeof stats};
        if (kvc_session_get_stats(t->session[i], &stats) < 0) {
            continue;
        }
        r->open += cmp_bench_payload(&stats, 0);
        r->payload += cmp_bench_payload(&stats, 1);
        r->wait_ns += stats.wait_ns;
        for (uint32_t k = 0; k < stats.n_stage; k++) {
            kvc_stage_stats stage = {.struct_size = sizeof stage};
            if (kvc_session_get_stage(t->session[i], k, &stage) >= 0) {
                r->selected += stage.n_selected;
                r->skipped += stage.n_skipped;
            }
        }
    }
}

/* ---------------------------------------------------------------- timing */

static int32_t time_decode(cmp_bench *b, subject *s, cmp_bench_row *row) {
    team t;
    reading before, after;
    uint64_t ns = 0;
    const uint32_t n = row->sessions;
    int32_t rc = begin(b, &t, s, n, row->depth, KVC_WANT_LAST);
    if (rc < 0) {
        return rc;
    }
    read_team(&t, &before);
    cmp_probe_read(b->probe, &b->limits);
    for (uint32_t i = 0; rc >= 0 && i < row->n; i++) {
        rc = decode(b, &t, row->depth + i, 1, KVC_WANT_LAST, &ns);
    }
    cmp_probe_read(b->probe, &b->limits);
    read_team(&t, &after);
    leave(&t);
    if (rc < 0) {
        return rc;
    }
    const double kept =
        cmp_bench_kept(after.selected - before.selected, after.skipped - before.skipped);
    const double open = (before.open + after.open) / 2;
    const double all = (before.payload + after.payload) / 2;
    row->rate[row->n_rate++] = (double)row->n * n / ((double)ns * 1e-9);
    if (!s->transient) {
        row->work = cmp_bench_read((double)b->info.read_bytes, (all - open) * kept + open, n);
    }
    if (s->tier) {
        const double wait = (double)(after.wait_ns - before.wait_ns);
        const double before_mean = row->n_rate > 1 ? row->wait : 0;
        const double this_wait = wait / ((double)ns * b->info.n_threads);
        row->wait = before_mean + (this_wait - before_mean) / row->n_rate;
    }
    return rc;
}

static int32_t time_prefill(cmp_bench *b, subject *s, cmp_bench_row *row) {
    team t;
    uint64_t ns = 0;
    int32_t rc = begin(b, &t, s, 1, row->depth, KVC_WANT_NONE);
    if (rc < 0) {
        return rc;
    }
    rc = decode(b, &t, row->depth, row->n, KVC_WANT_LAST, &ns);
    leave(&t);
    if (rc >= 0) {
        row->rate[row->n_rate++] = (double)row->n / ((double)ns * 1e-9);
        if (!s->transient || row->depth == 0) {
            row->work = (double)b->info.n_mac;
        }
    }
    return rc;
}

/* ---------------------------------------------------------------- a depth */

/* Most sessions that any row of the subject at that depth wants. */
static uint32_t most_sessions(const cmp_bench *b) {
    return b->o->n_step > 0 ? b->o->count[b->o->n_count - 1] : 1;
}

/* Opens and fills the sessions of one policy, as many as fit. */
static int32_t reach(cmp_bench *b, subject *s, uint32_t depth) {
    const uint32_t n_past = depth > 0 ? depth - 1 : 0;
    s->fits = 0;
    for (uint32_t i = 0; i < most_sessions(b); i++) {
        int32_t rc = KVC_OK;
        if (i > 0) {
            kvc_session_stats stats = {.struct_size = sizeof stats};
            const double room = cmp_machine_available() * 0.8;
            rc = kvc_session_get_stats(s->base[0], &stats);
            if (rc >= 0 && room >= 0 && (double)stats.kv_bytes > room) {
                break;
            }
        }
        if (rc >= 0 && i >= s->n_open) {
            rc = open_base(b, s);
        }
        if (s->transient && depth > CMP_TRANSIENT_CTX) {
            return rc;
        }
        if (rc < 0) {
            return b->job.error[0] != '\0' ? rc : fail(b, s->spec, s->base[i], rc);
        }
        rc = advance(b, s, i, n_past);
        if (rc < 0) {
            return rc;
        }
        s->fits++;
    }
    return KVC_OK;
}

static int32_t time_row(cmp_bench *b, subject *s, cmp_bench_row *row) {
    if (s->fits < row->sessions) {
        row->notes |= s->transient ? 0u : (uint32_t)CMP_BENCH_NO_ROOM;
        return KVC_OK;
    }
    if (s->transient && row->test == CMP_BENCH_TG && row->n > CMP_TRANSIENT_STEPS) {
        row->n = CMP_TRANSIENT_STEPS;
    }
    return row->test == CMP_BENCH_PP ? time_prefill(b, s, row) : time_decode(b, s, row);
}

/* All rows at the k-th depth, in rounds; within a round the policies take turns at each test. */
static int32_t time_depth(cmp_bench *b, subject *all, uint32_t k) {
    const cmp_bench_options *o = b->o;
    const uint32_t per_spec = b->n_row / o->n_spec;
    int32_t rc = KVC_OK;
    for (uint32_t i = 0; rc >= 0 && i < o->n_spec; i++) {
        rc = reach(b, &all[i], o->depth[k]);
    }
    for (uint32_t round = 0; rc >= 0 && round < o->rounds; round++) {
        char what[64];
        snprintf(what, sizeof what, "depth %u, round", o->depth[k]);
        for (uint32_t x = k; rc >= 0 && x < per_spec; x += o->n_depth) {
            for (uint32_t i = 0; rc >= 0 && i < o->n_spec; i++) {
                cmp_progress(what, round + 1, o->rounds);
                rc = time_row(b, &all[i], &all[i].row[x]);
            }
        }
    }
    return rc;
}

int32_t cmp_bench_run(cmp_bench *b) {
    static subject all[CMP_MAX_POLICY];
    const uint32_t n_spec = b->o->n_spec;
    int32_t rc = KVC_OK;
    for (uint32_t i = 0; i < n_spec; i++) {
        all[i] = (subject){.spec = b->o->spec[i], .row = b->row + i * (b->n_row / n_spec)};
    }
    /* A policy that can't be opened is refused before anything is measured. */
    for (uint32_t i = 0; rc >= 0 && i < n_spec; i++) {
        rc = open_base(b, &all[i]);
    }
    if (rc >= 0) {
        b->probe = cmp_probe_open(b->info.n_threads, 0);
        rc = b->probe != NULL ? KVC_OK : fail(b, "limits", NULL, KVC_E_NOMEM);
    }
    for (uint32_t k = 0; rc >= 0 && k < b->o->n_depth; k++) {
        /* Again at each depth: what else the machine does hides a limit for minutes. */
        rc = cmp_probe_run(b->probe, &b->limits) < 0 ? KVC_E_NOMEM : KVC_OK;
        rc = rc < 0 ? fail(b, "limits", NULL, rc) : time_depth(b, all, k);
    }
    for (uint32_t i = 0; i < n_spec; i++) {
        for (uint32_t k = 0; k < all[i].n_open; k++) {
            cmp_session_close(all[i].base[k]);
        }
    }
    if (rc >= 0) {
        (void)cmp_probe_run(b->probe, &b->limits);
        cmp_bench_finish(b->row, b->n_row, &b->limits);
    }
    return rc;
}

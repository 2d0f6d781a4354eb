/* SPDX-License-Identifier: MIT
 * fuzz_ops.c: calls on sessions in any order: decode in chunks, several at once, go back, fork,
 * save and load, cancel, be refused, close. The first byte chooses the stack and the way to
 * compute. Whatever was done, a session gives the same logits, bit for bit, as a fresh one that was
 * fed the tokens it holds. */
#include "fuzz.h"
#include "tiny.h"

enum { N_SLOT = 3, MAX_OP = 40, MAX_TOKENS = 1200, MAX_CHUNK = 100 };

/* A session and what it must hold. */
struct slot {
    kvc_session *s;
    uint32_t n;
    int32_t token[TINY_CTX];
    uint8_t want[TINY_CTX], end[TINY_CTX];
};

struct state {
    kvc_model *m;
    const char *spec;
    uint32_t compute, budget;
    struct slot slot[N_SLOT];
};

/* A run of n tokens that begins with the first at index 0 of the arrays; wants of all kinds. */
static uint32_t make_run(fuzz_input *in, struct slot *l, kvc_run *run) {
    static const uint8_t mask[] = {0, 0, 0x80, 0xff, 0x55};
    const uint32_t how = fuzz_u8(in), seed = fuzz_u8(in);
    uint32_t n = 1 + fuzz_u8(in) % MAX_CHUNK;
    n = n < TINY_CTX - l->n ? n : TINY_CTX - l->n;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t at = l->n + i;
        l->token[at] = (int32_t)((seed * 37 + at * (seed | 1) * 11) % TINY_VOCAB);
        l->want[at] = (mask[how % 5] >> i % 8 & 1) != 0 || (how % 5 == 1 && i + 1 == n);
        l->end[at] = i + 1 == n && (how & 0x80) != 0;
    }
    *run = (kvc_run){.struct_size = sizeof *run,
                     .wants = how % 5 == 0   ? KVC_WANT_NONE
                              : how % 5 == 1 ? KVC_WANT_LAST
                              : how % 5 == 3 ? KVC_WANT_ALL
                                             : KVC_WANT_LIST,
                     .session = l->s,
                     .token = l->token + l->n,
                     .want = how % 5 == 2 || how % 5 == 4 ? l->want + l->n : NULL,
                     .n_token = n,
                     .prompt_end = (how & 0x80) != 0};
    return n;
}

static void check_past(const struct slot *l, const char *after) {
    fuzz_check(kvc_session_n_past(l->s) == l->n, "a session counts its tokens", after);
}

/* ---------------------------------------------------------------- operations */

/* All sessions that have room, or the one at `only`. */
static void op_decode(struct state *st, fuzz_input *in, uint32_t only) {
    kvc_run run[N_SLOT];
    struct slot *who[N_SLOT];
    uint32_t n_run = 0, n_token = 0;
    for (uint32_t i = 0; i < N_SLOT; i++) {
        struct slot *l = &st->slot[i];
        if (l->s != NULL && l->n < TINY_CTX && (only == N_SLOT || only == i)) {
            n_token += make_run(in, l, &run[n_run]);
            who[n_run++] = l;
        }
    }
    if (n_run == 0 || n_token > st->budget) {
        return;
    }
    st->budget -= n_token;
    int32_t rc = kvc_decode(run, n_run, sizeof *run);
    for (uint32_t i = 0; i < n_run; i++) {
        fuzz_check(rc == KVC_OK && run[i].status == KVC_OK, "tokens are decoded",
                   kvc_session_error(who[i]->s));
        who[i]->n += run[i].n_token;
        check_past(who[i], "decode");
        fuzz_check(kvc_session_logits(who[i]->s, run[i].n_logits) == NULL, "no more logits", "");
    }
}

/* Calls that answer a failure leave everything as it was. */
static void op_refused(struct slot *l, fuzz_input *in) {
    int32_t token[TINY_CTX + 1] = {0};
    kvc_run run;
    switch (fuzz_u8(in) % 4) {
    case 0:
        fuzz_check(kvc_session_decode(l->s, token, TINY_CTX - l->n + 1) == KVC_E_FULL, "full", "");
        break;
    case 1:
        token[0] = (int32_t)fuzz_u16(in) - 0x8000;
        if (l->n < TINY_CTX && (token[0] < 0 || token[0] >= TINY_VOCAB)) {
            fuzz_check(kvc_session_decode(l->s, token, 1) == KVC_E_RANGE, "no such token", "");
        }
        break;
    case 2:
        fuzz_check(kvc_session_truncate(l->s, l->n + 1) == KVC_E_RANGE, "not so many", "");
        fuzz_check(kvc_session_truncate(l->s, (uint32_t)-1) == KVC_E_RANGE, "not so many", "");
        fuzz_check(kvc_session_truncate(l->s, (uint32_t)INT32_MIN) == KVC_E_RANGE, "not that", "");
        break;
    default:
        if (l->n < TINY_CTX) {
            (void)make_run(in, l, &run);
            kvc_session_cancel(l->s);
            fuzz_check(kvc_decode(&run, 1, sizeof run) == KVC_E_CANCELLED, "cancelled", "");
        }
    }
    check_past(l, "a refusal");
}

static void op_truncate(struct slot *l, uint32_t to) {
    to %= l->n + 1;
    fuzz_check(kvc_session_truncate(l->s, to) == KVC_OK, "truncate", kvc_session_error(l->s));
    l->n = to;
    check_past(l, "truncate");
}

static void op_fork(struct state *st, const struct slot *l, uint32_t to) {
    struct slot *f = &st->slot[to % N_SLOT];
    if (f == l) {
        return;
    }
    kvc_session_close(f->s);
    *f = *l;
    fuzz_check(kvc_session_fork(l->s, &f->s) == KVC_OK, "fork", kvc_session_error(l->s));
    check_past(f, "fork");
}

static void op_save(const struct state *st, struct slot *l) {
    kvc_params *p = tiny_params();
    kvc_session *loaded = NULL;
    int32_t rc = kvc_session_save(l->s, tiny_path());
    if (rc == KVC_E_LOST && strstr(st->spec, "lose") != NULL) {
        kvc_params_destroy(p);
        check_past(l, "a save that met a lost page");
        return;
    }
    fuzz_check(rc == KVC_OK, "save", kvc_session_error(l->s));
    rc = kvc_session_load(st->m, tiny_path(), p, &loaded);
    fuzz_check(rc == KVC_OK, "load", kvc_params_error(p));
    kvc_params_destroy(p);
    kvc_session_close(l->s);
    l->s = loaded;
    check_past(l, "load");
}

static void op_renew(const struct state *st, struct slot *l) {
    kvc_session_close(l->s);
    l->s = tiny_session(st->m, st->spec, TINY_CTX, st->compute);
    l->n = 0;
}

static void run_op(struct state *st, fuzz_input *in) {
    const uint32_t op = fuzz_u8(in), i = op / 16 % N_SLOT;
    struct slot *l = &st->slot[i];
    if (l->s == NULL) {
        op_renew(st, l);
    }
    switch (op % 8) {
    case 0:
    case 1:
    case 2:
        op_decode(st, in, i);
        break;
    case 3:
        op_decode(st, in, N_SLOT);
        break;
    case 4:
        op_truncate(l, fuzz_u16(in));
        break;
    case 5:
        op_fork(st, l, fuzz_u8(in));
        break;
    case 6:
        op_refused(l, in);
        break;
    default:
        if (fuzz_u8(in) % 2 != 0) {
            op_save(st, l);
        } else {
            op_renew(st, l);
        }
    }
}

/* ---------------------------------------------------------------- the reference */

/* Feeds the tokens a slot holds to a fresh session, in calls cut where a prompt was said to end. */
static kvc_session *feed_again(const struct state *st, const struct slot *l) {
    kvc_session *s = tiny_session(st->m, st->spec, TINY_CTX, st->compute);
    for (uint32_t at = 0; at < l->n;) {
        uint32_t n = 1;
        while (at + n < l->n && l->end[at + n - 1] == 0) {
            n++;
        }
        kvc_run run = {.struct_size = sizeof run,
                       .wants = KVC_WANT_LIST,
                       .session = s,
                       .token = l->token + at,
                       .want = l->want + at,
                       .n_token = n,
                       .prompt_end = l->end[at + n - 1]};
        fuzz_check(kvc_decode(&run, 1, sizeof run) == KVC_OK, "a plain run", kvc_session_error(s));
        at += n;
    }
    return s;
}

static void check_slot(const struct state *st, struct slot *l) {
    if (l->n == TINY_CTX) {
        op_truncate(l, TINY_CTX - 1);
    }
    const int32_t token = 42;
    char more[64];
    kvc_session *fresh = feed_again(st, l);
    int32_t rc = kvc_session_decode(l->s, &token, 1);
    fuzz_check(rc == KVC_OK, "one more token", kvc_session_error(l->s));
    rc = kvc_session_decode(fresh, &token, 1);
    fuzz_check(rc == KVC_OK, "one more token", kvc_session_error(fresh));
    const float *a = kvc_session_logits(l->s, 0), *b = kvc_session_logits(fresh, 0);
    snprintf(more, sizeof more, "%s, %u tokens", st->spec, (unsigned)l->n);
    fuzz_check(a != NULL && b != NULL && memcmp(a, b, TINY_VOCAB * sizeof *a) == 0,
               "the logits are those of a fresh session", more);
    kvc_session_close(fresh);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_input in = {data, size};
    const uint32_t first = fuzz_u8(&in);
    struct state *st = calloc(1, sizeof *st);
    fuzz_check(st != NULL, "memory", "");
    st->m = tiny_model(40);
    st->spec = tiny_stack[first % tiny_n_stack];
    st->compute = first / tiny_n_stack % 2;
    st->budget = MAX_TOKENS;
    for (int i = 0; i < MAX_OP && in.n > 0; i++) {
        run_op(st, &in);
    }
    for (int i = 0; i < N_SLOT; i++) {
        if (st->slot[i].s != NULL) {
            check_slot(st, &st->slot[i]);
        }
        kvc_session_close(st->slot[i].s);
    }
    free(st);
    return 0;
}

/* SPDX-License-Identifier: MIT
 * check_tests.h: what a test of kvcheck is, and what it is given: one policy of one file, a seed, a
 * place for files, and ways to say what was found. Tests run in a process of their own
 * (check_run.c) and know nothing of options or reports. */
#ifndef KVC_CHECK_TESTS_H
#define KVC_CHECK_TESTS_H

#include "kvc/kvc.h"

#include <stdbool.h>

typedef struct chk chk;

/** Kinds of notes that a test leaves. */
enum {
    CHK_INFO = 'I',  /* a figure, for the curious */
    CHK_WARN = 'W',  /* works, but should be looked at */
    CHK_FAIL = 'F',  /* breaks the contract */
    CHK_SKIP = 'S',  /* why there was nothing to test */
    CHK_TABLE = 'T', /* the policies of the file as JSON, schema kvcompare-list/1 */
    CHK_DONE = 'D'   /* the test came to its end */
};

/** One test. */
typedef struct chk_test {
    const char *group, *name;
    const char *help; /* one line */
    void (*fn)(chk *c);
} chk_test;

/** All tests in the order in which they run; ended by a group of NULL. */
extern const chk_test chk_tests[];

/** What the policy's create() answered in its plan, as the host was given it. */
typedef struct chk_plan {
    bool known; /* create() has succeeded */
    uint32_t answers, flags, open_type;
} chk_plan;

#define CHK_MAX_STACK 2u

/** What a test is given. */
struct chk {
    const char *path;   /* of the file, absolute */
    const char *name;   /* of the policy in it; NULL while the file itself is looked at */
    const char *params; /* "size=64:sinks=4" or "" */
    const char *dir;    /* a directory for files of this test; also the current one */
    uint64_t seed;      /* as the user gave it */
    uint64_t rng;       /* state of chk_random(), made from seed and test */
    void (*put)(void *ctx, char kind, const char *text);
    void *put_ctx;
    bool failed; /* a CHK_FAIL was said */

    kvc_policy policy;               /* the policy's own table */
    kvc_policy_api api;              /* and its functions */
    chk_plan plan;                   /* after chk_prepare() */
    char spec[1024];                 /* its name and params */
    char stack[CHK_MAX_STACK][1100]; /* stacks to test: alone, and with a companion */
    const char *base[CHK_MAX_STACK]; /* what a lossless policy in that stack must equal */
    uint32_t n_stack;
};

/** Says something of what was found; a CHK_FAIL makes the test fail, whatever follows. */
void chk_say(chk *c, char kind, const char *format, ...) __attribute__((format(printf, 3, 4)));
#define chk_fail(c, ...) chk_say(c, CHK_FAIL, __VA_ARGS__)
#define chk_warn(c, ...) chk_say(c, CHK_WARN, __VA_ARGS__)
#define chk_info(c, ...) chk_say(c, CHK_INFO, __VA_ARGS__)
#define chk_skip(c, ...) chk_say(c, CHK_SKIP, __VA_ARGS__)

/** Random numbers that follow from the seed and the test. */
uint64_t chk_random(chk *c);
/** One below n, which is at least 1. */
uint32_t chk_below(chk *c, uint32_t n);

/** Opens c->path and finds its entry. False: the loader refused, and that is said. */
bool chk_entry(chk *c, const kvc_policy *(**out)(uint32_t host_abi, uint32_t index));
/** Loads the policy c->name and makes c->spec. False: it is not there, and that is said. */
bool chk_load(chk *c);
/** chk_load(), then opens a session once to learn the plan, and lists the stacks to test. False:
 * it can't be opened, and that is said. */
bool chk_prepare(chk *c);

/* The groups, one file each. */
void chk_file_elf(chk *c);
void chk_file_symbols(chk *c);
void chk_file_needed(chk *c);
void chk_file_constructors(chk *c);
void chk_file_undefined(chk *c);
void chk_file_load(chk *c);
void chk_file_table(chk *c);
void chk_params_default(chk *c);
void chk_params_least(chk *c);
void chk_params_most(chk *c);
void chk_params_random(chk *c);
void chk_params_absurd(chk *c);
void chk_meaning_runs(chk *c);
void chk_meaning_shapes(chk *c);
void chk_meaning_chunks(chk *c);
void chk_meaning_threads(chk *c);
void chk_meaning_company(chk *c);
void chk_meaning_lossless(chk *c);
void chk_meaning_truncate(chk *c);
void chk_meaning_clear(chk *c);
void chk_meaning_full(chk *c);
void chk_meaning_divergence(chk *c);
void chk_inside_positions(chk *c);
void chk_inside_entries(chk *c);
void chk_inside_count(chk *c);
void chk_inside_bounded(chk *c);
void chk_codec_pages(chk *c);
void chk_codec_score(chk *c);
void chk_codec_mix(chk *c);
void chk_codec_move(chk *c);
void chk_codec_fields(chk *c);
void chk_memory_balance(chk *c);
void chk_memory_failures(chk *c);
void chk_memory_outside(chk *c);
void chk_isolation_interleaved(chk *c);
void chk_isolation_threads(chk *c);
void chk_state_fork(chk *c);
void chk_state_save(chk *c);
void chk_state_damaged(chk *c);
void chk_state_hostile(chk *c);
void chk_speed_attention(chk *c);

#endif

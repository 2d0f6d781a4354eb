/* SPDX-License-Identifier: MIT
 * check_kit.h: what tests of kvcheck are made of: memory that is counted and can fail, models,
 * sessions, prompts, logits that are compared bit for bit. */
#ifndef KVC_CHECK_KIT_H
#define KVC_CHECK_KIT_H

#include "check_tests.h"
#include "check_model.h"

#include <stdatomic.h>

/* ---------------------------------------------------------------- memory and log */

/** Memory that is counted; each block says its size and ends in bytes that must stay. */
typedef struct chk_heap {
    atomic_int_least64_t used; /* bytes */
    atomic_ulong n_taken;      /* calls that took memory */
    atomic_ulong fail_at;      /* the call that gets none, the first being 1; 0: none fails */
    atomic_bool hit;           /* one has failed */
    atomic_flag wrong_lock;
    char wrong[160]; /* what was done wrongly with a block, or "" */
} chk_heap;

/** The heap and the log of this process. */
extern chk_heap chk_memory;
/** A warning of the library that a policy didn't give memory back, or "". */
extern char chk_leak[256];

/** Lets the n-th call from now on fail; 0: none. */
void chk_memory_fail(unsigned long n);
/** Says what is wrong with the heap now that all is closed. */
void chk_memory_judge(chk *c, const char *when);

/* ---------------------------------------------------------------- sessions */

/** The shape of most tests: three layers of two KV heads for two query heads each. */
extern const chk_shape chk_base;

/** Positions of a small session: a quarter of them is more than a page, so that budgets that are a
 * share of the context work. */
#define CHK_CTX     320u
#define CHK_N_TOKEN 4352u

/** Params that find the policy, kvcheck's own stages, and installed policies. counted: memory is
 * chk_memory's. Never NULL: without memory the process ends. */
kvc_params *chk_params(chk *c, const char *compute, uint32_t n_ctx, bool counted);
/** Opens a model; NULL: it can't be, and that is said. */
kvc_model *chk_open_model(chk *c, const chk_shape *shape, uint32_t n_threads);
/** Opens a session; NULL: it can't be, and that is said as a failure. */
kvc_session *chk_open(chk *c, kvc_model *model, const char *spec, const char *compute,
                      uint32_t n_ctx);
/** Tokens that follow from the seed and which; [CHK_N_TOKEN], static. */
const int32_t *chk_text(chk *c, uint32_t which);

/** How a text is computed: a prompt, cut into pieces, then single steps. */
typedef struct chk_way {
    uint32_t n_prompt, chunk; /* chunk 0: the prompt in one call */
    uint32_t n_step;
} chk_way;

/** Rows of logits that a way gives: the prompt's last and one per step. */
#define CHK_ROWS(way) ((way).n_step + 1u)

/** Computes tokens from the session's end on, and writes CHK_ROWS() rows to out. False: a call
 * failed or gave numbers that aren't finite, and that is said. */
bool chk_go(chk *c, kvc_session *s, const int32_t *token, chk_way way, float *out);
/** Opens a session, chk_go(), closes it. */
bool chk_alone(chk *c, kvc_model *model, const char *spec, const char *compute, uint32_t n_ctx,
               const int32_t *token, chk_way way, float *out);
/** Computes n tokens without logits. */
bool chk_prefill(chk *c, kvc_session *s, const int32_t *token, uint32_t n, uint32_t chunk);
/** n zeroed elements of size bytes; never NULL. */
void *chk_take(size_t n, size_t size);
/** Rows of logits; never NULL. */
float *chk_rows(uint32_t n);

/** True when rows are the same to the last bit. Else puts the first row that differs and the
 * largest difference into why. */
bool chk_equal(const float *a, const float *b, uint32_t n_row, char *why, size_t cap);
/** KL divergence of row b from row a, and whether their most likely tokens agree. */
double chk_kld(const float *a, const float *b, bool *top);
/** The figures of a session; its struct_size is set. */
kvc_session_stats chk_stats(const kvc_session *s);
/** True when the policy says so. */
bool chk_claims(const chk *c, uint64_t cap);

#endif

/* SPDX-License-Identifier: MIT
 * stack.h: the stages of a session: made from a spec, their plans merged into one, their hooks
 * called. The one place that calls a policy's functions (pages apart: codec.h, tier.h). It never
 * asks which policy it has. */
#ifndef KVC_STACK_H
#define KVC_STACK_H

#include "codec.h"
#include "err.h"
#include "io.h"
#include "mem.h"
#include "pool.h"
#include "registry.h"
#include "spec.h"
#include "stream.h"
#include "tier.h"

#include "kvc/policy.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

struct kvc__store;

/** Columns that the engine fills, in front of the stages' own. */
enum { KVC__COL_MASS = 0, KVC__COL_MASS_LAST = 1, KVC__N_COL_ENGINE = 2 };

/** What a stage may do to the store right now. */
enum {
    KVC__EVICT_NEVER = 0,
    KVC__EVICT_LAYER, /* in page_end: one layer */
    KVC__EVICT_ALL    /* in end */
};

/** One stage. Its address is the ctx of its host table. A stage with a tier serves a session and
 * its forks: what it needs of the stack is its own. */
typedef struct kvc__stage {
    uint32_t n_holder; /* stacks that hold it; guarded by the model's lock */
    kvc__mem *home;    /* of its own blocks */
    uint32_t n_layer;
    kvc__policy policy;
    kvc_value *value; /* [n_param] */
    kvc_host host;
    kvc_plan plan;
    kvc_format *format; /* [n_layer], the plan's */
    void *self;
    kvc__mem mem;               /* what it holds by the host's allocator */
    atomic_int_least64_t other; /* accounted memory; a policy's word, so it may be negative */
    atomic_int_least64_t disk;  /* accounted files, the same */
    atomic_uint_least64_t peak; /* the most of kvc__stage_memory() */
    uint64_t hook_ns;
    atomic_uint_least64_t worker_ns;
    uint64_t seed, rng;
    bool created;    /* create() succeeded */
    uint32_t column; /* first of its own columns in the store */
    uint32_t budget; /* in entries per lane, once the plans are merged; 0: none */
    uint32_t evict;  /* KVC__EVICT_… */
    uint32_t evict_layer;
    pthread_mutex_t lock; /* guards said */
    kvc__err said;        /* its last fail() */
    kvc__tier tier;       /* api.put NULL: none */
    kvc__pool *pool;
    const kvc__kern *kern;
    uint32_t compute;
    kvc_log_fn log;
    void *log_user;
    struct kvc__stack *stack; /* NULL for a tier */
} kvc__stage;

/** What a stack is made for. */
typedef struct kvc__stack_env {
    kvc__mem *mem;
    kvc__mem *family; /* outlives the session and its forks: memory of the stages */
    const kvc__kern *kern;
    kvc__pool *pool;
    const kvc_shape *shape;
    uint64_t seed;
    kvc_log_fn log;
    void *log_user;
} kvc__stack_env;

/** The merged stages. */
typedef struct kvc__stack {
    kvc__mem *mem;
    kvc__pool *pool;
    kvc__io *io; /* set by the session when there is a tier */
    const kvc__kern *kern;
    uint32_t compute, n_layer, n_ctx;
    kvc_log_fn log;
    void *log_user;
    uint32_t n_stage;
    kvc__stage **stage; /* [n_stage] */
    char *spec;         /* in full */
    size_t spec_bytes;
    /* the merged plan */
    kvc__page_shape *shape; /* [n_layer] */
    uint32_t *n_head_kv;    /* [n_layer] */
    kvc__codec codec;
    kvc__stage *tier; /* the stage with the tier, or NULL */
    uint32_t flags, observe, positions;
    uint32_t n_column; /* the stages' own, all together */
    uint32_t chunk_invariant;
    kvc__stage *visible, *select; /* the stage that answers, or NULL */
    uint32_t has_begin, has_append, has_page_end, has_end;
    struct kvc__store *store; /* set by the session */
} kvc__stack;

/** Loads, creates and merges the stages of a spec; or, when like is given, of that stack's own spec
 * and policies (search is then not used), a stage with a tier being shared. On failure out is
 * zeroed. With the model's lock held, as for destroying. */
int32_t kvc__stack_create(const kvc__stack_env *env, const kvc__search *search,
                          const kvc__stack *like, const char *spec, kvc__stack *out, kvc__err *err);
/** Destroys the stages; a zeroed stack is legal. */
void kvc__stack_destroy(kvc__stack *s);

/** Checks the plan of the last stage, on its own and against those before it. (stack_plan.c) */
int32_t kvc__stack_check_plan(kvc__stack *s, uint32_t index, kvc__err *err);
/** Merges the plans of all stages and opens the tier, unless it is another stack's too. */
int32_t kvc__stack_merge(kvc__stack *s, const kvc_shape *shape, kvc__err *err);
/** The status and sentence for a stage that can't be made: what `call` answered. */
int32_t kvc__stage_create_failed(kvc__stage *st, const char *call, int32_t code, kvc__err *err);
/** The same for a [decode] or [control] hook. layer KVC_ALL: none to name. */
int32_t kvc__stage_failed(kvc__stage *st, int32_t code, const char *call, uint32_t layer,
                          int32_t pos, kvc__err *err);

/** True when one of the stages ticks after the token at pos; prompt_end: a prompt ends there. */
bool kvc__stack_ticks(const kvc__stack *s, int32_t pos, bool prompt_end);
/** True when a tick after pos must end a batch (a stage with `end`). */
bool kvc__stack_cuts(const kvc__stack *s, int32_t pos, bool prompt_end);

/** Hooks. Each calls the stages left to right; a failure names policy, call, layer and head in err.
 */
int32_t kvc__stack_begin(kvc__stack *s, const kvc_step *step, int32_t *from, kvc__err *err);
int32_t kvc__stack_append(kvc__stack *s, const kvc_rows *rows);
int32_t kvc__stack_select(kvc__stack *s, const kvc_rows *query, uint64_t *page, uint32_t n_page);
int32_t kvc__stack_page_end(kvc__stack *s, const kvc_step *step, uint32_t layer, bool prompt_end,
                            kvc__err *err);
int32_t kvc__stack_end(kvc__stack *s, const kvc_step *step, bool prompt_end, kvc__err *err);
int32_t kvc__stack_rewind(kvc__stack *s, int32_t pos, int32_t *out, kvc__err *err);
int32_t kvc__stack_truncate(kvc__stack *s, int32_t pos, kvc__err *err);
/** True when every stage is as it was at pos once the store is: it has no state of its own, or says
 * that it can return there. */
bool kvc__stack_returns(kvc__stack *s, int32_t pos);

/** Whether queries of that layer may not see all that is before them: a stage answers so, or the
 * model has a window there. */
static inline bool kvc__stack_hides(const kvc__stack *s, uint32_t layer) {
    return s->visible != NULL || s->shape[layer].window != 0;
}
/** The ranges of positions that the query at pos of that layer sees, the layer's own window and the
 * query's own position included: at most KVC_MAX_RANGES + 1 of them, ascending, disjoint,
 * non-empty. KVC_E_POLICY when a stage's answer is none of that. */
int32_t kvc__stack_visible(const kvc__stack *s, uint32_t layer, int32_t pos, kvc_range *out,
                           uint32_t *n);

/** Writes what the stages hold beside plan, pages and columns; KVC_E_UNSUPPORTED names a stage that
 * can't. (stack_state.c) */
int32_t kvc__stack_save(kvc__stack *s, kvc__stream *out, kvc__err *err);
/** Reads it into the stages of a stack of the same spec. */
int32_t kvc__stack_load(kvc__stack *s, kvc__stream *in, kvc__err *err);
/** KVC_OK when every stage can be saved; else as kvc__stack_save(). */
int32_t kvc__stack_can_save(const kvc__stack *s, kvc__err *err);

/** Most sealed pages of a lane. */
static inline uint32_t kvc__stack_max_page(const kvc__stack *s) {
    return s->n_ctx / KVC_PAGE + 1;
}
/** Whether a failed step can be undone; any other failure kills the stack. */
static inline bool kvc__stack_can_undo(int32_t status) {
    return status == KVC_E_NOMEM || status == KVC_E_CANCELLED || status == KVC_E_IO ||
           status == KVC_E_LOST;
}
/** Completes the sentence for a failure that worker calls met at (layer, head, pos). */
int32_t kvc__stack_blame(const kvc__stack *s, int32_t code, const char *call, uint32_t layer,
                         uint32_t head, int32_t pos, kvc__err *err);

/** What an accounted sum stands for: a policy's word can add to what the host counts, never take
 * from it, and is bounded so that sums of it are. */
static inline uint64_t kvc__accounted(int64_t sum) {
    const int64_t most = (int64_t)1 << 56;
    return sum < 0 ? 0 : (uint64_t)(sum < most ? sum : most);
}
/** Bytes of memory that a stage holds, and of files. */
static inline uint64_t kvc__stage_memory(const kvc__stage *st) {
    return atomic_load(&st->mem.used) + kvc__accounted(atomic_load(&st->other));
}
static inline uint64_t kvc__stage_disk(const kvc__stage *st) {
    return kvc__accounted(atomic_load(&st->disk));
}
/** What a stage says of itself; zeros when it says nothing. */
void kvc__stack_claims(const kvc__stage *st, kvc_claims *out);
/** Bytes of all stages: memory and disk. */
void kvc__stack_bytes(const kvc__stack *s, uint64_t *memory, uint64_t *disk);

/** The host table of a stage (host.c). */
void kvc__host_init(kvc__stage *stage, const kvc__stack_env *env);
/** The extension KVC_HOST_MATH, whose ctx is a stage (host_math.c). */
extern const kvc_host_math kvc__host_math;

#endif

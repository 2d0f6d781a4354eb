/* SPDX-License-Identifier: MIT */
/**
 * @file policy.h
 * The interface between the engine (the host) and a cache policy.
 *
 * A policy is one file that builds to one `NAME.so`. It includes this header and nothing else of
 * kvc, links no part of kvc, and exports one function, kvc_policy_entry(). It answers one or more
 * of three questions by filling a *plan* in create():
 *
 *  - **which** tokens may be attended to and which are given up: visible(), or evictions from
 * hooks, or both;
 *  - **in what format** a full page of entries is held: plain floats, a rotation, or a codec of the
 * policy's own;
 *  - **where** a full page lives: a tier, which keeps pages anywhere and brings them back.
 *
 * Policies are stacked: `window+quant8` asks `window` which and `quant8` how. The engine merges the
 * plans and builds one store; stages never call each other. Every function but create() may be
 * NULL: the store does it.
 *
 * **Words.** An *entry* is the key and the value of one token in one *lane*; a lane is (layer, KV
 * head). A *page* is up to KVC_PAGE entries of one lane. The page that is being filled is *open*:
 * its rows are plain floats of the plan's open type. A full page is *sealed*: encoded by the
 * format. A query reads its own page open and earlier pages sealed, however the prompt was cut into
 * calls.
 *
 * **Clock.** Entries are given up only when the number of tokens processed is a multiple of the
 * plan's quantum, and at the end of a prompt. So the way a prompt is cut into calls can't change a
 * result.
 *
 * **Threads.** Each function has a tag. `[control]`: alone on the instance. `[decode]`: one at a
 * time on the instance, from any thread. `[worker]`: concurrently, but never twice at once for one
 * lane. `[pure]`: any number at once, also for one page; changes nothing. `[io]`: several at
 * once, on threads of the engine's and of the program's, never for one page unless all of them
 * read it; may block. `[any]`: whenever.
 * Instances share nothing: a policy has no mutable globals.
 *
 * **Errors.** Functions return KVC_OK or a negative status of status.h and may give a sentence by
 * host->fail(). A positive answer, or a number that isn't in the list, breaks the contract, but for
 * functions whose comment says that they return a number, such as rewind() and visible().
 * KVC_E_NOMEM undoes the step and the session lives, as do KVC_E_IO and KVC_E_LOST from a tier, or
 * handed on by another stage of its stack; any other failure kills the session's stack, which is
 * then only destroyed. After a call that failed or was cancelled, truncate() says where the session
 * went back to, so append() may see positions again. A policy never prints, exits, aborts, or
 * unwinds through the host.
 *
 * **Growth.** Tables begin with their size and grow only at the end; a member beyond struct_size is
 * absent. Arrays of such tables carry a stride. While the ABI integer is 0.x-like
 * (KVC_POLICY_ABI_MIN equals KVC_POLICY_ABI) only equality is accepted.
 */
#ifndef KVC_POLICY_H
#define KVC_POLICY_H

#include <stddef.h>
#include <stdint.h>

#include "status.h"

#ifdef __cplusplus
extern "C" {
#endif

#define KVC_POLICY_ABI     2u /**< what this header describes */
#define KVC_POLICY_ABI_MIN 2u /**< the oldest ABI that a host built with this header accepts */

#define KVC_PAGE       64u        /**< entries of a page */
#define KVC_ALL        UINT32_MAX /**< every head of a layer, where a head is asked for */
#define KVC_MAX_RANGES 8u         /**< most ranges visible() may answer */

/* ---------------------------------------------------------------- what the policy is told */

/** How products and dots are computed. */
enum {
    KVC_COMPUTE_INT8 =
        0, /**< activations and queries may be rounded to int8 in front of stored integers */
    KVC_COMPUTE_F32 = 1 /**< every operand is float; stored integers are widened exactly */
};

/** Element types of plain floats. */
enum {
    KVC_TYPE_NONE = 0, /**< not said */
    KVC_TYPE_F32 = 1,  /**< IEEE binary32 */
    KVC_TYPE_F16 = 2,  /**< IEEE binary16 */
    KVC_TYPE_BF16 = 3  /**< the upper half of a binary32, rounded to nearest even */
};

/** One layer's shape. */
typedef struct kvc_layer_shape {
    uint32_t struct_size; /**< sizeof in the host */
    uint32_t n_head;      /**< query heads */
    uint32_t n_head_kv;   /**< KV heads; n_head is a multiple of it */
    uint32_t dim_k;       /**< elements of a key and of a query head */
    uint32_t dim_v;       /**< elements of a value */
    uint32_t window;      /**< the model's own attention window in tokens; 0: none */
    float scale;          /**< factor on q·k, applied by the engine */
    float soft_cap;       /**< the model's soft cap on scores, applied by the engine; 0: none */
} kvc_layer_shape;

/** What the session will hold. Valid until create() returns; copy what is needed later. */
typedef struct kvc_shape {
    uint32_t struct_size;  /**< sizeof in the host */
    uint32_t n_layer;      /**< layers */
    uint32_t n_ctx;        /**< most positions of the session */
    uint32_t n_thread;     /**< most threads that call [worker] functions at once */
    uint32_t compute;      /**< KVC_COMPUTE_INT8 or KVC_COMPUTE_F32 */
    uint32_t layer_stride; /**< bytes from one layer[] element to the next; use kvc_shape_layer() */
    const kvc_layer_shape *layer; /**< [n_layer], layer_stride bytes apart */
} kvc_shape;

/** The i-th layer's shape: arrays that cross are walked by their stride, never by the reader's own
 * sizeof. */
#define kvc_shape_layer(shape, i)                                                                  \
    ((const kvc_layer_shape *)(const void *)((const char *)(shape)->layer +                        \
                                             (size_t)(i) * (shape)->layer_stride))

/** A parameter's value, one per row of the policy's parameter table, in its order; defaults are
 * filled in. This union never grows. */
typedef union kvc_value {
    int64_t i;     /**< INT, SIZE (bytes), BOOL (0 or 1), ENUM (index into the row's choices),
                      BUDGET (KVC_BUDGET()) */
    double f;      /**< FLOAT */
    const char *s; /**< STRING; valid until create() returns */
} kvc_value;

/** Units of a budget. */
enum {
    KVC_BUDGET_TOKENS = 1, /**< entries of each lane, 1 to INT32_MAX */
    KVC_BUDGET_SHARE = 2,  /**< millionths of n_ctx, 1 to KVC_BUDGET_WHOLE */
    KVC_BUDGET_BYTES = 3   /**< bytes of the sealed entries of all lanes together */
};

#define KVC_BUDGET_WHOLE INT64_C(1000000) /**< the amount that is all of n_ctx */
/** A budget as kvc_value.i and kvc_plan.budget hold it: the unit in the high bits, the amount in
 * the low 60. Never 0, which stands for none. */
#define KVC_BUDGET(unit, amount) ((int64_t)(unit) << 60 | (int64_t)(amount))
/** A whole number of percent of n_ctx as a budget; for defaults. */
#define KVC_BUDGET_PERCENT(percent)                                                                \
    KVC_BUDGET(KVC_BUDGET_SHARE, (percent) * (KVC_BUDGET_WHOLE / 100))
/** The unit of a budget: KVC_BUDGET_TOKENS, … */
#define kvc_budget_unit(budget) ((uint32_t)((uint64_t)(budget) >> 60))
/** The amount of a budget. */
#define kvc_budget_amount(budget) ((int64_t)(budget) & ((INT64_C(1) << 60) - 1))

/** Parameter types. */
enum {
    KVC_PARAM_INT = 1,    /**< a decimal integer; K, M, G (powers of 1024) may follow */
    KVC_PARAM_FLOAT = 2,  /**< a decimal number */
    KVC_PARAM_BOOL = 3,   /**< on, off, true, false, yes, no, 1, 0 */
    KVC_PARAM_ENUM = 4,   /**< one of the row's choices */
    KVC_PARAM_SIZE = 5,   /**< bytes: a whole number, with B, KiB, MiB, GiB, or K, M, G, which mean
                             the same (powers of 1024). KB, MB, GB and other cases are refused */
    KVC_PARAM_STRING = 6, /**< text without ':', '+' and ',' */
    KVC_PARAM_BUDGET = 7  /**< how much is kept: tokens per lane (512; 2K is 2048), a share of n_ctx
                             (25%, 12.5%; up to 100%, at most four decimals), or whole bytes of the
                             session's sealed payload, always with B, KiB, MiB or GiB (8MiB) */
};

/** One row of the parameter table. The host parses and checks; the policy receives typed values.
 * Rules between parameters stay in create(), which answers them with KVC_E_PARAM and a sentence. */
typedef struct kvc_param {
    uint32_t struct_size;      /**< sizeof in the policy */
    uint32_t type;             /**< KVC_PARAM_… */
    const char *name;          /**< `[a-z][a-z0-9_]*`, at most 31 characters, unique in the table */
    const char *unit;          /**< "tokens", "bytes", "bits", or NULL */
    const char *help;          /**< one line */
    const char *const *choice; /**< ENUM: the names, ended by NULL */
    kvc_value def;             /**< default, within the range; STRING: may be NULL */
    kvc_value min;             /**< least (INT, SIZE, FLOAT) */
    kvc_value max;             /**< most (INT, SIZE, FLOAT) */
} kvc_param;

/* ---------------------------------------------------------------- what the host does for a policy
 */

/** Kinds of bytes that account() counts: what a policy holds outside realloc(). */
enum {
    KVC_BYTES_MEMORY = 1, /**< memory of a library's own, mapped memory */
    KVC_BYTES_DISK = 2    /**< bytes of files */
};

/** Levels of log(). */
enum {
    KVC_LOG_DEBUG = 0, /**< for the policy's author */
    KVC_LOG_INFO = 1,  /**< for the curious */
    KVC_LOG_WARN = 2   /**< for every user */
};

/** Services of the host, one table per stage and session, valid from create() until destroy()
 * returns, as are its extensions. `ctx` is passed back as the first argument. All members are set.
 */
typedef struct kvc_host {
    uint32_t struct_size; /**< sizeof in the host */
    uint32_t abi;         /**< KVC_POLICY_ABI of the host */
    void *ctx;            /**< the host's; opaque */
    /** [any] Counted allocation: grows, shrinks, or (new_size 0) frees p, whose size was old_size.
     * align is a power of two up to 4096. New bytes are zero. NULL when there is no memory; p is
     * then unchanged. Freeing NULL is legal. */
    void *(*realloc)(void *ctx, void *p, size_t old_size, size_t new_size, size_t align);
    /** [any] Counts bytes held elsewhere: delta is added to the stage's figure of that KVC_BYTES_
     * kind. Bytes are counted out when they are given back, all of them before destroy()
     * returns. A sum below 0 counts as 0: it lowers no other figure; and one that ends there is
     * warned of. */
    void (*account)(void *ctx, uint32_t kind, int64_t delta);
    /** [any] Records one sentence (copied) for the user and returns code: `return host->fail(ctx,
     * KVC_E_PARAM, …)`. */
    int32_t (*fail)(void *ctx, int32_t code, const char *text);
    /** [any] Passes one line to the program's log. In it as in the texts of fail(), control
     * characters and what isn't UTF-8 become question marks, and what is beyond 1023 bytes is cut
     * off. */
    void (*log)(void *ctx, uint32_t level, const char *text);
    /** [any] Calls fn(arg, i) for i in [0, n) and returns when all are done: in [decode] functions
     * on the engine's threads, several at once; wherever these have work already, as in [worker],
     * [pure] and [io] functions and in fn itself, one after the other on the calling thread. */
    void (*parallel_for)(void *ctx, uint32_t n, void (*fn)(void *arg, uint32_t i), void *arg);
    /** [any] Nanoseconds of a clock that only goes forward. For figures, never for decisions. */
    uint64_t (*clock_ns)(void *ctx);
    /** [decode] The stage's own random numbers, seeded by the session, so that runs repeat. Going
     * back to position 0 starts them again; a stage that draws them answers 0 to rewind(). */
    uint64_t (*rand_u64)(void *ctx);
    /** [control] A table of optional services by id: KVC_HOST_STORE, KVC_HOST_MATH,
     * KVC_HOST_FILE. NULL when unknown. */
    const void *(*extension)(void *ctx, const char *id);
} kvc_host;

/* ---------------------------------------------------------------- what hooks are given */

/** Phases of a step. */
enum {
    KVC_PHASE_PROMPT = 0,     /**< tokens of a prompt */
    KVC_PHASE_PROMPT_END = 1, /**< as PROMPT; the last token ends the prompt */
    KVC_PHASE_DECODE = 2      /**< the last token continues generated text */
};

/** Tokens that are processed together: one call's tokens of one session, or a batch cut from them.
 */
typedef struct kvc_step {
    uint32_t struct_size; /**< sizeof in the host */
    uint32_t n;           /**< tokens */
    int32_t pos;          /**< position of the first; the others follow */
    uint32_t phase;       /**< KVC_PHASE_… of the last token */
    uint32_t replay;      /**< 1: the first of these tokens is computed again */
    uint32_t last;        /**< 1: the final batch of the call */
    const int32_t *token; /**< [n] */
} kvc_step;

/** Rows of one lane, in ascending position. Keys and values are rounded to the plan's open type,
 * raw keys and queries are as the engine computed them. Observers and select() see keys, values and
 * queries before a Hadamard rotation, codecs after. */
typedef struct kvc_rows {
    uint32_t struct_size; /**< sizeof in the host */
    uint32_t layer;       /**< of the lane */
    uint32_t head;        /**< KV head of the lane */
    uint32_t n;           /**< rows */
    const int32_t *pos;   /**< [n] */
    const float *k; /**< [n, dim_k], k_stride floats apart: keys, rotated (RoPE) at their position;
                       or NULL */
    const float *v; /**< [n, dim_v], v_stride floats apart; or NULL */
    const float *
        k_raw; /**< [n, dim_k], k_stride floats apart, before RoPE; NULL unless KVC_OBSERVE_K_RAW */
    const float
        *q; /**< [n, n_head / n_head_kv, dim_k], q_stride floats from row to row, heads dim_k apart,
                 rotated, not scaled; NULL unless asked for (KVC_OBSERVE_QUERIES, select()) */
    uint32_t k_stride; /**< floats */
    uint32_t v_stride; /**< floats */
    uint32_t q_stride; /**< floats */
    uint32_t phase; /**< KVC_PHASE_… of all these rows; PROMPT_END: the last one ends the prompt */
} kvc_rows;

/** Positions [first, end). */
typedef struct kvc_range {
    int32_t first; /**< first position */
    int32_t end;   /**< one past the last */
} kvc_range;

/** A sealed page as a codec sees it. */
typedef struct kvc_page {
    uint32_t struct_size; /**< sizeof in the host */
    uint32_t layer;       /**< of the lane */
    uint32_t head;        /**< KV head of the lane */
    uint32_t n;           /**< entries; the rest of KVC_PAGE is never attended to */
    const void *bytes;    /**< [page_bytes(layer)], 64-byte aligned; what encode() wrote */
} kvc_page;

/** Elements of a page that lie in a regular order, so that a tier can rearrange them before it
 * compresses: element c of entry e begins at byte
 * offset + c / run × run_stride + e × entry_stride + c % run × elem. */
typedef struct kvc_field {
    uint32_t struct_size;  /**< sizeof in whoever fills it */
    uint32_t kind;         /**< KVC_FIELD_… */
    uint32_t elem;         /**< bytes of an element: 1, 2, 4 or 8 */
    uint32_t n;            /**< elements of an entry */
    uint32_t run;          /**< of them that lie side by side; divides n */
    uint32_t run_stride;   /**< bytes from one run of an entry to the next; unused when run is n */
    uint32_t entry_stride; /**< bytes from one entry to the next */
    uint32_t offset;       /**< first byte in the page */
} kvc_field;

/** What a field holds. */
enum {
    KVC_FIELD_FLOAT = 1, /**< floating point numbers */
    KVC_FIELD_INT = 2    /**< integers of one scale per entry: neighbours along entries are alike */
};

#define KVC_MAX_FIELDS 8u /**< most fields of a page */

/** How the pages of one layer look. */
typedef struct kvc_page_layout {
    uint32_t struct_size;   /**< sizeof in the host */
    uint32_t n_page;        /**< most pages of the layer that one session has at once */
    size_t page_bytes;      /**< bytes of a page */
    uint32_t n_field;       /**< fields that are known; bytes outside them are opaque */
    uint32_t field_stride;  /**< bytes from one field[] element to the next */
    const kvc_field *field; /**< [n_field] */
} kvc_page_layout;

/** What a tier will be given. Valid as long as the instance. */
typedef struct kvc_layout {
    uint32_t struct_size;         /**< sizeof in the host */
    uint32_t n_layer;             /**< layers */
    uint32_t n_page;              /**< most pages of one call */
    uint32_t n_put;               /**< most put() calls at once, of all sessions of the instance */
    uint32_t n_get;               /**< most get() calls at once */
    uint32_t n_unpack;            /**< most unpack() calls at once */
    uint32_t layer_stride;        /**< bytes from one layer[] element to the next */
    const kvc_page_layout *layer; /**< [n_layer] */
} kvc_layout;

/** The i-th layer's layout. */
#define kvc_layout_layer(layout, i)                                                                \
    ((const kvc_page_layout *)(const void *)((const char *)(layout)->layer +                       \
                                             (size_t)(i) * (layout)->layer_stride))
/** The i-th field of a page's layout. */
#define kvc_layout_field(page_layout, i)                                                           \
    ((const kvc_field *)(const void *)((const char *)(page_layout)->field +                        \
                                       (size_t)(i) * (page_layout)->field_stride))

/** A page on its way to or from a tier. The pages of one call are of one layer. */
typedef struct kvc_tier_page {
    uint32_t struct_size; /**< sizeof in the host */
    uint32_t layer;       /**< of the lane */
    uint32_t head;        /**< KV head of the lane */
    int32_t status;       /**< out, when get() fails: KVC_E_LOST for each page that is lost */
    const void *bytes;    /**< put(): [page_bytes], 64-byte aligned; else NULL */
    uint64_t key[2];      /**< the tier's own name for the page: put() sets it */
    const void *record;   /**< get() sets it: where the page's record begins in the lent buffer */
    size_t record_bytes;  /**< get() sets it: how long the record is, at least 1 */
} kvc_tier_page;

/** The i-th page of a call. */
#define kvc_tier_page_at(page, stride, i)                                                          \
    ((kvc_tier_page *)(void *)((char *)(page) + (size_t)(i) * (stride)))

/* ---------------------------------------------------------------- what the policy answers */

/** A page format of the policy's own. encode() is [worker]; move() is [decode]; the others are
 * [pure]. The result for a query never depends on n_q, which is at most
 * the larger of 96 and the query heads of a KV head. Rows beyond the page's n hold finite floats
 * of no meaning; so may rows of a page that was moved about. */
typedef struct kvc_codec {
    uint32_t struct_size; /**< sizeof in the policy */
    uint32_t flags;       /**< KVC_CODEC_… */
    /** Bytes of an encoded page of that layer; constant, at least 1. */
    size_t (*page_bytes)(void *self, uint32_t layer);
    /** Encodes KVC_PAGE rows of k and v (both given; strides as in the rows) into
     * dst[page_bytes(layer)]. KVC_E_NOMEM undoes the step; any other answer but KVC_OK, also from
     * the functions below, kills the stack. */
    int32_t (*encode)(void *self, const kvc_rows *rows, void *dst);
    /** Decodes into k[KVC_PAGE, dim_k] and v[KVC_PAGE, dim_v], dense. The reference path, always
     * needed. */
    int32_t (*decode)(void *self, const kvc_page *page, float *k, float *v);
    /** Scores: s[n_q, KVC_PAGE] = q[n_q, dim_k] · keys, q scaled by the engine. NULL: by decode. */
    int32_t (*score)(void *self, const kvc_page *page, const float *q, uint32_t n_q, float *s);
    /** Mixes: acc[n_q, dim_v] += p[n_q, KVC_PAGE] · values, entries in ascending order; p is 0 for
     * entries that a query doesn't see. NULL: by
     * decode. */
    int32_t (*mix)(void *self, const kvc_page *page, const float *p, uint32_t n_q, float *acc);
    /** KVC_CODEC_MOVABLE, without which lanes with evicted entries give back memory by whole
     * pages only: copies entry `from` of page src to entry `to` of page dst, exactly, so
     * that a lane with evicted entries can be compacted. src and dst may be the same page, then to
     * <= from. */
    int32_t (*move)(void *self, uint32_t layer, void *dst, uint32_t to, const void *src,
                    uint32_t from);
    /** [control] What is where in a page of that layer, for tiers: writes at most cap (at least
     * KVC_MAX_FIELDS) fields and returns their number. NULL: pages are opaque. */
    uint32_t (*fields)(void *self, uint32_t layer, kvc_field *out, uint32_t cap);
} kvc_codec;

/** Codec flags. */
enum {
    KVC_CODEC_MOVABLE =
        1u << 0 /**< entries of a page are independent of each other; move() is given */
};

/** Where sealed pages live that don't stay in memory. A stage with a tier answers nothing else and
 * has no functions but create(), destroy() and stats(); one instance serves a session and its
 * forks, and lives until the last of them is closed, so it has no KVC_HOST_STORE.
 *
 * A tier keeps a *record* of each page: the page itself, or whatever it can be made of again, such
 * as compressed bytes. A page comes back in two steps: get() moves records and does nothing else,
 * on threads that wait for a device, often for pages that are needed later; unpack() makes a page
 * of its record, on the thread that is about to compute with it. What that brings back is what
 * put() was given, to the last bit: the engine doesn't check it.
 *
 * Each page is put once and dropped once, before destroy(), also when the session is dead. Keys may
 * be any 128 bits; the engine doesn't look at them. Of a page the engine reads back key after
 * put(), status, record and record_bytes after get(), and nothing else. Saving a session gets and
 * unpacks the pages that are away, loading makes a new instance and calls put(). */
typedef struct kvc_tier {
    uint32_t struct_size; /**< sizeof in the policy */
    uint32_t pad;         /**< 0 */
    /** [control] Called once, when all stages are made: what the pages look like. All memory that
     * the tier will need for one session is taken here or in create(), so that plan.hot_bytes can
     * be kept: what is taken later comes on top. NULL: not needed. */
    int32_t (*open)(void *self, const kvc_layout *layout);
    /** [io] Keeps n pages, stride bytes apart, and sets their keys. On failure none is kept, and
     * drop() isn't called for them. KVC_E_IO and KVC_E_NOMEM undo the step, anything else but
     * KVC_OK kills: there is no answer for some of them. */
    int32_t (*put)(void *self, kvc_tier_page *page, uint32_t n, uint32_t stride);
    /** [io] Brings the records of n pages, stride bytes apart, into a buffer of the engine's, of
     * `size` = n times record_bytes() bytes, aligned to KVC_FILE_ALIGN, and says of each where it
     * lies; order and gaps are free, and two may share bytes. The buffer and the keys stay as they
     * are until the records are unpacked or of no use any more, of which nobody tells. KVC_E_LOST:
     * some pages are gone for good; those get that status (it is KVC_OK on entry, and looked at
     * only then), and the engine drops and computes them again, once a call; if pages are lost
     * again, the call answers KVC_E_LOST. KVC_E_IO, KVC_E_NOMEM: they may be there the next time.
     * Anything else kills. */
    int32_t (*get)(void *self, kvc_tier_page *page, uint32_t n, uint32_t stride, void *buffer,
                   size_t size);
    /** [io] Gives n pages up; neither bytes nor records are set. */
    void (*drop)(void *self, const kvc_tier_page *page, uint32_t n, uint32_t stride);
    /** [control] Most bytes of a record of that layer, at least 1, or more where get() needs room
     * to round up: constant, asked for after open(). NULL: page_bytes. */
    size_t (*record_bytes)(void *self, uint32_t layer);
    /** [pure] Makes a page of a record that get() brought: page is as get() left it; fills
     * dst[page_bytes], 64-byte aligned. A page may be unpacked several times, or never, but not
     * after it is dropped. KVC_E_LOST: the record is damaged; the page is lost as if get() had said
     * so. KVC_E_IO and KVC_E_NOMEM undo the step, anything else kills. NULL: a record begins with
     * the page, at a multiple of 64, and is read where it lies. */
    int32_t (*unpack)(void *self, const kvc_tier_page *page, void *dst);
} kvc_tier;

/** One layer's plain format. Zeros mean: not said (f16, no rotation). */
typedef struct kvc_format {
    uint32_t struct_size; /**< sizeof in the host */
    uint32_t type_k;      /**< KVC_TYPE_… of sealed keys */
    uint32_t type_v;      /**< KVC_TYPE_… of sealed values */
    uint32_t open_type;   /**< KVC_TYPE_… of open pages, keys and values */
    uint32_t
        hadamard_k; /**< 1: keys and queries are rotated by a Walsh-Hadamard matrix before they are
                         stored, in blocks of the largest power of two that divides the dim */
    uint32_t hadamard_v; /**< 1: values are, and the output is rotated back */
} kvc_format;

/** The i-th layer's format in a plan. */
#define kvc_plan_format(plan, i)                                                                   \
    ((kvc_format *)(void *)((char *)(plan)->format + (size_t)(i) * (plan)->format_stride))

/** Questions a stage answers; two stages of a stack can't answer the same. A stage that only
 * observes answers none. */
enum {
    KVC_ANSWERS_WHICH = 1u << 0,  /**< visible(), select(), or evictions */
    KVC_ANSWERS_FORMAT = 1u << 1, /**< the formats or the codec */
    KVC_ANSWERS_WHERE = 1u << 2   /**< the tier; then nothing else */
};

/** Plan flags. */
enum {
    KVC_PLAN_EVICTS = 1u << 0,  /**< hooks call keep() or drop() */
    KVC_PLAN_BOUNDED = 1u << 1, /**< memory stops growing with the context */
    KVC_PLAN_TRANSIENT =
        1u << 2, /**< nothing is needed after the call that computed it: the engine gives the pages
                     back at the end of each call and computes from position 0 in the next */
    KVC_PLAN_STATE = 1u << 3 /**< the instance has state beside plan, pages and columns: fork and
                                save need save() and load() */
};

/** What the engine observes for the policy. */
enum {
    KVC_OBSERVE_MASS = 1u << 0, /**< column KVC_COLUMN_MASS: the sum of attention probabilities of
                                   each entry, over queries and the query heads of the lane */
    KVC_OBSERVE_MASS_LAST = 1u << 1, /**< column KVC_COLUMN_MASS_LAST: those of the latest query
                                        alone, over the query heads of the lane */
    KVC_OBSERVE_QUERIES = 1u << 2,   /**< append() gets q */
    KVC_OBSERVE_K_RAW = 1u << 3      /**< append() gets k_raw */
};

/** Which positions queries and keys are compared at. */
enum {
    KVC_POSITIONS_ORIGINAL = 0, /**< the token's own */
    KVC_POSITIONS_CACHE = 1 /**< its index among the visible ones: gaps between ranges are closed.
                               Only for stages that answer by visible() without evicting */
};

#define KVC_HOT_LEAST UINT64_MAX /**< hot_bytes of a plan: as little as possible */

/** The plan: zeroed by the host, filled by create(). The plans of a stack are merged. */
typedef struct kvc_plan {
    uint32_t struct_size; /**< sizeof in the host */
    uint32_t answers;     /**< KVC_ANSWERS_… bits: which questions this stage answers */
    uint32_t flags;       /**< KVC_PLAN_… bits */
    uint32_t
        quantum; /**< ticks of the clock, in tokens: 1 or a multiple of KVC_PAGE; 0: KVC_PAGE */
    uint32_t observe; /**< KVC_OBSERVE_… bits */
    uint32_t
        n_column; /**< f32 columns of the policy's own beside each entry, at most 8; start at 0 */
    uint32_t positions; /**< KVC_POSITIONS_… */
    uint32_t
        format_stride;  /**< bytes from one format[] element to the next; use kvc_plan_format() */
    kvc_format *format; /**< the host's array, [n_layer] */
    const kvc_codec *codec; /**< a page format of the policy's own, or NULL; static */
    const kvc_tier *tier;   /**< where pages live, or NULL; static */
    uint64_t hot_bytes;     /**< with a tier: most bytes that the cache may hold in memory, page
                               tables, buffers and the stages' own included. 0: the least that is
                               possible and 8 MiB; KVC_HOT_LEAST: no more than that. The host
                               refuses what is below the least. What forks add to the instance
                               that they share comes on top */
    int64_t budget; /**< most that the stage will keep, as a parameter of the type KVC_PARAM_BUDGET
                       holds it; 0: no budget. Only with KVC_PLAN_EVICTS. When the plans are merged,
                       and formats known, the host resolves it to entries per lane, which
                       kvc_host_store.budget() tells: bytes are divided by the packed bytes of one
                       entry of every lane. The stage keeps to it itself: at a tick keep at most
                       budget() less KVC_PAGE entries of a lane, so that the page to come has room
                       (less the quantum, if you set another) */
    uint32_t budget_least; /**< fewest entries per lane that the stage can work with, those for the
                              page to come included: KVC_PAGE and what it must keep. A budget that
                              comes to fewer is refused, with the least in its own unit */
    uint32_t pad;          /**< 0 */
} kvc_plan;

/** Bytes to or from a file or another instance. Either function returns KVC_OK or a negative
 * status, which the policy passes on. */
typedef struct kvc_stream {
    uint32_t struct_size; /**< sizeof in the host */
    uint32_t pad;         /**< 0 */
    void *ctx;            /**< passed back as the first argument */
    /** Writes n bytes; only in save(). */
    int32_t (*write)(void *ctx, const void *bytes, size_t n);
    /** Reads exactly n bytes; only in load(). */
    int32_t (*read)(void *ctx, void *bytes, size_t n);
} kvc_stream;

/** What a policy says of itself. The host counts bytes on its own and never prints this as memory.
 */
typedef struct kvc_claims {
    uint32_t struct_size;  /**< sizeof in the host */
    uint32_t pad;          /**< 0 */
    uint64_t n_evicted;    /**< entries given up since create() */
    uint64_t n_selected;   /**< pages left to be read by select() */
    uint64_t n_skipped;    /**< pages taken out by select() */
    uint64_t stored_bytes; /**< what the pages in a tier take there */
} kvc_claims;

/** The policy's functions. All but create() may be NULL. */
typedef struct kvc_policy_api {
    uint32_t struct_size; /**< sizeof in the policy */
    uint32_t pad;         /**< 0 */
    /** [control] Makes an instance for one session: reads shape and value[] (one per row of the
     * table), fills the plan, sets *self. destroy(*self) is called after a
     * success, and after a failure if *self was set. */
    int32_t (*create)(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                      kvc_plan *plan, void **self);
    /** [control] Frees the instance; legal after any failure. self is what create() set, NULL if it
     * succeeded without setting it. */
    void (*destroy)(void *self);
    /** [pure] Which: the positions that the query at `pos` of that layer may attend to. Writes at
     * most cap (at least KVC_MAX_RANGES) ascending, disjoint, non-empty ranges and returns their
     * number; what lies above pos is cut off. Depends on (layer, pos) alone; what lies before a
     * query and isn't seen by it is never seen by a later one. The query's own position is always
     * visible, said or not. Entries that no later query can see are freed by the store. */
    uint32_t (*visible)(void *self, uint32_t layer, int32_t pos, kvc_range *out, uint32_t cap);
    /** [decode] A call is about to be computed: step holds all its tokens, those that are
     * computed again included, and its phase is the last one's. May lower *from (the first position
     * to compute, on entry step->pos): the store forgets what lies at and above it and the engine
     * computes it again. Called once per call, not for what it caused to be computed again. */
    int32_t (*begin)(void *self, const kvc_step *step, int32_t *from);
    /** [worker] An observer: rows are about to be appended to a lane; k and v rounded to the open
     * type, queries and raw keys if asked for. All rows lie in one page and end at or before a
     * tick. The store doesn't count them yet, and its columns are those of the last tick or page.
     */
    int32_t (*append)(void *self, const kvc_rows *rows);
    /** [worker] Which pages one query reads: rows->n is 1, k and v NULL. page is a bit set of the
     * n_page sealed pages of the lane, bit i % 64 of word i / 64 for page i, all set; clear those
     * to skip. As long as the stage evicts nothing, page i holds positions 64 i to 64 i + 63, and
     * pages that were freed keep their number. n_page may be 0. The open page is always read. */
    int32_t (*select)(void *self, const kvc_rows *query, uint64_t *page, uint32_t n_page);
    /** [decode] A tick, inside that layer: may evict in this layer only. A page that the tick's
     * last token filled is sealed already, encoded and with the tier, and the open page is then
     * empty: what is evicted here was encoded before. step holds the last of the tokens up to the
     * tick; how many depends on how the prompt was cut, so decide by step->pos + step->n and phase
     * alone. */
    int32_t (*page_end)(void *self, const kvc_step *step, uint32_t layer);
    /** [decode] A tick, after all layers: may evict anywhere. The engine cuts calls at the ticks
     * for it. */
    int32_t (*end)(void *self, const kvc_step *step);
    /** [control] The highest position <= pos that this stage can return to; a pure query. NULL:
     * pos, or 0 for a stage that evicts or has columns, since what it gave up, or wrote beside an
     * entry, may have come of tokens after pos. The store takes the entries from pos on away with
     * their columns and leaves those in front as they are: a stage with columns answers pos only if
     * these don't depend on later tokens. What the mass columns hold does. A failure here or in
     * truncate() kills the stack. */
    int32_t (*rewind)(void *self, int32_t pos);
    /** [control] Go back to pos, at or below an answer of rewind(); 0 clears. The store has done
     * its part already and can't be read here. What follows pos is appended again. */
    int32_t (*truncate)(void *self, int32_t pos);
    /** [control] Figures of the policy's own, zeroed by the host. */
    int32_t (*stats)(void *self, kvc_claims *out);
    /** [control] Writes the instance's state, for a file or a fork. Only with KVC_PLAN_STATE. */
    int32_t (*save)(void *self, const kvc_stream *out);
    /** [control] Reads it into a new instance of the same shape and parameters; the store holds the
     * same entries. The bytes may come from a hostile file: whatever they are, no crash. */
    int32_t (*load)(void *self, const kvc_stream *in);
} kvc_policy_api;

/** Capabilities; unknown bits are ignored by an older host. */
enum {
    KVC_CAP_CHUNK_INVARIANT =
        1u << 0,               /**< results don't depend on how a prompt is cut into calls */
    KVC_CAP_LOSSLESS = 1u << 1 /**< results equal those of the plain open type bit for bit */
};

/** A policy: static data, answered by kvc_policy_entry(). */
typedef struct kvc_policy {
    uint32_t struct_size;      /**< sizeof in the policy */
    uint32_t abi;              /**< KVC_POLICY_ABI it was built with */
    uint32_t abi_min;          /**< the oldest host ABI it runs on */
    uint32_t n_param;          /**< rows of the parameter table */
    uint32_t param_stride;     /**< sizeof(kvc_param) in the policy */
    uint32_t pad;              /**< 0 */
    uint64_t caps;             /**< KVC_CAP_… bits */
    uint64_t requires_host;    /**< bits of things the host must have; none are defined yet: 0 */
    const char *name;          /**< `[a-z][a-z0-9_-]{0,31}` */
    const char *version;       /**< of the policy */
    const char *summary;       /**< one line */
    const char *license;       /**< SPDX identifier */
    const kvc_param *param;    /**< [n_param], or NULL */
    const kvc_policy_api *api; /**< its functions */
} kvc_policy;

/** The one symbol a policy exports. Answers the index-th policy of the file (0, 1, …) for a host of
 * that ABI, NULL past the last. Pure: no allocation, no threads, the same answer every time. */
const kvc_policy *kvc_policy_entry(uint32_t host_abi, uint32_t index);

/** Put before the definition of kvc_policy_entry(): makes it visible. */
#if defined(__GNUC__)
#define KVC_POLICY_EXPORT __attribute__((visibility("default")))
#else
#define KVC_POLICY_EXPORT
#endif

/* ---------------------------------------------------------------- extensions of the host */

#define KVC_HOST_STORE "kvc.host.store/1" /**< id of kvc_host_store */
#define KVC_HOST_MATH  "kvc.host.math/2"  /**< id of kvc_host_math */
#define KVC_HOST_FILE  "kvc.host.file/1"  /**< id of kvc_host_file */

/** Columns that the engine fills; a policy's own are 0 to n_column - 1. */
enum {
    KVC_COLUMN_MASS = 1000,     /**< with KVC_OBSERVE_MASS */
    KVC_COLUMN_MASS_LAST = 1001 /**< with KVC_OBSERVE_MASS_LAST */
};

/** The session's one store. Live entries of a lane are numbered 0 … count - 1 in ascending
 * position; the open page's come last. `ctx` is host->ctx. Reading is allowed in [decode] and
 * [worker] functions (a worker only in its own lane); keep() and drop() only in page_end() (that
 * layer) and end(). Numbers move after them. Entries that visible() hides count until their page is
 * freed. A failing keep() or drop() on KVC_ALL may have changed some heads. Calls for entries
 * [first, first + n) answer KVC_E_RANGE, and do nothing, when that is more than count(); n may be
 * 0. A refusal is recorded as by host->fail(), for the user to read if it is passed on. */
typedef struct kvc_host_store {
    uint32_t struct_size; /**< sizeof in the host */
    uint32_t pad;         /**< 0 */
    /** Live entries of a lane. */
    uint32_t (*count)(void *ctx, uint32_t layer, uint32_t head);
    /** Positions of live entries [first, first + n) into out. */
    int32_t (*pos)(void *ctx, uint32_t layer, uint32_t head, uint32_t first, uint32_t n,
                   int32_t *out);
    /** Reads column col of live entries [first, first + n) into out. */
    int32_t (*get)(void *ctx, uint32_t layer, uint32_t head, uint32_t col, uint32_t first,
                   uint32_t n, float *out);
    /** Writes it. Values move with their entries. */
    int32_t (*set)(void *ctx, uint32_t layer, uint32_t head, uint32_t col, uint32_t first,
                   uint32_t n, const float *in);
    /** Evicts all entries of a lane but the n given by ascending number, the open page's too. head
     * KVC_ALL: the same numbers in every head of the layer. */
    int32_t (*keep)(void *ctx, uint32_t layer, uint32_t head, const uint32_t *index, uint32_t n);
    /** Evicts the entries at positions [first, end), those that are there: positions may be below 0
     * or of tokens to come. KVC_E_RANGE when first is beyond end. head may be KVC_ALL. */
    int32_t (*drop)(void *ctx, uint32_t layer, uint32_t head, int32_t first, int32_t end);
    /** Decodes live entries [first, first + n) into k[n, dim_k] and v[n, dim_v]; either may be
     * NULL. They are in the basis that append() sees: a Hadamard rotation of the format is taken
     * back. Takes memory for a page while it runs: not for every token. */
    int32_t (*read)(void *ctx, uint32_t layer, uint32_t head, uint32_t first, uint32_t n, float *k,
                    float *v);
    /** Bytes that one sealed entry takes in that layer, both halves: page bytes / KVC_PAGE, rounded
     * up. */
    size_t (*entry_bytes)(void *ctx, uint32_t layer);
    /** Positions of the entries of sealed page `page` of a lane, evicted ones included, into
     * out[KVC_PAGE]; returns their number, 0 for a page that was freed, KVC_E_RANGE for one that
     * isn't there. For
     * select() of a stage that evicts too, whose pages don't keep their positions. */
    int32_t (*page)(void *ctx, uint32_t layer, uint32_t head, uint32_t page, int32_t *out);
    /** The stage's own budget in entries per lane; 0: it has none, or the plans aren't merged yet,
     * as in create(). Constant from then on. At a tick keep at most this less KVC_PAGE. [any] */
    uint32_t (*budget)(void *ctx);
    /** Adds to out[count(layer, head)] how much some queries of a lane attend to its live entries:
     * attention probabilities, exact to the last bit as the engine computes them, over the entries
     * that each query sees (at or before its position, visible(), the layer's own window; no
     * select()), with the pages as they are held now. Summed over the queries in their order and
     * the lane's query heads. Of queries it reads layer, head, n, pos and q with q_stride, as
     * append() gives them with KVC_OBSERVE_QUERIES; any number of any positions, also of rows that
     * are kept from earlier. KVC_E_UNSUPPORTED with KVC_POSITIONS_CACHE and a gap. Takes memory
     * while it runs (4 bytes for each row of q and entry, 4 MiB unless one query needs more): for a
     * tick, not for every token. [decode], and [worker] in the lane */
    int32_t (*mass)(void *ctx, const kvc_rows *queries, float *out);
} kvc_host_store;

/** Flags of a packing. */
enum {
    KVC_PACK_ZERO = 1u << 0 /**< codes count up from a minimum that stands beside each scale;
                               without it they lie around 0 */
};

/** How KVC_PAGE rows of numbers, the keys or the values of a page, are packed to integers (codes)
 * that share scales in groups. x is rounded to the nearest of the numbers that a group has:
 *
 * - bits 8: code × scale, code -127 to 127, scale = the group's largest magnitude / 127;
 * - bits 4 or 2 with KVC_PACK_ZERO: min + code × scale, code 0 to 2^bits - 1, min = the group's
 *   least number, scale = (its largest - min) / (2^bits - 1);
 * - bits 4 or 2 without: (code - 2^(bits-1)) × scale, code as before, scale such that the number of
 *   the largest magnitude has code 0, so that its sign chooses the scale's.
 *
 * Scales and minima are stored as binary16, and codes rounded by what is stored. Under 4 and 2 bits
 * a number beyond ±65504 counts as that and NaN as the least of them, so all that is unpacked is
 * finite; under 8 bits a row that isn't stays so.
 *
 * Groups, of which the host takes these (check() tells; later hosts may take more):
 *
 * | bits | group_dim | group_entry | a scale per | flags |
 * |---|---|---|---|---|
 * | 8 | 0 | 1 | row | none |
 * | 4, 2 | 0 | 1 | row | any |
 * | 4, 2 | a multiple of 16 | 1 | that many elements of a row; a row's last group may be shorter |
 * any | | 4, 2 | 1 | 32 or 64 | element of that many rows: a channel of entries 0 to 31, of 32 to
 * 63 | any |
 *
 * With group_entry 1 a row can be moved. */
typedef struct kvc_packing {
    uint32_t struct_size; /**< sizeof in the policy */
    uint32_t dim;         /**< elements of a row: a multiple of 4, at most 1024 */
    uint32_t bits;        /**< of a code: 8, 4 or 2 */
    uint32_t group_dim; /**< elements side by side in a row that share a scale; 0: the row's all */
    uint32_t group_entry; /**< rows that share a scale */
    uint32_t flags;       /**< KVC_PACK_… */
} kvc_packing;

/** The engine's own kernels, at the speed of the machine and bit-equal at every level: for packed
 * pages, and for a choice among scores. `ctx` is host->ctx. A policy describes its keys and its
 * values by a kvc_packing each, asks check() in create(), and gives page_bytes() as the sum of the
 * two halves' bytes(); all else takes a packing that check() took. Packed bytes begin at a multiple
 * of 64 and are opaque: keys are interleaved for dot products, values lie in rows. [any] */
typedef struct kvc_host_math {
    uint32_t struct_size; /**< sizeof in the host */
    uint32_t pad;         /**< 0 */
    /** KVC_OK, or KVC_E_UNSUPPORTED and the reason recorded as by host->fail(). */
    int32_t (*check)(void *ctx, const kvc_packing *p);
    /** Bytes of KVC_PAGE packed rows, keys or values: a multiple of 64. KVC_PAGE / 8 × bits × dim,
     * 2 for each scale and for each minimum, and what rounds the row to 4 bytes and both to 64. */
    size_t (*bytes)(void *ctx, const kvc_packing *p);
    /** Packs KVC_PAGE rows of dim floats, stride floats apart, as keys into dst[bytes()]. */
    void (*pack_k)(void *ctx, const kvc_packing *p, const float *rows, uint32_t stride, void *dst);
    /** Packs as values. */
    void (*pack_v)(void *ctx, const kvc_packing *p, const float *rows, uint32_t stride, void *dst);
    /** Unpacks keys to out[KVC_PAGE, dim]. */
    void (*unpack_k)(void *ctx, const kvc_packing *p, const void *src, float *out);
    /** Unpacks values to out[KVC_PAGE, dim]. */
    void (*unpack_v)(void *ctx, const kvc_packing *p, const void *src, float *out);
    /** s[n_q, KVC_PAGE] = q[n_q, dim] · keys. Scales per row are applied to sums of query × code,
     * scales per channel to the query in front. Under KVC_COMPUTE_INT8 the query may be rounded to
     * int8 in front; under KVC_COMPUTE_F32 it stays float and codes are widened exactly. */
    void (*score)(void *ctx, const kvc_packing *p, const void *src, const float *q, uint32_t n_q,
                  float *s);
    /** acc[n_q, dim] += w[n_q, KVC_PAGE] · values. Under KVC_COMPUTE_INT8 weights times scales may
     * be rounded to 14 bits and a sign, relative to the largest of a row; under KVC_COMPUTE_F32
     * they stay float and entries are added in ascending order. */
    void (*mix)(void *ctx, const kvc_packing *p, const void *src, const float *w, uint32_t n_q,
                float *acc);
    /** Copies packed key row `from` of src to row `to` of dst, exactly; they may be one page. For
     * group_entry 1 alone. */
    void (*move_k)(void *ctx, const kvc_packing *p, void *dst, uint32_t to, const void *src,
                   uint32_t from);
    /** Copies a packed value row. */
    void (*move_v)(void *ctx, const kvc_packing *p, void *dst, uint32_t to, const void *src,
                   uint32_t from);
    /** Writes the fields of packed keys that begin at byte `offset` of a page, at most 2, and
     * returns their number: scales per row, minima per row, codes of 8 bits. What is none of these
     * is opaque. */
    uint32_t (*fields_k)(void *ctx, const kvc_packing *p, uint32_t offset, kvc_field *out);
    /** The same for packed values. */
    uint32_t (*fields_v)(void *ctx, const kvc_packing *p, uint32_t offset, kvc_field *out);
    /** Chooses what scores most: writes the numbers of the n_top largest of score[n] to index,
     * ascending as kvc_host_store.keep() wants them, and returns how many they are: n_top, or n if
     * that is less. Of equal ones the later are taken; -0 equals 0; NaN is less than all numbers.
     * index has room for what is returned; it may be score itself, which else stays as it is. Takes
     * no memory. */
    uint32_t (*top)(void *ctx, const float *score, uint32_t n, uint32_t n_top, uint32_t *index);
} kvc_host_math;

/** A scratch file of the host. Opaque. */
typedef struct kvc_file kvc_file;

#define KVC_FILE_ALIGN 512u /**< records begin at multiples of it */

/** Scratch files: bytes that are too many for memory and that nobody needs when the session is
 * closed. A file has no name, so it is gone with the process, however that ends; its room is taken
 * in steps ahead of its records, so that a full disk is found before a record is half written; it
 * is kept out of the system's page cache; and its size is counted as the stage's disk bytes. `ctx`
 * is host->ctx. put(), get() and drop() are [any], but never two for one record at once. */
typedef struct kvc_host_file {
    uint32_t struct_size; /**< sizeof in the host */
    uint32_t pad;         /**< 0 */
    /** [control] Makes a file in dir, which exists; NULL or "": in the user's cache directory,
     * which is made if need be; when that can't be, the sentence asks for a parameter `dir`, so
     * have one. KVC_E_IO, KVC_E_NOT_FOUND, KVC_E_NOMEM; the sentence is recorded as by
     * host->fail(). */
    int32_t (*open)(void *ctx, const char *dir, kvc_file **out);
    /** [control] Closes it; NULL is legal. */
    void (*close)(void *ctx, kvc_file *file);
    /** Writes a record of n bytes and sets *at to its place. Records of one group that are put one
     * after the other lie one after the other where there is room, each from a multiple of
     * KVC_FILE_ALIGN on, so several can be read at once. KVC_E_IO, KVC_E_NOMEM. */
    int32_t (*put)(void *ctx, kvc_file *file, uint32_t group, const void *bytes, size_t n,
                   uint64_t *at);
    /** Reads n bytes at `at`: a record, or several with what lies between. When bytes and n are
     * multiples of KVC_FILE_ALIGN (a record's room is), nothing is copied on the way: that is twice
     * as fast. KVC_E_IO, also when the file ends before. */
    int32_t (*get)(void *ctx, kvc_file *file, uint64_t at, void *bytes, size_t n);
    /** Gives a record's room back. */
    void (*drop)(void *ctx, kvc_file *file, uint64_t at, size_t n);
    /** [control] Takes memory at once for the tables of one more group, of n records of at most
     * `bytes` each, so that put() needs none for them. KVC_E_NOMEM. */
    int32_t (*expect)(void *ctx, kvc_file *file, uint32_t group, uint32_t n, size_t bytes);
} kvc_host_file;

#ifdef __cplusplus
}
#endif
#endif

/* SPDX-License-Identifier: MIT */
/**
 * @file kvc.h
 * The decode loop of a transformer language model against a pluggable KV cache.
 *
 * A program opens a *model* (a GGUF file), opens *sessions* on it (one sequence each, with a stack
 * of cache policies), and loops: kvc_decode() computes tokens, kvc_session_logits() gives the
 * result, a *sampler* picks the next token.
 *
 *     kvc_model *model = NULL;
 *     kvc_session *session = NULL;
 *     kvc_model_open("model.gguf", NULL, &model);
 *     kvc_session_open(model, "window:size=1024+quant8", NULL, &session);
 *
 * **Errors.** Functions that can fail return KVC_OK or a negative status (status.h). A sentence
 * that names the thing and what to do is kept on the handle (kvc_model_error(),
 * kvc_session_error()); a constructor that fails leaves it on the params it was given
 * (kvc_params_error()). Nothing is kept per thread.
 *
 * **Threads.** A handle may be used from any thread, by one at a time; different handles at once. A
 * session in use answers KVC_E_BUSY (without a sentence: that place is the other call's). Only
 * kvc_session_cancel() may be called at any time. Calls that compute on one model wait for each
 * other, since they share its threads.
 *
 * **Ownership.** Who creates destroys; every destroy accepts NULL. A model lives until its last
 * session is closed. Strings that are returned belong to the handle and are valid until the next
 * call on it.
 *
 * **Reproducibility.** The logits of a token don't depend on the number of threads, on what else is
 * computed in the same call, or on how a prompt is cut into calls (by kvc_session_prefill() or
 * KVC_WANT_NONE: where logits are asked for, a prompt ends).
 */
#ifndef KVC_KVC_H
#define KVC_KVC_H

#include <stddef.h>
#include <stdint.h>

#include "policy.h"
#include "status.h"
#include "version.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Marks what the shared library exports. */
#if defined(__GNUC__)
#define KVC_API __attribute__((visibility("default")))
#else
#define KVC_API
#endif

typedef struct kvc_params kvc_params;     /**< options by name */
typedef struct kvc_model kvc_model;       /**< weights, vocabulary and threads */
typedef struct kvc_session kvc_session;   /**< one sequence with its cache */
typedef struct kvc_sampler kvc_sampler;   /**< picks tokens from logits */
typedef struct kvc_policies kvc_policies; /**< a list of what can be loaded */

/* ---------------------------------------------------------------- status and version */

/** The name of a status, "KVC_E_NOMEM"; "KVC_E_?" for an unknown code. Static. */
KVC_API const char *kvc_status_name(int32_t status);
/** Its text, "out of memory"; "unknown status" for an unknown code. Static. */
KVC_API const char *kvc_status_text(int32_t status);
/** KVC_VERSION_STRING of the library that runs. Static. */
KVC_API const char *kvc_version(void);
/** The kernel level in use on this machine: "scalar", "avx2" or "avx512"; the environment variable
 * KVC_CPU forces one that the machine has. */
KVC_API const char *kvc_cpu_level(void);

/* ---------------------------------------------------------------- params */

/** Memory of the caller's. grows, shrinks, or (new_size 0) frees p, whose size was old_size; align
 * is a power of two up to 4096; new bytes need not be zero. NULL when there is none, p then
 * unchanged. Called from any thread. */
typedef struct kvc_allocator {
    uint32_t struct_size; /**< sizeof in the caller */
    uint32_t pad;         /**< 0 */
    void *ctx;            /**< passed back as the first argument */
    void *(*realloc)(void *ctx, void *p, size_t old_size, size_t new_size,
                     size_t align); /**< see above */
} kvc_allocator;

/** Receives one line of log, from any thread. It must not call kvc on the same model. */
typedef void (*kvc_log_fn)(void *user, uint32_t level, const char *text);

/**
 * Makes an empty set of options. Names and defaults:
 *
 * | name | used by | meaning |
 * |---|---|---|
 * | `n_threads` | model | threads that compute; 0 (default): one per core the process may use |
 * | `n_ctx` | session | most positions; 0 (default): the model's own, at most 8192 |
 * | `n_batch` | model | most tokens computed together, 1 to 4096; default 512 |
 * | `repack` | model | 1 (default): weights are brought into the kernels' layout at load; 0: they
 * stay in the mapped file, are brought there whenever they are used, give the same bits and take no
 * memory of their own, but much time; of kvc_model_open() alone, and the file must not change |
 * | `compute` | session | "int8" (default) or "f32": KVC_COMPUTE_… |
 * | `seed` | session, sampler | seed of random numbers, 0 by default |
 * | `policy_env` | session, list | 1 (default): search KVC_POLICY_PATH; 0: don't |
 * | `policy_default` | session, list | 1 (default): search the installed directory; 0: don't |
 * | `temperature` | sampler | 0 (default) is greedy |
 * | `top_k`, `top_p`, `min_p` | sampler | 0, 1.0, 0.0 (defaults) are off |
 *
 * @return KVC_OK, KVC_E_NOMEM
 */
KVC_API int32_t kvc_params_create(kvc_params **out);
/** Frees it; NULL is legal. What was made with it doesn't need it any more. */
KVC_API void kvc_params_destroy(kvc_params *params);
/** Sets an option. An unknown name or a value out of range answers KVC_E_PARAM and
 * kvc_params_error() names it. */
KVC_API int32_t kvc_params_set_i64(kvc_params *params, const char *name, int64_t value);
/** Sets an option that has a fraction. */
KVC_API int32_t kvc_params_set_f64(kvc_params *params, const char *name, double value);
/** Sets an option from text; numbers are parsed. */
KVC_API int32_t kvc_params_set_str(kvc_params *params, const char *name, const char *value);
/** Uses the caller's memory for everything that is made with these params but the params
 * themselves. */
KVC_API int32_t kvc_params_set_allocator(kvc_params *params, const kvc_allocator *allocator);
/** Receives the log of everything that is made with these params. NULL: silence, as by default. */
KVC_API int32_t kvc_params_set_log(kvc_params *params, kvc_log_fn fn, void *user);
/** Adds a directory to search for policies, before those of the environment. The text is copied. */
KVC_API int32_t kvc_params_add_policy_dir(kvc_params *params, const char *dir);
/** Adds policies that are linked into the program: found before any file. */
KVC_API int32_t kvc_params_add_policy(kvc_params *params,
                                      const kvc_policy *(*entry)(uint32_t host_abi,
                                                                 uint32_t index));
/** What went wrong last with these params or a constructor that was given them; "" when nothing
 * ever did. A success leaves it. */
KVC_API const char *kvc_params_error(const kvc_params *params);

/* ---------------------------------------------------------------- model */

/** What a model is. */
typedef struct kvc_model_info {
    uint32_t struct_size;    /**< set by the caller to its sizeof */
    uint32_t n_layer;        /**< layers */
    uint32_t n_embd;         /**< width */
    uint32_t n_vocab;        /**< tokens in the vocabulary */
    uint32_t n_ctx_train;    /**< context it was trained for */
    uint32_t n_head;         /**< query heads of the first layer */
    uint32_t n_head_kv;      /**< KV heads of the first layer */
    uint32_t head_dim;       /**< elements of a key */
    uint32_t n_threads;      /**< threads that compute */
    int32_t token_bos;       /**< beginning of text, or -1 */
    int32_t token_eos;       /**< end of text, or -1 */
    int32_t token_eot;       /**< end of a chat turn, or -1 */
    uint64_t n_param;        /**< weights */
    uint64_t file_bytes;     /**< size of the file */
    const char *arch;        /**< "llama" */
    const char *name;        /**< general.name of the file, or "" */
    const char *weights;     /**< the most frequent weight type by bytes of the layers, "Q4_1" */
    const char *fingerprint; /**< 32 hexadecimal digits over header, tensor table and samples of the
                                weights */
    uint64_t read_bytes; /**< bytes of the file that decoding one token reads: the layers' weights,
                            the norms, the head (once, also when it is the token table too) and one
                            row of a token table of its own */
    uint64_t n_mac;      /**< multiply-adds of one token in the layers' products; the head and
                            attention are not counted */
    const char *chat;    /**< the family of its chat template, "chatml"; "" when it has none or one
                            that kvc_model_chat() doesn't know */
} kvc_model_info;

/** Opens a GGUF file. params may be NULL. On failure *out is NULL and the sentence is on params.
 * @return KVC_OK, KVC_E_IO, KVC_E_NOT_FOUND, KVC_E_FORMAT, KVC_E_UNSUPPORTED, KVC_E_NOMEM */
KVC_API int32_t kvc_model_open(const char *path, kvc_params *params, kvc_model **out);
/** The same from n bytes in memory, which are not needed after the call. */
KVC_API int32_t kvc_model_open_memory(const void *bytes, size_t n, kvc_params *params,
                                      kvc_model **out);
/** Gives up the caller's hold; the model is freed when its last session is closed. NULL is legal.
 */
KVC_API void kvc_model_close(kvc_model *model);
/** Fills out, whose struct_size is set by the caller. */
KVC_API int32_t kvc_model_get_info(const kvc_model *model, kvc_model_info *out);
/** What went wrong last in a call on this model; "" when nothing did. */
KVC_API const char *kvc_model_error(const kvc_model *model);

/** Tokenizing and detokenizing flags. */
enum {
    KVC_TEXT_SPECIAL =
        1u << 0, /**< text such as `<|im_end|>` is the special token; and such tokens are printed */
    KVC_TEXT_BOS = 1u << 1, /**< begin with the beginning-of-text token if the model wants one */
    KVC_TEXT_EOS = 1u << 2, /**< end with the end-of-text token if the model wants one */
    KVC_TEXT_TRIM = 1u << 3 /**< leave out the spaces that tokenizing put in */
};

/** Text to tokens. text is UTF-8, n bytes, and isn't normalised, but in vocabularies of
 * SentencePiece: to them U+2581 is a space, and those with remove_extra_whitespaces keep only
 * single spaces between words. Some of them begin a text, and go on behind a special token, with a
 * space that isn't in it. Characters without a token become the unknown one. Writes at most cap ids
 * to out and their full number to *n_out; out may be NULL when cap is 0.
 * @return KVC_OK, KVC_E_UTF8 (the sentence gives the byte), KVC_E_NOMEM */
KVC_API int32_t kvc_model_tokenize(kvc_model *model, const char *text, size_t n, uint32_t flags,
                                   int32_t *out, size_t cap, size_t *n_out);
/** Tokens to bytes: writes at most cap to out and their full number to *n_out. A token may end
 * inside a UTF-8 character. Special tokens give nothing unless KVC_TEXT_SPECIAL. The bytes of some
 * tokens are those of each, one after the other, so that an answer can be printed as it comes; with
 * KVC_TEXT_TRIM, for tokens from the beginning of a text on, it is as it was before tokenizing, but
 * for the spaces that kvc_model_tokenize() left out, U+2581 that is now a space, and what became
 * the unknown token.
 * @return KVC_OK, KVC_E_RANGE for an id outside the vocabulary */
KVC_API int32_t kvc_model_detokenize(kvc_model *model, const int32_t *token, size_t n,
                                     uint32_t flags, char *out, size_t cap, size_t *n_out);
/** 1 when a model that gives this token has ended its turn or its text (the file's eos and eot, and
 * tokens known by their text: `<|im_end|>`, `<|eot_id|>`, `<end_of_turn>`, @c \</s\> and the like);
 * 0 for any other, and for what is no token. [any] */
KVC_API uint32_t kvc_model_is_end(const kvc_model *model, int32_t token);

/** One message of a chat. */
typedef struct kvc_chat_message {
    const char *role;    /**< "system", "user" or "assistant" */
    const char *content; /**< UTF-8; NULL is legal when n_content is 0 */
    size_t n_content;    /**< bytes of content */
} kvc_chat_message;

/** Flags of kvc_model_chat(). */
enum {
    KVC_CHAT_PROMPT = 1u << 0 /**< end where the assistant's answer begins, for the model to go on
                               */
};

/** A chat to tokens, in the form that the model was trained on. The markers around the messages
 * become special tokens; the contents are plain text throughout, so that no user can end a turn or
 * begin one by writing `<|im_end|>`: this is why there is no form that gives text. (To see it,
 * detokenize with KVC_TEXT_SPECIAL.) Markers that are no tokens in the model's vocabulary, as
 * `[INST]` of Llama 2, can't be told from the same text in a content.
 *
 * family NULL: the one recognised in the file's chat template by its markers, kvc_model_info.chat;
 * what differs between its versions is read there too. The template itself is never run. Families:
 * "chatml", "llama2", "llama3", "gemma", "mistral", "zephyr". A default system message that a
 * ChatML template holds is used as the template would, when the first message is no system message;
 * a family given by name has none. The tokens begin with the beginning-of-text token if the model
 * or the family wants one. The day of Llama 3.1 is always 26 Jul 2024, its template's own.
 *
 * At most one system message, the first; "llama2", "gemma" and "mistral" want user and assistant in
 * turn after it, the user first. n is at least 1, stride is sizeof(kvc_chat_message) in the caller.
 *
 * To go on with a chat give all its messages again: where the tokens differ from those that the
 * session holds, kvc_session_truncate() to there and decode the rest (one token at least).
 *
 * Writes at most cap ids to out and their full number to *n_out; out may be NULL when cap is 0.
 * @return KVC_OK, KVC_E_ARG (a role, their order, NULL), KVC_E_UNSUPPORTED (no template, one that
 * isn't recognised, or an unknown family: the sentence lists the known ones), KVC_E_UTF8,
 * KVC_E_NOMEM */
KVC_API int32_t kvc_model_chat(kvc_model *model, const char *family,
                               const kvc_chat_message *message, uint32_t n, uint32_t stride,
                               uint32_t flags, int32_t *out, size_t cap, size_t *n_out);

/* ---------------------------------------------------------------- session */

/** Opens a session with a stack of policies: `full`, `window:size=1024:sinks=4+quant8`, or a path,
 * "./my.so:x=1". A word with a slash is a path; others are searched among added policies, added
 * directories, KVC_POLICY_PATH and the installed directory. spec NULL or "" is a
 * stack without policies: everything is kept as f16. On failure *out
 * is NULL and the sentence is on params.
 * @return KVC_OK, KVC_E_SPEC, KVC_E_PARAM, KVC_E_NOT_FOUND, KVC_E_LOAD_…, KVC_E_CONFLICT,
 * KVC_E_POLICY, KVC_E_NOMEM */
KVC_API int32_t kvc_session_open(kvc_model *model, const char *spec, kvc_params *params,
                                 kvc_session **out);
/** Closes it. NULL is legal. Not while a call uses it. */
KVC_API void kvc_session_close(kvc_session *session);

/** Copies a session: the same tokens, the same cache, policies of its own in the same state. Sealed
 * pages are shared until one of the two changes them (they count in both); the copy is independent
 * in every other way. The sentence of a failure is on session.
 * @return KVC_OK, KVC_E_UNSUPPORTED (a policy that can't be copied), KVC_E_NOMEM, KVC_E_BUSY,
 * KVC_E_DEAD, KVC_E_RANGE (forked more than a thousand times), or what kvc_session_open() answers
 */
KVC_API int32_t kvc_session_fork(kvc_session *session, kvc_session **out);
/** Writes a session to a file: tokens, cache, policies' state, with checksums. The file is written
 * beside path and renamed when it is whole, so path holds the old session or the new one, never a
 * part.
 * @return KVC_OK, KVC_E_UNSUPPORTED (a policy that can't be saved), KVC_E_IO, KVC_E_NOMEM,
 * KVC_E_BUSY, KVC_E_DEAD, KVC_E_LOST (a page that a tier has lost: decoding a token computes it
 * again), KVC_E_POLICY */
KVC_API int32_t kvc_session_save(kvc_session *session, const char *path);
/** Opens a session from a file; it goes on where it was saved, with the same logits to the last
 * bit. spec, n_ctx and compute come from the file, the policies are searched by params as in
 * kvc_session_open(). The file has their names alone: one that was given by a path is found when
 * its directory is added, kvc_params_add_policy_dir(). On failure *out is NULL and the sentence is
 * on params.
 * @return KVC_OK, KVC_E_NOT_FOUND, KVC_E_IO, KVC_E_FORMAT (damaged, another version),
 * KVC_E_UNSUPPORTED (another model or version of a policy), or what kvc_session_open() answers */
KVC_API int32_t kvc_session_load(kvc_model *model, const char *path, kvc_params *params,
                                 kvc_session **out);

/** Which logits a run wants. */
enum {
    KVC_WANT_LAST = 0, /**< those of the last token */
    KVC_WANT_NONE = 1, /**< none */
    KVC_WANT_ALL = 2,  /**< of every token */
    KVC_WANT_LIST = 3  /**< of those with want[i] != 0 */
};

/** One session's part of a decode call. */
typedef struct kvc_run {
    uint32_t struct_size; /**< set by the caller to its sizeof */
    uint32_t wants;       /**< KVC_WANT_… */
    kvc_session
        *session; /**< each session at most once a call; all of one model and one way to compute */
    const int32_t *token; /**< [n_token], they follow the session's tokens */
    const uint8_t *want;  /**< [n_token] for KVC_WANT_LIST, else NULL */
    uint32_t n_token;     /**< at least 1 */
    uint32_t prompt_end;  /**< 1: the last token ends a prompt. Also so without it: a token whose
                             logits are wanted  and whose predecessor's were not */
    int32_t status;       /**< out: what became of this session */
    uint32_t n_logits;    /**< out: rows for kvc_session_logits() */
} kvc_run;

/** Computes n runs together; the weights are read once for all. stride is sizeof(kvc_run) in the
 * caller. A run that fails leaves its session as before the call (or dead, KVC_E_POLICY and then
 * KVC_E_DEAD, when a policy broke); the others go on.
 * @return KVC_OK, or the first run's status that is not: KVC_E_ARG, KVC_E_RANGE (token),
 * KVC_E_FULL, KVC_E_BUSY, KVC_E_CANCELLED, KVC_E_NOMEM, KVC_E_IO and KVC_E_LOST (of a tier),
 * KVC_E_POLICY, KVC_E_DEAD */
KVC_API int32_t kvc_decode(kvc_run *run, uint32_t n, uint32_t stride);
/** The same for one session and the last token's logits. A token whose logits are asked for ends a
 * prompt unless its predecessor's were too, and policies may give up entries there: to cut a prompt
 * into several calls, use kvc_session_prefill() for all pieces but the last. */
KVC_API int32_t kvc_session_decode(kvc_session *session, const int32_t *token, uint32_t n);
/** The same without logits: pieces of a prompt that goes on. */
KVC_API int32_t kvc_session_prefill(kvc_session *session, const int32_t *token, uint32_t n);
/** Row i of the wanted logits of the last decode call, [n_vocab]; NULL when there is none. Valid
 * until the next decode, truncate or close of the session. */
KVC_API const float *kvc_session_logits(const kvc_session *session, uint32_t i);
/** Tokens that the session holds. */
KVC_API uint32_t kvc_session_n_past(const kvc_session *session);
/** Copies tokens that the session holds, n from position pos on, to out: of a session that was
 * loaded they are all that says what it is about. @return KVC_OK, KVC_E_RANGE beyond n_past,
 * KVC_E_BUSY */
KVC_API int32_t kvc_session_tokens(const kvc_session *session, uint32_t pos, uint32_t n,
                                   int32_t *out);
/** Forgets the tokens from position n_past on. What the cache has lost of the rest is computed
 * again in the next decode call, and counted. 0 clears. @return KVC_OK, KVC_E_RANGE when n_past is
 * above the present one */
KVC_API int32_t kvc_session_truncate(kvc_session *session, uint32_t n_past);
/** Stops the decode call that uses the session, or the next one, which then answers
 * KVC_E_CANCELLED. [any] */
KVC_API void kvc_session_cancel(kvc_session *session);
/** What went wrong last in a call on this session; "" when nothing did. */
KVC_API const char *kvc_session_error(const kvc_session *session);

/** Counters of a session. Bytes are counted by the library, not claimed by policies. */
typedef struct kvc_session_stats {
    uint32_t struct_size; /**< set by the caller to its sizeof */
    uint32_t n_past;      /**< tokens held */
    uint32_t n_ctx;       /**< most it can hold */
    uint32_t n_stage;     /**< stages of the stack */
    uint64_t kv_bytes; /**< all that the cache holds in memory now: the next four, buffer_bytes and
                          the stages' own */
    uint64_t sealed_bytes;    /**< payload of sealed pages */
    uint64_t open_bytes;      /**< open pages */
    uint64_t meta_bytes;      /**< page tables, masks, positions */
    uint64_t column_bytes;    /**< columns beside the entries */
    uint64_t stage_bytes;     /**< what policies hold by the host's allocator or accounted for */
    uint64_t disk_bytes;      /**< bytes of files */
    uint64_t kv_peak_bytes;   /**< the most that kv_bytes has been */
    uint64_t n_computed;      /**< tokens computed, replayed ones included */
    uint64_t n_replayed;      /**< tokens computed again */
    uint64_t n_entry;         /**< live entries over all lanes */
    uint64_t compute_ns;      /**< time in decode calls */
    uint64_t attention_ns;    /**< of it in attention and the cache */
    uint64_t policy_ns;       /**< of it in hooks on the clock */
    uint32_t chunk_invariant; /**< 1: every stage has KVC_CAP_CHUNK_INVARIANT */
    uint32_t flags;           /**< KVC_PLAN_… of the merged plan */
    uint64_t buffer_bytes;    /**< buffers for pages on their way from and to a tier */
    uint64_t tier_bytes; /**< payload of the sealed pages that live in a tier, as it would be in
                            memory */
    uint64_t n_lost;     /**< times that pages which the tier had lost were computed again */
    uint64_t wait_ns;    /**< time that threads waited for pages, all threads together */
    uint32_t compute;    /**< KVC_COMPUTE_… */
    uint32_t pad;        /**< 0 */
} kvc_session_stats;

/** Fills out, whose struct_size is set by the caller. */
KVC_API int32_t kvc_session_get_stats(const kvc_session *session, kvc_session_stats *out);
/** The spec with every parameter filled in, "window:size=1024:sinks=4:positions=original". */
KVC_API const char *kvc_session_spec(const kvc_session *session);

/** One stage's figures. */
typedef struct kvc_stage_stats {
    uint32_t struct_size;   /**< set by the caller to its sizeof */
    uint32_t pad;           /**< 0 */
    const char *name;       /**< of the policy */
    const char *path;       /**< its file; "" when linked in */
    uint64_t memory_bytes;  /**< counted by the host */
    uint64_t peak_bytes;    /**< the most of it */
    uint64_t disk_bytes;    /**< counted by the host */
    uint64_t hook_ns;       /**< time in its [decode] hooks */
    uint64_t n_evicted;     /**< entries given up, as the policy says */
    uint64_t n_selected;    /**< pages left to be read by select(), as the policy says */
    uint64_t n_skipped;     /**< pages taken out by select(), as the policy says */
    uint64_t stored_bytes;  /**< what the pages in a tier take there, as the policy says */
    uint64_t tier_ns;       /**< time in the tier's functions, all threads together */
    uint64_t n_put;         /**< pages given to the tier */
    uint64_t n_get;         /**< pages brought back from it */
    uint64_t worker_ns;     /**< time in append(), select() and its codec's encode(), all threads
                               together; what reading its pages costs is in attention_ns */
    uint64_t payload_bytes; /**< of the stage that answers the format: sealed pages, wherever they
                               live, as they are in memory */
} kvc_stage_stats;

/** Fills out for the i-th stage. @return KVC_OK, KVC_E_RANGE */
KVC_API int32_t kvc_session_get_stage(const kvc_session *session, uint32_t i, kvc_stage_stats *out);

/* ---------------------------------------------------------------- sampler */

/** Makes a sampler: greedy, or by temperature, top_k, top_p, min_p and seed of the params. */
KVC_API int32_t kvc_sampler_create(kvc_params *params, kvc_sampler **out);
/** Frees it; NULL is legal. */
KVC_API void kvc_sampler_destroy(kvc_sampler *sampler);
/** Picks a token. Order: top-k, temperature, top-p, min-p. Ties go to the lowest id; NaN is never
 * picked. With a temperature each call takes one random number of the seed's sequence, whatever the
 * logits.
 * @return the id, or a negative status: KVC_E_ARG, KVC_E_NOMEM */
KVC_API int32_t kvc_sampler_sample(kvc_sampler *sampler, const float *logits, uint32_t n_vocab);

/* ---------------------------------------------------------------- policies that can be loaded */

/** One policy that was found, or one file that is broken. */
typedef struct kvc_policy_info {
    uint32_t struct_size; /**< set by the caller to its sizeof */
    int32_t status;       /**< KVC_OK, or why it can't be loaded */
    const char *name;     /**< its name; for a broken file the file's */
    const char *path;     /**< its file; "" when linked in */
    const char *version;  /**< "" when broken */
    const char *summary;  /**< one line; "" when broken */
    const char *license;  /**< SPDX identifier; "" when broken */
    const char *error;    /**< "" or the sentence */
    uint64_t caps;        /**< KVC_CAP_… */
    uint32_t abi;         /**< it was built with */
    uint32_t n_param;     /**< rows of its parameter table */
} kvc_policy_info;

/** Looks for policies where a session would. @return KVC_OK, KVC_E_NOMEM */
KVC_API int32_t kvc_policies_open(kvc_params *params, kvc_policies **out);
/** Frees the list; NULL is legal. */
KVC_API void kvc_policies_close(kvc_policies *list);
/** Entries in the list, in order of name; broken ones last. */
KVC_API uint32_t kvc_policies_count(const kvc_policies *list);
/** Fills out for entry i; its strings live as long as the list. @return KVC_OK, KVC_E_RANGE */
KVC_API int32_t kvc_policies_get(const kvc_policies *list, uint32_t i, kvc_policy_info *out);
/** Row `param` of entry i's parameter table; *out lives as long as the list. @return KVC_OK,
 * KVC_E_RANGE */
KVC_API int32_t kvc_policies_param(const kvc_policies *list, uint32_t i, uint32_t param,
                                   const kvc_param **out);
/** The directories that were searched, ':' between them. */
KVC_API const char *kvc_policies_path(const kvc_policies *list);

#ifdef __cplusplus
}
#endif
#endif

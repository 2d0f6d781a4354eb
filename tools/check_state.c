/* SPDX-License-Identifier: MIT
 * check_state.c: the group "state": forks and saved sessions go on as their original, a saved file
 * is the same when it is saved again, and one that is damaged is refused. */
#include "check_kit.h"
#include "check_stages.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_CTX = 320 };

#define FIRST  "first"
#define SECOND "second"

static const chk_way before = {.n_prompt = 140, .chunk = 75, .n_step = 25};
static const chk_way after = {.n_prompt = 30, .n_step = 30};
enum { AT = 165 };

/* Whether a refusal is one that a policy may give; else it is said. */
static bool refused(chk *c, const char *stack, const char *what, int32_t rc, const char *text) {
    if (rc == KVC_E_UNSUPPORTED && text[0] != '\0') {
        chk_skip(c, "%s: can't be %s: %s", stack, what, text);
        return true;
    }
    chk_fail(c, "%s: can't be %s: %s (%s)", stack, what, text, kvc_status_name(rc));
    return true;
}

/* ---------------------------------------------------------------- fork */

/* The fork goes another way first, then the original goes on, then a second fork as the original
 * did. */
static void fork_one(chk *c, kvc_model *model, const char *stack) {
    const uint32_t n = CHK_ROWS(after);
    const int32_t *text = chk_text(c, 0), *other = chk_text(c, 1);
    float *row[4];
    char why[128];
    for (int i = 0; i < 4; i++) {
        row[i] = chk_rows(n);
    }
    kvc_session *s = chk_open(c, model, stack, "int8", N_CTX), *twin = NULL, *second = NULL;
    kvc_session *alone = chk_open(c, model, stack, "int8", N_CTX);
    bool good = s != NULL && alone != NULL && chk_go(c, s, text, before, row[0]) &&
                chk_go(c, alone, text, before, row[0]);
    int32_t rc = good ? kvc_session_fork(s, &twin) : KVC_OK;
    rc = rc < 0 || !good ? rc : kvc_session_fork(s, &second);
    if (good && rc < 0) {
        good = !refused(c, stack, "forked", rc, kvc_session_error(s));
    }
    good = good && chk_go(c, twin, other + AT, after, row[3]) &&
           chk_go(c, alone, text + AT, after, row[0]) && chk_go(c, s, text + AT, after, row[1]) &&
           chk_go(c, second, text + AT, after, row[2]);
    if (good && !chk_equal(row[0], row[1], n, why, sizeof why)) {
        chk_fail(c, "%s: a session that was forked goes on otherwise: %s", stack, why);
    } else if (good && !chk_equal(row[0], row[2], n, why, sizeof why)) {
        chk_fail(c, "%s: a fork goes on otherwise than its original: %s", stack, why);
    }
    kvc_session_close(s);
    kvc_session_close(twin);
    kvc_session_close(second);
    kvc_session_close(alone);
    for (int i = 0; i < 4; i++) {
        free(row[i]);
    }
}

void chk_state_fork(chk *c) {
    kvc_model *model = chk_prepare(c) ? chk_open_model(c, &chk_base, 1) : NULL;
    for (uint32_t i = 0; model != NULL && i < c->n_stack; i++) {
        fork_one(c, model, c->stack[i]);
    }
    kvc_model_close(model);
}

/* ---------------------------------------------------------------- save and load */

static char *read_file(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    char *p = NULL;
    *n = 0;
    if (f != NULL && fseek(f, 0, SEEK_END) == 0) {
        const long size = ftell(f);
        rewind(f);
        p = size > 0 ? malloc((size_t)size) : NULL;
        *n = p != NULL ? fread(p, 1, (size_t)size, f) : 0;
    }
    if (f != NULL) {
        fclose(f);
    }
    return p;
}

static bool write_file(const char *path, const char *p, size_t n) {
    FILE *f = fopen(path, "wb");
    const bool good = f != NULL && fwrite(p, 1, n, f) == n;
    return f != NULL && fclose(f) == 0 && good;
}

static bool same_files(void) {
    size_t na, nb;
    char *a = read_file(FIRST, &na), *b = read_file(SECOND, &nb);
    const bool same = a != NULL && b != NULL && na == nb && memcmp(a, b, na) == 0;
    free(a);
    free(b);
    return same;
}

static int32_t load(chk *c, kvc_model *model, const char *path, kvc_session **out, char *why,
                    size_t cap) {
    kvc_params *p = chk_params(c, "f32", 0, true);
    const int32_t rc = kvc_session_load(model, path, p, out);
    snprintf(why, cap, "%s", kvc_params_error(p));
    kvc_params_destroy(p);
    return rc;
}

/* A session of `before` that is saved to FIRST; NULL: it can't be, and that is said. */
static kvc_session *saved(chk *c, kvc_model *model, const char *stack) {
    float *row = chk_rows(CHK_ROWS(before));
    kvc_session *s = chk_open(c, model, stack, "int8", N_CTX);
    bool good = s != NULL && chk_go(c, s, chk_text(c, 0), before, row);
    const int32_t rc = good ? kvc_session_save(s, FIRST) : KVC_OK;
    if (rc < 0) {
        good = !refused(c, stack, "saved", rc, kvc_session_error(s));
    }
    free(row);
    if (!good) {
        kvc_session_close(s);
        return NULL;
    }
    return s;
}

static void save_one(chk *c, kvc_model *model, const char *stack) {
    const uint32_t n = CHK_ROWS(after);
    float *a = chk_rows(n), *b = chk_rows(n);
    char why[512];
    kvc_session *twin = NULL, *s = saved(c, model, stack);
    int32_t rc = s != NULL ? load(c, model, FIRST, &twin, why, sizeof why) : KVC_OK;
    if (rc < 0) {
        chk_fail(c, "%s: what was saved can't be loaded: %s (%s)", stack, why, kvc_status_name(rc));
    } else if (s != NULL && (rc = kvc_session_save(twin, SECOND)) < 0) {
        chk_fail(c, "%s: what was loaded can't be saved: %s", stack, kvc_session_error(twin));
    } else if (s != NULL && !same_files()) {
        chk_fail(c, "%s: saved, loaded and saved again, a session gives another file", stack);
    } else if (s != NULL && chk_go(c, s, chk_text(c, 0) + AT, after, a) &&
               chk_go(c, twin, chk_text(c, 0) + AT, after, b) &&
               !chk_equal(a, b, n, why, sizeof why)) {
        chk_fail(c, "%s: a loaded session goes on otherwise than its original: %s", stack, why);
    }
    kvc_session_close(s);
    kvc_session_close(twin);
    free(a);
    free(b);
}

void chk_state_save(chk *c) {
    kvc_model *model = chk_prepare(c) ? chk_open_model(c, &chk_base, 1) : NULL;
    for (uint32_t i = 0; model != NULL && i < c->n_stack; i++) {
        save_one(c, model, c->stack[i]);
    }
    kvc_model_close(model);
}

/* ---------------------------------------------------------------- damaged files */

/* Writes a damaged copy and loads it, which must be refused with a sentence. */
static bool refuses(chk *c, kvc_model *model, const char *bytes, size_t n, const char *what) {
    char why[512];
    kvc_session *s = NULL;
    if (!write_file(SECOND, bytes, n)) {
        chk_fail(c, "a file for the test can't be written");
        return false;
    }
    const int32_t rc = load(c, model, SECOND, &s, why, sizeof why);
    if (rc == KVC_OK) {
        chk_fail(c, "%s: the file is loaded all the same", what);
    } else if (why[0] == '\0' || s != NULL) {
        chk_fail(c, "%s: refused without a sentence", what);
    }
    kvc_session_close(s);
    return rc < 0;
}

void chk_state_damaged(chk *c) {
    enum { N_FLIP = 200, N_CUT = 60 };
    kvc_model *model = chk_prepare(c) ? chk_open_model(c, &chk_base, 1) : NULL;
    kvc_session *s = model != NULL ? saved(c, model, c->stack[0]) : NULL;
    size_t n = 0;
    char *bytes = s != NULL ? read_file(FIRST, &n) : NULL, what[96];
    bool good = bytes != NULL && n > 0;
    for (uint32_t i = 0; good && i < N_FLIP; i++) {
        /* Half of them near the beginning, where the sizes are. */
        const size_t at = chk_random(c) % (i % 2 == 0 || n < 512 ? n : 512);
        const char flip = (char)(1u << chk_below(c, 8));
        snprintf(what, sizeof what, "byte %zu of %zu is damaged", at, n);
        bytes[at] ^= flip;
        good = refuses(c, model, bytes, n, what);
        bytes[at] ^= flip;
    }
    for (uint32_t i = 0; good && i < N_CUT; i++) {
        const size_t at = i == 0 ? 0 : i == 1 ? n - 1 : chk_random(c) % n;
        snprintf(what, sizeof what, "cut to %zu of %zu bytes", at, n);
        good = refuses(c, model, bytes, at, what);
    }
    if (good) {
        chk_info(c, "%u damaged and %u cut files of %zu bytes were refused", (unsigned)N_FLIP,
                 (unsigned)N_CUT, n);
        chk_memory_judge(c, "damaged files");
    }
    free(bytes);
    kvc_session_close(s);
    kvc_model_close(model);
}

/* ---------------------------------------------------------------- hostile state */

/* A file's checksums can be made good by who wants to do harm, so load() itself is given damaged
 * bytes, by way of a fork. Whatever it answers, nothing crashes and the original lives. */
void chk_state_hostile(chk *c) {
    enum { N = 150 };
    const chk_way one = {.n_prompt = 1};
    kvc_model *model = chk_prepare(c) ? chk_open_model(c, &chk_base, 1) : NULL;
    if (model != NULL && c->api.load == NULL) {
        chk_skip(c, "it has no load()");
    } else if (model != NULL) {
        kvc_params *p = chk_params(c, "int8", N_CTX, true);
        kvc_session *s = NULL;
        uint32_t n_refused = 0;
        bool good = kvc_session_open(model, c->spec, p, &s) == KVC_OK &&
                    chk_prefill(c, s, chk_text(c, 0), 140, 0);
        for (uint32_t i = 0; good && i < N; i++) {
            kvc_session *twin = NULL;
            chk_shim_damage(chk_random(c) | 1);
            n_refused += kvc_session_fork(s, &twin) < 0;
            chk_shim_damage(0);
            if (twin != NULL) {
                (void)kvc_session_decode(twin, chk_text(c, 0) + 140, 5); /* anything but a crash */
            }
            kvc_session_close(twin);
        }
        float row[CHK_N_VOCAB];
        if (good && chk_go(c, s, chk_text(c, 0) + 140, one, row)) {
            chk_info(c, "%u of %u damaged states were refused by load()", n_refused, (unsigned)N);
        }
        kvc_session_close(s);
        kvc_params_destroy(p);
        chk_memory_judge(c, "damaged states");
    }
    kvc_model_close(model);
}

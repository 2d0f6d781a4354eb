/* SPDX-License-Identifier: MIT
 * run_session.c: opens, saves and replaces the session of a run. A session in a file has its own
 * policies, context and way to compute: the command line may repeat them, not change them. */
#include "run_session.h"

#include "interrupt.h"
#include "outcome.h"

#include <errno.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int no_memory(void) {
    return cmp_complain(CMP_EXIT_FAILED, "out of memory");
}

static kvc_session_stats stats_of(const kvc_session *session) {
    kvc_session_stats stats = {.struct_size = sizeof stats};
    kvc_session_get_stats(session, &stats);
    return stats;
}

/* The session takes the job's place for one; spec is copied. */
static int take(run_job *job, kvc_session *session, const char *spec) {
    char *copy = strdup(spec);
    if (copy == NULL) {
        kvc_session_close(session);
        return no_memory();
    }
    run_session_close(job);
    job->session = session;
    job->spec = copy;
    cmp_interrupt_watch(session);
    return 0;
}

void run_session_close(run_job *job) {
    cmp_interrupt_forget(job->session);
    kvc_session_close(job->session);
    free(job->spec);
    job->session = NULL;
    job->spec = NULL;
}

/* ---------------------------------------------------------------- from a file */

/* Before an hour's conversation, not behind it. */
static int check_writable(const char *path) {
    char *copy = strdup(path);
    if (copy == NULL) {
        return no_memory();
    }
    const char *dir = dirname(copy);
    const int code =
        access(dir, W_OK | X_OK) == 0
            ? 0
            : cmp_complain(CMP_EXIT_USAGE,
                           "--session=%s can't be written there: %s: %s; choose another place",
                           path, dir, strerror(errno));
    free(copy);
    return code;
}

/* --policy against the session's own, both with every parameter filled in. */
static int check_policy(run_job *job, const kvc_session *loaded) {
    const run_options *o = job->o;
    const kvc_session_stats stats = stats_of(loaded);
    kvc_session *asked = NULL;
    kvc_params_set_i64(job->params, "n_ctx", stats.n_ctx);
    kvc_params_set_i64(job->params, "compute", stats.compute);
    const int32_t rc = kvc_session_open(job->model, o->policy, job->params, &asked);
    if (rc < 0) {
        return cmp_complain(cmp_exit_code(rc), "%s", kvc_params_error(job->params));
    }
    const char *have = kvc_session_spec(loaded);
    const int code = strcmp(have, kvc_session_spec(asked)) == 0
                         ? 0
                         : cmp_complain(CMP_EXIT_USAGE,
                                        "%s was saved with the policy %s, not %s: leave --policy "
                                        "out, or name another --session",
                                        o->session, have, o->policy);
    kvc_session_close(asked);
    return code;
}

static int check_same(run_job *job, const kvc_session *loaded) {
    static const char *const name[] = {"int8", "f32"};
    const run_options *o = job->o;
    const kvc_session_stats stats = stats_of(loaded);
    if (o->ctx != 0 && o->ctx != stats.n_ctx) {
        return cmp_complain(CMP_EXIT_USAGE,
                            "%s was saved with a context of %u tokens, not %u: leave --ctx out, or "
                            "name another --session",
                            o->session, stats.n_ctx, o->ctx);
    }
    if (o->compute != NULL && strcmp(o->compute, name[stats.compute]) != 0) {
        return cmp_complain(CMP_EXIT_USAGE,
                            "%s was saved with --compute=%s, not %s: leave --compute out, or name "
                            "another --session",
                            o->session, name[stats.compute], o->compute);
    }
    return o->policy != NULL ? check_policy(job, loaded) : 0;
}

/* A file names its policies without their paths: those of --policy say where to look first. */
static int add_dirs(const run_job *job) {
    const char *word = job->o->policy != NULL ? job->o->policy : "";
    for (size_t n; *word != '\0'; word += n + (word[n] == '+')) {
        size_t dir = strcspn(word, ":+");
        while (dir > 0 && word[dir - 1] != '/') {
            dir--;
        }
        char *copy = dir > 0 ? strndup(word, dir) : NULL;
        if (dir > 0 && (copy == NULL || kvc_params_add_policy_dir(job->params, copy) < 0)) {
            free(copy);
            return no_memory();
        }
        free(copy);
        n = strcspn(word, "+");
    }
    return 0;
}

static int load(run_job *job) {
    kvc_session *loaded = NULL;
    if (add_dirs(job) != 0) {
        return CMP_EXIT_FAILED;
    }
    const int32_t rc = kvc_session_load(job->model, job->o->session, job->params, &loaded);
    if (rc == KVC_E_UNSUPPORTED || rc == KVC_E_FORMAT) {
        return cmp_complain(rc == KVC_E_FORMAT ? CMP_EXIT_FAILED : CMP_EXIT_USAGE,
                            "%s; name another --session to begin anew",
                            kvc_params_error(job->params));
    }
    if (rc < 0) {
        return cmp_complain(cmp_exit_code(rc), "%s%s", kvc_params_error(job->params),
                            rc == KVC_E_NOT_FOUND ? "; a --policy with its path does it too" : "");
    }
    const int code = check_same(job, loaded);
    if (code != 0) {
        kvc_session_close(loaded);
        return code;
    }
    return take(job, loaded, kvc_session_spec(loaded));
}

/* ---------------------------------------------------------------- open, renew, save */

static int open_new(run_job *job, const char *spec, kvc_session **out) {
    const int32_t rc = kvc_session_open(job->model, spec, job->params, out);
    return rc >= 0 ? 0 : cmp_complain(cmp_exit_code(rc), "%s", kvc_params_error(job->params));
}

int run_session_open(run_job *job) {
    const run_options *o = job->o;
    if (o->session != NULL) {
        const int code = check_writable(o->session);
        if (code != 0 || access(o->session, F_OK) == 0) {
            return code != 0 ? code : load(job);
        }
    }
    const char *spec = o->policy != NULL ? o->policy : "full";
    kvc_session *session = NULL;
    const int code = open_new(job, spec, &session);
    return code != 0 ? code : take(job, session, spec);
}

/* The tokens of job->session into another. */
static int compute_again(const run_job *job, kvc_session *session) {
    const uint32_t n = kvc_session_n_past(job->session);
    run_job other = *job;
    other.session = session;
    other.pending = (run_tokens){.p = malloc((n + 1u) * sizeof(int32_t)), .n = n, .cap = n};
    int code = 0;
    if (other.pending.p == NULL) {
        return no_memory();
    }
    if (kvc_session_tokens(job->session, 0, n, other.pending.p) < 0) {
        code = cmp_complain(CMP_EXIT_FAILED, "the session is in use");
    }
    cmp_interrupt_watch(session);
    code = code != 0 ? code : run_settle(&other);
    cmp_interrupt_forget(session);
    free(other.pending.p);
    return code;
}

int run_session_renew(run_job *job, const char *spec, bool keep) {
    const kvc_session_stats stats = stats_of(job->session);
    kvc_session *session = NULL;
    kvc_params_set_i64(job->params, "n_ctx", stats.n_ctx);
    kvc_params_set_i64(job->params, "compute", stats.compute);
    int code = open_new(job, spec, &session);
    if (code == 0 && keep) {
        code = compute_again(job, session);
    }
    if (code != 0) {
        kvc_session_close(session);
        return code;
    }
    if (!keep) {
        job->pending.n = 0;
    }
    return take(job, session, spec);
}

/* Whether a file that is there begins as kvc_session_save() begins one. */
static bool is_session(const char *path) {
    static const char magic[] = "kvcsess\n";
    char have[sizeof magic] = "";
    struct stat st;
    FILE *f = stat(path, &st) == 0 && S_ISREG(st.st_mode) ? fopen(path, "r") : NULL;
    if (f == NULL) {
        return false;
    }
    const size_t n = fread(have, 1, sizeof magic - 1, f);
    fclose(f);
    return n == sizeof magic - 1 && memcmp(have, magic, n) == 0;
}

int run_session_check_place(const char *path) {
    return access(path, F_OK) != 0 || is_session(path)
               ? 0
               : cmp_complain(CMP_EXIT_FAILED,
                              "%s is there and is not a saved session; name another file", path);
}

int run_session_save(run_job *job, const char *path) {
    if (run_held(job) < kvc_session_n_past(job->session) + job->pending.n) {
        job->pending.n = 0; /* a full context: nothing can follow anyway */
    }
    const int code = run_settle(job);
    if (code != 0) {
        return code;
    }
    const int32_t rc = kvc_session_save(job->session, path);
    return rc >= 0 ? 0
                   : cmp_complain(CMP_EXIT_FAILED, "the conversation can't be saved: %s",
                                  kvc_session_error(job->session));
}

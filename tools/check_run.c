/* SPDX-License-Identifier: MIT
 * check_run.c: a child process for each test. What it finds comes back through one pipe as records
 * (kind, length, text), what the policy prints through another. A child that ends without its last
 * record has crashed, or was ended by the policy. The parent loads no policy. */
#include "check_run.h"

#include "progress.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_BYTES ((size_t)4 << 20) /* of records, and of what is printed */

volatile int chk_run_pid;

const char *chk_outcome_name(int outcome) {
    static const char *const name[] = {"passed", "warned", "failed", "crashed", "skipped"};
    return name[outcome];
}

/* ---------------------------------------------------------------- notes */

static bool note_add(chk_result *r, char kind, const char *text, size_t n) {
    char *copy = strndup(text, n);
    chk_note *grown = copy != NULL ? realloc(r->note, (r->n_note + 1u) * sizeof *grown) : NULL;
    if (grown == NULL) {
        free(copy);
        return false;
    }
    r->note = grown;
    r->note[r->n_note++] = (chk_note){kind, copy};
    return true;
}

/* Takes a record in. */
static void accept(chk_result *r, char kind, const char *text, size_t n) {
    if (kind == CHK_TABLE) {
        free(r->table);
        r->table = strndup(text, n);
    } else if (kind != CHK_DONE) {
        (void)note_add(r, kind, text, n);
    }
}

/* The outcome that the notes of a test make. A test of several stacks may skip one. */
static int outcome_of(const chk_result *r) {
    int outcome = CHK_PASSED;
    for (uint32_t i = 0; i < r->n_note; i++) {
        const char kind = r->note[i].kind;
        if (kind == CHK_FAIL) {
            return CHK_FAILED;
        }
        outcome = kind == CHK_WARN                            ? CHK_WARNED
                  : kind == CHK_SKIP && outcome == CHK_PASSED ? CHK_SKIPPED
                                                              : outcome;
    }
    return outcome;
}

void chk_result_free(chk_result *r) {
    for (uint32_t i = 0; i < r->n_note; i++) {
        free(r->note[i].text);
    }
    free(r->note);
    free(r->table);
    memset(r, 0, sizeof *r);
}

bool chk_run_skip(const chk_test *test, const char *why, chk_result *out) {
    *out = (chk_result){.test = test, .outcome = CHK_SKIPPED};
    return note_add(out, CHK_SKIP, why, strlen(why));
}

/* ---------------------------------------------------------------- the child */

static void run_test(const chk_target *t, const chk_test *test,
                     void (*put)(void *ctx, char kind, const char *text), void *ctx) {
    static chk c;
    c = (chk){.path = t->path,
              .name = t->name,
              .params = t->params,
              .dir = t->dir,
              .seed = t->seed,
              .rng = t->seed,
              .put = put,
              .put_ctx = ctx};
    for (const char *p = test->name; *p != '\0'; p++) {
        c.rng = c.rng * 31 + (unsigned char)*p;
    }
    test->fn(&c);
}

static void write_all(int fd, const void *bytes, size_t n) {
    for (const char *p = bytes; n > 0;) {
        const ssize_t w = write(fd, p, n);
        if (w < 0 && errno != EINTR) {
            return;
        }
        p += w > 0 ? w : 0;
        n -= w > 0 ? (size_t)w : 0;
    }
}

static void put_pipe(void *ctx, char kind, const char *text) {
    const uint32_t n = (uint32_t)strlen(text);
    const int fd = *(const int *)ctx;
    write_all(fd, &kind, 1);
    write_all(fd, &n, sizeof n);
    write_all(fd, text, n);
}

static void child(const chk_target *t, const chk_test *test, int records, int printed) {
    (void)setpgid(0, 0);
    (void)signal(SIGINT, SIG_DFL);
    (void)signal(SIGTERM, SIG_DFL);
    (void)dup2(printed, STDOUT_FILENO);
    (void)dup2(printed, STDERR_FILENO);
    if (chdir(t->dir) == 0) {
        run_test(t, test, put_pipe, &records);
        put_pipe(&records, CHK_DONE, "");
    }
    (void)fflush(NULL);
    _exit(0);
}

/* ---------------------------------------------------------------- the parent */

/* Bytes that come from a child. */
typedef struct inbox {
    char *p;
    size_t n, cap;
} inbox;

/* Reads once; false at the end. What is too much is thrown away. */
static bool receive(int fd, inbox *in) {
    char buf[4096];
    const ssize_t n = read(fd, buf, sizeof buf);
    if (n <= 0) {
        return n < 0 && (errno == EINTR || errno == EAGAIN);
    }
    if (in->n + (size_t)n > in->cap && in->cap < MAX_BYTES) {
        const size_t cap = in->cap > 0 ? 2 * in->cap : 2 * sizeof buf;
        char *p = realloc(in->p, cap);
        if (p != NULL) {
            in->p = p;
            in->cap = cap;
        }
    }
    if (in->n + (size_t)n <= in->cap) {
        memcpy(in->p + in->n, buf, (size_t)n);
        in->n += (size_t)n;
    }
    return true;
}

/* Reads both pipes until both end, or `end` has come; false then. */
static bool listen_to(const int fd[2], inbox in[2], uint64_t end) {
    bool open[2] = {true, true};
    while (open[0] || open[1]) {
        const uint64_t now = cmp_clock_ns();
        if (now >= end) {
            return false;
        }
        struct pollfd p[2] = {{.fd = open[0] ? fd[0] : -1, .events = POLLIN},
                              {.fd = open[1] ? fd[1] : -1, .events = POLLIN}};
        const uint64_t left = (end - now) / 1000000 + 1;
        if (poll(p, 2, left < 1000 ? (int)left : 1000) < 0 && errno != EINTR) {
            return false;
        }
        for (int i = 0; i < 2; i++) {
            if (open[i] && (p[i].revents & (POLLIN | POLLHUP | POLLERR)) != 0) {
                open[i] = receive(fd[i], &in[i]);
            }
        }
    }
    return true;
}

/* Records to notes; whether the last was CHK_DONE. */
static bool parse(chk_result *r, const inbox *in) {
    bool done = false;
    for (size_t at = 0; in->n - at >= 1 + sizeof(uint32_t);) {
        uint32_t n;
        const char kind = in->p[at];
        memcpy(&n, in->p + at + 1, sizeof n);
        at += 1 + sizeof n;
        if (n > in->n - at) {
            return false;
        }
        accept(r, kind, in->p + at, n);
        done = kind == CHK_DONE;
        at += n;
    }
    return done;
}

/* What the policy printed is news in itself; of a crash it often says where. */
static void add_printed(chk_result *r, const inbox *in, bool crashed) {
    char text[600];
    size_t n = 0;
    if (in->n == 0) {
        return;
    }
    n = (size_t)snprintf(text, sizeof text, "%s",
                         crashed ? "printed: " : "a policy never prints; this was printed: ");
    for (size_t i = 0; i < in->n && n + 1 < sizeof text; i++) {
        const unsigned char ch = (unsigned char)in->p[i];
        text[n++] = ch == '\n' || ch == '\t' ? ' ' : ch < 0x20 || ch > 0x7e ? '?' : (char)ch;
    }
    (void)note_add(r, crashed ? CHK_INFO : CHK_WARN, text, n);
}

/* What became of a child that is gone. */
static void conclude(chk_result *r, const inbox in[2], int status, bool in_time, uint32_t timeout) {
    char text[160] = "";
    const bool done = parse(r, &in[0]);
    if (!in_time) {
        snprintf(text, sizeof text, "not done after %u seconds, and ended; --timeout gives more",
                 timeout);
        (void)note_add(r, CHK_FAIL, text, strlen(text));
    } else if (WIFSIGNALED(status)) {
        snprintf(text, sizeof text, "the process was ended by signal %d (%s)", WTERMSIG(status),
                 strsignal(WTERMSIG(status)));
    } else if (!done) {
        snprintf(text, sizeof text, "the process ended inside the test, with exit code %d",
                 WEXITSTATUS(status));
    }
    const bool crashed = in_time && text[0] != '\0';
    add_printed(r, &in[1], crashed);
    r->outcome = outcome_of(r);
    if (crashed) {
        (void)note_add(r, CHK_FAIL, text, strlen(text));
        r->outcome = CHK_CRASHED;
    }
}

/* Waits for a child that has closed its pipes, or ends it, and with it whatever it has started: as
 * long as it isn't waited for, its number is no one else's. */
static int reap(pid_t pid, bool in_time) {
    siginfo_t info;
    int status = 0;
    if (in_time) {
        while (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT) < 0 && errno == EINTR) {
        }
    }
    (void)kill(-pid, SIGKILL);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return status;
}

static bool run_child(const chk_target *t, const chk_test *test, chk_result *r) {
    int records[2] = {-1, -1}, printed[2] = {-1, -1};
    inbox in[2] = {{NULL, 0, 0}, {NULL, 0, 0}};
    (void)fflush(NULL);
    if (pipe(records) != 0 || pipe(printed) != 0) {
        return false;
    }
    const pid_t pid = fork();
    if (pid == 0) {
        close(records[0]);
        close(printed[0]);
        child(t, test, records[1], printed[1]);
    }
    close(records[1]);
    close(printed[1]);
    if (pid > 0) {
        (void)setpgid(pid, pid);
        chk_run_pid = pid;
        const uint64_t end = cmp_clock_ns() + (uint64_t)t->timeout * 1000000000u;
        const bool in_time = listen_to((int[2]){records[0], printed[0]}, in, end);
        const int status = reap(pid, in_time);
        chk_run_pid = 0;
        conclude(r, in, status, in_time, t->timeout);
    }
    close(records[0]);
    close(printed[0]);
    free(in[0].p);
    free(in[1].p);
    return pid > 0;
}

static void put_here(void *ctx, char kind, const char *text) {
    accept(ctx, kind, text, strlen(text));
}

bool chk_run(const chk_target *t, const chk_test *test, chk_result *out) {
    const uint64_t start = cmp_clock_ns();
    bool good = true;
    *out = (chk_result){.test = test};
    if (t->in_process) {
        good = chdir(t->dir) == 0;
        if (good) {
            run_test(t, test, put_here, out);
            out->outcome = outcome_of(out);
        }
    } else {
        good = run_child(t, test, out);
    }
    if (!good) {
        fprintf(stderr, "kvcheck: %s/%s can't be run: %s\n", test->group, test->name,
                strerror(errno));
    }
    out->seconds = (double)(cmp_clock_ns() - start) / 1e9;
    return good;
}

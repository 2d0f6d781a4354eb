/* SPDX-License-Identifier: MIT
 * outcome.c: how a tool ends. Ctrl-C and the progress line are the reasons why nobody else prints.
 */
#include "outcome.h"

#include "interrupt.h"
#include "progress.h"
#include "report.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *tool = "kvcompare";

void cmp_streams_hold(void) {
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        /* open() takes the lowest that is free; the wrong way round, so that its use is noticed. */
        if (fcntl(fd, F_GETFD) == -1 &&
            open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) != fd) {
            _exit(CMP_EXIT_FAILED);
        }
    }
}

void cmp_outcome_tool(const char *name) {
    tool = name;
}

/* One line on stderr; text may be a policy's or a file's. */
static void write_line(const char *kind, const char *text) {
    fprintf(stderr, "%s: %s", tool, kind);
    cmp_text_put(stderr, text, strlen(text));
    fputc('\n', stderr);
}

int cmp_complain(int code, const char *format, ...) {
    cmp_progress_end();
    if (cmp_interrupted()) {
        return CMP_EXIT_INTERRUPTED;
    }
    char text[4096];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    write_line("", text);
    return code;
}

int cmp_exit_code(int32_t status) {
    switch (status) {
    case KVC_E_SPEC:
    case KVC_E_PARAM:
    case KVC_E_NOT_FOUND:
    case KVC_E_CONFLICT:
    case KVC_E_LOAD_FILE:
    case KVC_E_LOAD_OPEN:
    case KVC_E_LOAD_SYMBOL: /* the file is no policy: another was meant */
        return CMP_EXIT_USAGE;
    default:
        return CMP_EXIT_FAILED;
    }
}

void cmp_log(void *user, uint32_t level, const char *text) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static char seen[16][256];
    static size_t n_seen;
    const int *notes = user;
    if (level < KVC_LOG_WARN && *notes == 0) {
        return;
    }
    pthread_mutex_lock(&lock);
    bool known = false;
    for (size_t i = 0; i < n_seen; i++) {
        known |= strncmp(seen[i], text, sizeof seen[i] - 1) == 0;
    }
    if (!known) {
        if (n_seen < sizeof seen / sizeof *seen) {
            snprintf(seen[n_seen++], sizeof *seen, "%s", text);
        }
        cmp_progress_end();
        write_line(level < KVC_LOG_WARN ? "note: " : "warning: ", text);
    }
    pthread_mutex_unlock(&lock);
}

int cmp_put(FILE *stream, cmp_bytes *text, int failed, const char *path) {
    char why[1024];
    failed |= ferror(stream) != 0;
    failed |= fclose(stream) != 0;
    int code = 0;
    if (failed) {
        code = cmp_complain(CMP_EXIT_FAILED, "out of memory for the report");
    } else if (cmp_report_put(text->p, text->n, path, why, sizeof why) != 0) {
        code = cmp_complain(CMP_EXIT_FAILED, "%s", why);
    }
    free(text->p);
    return code;
}

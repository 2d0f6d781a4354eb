/* SPDX-License-Identifier: MIT
 * report.c: what the formats share: figures for people, notes, and the way to a file that is never
 * half written. */
#include "report.h"

#include "interrupt.h"
#include "progress.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---------------------------------------------------------------- text */

/* Bytes of the UTF-8 character at p, of n that are left; 0 when it is none. */
static size_t character(const unsigned char *p, size_t n) {
    const size_t len = p[0] < 0x80u                     ? 1
                       : p[0] >= 0xC2u && p[0] <= 0xDFu ? 2
                       : (p[0] & 0xF0u) == 0xE0u        ? 3
                       : p[0] >= 0xF0u && p[0] <= 0xF4u ? 4
                                                        : 0;
    if (len == 0 || len > n) {
        return 0;
    }
    for (size_t i = 1; i < len; i++) {
        if ((p[i] & 0xC0u) != 0x80u) {
            return 0;
        }
    }
    const int wrong = (p[0] == 0xE0u && p[1] < 0xA0u) || (p[0] == 0xEDu && p[1] > 0x9Fu) ||
                      (p[0] == 0xF0u && p[1] < 0x90u) || (p[0] == 0xF4u && p[1] > 0x8Fu);
    return wrong ? 0 : len;
}

void cmp_text_put(FILE *out, const char *text, size_t n) {
    for (size_t i = 0; i < n;) {
        const unsigned char *p = (const unsigned char *)text + i;
        const size_t len = character(p, n - i);
        const int control =
            p[0] < 0x20u || p[0] == 0x7Fu || (len == 2 && p[0] == 0xC2u && p[1] < 0xA0u);
        if (len == 0 || control) {
            fputs(len == 2 ? "??" : "?", out);
        } else {
            fwrite(p, 1, len, out);
        }
        i += len > 0 ? len : 1;
    }
}

int cmp_text_columns(void) {
    const char *said = getenv("COLUMNS");
    struct winsize size = {0};
    long n = said != NULL ? strtol(said, NULL, 10) : 0;
    if (n <= 0 && isatty(STDOUT_FILENO) && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0) {
        n = size.ws_col;
    }
    return n <= 0 || n > CMP_WIDTH ? CMP_WIDTH : n < CMP_LEAST_WIDTH ? CMP_LEAST_WIDTH : (int)n;
}

int cmp_text_width(const char *text) {
    int width = 0;
    for (const char *p = text; *p != '\0'; p++) {
        width += ((unsigned char)*p & 0xc0u) != 0x80u;
    }
    return width;
}

void cmp_text_wrap(FILE *out, const char *prefix, const char *text, int width) {
    int room = width - cmp_text_width(prefix);
    int used = 0;
    for (const char *p = text; *p != '\0';) {
        size_t n = strcspn(p, " ");
        int columns = 0;
        for (size_t i = 0; i < n; i++) {
            columns += ((unsigned char)p[i] & 0xc0u) != 0x80u;
        }
        if (used > 0 && used + 1 + columns > room) {
            fputc('\n', out);
            used = 0;
        }
        fputs(used == 0 ? prefix : " ", out);
        cmp_text_put(out, p, n);
        used += columns + (used > 0);
        p += n + strspn(p + n, " ");
    }
    fputc('\n', out);
}

void cmp_text_pad(FILE *out, int n) {
    for (int i = 0; i < n; i++) {
        fputc(' ', out);
    }
}

void cmp_text_right(FILE *out, const char *text, int width) {
    fputc(' ', out);
    cmp_text_pad(out, width - cmp_text_width(text));
    fputs(text, out);
}

void cmp_text_bold(FILE *out, int colour, const char *text, int width) {
    fprintf(out, "%s%s%s", colour ? "\033[1m" : "", text, colour ? "\033[0m" : "");
    cmp_text_pad(out, width - cmp_text_width(text));
}

void cmp_csv_field(FILE *out, const char *s) {
    if (strpbrk(s, ",\"\r\n") == NULL) {
        fputs(s, out);
        return;
    }
    fputc('"', out);
    for (; *s != '\0'; s++) {
        if (*s == '"') {
            fputc('"', out);
        }
        fputc(*s, out);
    }
    fputc('"', out);
}

void cmp_md_cell(FILE *out, const char *s) {
    for (; *s != '\0'; s++) {
        if (*s == '|') {
            fputc('\\', out);
        }
        fputc(*s, out);
    }
}

/* ---------------------------------------------------------------- figures */

const char *cmp_figure_human(const cmp_row *row, unsigned figure, char *buf, size_t cap) {
    double v = row->v[figure];
    if (!isfinite(v)) {
        return "-";
    }
    switch (figure) {
    case CMP_KV_BYTES:
    case CMP_KV_PEAK_BYTES:
    case CMP_DISK_BYTES:
        snprintf(buf, cap, v < 1024.0 * 1024.0 ? "%.3f" : "%.2f", v / (1024.0 * 1024.0));
        break;
    case CMP_KLD_MEAN:
    case CMP_KLD_P99:
    case CMP_KLD_MAX:
        snprintf(buf, cap, v == 0 ? "0" : "%.1e", v);
        break;
    case CMP_TOP1:
        snprintf(buf, cap, "%.2f", v * 100);
        break;
    case CMP_PPL:
        snprintf(buf, cap, v < 1000 ? "%.3f" : "%.0f", v);
        break;
    case CMP_PPL_RATIO:
        snprintf(buf, cap, v < 10 ? "%.5f" : "%.1f", v);
        break;
    default:
        if (cmp_figure_table[figure].integer || figure == CMP_BYTES_PER_TOKEN) {
            snprintf(buf, cap, "%.0f", v);
        } else {
            snprintf(buf, cap, v < 100 ? "%.2f" : "%.1f", v);
        }
    }
    return buf;
}

/* ---------------------------------------------------------------- notes */

const char *cmp_repack_text(int no_repack) {
    return no_repack ? ", weights left in the file" : "";
}

unsigned cmp_row_notes(const cmp_row *row) {
    return (row->transient ? (unsigned)CMP_NOTE_TRANSIENT : 0u) |
           (row->chunked ? (unsigned)CMP_NOTE_CHUNKED : 0u);
}

const char *cmp_note_mark(unsigned notes) {
    static const char *const mark[] = {"", " [1]", " [2]", " [1,2]"};
    return mark[notes & 3u];
}

/* What was cut for a policy that computes everything at each step. */
static void write_transient(FILE *out, const cmp_row *row, const char *prefix, int width) {
    char text[512], timed[96] = "", greedy[64] = "";
    if (!isnan(row->v[CMP_TIMED_CTX])) {
        snprintf(timed, sizeof timed, ", timed on %.0f steps up to position %.0f",
                 row->v[CMP_TIMED_STEPS], row->v[CMP_TIMED_CTX]);
    }
    if (!isnan(row->v[CMP_GENERATED])) {
        snprintf(greedy, sizeof greedy, ", %.0f greedy tokens", row->v[CMP_GENERATED]);
    }
    snprintf(
        text, sizeof text,
        "[1] %.100s computes all tokens again at each step: divergence on the first %.0f scored "
        "tokens%s%s.",
        row->spec, row->v[CMP_SCORED], greedy, timed);
    cmp_text_wrap(out, prefix, text, width);
}

void cmp_note_write(FILE *out, const cmp_report *r, const char *prefix, int width) {
    unsigned all = 0;
    for (uint32_t i = 0; i < r->job->n_row; i++) {
        all |= cmp_row_notes(&r->job->row[i]);
        if (r->job->row[i].transient) {
            write_transient(out, &r->job->row[i], prefix, width);
        }
    }
    if ((all & CMP_NOTE_CHUNKED) != 0) {
        cmp_text_wrap(out, prefix,
                      "[2] Its result depends on how the prompt is cut into calls, here of 512 "
                      "tokens.",
                      width);
    }
    if (r->job->has_twin) {
        char text[256];
        char mean[32], p99[32];
        snprintf(text, sizeof text,
                 "Noise floor: rounding to int8 alone moves the baseline by KLD mean %s, p99 %s; "
                 "smaller figures say nothing.",
                 cmp_figure_human(&r->job->twin, CMP_KLD_MEAN, mean, sizeof mean),
                 cmp_figure_human(&r->job->twin, CMP_KLD_P99, p99, sizeof p99));
        cmp_text_wrap(out, prefix, text, width);
    }
}

/* ---------------------------------------------------------------- output */

static int put_stdout(const char *bytes, size_t n, char *why, size_t cap) {
    if (fwrite(bytes, 1, n, stdout) != n || fflush(stdout) != 0) {
        snprintf(why, cap, "the report can't be written to standard output: %s", strerror(errno));
        return -1;
    }
    return 0;
}

/* Opens a new file in path's directory, under a name that nobody has; *temp is the caller's to
 * free. */
static FILE *open_beside(const char *path, char **temp) {
    const char *slash = strrchr(path, '/');
    const int dir = slash != NULL ? (int)(slash - path) + 1 : 0;
    const size_t cap = (size_t)dir + 64;
    char *name = malloc(cap);
    int fd = -1;
    if (name == NULL) {
        return NULL;
    }
    for (unsigned i = 0; fd < 0 && i < 100 && (i == 0 || errno == EEXIST); i++) {
        snprintf(name, cap, "%.*s.kvc-%ld-%llx-%u", dir, path, (long)getpid(),
                 (unsigned long long)cmp_clock_ns(), i);
        fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    }
    FILE *f = fd >= 0 ? fdopen(fd, "w") : NULL;
    if (f == NULL) {
        const int error = errno;
        if (fd >= 0) {
            close(fd);
            unlink(name);
        }
        free(name);
        errno = error;
        return NULL;
    }
    *temp = name;
    return f;
}

/* Writes and closes; 0, or -1 with errno. */
static int put_and_close(FILE *f, const char *bytes, size_t n) {
    const int bad = fwrite(bytes, 1, n, f) != n || fflush(f) != 0;
    const int error = errno;
    if (fclose(f) != 0 && !bad) {
        return -1;
    }
    errno = error;
    return bad ? -1 : 0;
}

/* A device or a pipe, which is written where it is. */
static int put_device(const char *bytes, size_t n, const char *path) {
    FILE *f = fopen(path, "w");
    return f == NULL ? -1 : put_and_close(f, bytes, n);
}

/* Whole or not at all, by a new file that takes path's place. */
static int put_new(const char *bytes, size_t n, const char *path) {
    char *temp = NULL;
    FILE *f = open_beside(path, &temp);
    if (f == NULL) {
        return -1;
    }
    cmp_interrupt_remove(temp);
    int rc = put_and_close(f, bytes, n);
    rc = rc == 0 ? rename(temp, path) : rc;
    const int error = errno;
    if (rc != 0) {
        unlink(temp);
    }
    cmp_interrupt_remove(NULL);
    free(temp);
    errno = error;
    return rc;
}

static int put_file(const char *bytes, size_t n, const char *path, char *why, size_t cap) {
    struct stat st;
    const int in_place = stat(path, &st) == 0 && !S_ISREG(st.st_mode);
    const int rc = in_place ? put_device(bytes, n, path) : put_new(bytes, n, path);
    if (rc != 0) {
        snprintf(why, cap, "%s can't be written: %s; name another place", path, strerror(errno));
    }
    return rc;
}

int cmp_report_put(const char *bytes, size_t n, const char *path, char *why, size_t cap) {
    return path == NULL ? put_stdout(bytes, n, why, cap) : put_file(bytes, n, path, why, cap);
}

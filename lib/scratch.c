/* SPDX-License-Identifier: MIT
 * scratch.c: records in a file without a name. The file grows in steps and is divided into units of
 * a megabyte; a unit belongs to one group and has a bit per granule. A record is a run of granules,
 * found by next-fit in its group's units, so records that are put in sequence can be read in one
 * go; one that is larger than a unit takes several. Units that become empty serve any group, and
 * the last record's end empties the file. One lock guards all that; reads and writes go on outside.
 */
#include "scratch.h"

#include "os.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define GRANULE ((uint64_t)KVC_FILE_ALIGN)
#define UNIT    ((uint64_t)1 << 20)
#define NONE    UINT32_MAX

enum {
    UNIT_GRANULES = (1 << 20) / KVC_FILE_ALIGN,
    STEP = 8, /* units that the file grows by, and that are written before they are flushed */
    BLOCK_UNITS = 64 /* units whose tables are allocated together */
};

/* What is known of a unit. Free units have no group. */
typedef struct unit {
    uint32_t group;      /* the group's id */
    uint32_t next, prev; /* units of the same group */
    uint16_t n_used;     /* granules */
    uint16_t max_free;   /* no run of free granules is longer */
    bool taken;
    uint64_t used[UNIT_GRANULES / 64];
} unit;

typedef struct group {
    uint32_t id;
    uint32_t first;  /* of its units */
    uint32_t unit;   /* where the last record went, or NONE */
    uint32_t cursor; /* the granule behind it */
} group;

struct kvc_file {
    kvc__mem *mem;
    int fd;
    int direct; /* reads past the page cache; -1: the file can't be read so */
    char *dir;  /* for sentences */
    size_t dir_bytes;
    pthread_mutex_t lock; /* guards what follows */
    uint32_t n_unit;      /* of the file */
    uint32_t cap_unit;    /* that there are tables for */
    uint32_t first_free;  /* no unit before it is free */
    uint32_t n_taken;
    unit **block; /* [cap_block], each [BLOCK_UNITS] */
    uint32_t cap_block;
    group *group; /* [n_group], by ascending id */
    uint32_t n_group, cap_group;
    uint64_t n_expected; /* units that there are to be tables for */
    uint64_t written;    /* bytes since the last flush */
    uint64_t told;       /* bytes that kvc__scratch_change() spoke of */
};

/* What went wrong with the file in dir, and why. */
static int32_t fail_errno(kvc__err *err, int code, const char *dir, const char *what) {
    char buffer[128];
    if (strerror_r(code, buffer, sizeof buffer) != 0) {
        snprintf(buffer, sizeof buffer, "error %d", code);
    }
    const bool missing = code == ENOENT || code == ENOTDIR;
    return kvc__fail(err, missing ? KVC_E_NOT_FOUND : KVC_E_IO, "%s: %s: %s", dir, what, buffer);
}

/* ---------------------------------------------------------------- where the file is made */

/* Makes the missing folders of an absolute path. */
static int make_dirs(char *path) {
    for (char *p = path + 1;; p++) {
        if (*p != '/' && *p != '\0') {
            continue;
        }
        const char was = *p;
        *p = '\0';
        const int failed = mkdir(path, 0700) != 0 && errno != EEXIST ? errno : 0;
        *p = was;
        if (failed != 0 || was == '\0') {
            return failed;
        }
    }
}

/* Writes the user's cache directory to out[cap] and makes it; as the XDG base directory
 * specification has it, but for the last resort. */
static int32_t default_dir(char *out, size_t cap, kvc__err *err) {
    const char *cache = kvc__env("XDG_CACHE_HOME"), *home = kvc__env("HOME");
    const char *temp = kvc__env("TMPDIR");
    int n;
    bool make = true;
    if (cache != NULL && cache[0] == '/') {
        n = snprintf(out, cap, "%s/kvc", cache);
    } else if (home != NULL && home[0] == '/') {
        n = snprintf(out, cap, "%s/.cache/kvc", home);
    } else {
        n = snprintf(out, cap, "%s", temp != NULL && temp[0] != '\0' ? temp : "/tmp");
        make = false;
    }
    if (n < 0 || (size_t)n >= cap) {
        return kvc__fail(err, KVC_E_IO,
                         "the path of the cache directory is too long; give another");
    }
    const int failed = make ? make_dirs(out) : 0;
    return failed == 0 ? KVC_OK : fail_errno(err, failed, out, "can't be made");
}

/* A copy of the directory's name. */
static int32_t set_dir(kvc_file *f, const char *dir, kvc__err *err) {
    char path[4096];
    if (dir == NULL || dir[0] == '\0') {
        KVC_TRY(default_dir(path, sizeof path, err));
        dir = path;
    }
    f->dir_bytes = strlen(dir) + 1;
    f->dir = kvc__strndup(f->mem, dir, f->dir_bytes - 1);
    return f->dir != NULL ? KVC_OK : kvc__fail(err, KVC_E_NOMEM, "no memory for a scratch file");
}

int32_t kvc__scratch_open(kvc__mem *mem, const char *dir, kvc_file **out, kvc__err *err) {
    kvc_file *f = kvc__alloc(mem, sizeof *f);
    if (f == NULL) {
        return kvc__fail(err, KVC_E_NOMEM, "no memory for a scratch file");
    }
    f->mem = mem;
    f->fd = -1;
    f->direct = -1;
    pthread_mutex_init(&f->lock, NULL);
    int32_t rc = set_dir(f, dir, err);
    if (rc == KVC_OK) {
        f->fd = kvc__scratch_fd(f->dir);
        rc = f->fd >= 0 ? KVC_OK : fail_errno(err, errno, f->dir, "no scratch file can be made");
    }
    if (rc < 0) {
        const bool chosen = dir != NULL && dir[0] != '\0';
        kvc__scratch_close(f);
        return chosen || rc == KVC_E_NOMEM || err == NULL
                   ? rc
                   : kvc__fail(err, rc, "%s; name a directory that can be written, dir=PATH",
                               err->text);
    }
    f->direct = kvc__direct_fd(f->fd);
    *out = f;
    return KVC_OK;
}

void kvc__scratch_close(kvc_file *f) {
    if (f == NULL) {
        return;
    }
    if (f->direct >= 0) {
        (void)close(f->direct);
    }
    if (f->fd >= 0) {
        (void)close(f->fd);
    }
    for (uint32_t i = 0; i < f->cap_unit / BLOCK_UNITS; i++) {
        kvc__free(f->mem, f->block[i], BLOCK_UNITS * sizeof **f->block);
    }
    kvc__free(f->mem, f->block, f->cap_block * sizeof *f->block);
    kvc__free(f->mem, f->group, f->cap_group * sizeof *f->group);
    kvc__free(f->mem, f->dir, f->dir_bytes);
    pthread_mutex_destroy(&f->lock);
    kvc__free(f->mem, f, sizeof *f);
}

/* ---------------------------------------------------------------- units; all with the lock held */

static unit *unit_at(const kvc_file *f, uint32_t i) {
    return &f->block[i / BLOCK_UNITS][i % BLOCK_UNITS];
}

/* Tables for n units. */
static int32_t reserve_units(kvc_file *f, uint64_t n) {
    if (n >= NONE) {
        return KVC_E_NOMEM;
    }
    while (f->cap_unit < n) {
        const uint32_t i = f->cap_unit / BLOCK_UNITS;
        if (i == f->cap_block) {
            const uint32_t cap = f->cap_block > 0 ? 2 * f->cap_block : 16;
            unit **p = kvc__realloc(f->mem, f->block, f->cap_block * sizeof *p, cap * sizeof *p, 0);
            if (p == NULL) {
                return KVC_E_NOMEM;
            }
            f->block = p;
            f->cap_block = cap;
        }
        f->block[i] = kvc__alloc_n(f->mem, BLOCK_UNITS, sizeof **f->block);
        if (f->block[i] == NULL) {
            return KVC_E_NOMEM;
        }
        f->cap_unit += BLOCK_UNITS;
    }
    return KVC_OK;
}

/* Takes room on disk for n more units: 0 or an errno, the file then being as it was. A file system
 * that can't do it only grows the file. */
static int take_room(kvc_file *f, uint32_t n) {
    const off_t from = (off_t)(f->n_unit * UNIT), bytes = (off_t)(n * UNIT);
    int code;
    do {
        code = posix_fallocate(f->fd, from, bytes);
    } while (code == EINTR);
    if (code == EOPNOTSUPP || code == EINVAL) {
        code = ftruncate(f->fd, from + bytes) == 0 ? 0 : errno;
    }
    if (code != 0) {
        (void)!ftruncate(f->fd, from);
    }
    return code;
}

/* Grows the file by n units: by a whole step when there is room for one. */
static int32_t grow(kvc_file *f, uint32_t n, kvc__err *err) {
    const uint32_t steps = (n + STEP - 1) / STEP * STEP;
    if (reserve_units(f, (uint64_t)f->n_unit + steps) < 0) {
        return kvc__fail(err, KVC_E_NOMEM, "no memory for the tables of a scratch file");
    }
    uint32_t got = steps;
    int code = take_room(f, steps);
    if (code != 0 && n < steps) {
        got = n;
        code = take_room(f, n);
    }
    if (code != 0) {
        return code == EIO ? fail_errno(err, code, f->dir, "a scratch file can't grow")
                           : fail_errno(err, code, f->dir, "no space for a scratch file");
    }
    f->n_unit += got;
    return KVC_OK;
}

/* The first of n free units side by side, growing the file if need be. */
static int32_t free_units(kvc_file *f, uint32_t n, uint32_t *out, kvc__err *err) {
    uint32_t run = 0;
    while (f->first_free < f->n_unit && unit_at(f, f->first_free)->taken) {
        f->first_free++;
    }
    for (uint32_t i = f->first_free; i < f->n_unit && run < n; i++) {
        run = unit_at(f, i)->taken ? 0 : run + 1;
        *out = i + 1 - run;
    }
    if (run < n) {
        *out = f->n_unit - run;
        KVC_TRY(grow(f, n - run, err));
    }
    return KVC_OK;
}

/* The group's row, or where it would stand. */
static uint32_t group_search(const kvc_file *f, uint32_t id) {
    uint32_t lo = 0, hi = f->n_group;
    while (lo < hi) {
        const uint32_t mid = lo + (hi - lo) / 2;
        if (f->group[mid].id < id) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return lo;
}

/* The group's row, made if need be; NULL when there is no memory. */
static group *group_get(kvc_file *f, uint32_t id) {
    const uint32_t i = group_search(f, id);
    if (i < f->n_group && f->group[i].id == id) {
        return &f->group[i];
    }
    if (f->n_group == f->cap_group) {
        const uint32_t cap = f->cap_group > 0 ? 2 * f->cap_group : 16;
        group *p = kvc__realloc(f->mem, f->group, f->cap_group * sizeof *p, cap * sizeof *p, 0);
        if (p == NULL) {
            return NULL;
        }
        f->group = p;
        f->cap_group = cap;
    }
    memmove(f->group + i + 1, f->group + i, (f->n_group - i) * sizeof *f->group);
    f->n_group++;
    f->group[i] = (group){.id = id, .first = NONE, .unit = NONE};
    return &f->group[i];
}

static void unit_take(kvc_file *f, group *g, uint32_t i) {
    unit *u = unit_at(f, i);
    *u = (unit){
        .group = g->id, .next = g->first, .prev = NONE, .max_free = UNIT_GRANULES, .taken = true};
    if (g->first != NONE) {
        unit_at(f, g->first)->prev = i;
    }
    g->first = i;
    f->n_taken++;
}

static void unit_release(kvc_file *f, uint32_t i) {
    unit *u = unit_at(f, i);
    group *g = &f->group[group_search(f, u->group)];
    if (u->prev != NONE) {
        unit_at(f, u->prev)->next = u->next;
    } else {
        g->first = u->next;
    }
    if (u->next != NONE) {
        unit_at(f, u->next)->prev = u->prev;
    }
    if (g->unit == i) {
        g->unit = NONE;
    }
    u->taken = false;
    f->n_taken--;
    f->first_free = i < f->first_free ? i : f->first_free;
}

/* ---------------------------------------------------------------- granules; with the lock held */

/* The first granule from i on whose bit is `value`, or UNIT_GRANULES. */
static uint32_t next_bit(const unit *u, uint32_t i, bool value) {
    while (i < UNIT_GRANULES) {
        const uint64_t word = (value ? u->used[i / 64] : ~u->used[i / 64]) >> (i % 64);
        if (word != 0) {
            return i + (uint32_t)__builtin_ctzll(word);
        }
        i = (i / 64 + 1) * 64;
    }
    return UNIT_GRANULES;
}

/* A run of n free granules of unit i from `from` on, or NONE. */
static uint32_t find_run(const kvc_file *f, uint32_t i, uint32_t from, uint32_t n) {
    unit *u = unit_at(f, i);
    uint32_t longest = 0;
    if (n > u->max_free) {
        return NONE;
    }
    for (uint32_t a = next_bit(u, from, false); a < UNIT_GRANULES;) {
        const uint32_t end = next_bit(u, a, true);
        if (end - a >= n) {
            return a;
        }
        longest = end - a > longest ? end - a : longest;
        a = next_bit(u, end, false);
    }
    if (from == 0) {
        u->max_free = (uint16_t)longest;
    }
    return NONE;
}

/* Sets or clears the bits of granules [from, from + n), which may reach into the next units. */
static void mark(kvc_file *f, uint64_t from, uint64_t n, bool value) {
    for (uint64_t g = from; g < from + n; g++) {
        unit *u = unit_at(f, (uint32_t)(g / UNIT_GRANULES));
        const uint64_t bit = (uint64_t)1 << (g % 64), slot = g % UNIT_GRANULES / 64;
        if (value) {
            u->used[slot] |= bit;
            u->n_used++;
        } else {
            u->used[slot] &= ~bit;
            u->n_used--;
        }
    }
}

/* Whether granules [from, from + n) are all in use. */
static bool is_used(const kvc_file *f, uint64_t from, uint64_t n) {
    for (uint64_t g = from; g < from + n; g++) {
        const unit *u = unit_at(f, (uint32_t)(g / UNIT_GRANULES));
        if (!u->taken || (u->used[g % UNIT_GRANULES / 64] >> (g % 64) & 1) == 0) {
            return false;
        }
    }
    return true;
}

/* Room for a record that fits into a unit: behind the last one, else in a hole of the group's, else
 * in a fresh unit. */
static int32_t find_room(kvc_file *f, group *g, uint32_t n, uint32_t *i, uint32_t *at,
                         kvc__err *err) {
    *i = g->unit;
    *at = *i != NONE ? find_run(f, *i, g->cursor, n) : NONE;
    if (*at != NONE) {
        return KVC_OK;
    }
    for (*i = g->first; *i != NONE; *i = unit_at(f, *i)->next) {
        *at = find_run(f, *i, 0, n);
        if (*at != NONE) {
            return KVC_OK;
        }
    }
    KVC_TRY(free_units(f, 1, i, err));
    unit_take(f, g, *i);
    *at = 0;
    return KVC_OK;
}

/* Takes n granules for a record of the group; *first is the file's granule it begins at. */
static int32_t take(kvc_file *f, uint32_t id, uint64_t n, uint64_t *first, kvc__err *err) {
    group *g = group_get(f, id);
    uint32_t i, at = 0;
    if (g == NULL) {
        return kvc__fail(err, KVC_E_NOMEM, "no memory for the tables of a scratch file");
    }
    if (n <= UNIT_GRANULES) {
        KVC_TRY(find_room(f, g, (uint32_t)n, &i, &at, err));
    } else {
        const uint64_t n_unit = (n + UNIT_GRANULES - 1) / UNIT_GRANULES;
        if (n_unit > INT32_MAX) {
            return kvc__fail(err, KVC_E_IO, "%s: no space for a scratch file", f->dir);
        }
        KVC_TRY(free_units(f, (uint32_t)n_unit, &i, err));
        for (uint32_t k = 0; k < n_unit; k++) {
            unit_take(f, g, i + k);
        }
    }
    *first = (uint64_t)i * UNIT_GRANULES + at;
    mark(f, *first, n, true);
    g->unit = (uint32_t)((*first + n - 1) / UNIT_GRANULES);
    g->cursor = (uint32_t)((*first + n - 1) % UNIT_GRANULES) + 1;
    return KVC_OK;
}

/* Gives granules back, the units that become empty, and the file's room when all are. */
static void give(kvc_file *f, uint64_t first, uint64_t n) {
    mark(f, first, n, false);
    for (uint64_t i = first / UNIT_GRANULES; i <= (first + n - 1) / UNIT_GRANULES; i++) {
        unit *u = unit_at(f, (uint32_t)i);
        u->max_free = (uint16_t)(UNIT_GRANULES - u->n_used);
        if (u->n_used == 0) {
            unit_release(f, (uint32_t)i);
        }
    }
    if (f->n_taken == 0 && ftruncate(f->fd, 0) == 0) {
        f->n_unit = 0;
        f->first_free = 0;
        f->written = 0;
    }
}

/* ---------------------------------------------------------------- records */

static uint64_t granules(size_t n) {
    return n / GRANULE + (n % GRANULE != 0);
}

/* Writes all, whatever the system does piece by piece: 0 or an errno. */
static int write_all(int fd, const uint8_t *p, size_t n, uint64_t at) {
    while (n > 0) {
        const ssize_t m = pwrite(fd, p, n, (off_t)at);
        if (m < 0 && errno == EINTR) {
            continue;
        }
        if (m <= 0) {
            return m < 0 ? errno : ENOSPC;
        }
        p += m;
        n -= (size_t)m;
        at += (uint64_t)m;
    }
    return 0;
}

/* Reads all: 0, an errno, or -1 when the file ends before. */
static int read_all(int fd, uint8_t *p, size_t n, uint64_t at) {
    while (n > 0) {
        const ssize_t m = pread(fd, p, n, (off_t)at);
        if (m < 0 && errno == EINTR) {
            continue;
        }
        if (m <= 0) {
            return m < 0 ? errno : -1;
        }
        p += m;
        n -= (size_t)m;
        at += (uint64_t)m;
    }
    return 0;
}

/* Reads past the page cache what can be: bytes that are left over are for read_all(). What the
 * system refuses it may not refuse there, so no failure is told of. */
static size_t read_direct(kvc_file *f, uint8_t *p, size_t n, uint64_t at) {
    size_t done = 0;
    if (f->direct < 0 || (uintptr_t)p % GRANULE != 0 || n % GRANULE != 0) {
        return 0;
    }
    while (done < n) {
        const ssize_t m = pread(f->direct, p + done, n - done, (off_t)(at + done));
        if (m < 0 && errno == EINTR) {
            continue;
        }
        if (m <= 0) {
            break;
        }
        done += (size_t)m;
        if (done % GRANULE != 0) {
            break;
        }
    }
    return done;
}

int32_t kvc__scratch_put(kvc_file *f, uint32_t id, const void *bytes, size_t n, uint64_t *at,
                         kvc__err *err) {
    uint64_t first = 0;
    if (n == 0 || n > PTRDIFF_MAX) {
        return kvc__fail(err, KVC_E_RANGE, "a record of %zu bytes can't be kept", n);
    }
    pthread_mutex_lock(&f->lock);
    const int32_t rc = take(f, id, granules(n), &first, err);
    pthread_mutex_unlock(&f->lock);
    KVC_TRY(rc);
    const int code = write_all(f->fd, bytes, n, first * GRANULE);
    pthread_mutex_lock(&f->lock);
    bool flush = false;
    if (code != 0) {
        give(f, first, granules(n));
    } else {
        f->written += n;
        flush = f->written >= STEP * UNIT;
        f->written = flush ? 0 : f->written;
    }
    pthread_mutex_unlock(&f->lock);
    if (code != 0) {
        return fail_errno(err, code, f->dir, "a scratch file can't be written");
    }
    if (flush) {
        kvc__write_behind(f->fd);
    }
    *at = first * GRANULE;
    return KVC_OK;
}

int32_t kvc__scratch_get(kvc_file *f, uint64_t at, void *bytes, size_t n, kvc__err *err) {
    if (at % GRANULE != 0 || n == 0 || n > PTRDIFF_MAX || at > PTRDIFF_MAX) {
        return kvc__fail(err, KVC_E_RANGE, "a scratch file has no record of that place and size");
    }
    const uint64_t bytes_now = kvc__scratch_bytes(f);
    if (at + n > bytes_now) {
        return kvc__fail(err, KVC_E_IO, "%s: a scratch file ends before a record", f->dir);
    }
    const size_t done = read_direct(f, bytes, n, at);
    if (done == n) {
        return KVC_OK;
    }
    const int code = read_all(f->fd, (uint8_t *)bytes + done, n - done, at + done);
    if (code != 0) {
        return code < 0
                   ? kvc__fail(err, KVC_E_IO, "%s: a scratch file ends before a record", f->dir)
                   : fail_errno(err, code, f->dir, "a scratch file can't be read");
    }
    kvc__forget(f->fd, at, n);
    return KVC_OK;
}

void kvc__scratch_drop(kvc_file *f, uint64_t at, size_t n) {
    if (at % GRANULE != 0 || n == 0 || n > PTRDIFF_MAX || at > PTRDIFF_MAX) {
        return;
    }
    pthread_mutex_lock(&f->lock);
    const uint64_t first = at / GRANULE, count = granules(n);
    if (first + count <= (uint64_t)f->n_unit * UNIT_GRANULES && is_used(f, first, count)) {
        give(f, first, count);
    }
    pthread_mutex_unlock(&f->lock);
}

int32_t kvc__scratch_expect(kvc_file *f, uint32_t id, uint32_t n, size_t bytes, kvc__err *err) {
    const uint64_t each = granules(bytes > 0 && bytes <= PTRDIFF_MAX ? bytes : 1);
    /* A record that fits into a unit doesn't reach into the next one. */
    const uint64_t in_unit = UNIT_GRANULES / each, large = each / UNIT_GRANULES + 1;
    const uint64_t units = in_unit > 0     ? (n + in_unit - 1) / in_unit
                           : large >= NONE ? NONE
                                           : n * large;
    pthread_mutex_lock(&f->lock);
    f->n_expected = f->n_expected + units < NONE ? f->n_expected + units : NONE;
    /* The file grows by whole steps. */
    const bool fits = f->n_expected < NONE - STEP && group_get(f, id) != NULL &&
                      reserve_units(f, f->n_expected + STEP) == KVC_OK;
    pthread_mutex_unlock(&f->lock);
    return fits ? KVC_OK
                : kvc__fail(err, KVC_E_NOMEM, "no memory for the tables of a scratch file");
}

uint64_t kvc__scratch_bytes(kvc_file *f) {
    pthread_mutex_lock(&f->lock);
    const uint64_t bytes = f->n_unit * UNIT;
    pthread_mutex_unlock(&f->lock);
    return bytes;
}

int64_t kvc__scratch_change(kvc_file *f) {
    pthread_mutex_lock(&f->lock);
    const uint64_t now = f->n_unit * UNIT;
    const int64_t change = (int64_t)(now - f->told);
    f->told = now;
    pthread_mutex_unlock(&f->lock);
    return change;
}

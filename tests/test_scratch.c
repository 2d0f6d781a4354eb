/* SPDX-License-Identifier: MIT
 * test_scratch.c: scratch files: where records come to lie, room that is used again, records of any
 * size, a full disk, calls of the system and of the allocator that fail once each, threads, and
 * that neither a name nor the page cache keeps what was written. */
#define _GNU_SOURCE /* mincore, getrlimit's SIGXFSZ, O_DIRECT */
#include "every.h"
#include "scratch.h"

#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#define MIB     ((size_t)1 << 20)
#define GRANULE ((size_t)KVC_FILE_ALIGN)

/* ---------------------------------------------------------------- calls that fail */

enum { FAIL_EIO, FAIL_ENOSPC, SHORT, INTERRUPTED, N_MODE };

static struct {
    bool armed, hit;
    bool no_unnamed; /* as a file system that has no files without a name */
    bool sparse;     /* as one that can't take room ahead; and nothing is written */
    int mode;
    int left;            /* calls until one fails */
    atomic_int fd;       /* that was last written to */
    atomic_int n_direct; /* calls that read past the page cache, and gave something */
} fault;

/* Whether this call is the one. */
static bool strikes(void) {
    if (!fault.armed || fault.left-- != 0) {
        return false;
    }
    fault.hit = true;
    return true;
}

static int error(void) {
    return fault.mode == FAIL_ENOSPC ? ENOSPC : fault.mode == INTERRUPTED ? EINTR : EIO;
}

ssize_t __real_pwrite(int fd, const void *p, size_t n, off_t at);
ssize_t __wrap_pwrite(int fd, const void *p, size_t n, off_t at);
ssize_t __wrap_pwrite(int fd, const void *p, size_t n, off_t at) {
    fault.fd = fd;
    if (fault.sparse) {
        return (ssize_t)n;
    }
    if (!strikes()) {
        return __real_pwrite(fd, p, n, at);
    }
    errno = error();
    return fault.mode == SHORT ? __real_pwrite(fd, p, n > 1 ? n / 2 : n, at) : -1;
}

ssize_t __real_pread(int fd, void *p, size_t n, off_t at);
ssize_t __wrap_pread(int fd, void *p, size_t n, off_t at);
ssize_t __wrap_pread(int fd, void *p, size_t n, off_t at) {
    if (!strikes()) {
        const ssize_t m = __real_pread(fd, p, n, at);
        fault.n_direct += m > 0 && (fcntl(fd, F_GETFL) & O_DIRECT) != 0;
        return m;
    }
    errno = error();
    return fault.mode == SHORT ? __real_pread(fd, p, n > 1 ? n / 2 : n, at) : -1;
}

/* Nothing is short here; a step that doesn't fit is tried again, smaller. */
int __real_posix_fallocate(int fd, off_t at, off_t n);
int __wrap_posix_fallocate(int fd, off_t at, off_t n);
int __wrap_posix_fallocate(int fd, off_t at, off_t n) {
    if (fault.sparse) {
        return EOPNOTSUPP;
    }
    return fault.mode != SHORT && strikes() ? error() : __real_posix_fallocate(fd, at, n);
}

int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    const mode_t mode = va_arg(list, mode_t);
    va_end(list);
    /* A file system without unnamed files sees the open of a directory. */
    if (fault.no_unnamed && (flags & O_CREAT) == 0 && (flags & O_RDWR) != 0) {
        errno = EOPNOTSUPP;
        return -1;
    }
    return __real_open(path, flags, mode);
}

static void arm(int mode, int left) {
    fault.mode = mode;
    fault.left = left;
    fault.hit = false;
    fault.armed = true;
}

/* ---------------------------------------------------------------- a directory and a file in it */

static char dir[] = "/tmp/kvc-test-scratch-XXXXXX";
static kvc__mem mem;
static kvc__err err;
static kvc_file *file;
static size_t allocations_left;

static void *failing_realloc(void *ctx, void *p, size_t old_size, size_t new_size, size_t align) {
    void *q = NULL;
    (void)ctx;
    if (new_size > 0) {
        if (allocations_left-- == 0 || posix_memalign(&q, align, new_size) != 0) {
            return NULL;
        }
        if (p != NULL) {
            memcpy(q, p, old_size < new_size ? old_size : new_size);
        }
    }
    free(p);
    return q;
}

static const kvc_allocator failing = {.realloc = failing_realloc};

static void setup_dir(void) {
    fault.armed = fault.no_unnamed = fault.sparse = false;
    memset(&err, 0, sizeof err);
    strcpy(dir + sizeof dir - 7, "XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    kvc__mem_init(&mem, NULL, NULL);
    file = NULL;
}

static void open_file(void) {
    const int32_t rc = kvc__scratch_open(&mem, dir, &file, &err);
    ck_assert_msg(rc == KVC_OK, "%s", err.text);
}

static void setup(void) {
    setup_dir();
    open_file();
}

static void teardown(void) {
    fault.armed = false;
    kvc__scratch_close(file);
    ck_assert_uint_eq(atomic_load(&mem.used), 0);
    ck_assert_msg(rmdir(dir) == 0, "%s", strerror(errno));
}

/* A record of n bytes that depend on seed, put and expected to succeed. */
typedef struct record {
    uint64_t at;
    size_t n;
    uint32_t group, seed;
} record;

static uint8_t *bytes_of(const record *r) {
    uint8_t *p = malloc(r->n);
    uint32_t x = r->seed * 2654435761u + 1;
    ck_assert_ptr_nonnull(p);
    for (size_t i = 0; i < r->n; i++) {
        x = x * 1664525u + 1013904223u;
        p[i] = (uint8_t)(x >> 24);
    }
    return p;
}

static int32_t try_put(record *r) {
    uint8_t *p = bytes_of(r);
    const int32_t rc = kvc__scratch_put(file, r->group, p, r->n, &r->at, &err);
    free(p);
    return rc;
}

static record put(uint32_t group, size_t n, uint32_t seed) {
    record r = {.n = n, .group = group, .seed = seed};
    const int32_t rc = try_put(&r);
    ck_assert_msg(rc == KVC_OK, "%s", err.text);
    ck_assert_uint_eq(r.at % GRANULE, 0);
    return r;
}

/* Through the page cache, and to aligned memory past it. */
static int32_t try_get(const record *r) {
    const size_t whole = (r->n + GRANULE - 1) / GRANULE * GRANULE;
    void *q = NULL;
    uint8_t *p = bytes_of(r);
    ck_assert_int_eq(posix_memalign(&q, GRANULE, whole + GRANULE), 0);
    int32_t rc = kvc__scratch_get(file, r->at, (uint8_t *)q + 1, r->n, &err);
    ck_assert(rc < 0 || memcmp(p, (uint8_t *)q + 1, r->n) == 0);
    if (rc == KVC_OK) {
        rc = kvc__scratch_get(file, r->at, q, whole, &err);
        ck_assert(rc < 0 || memcmp(p, q, r->n) == 0);
    }
    free(p);
    free(q);
    return rc;
}

static void check_record(const record *r) {
    const int32_t rc = try_get(r);
    ck_assert_msg(rc == KVC_OK, "%s", err.text);
}

static void drop(const record *r) {
    kvc__scratch_drop(file, r->at, r->n);
}

/* The first byte behind a record where another may begin. */
static uint64_t behind(const record *r) {
    return r->at + (r->n + GRANULE - 1) / GRANULE * GRANULE;
}

/* ---------------------------------------------------------------- places */

START_TEST(a_groups_records_lie_side_by_side) {
    record a[40], b[40];
    for (uint32_t i = 0; i < 40; i++) {
        a[i] = put(7, 5000 + 37 * i, i);
        b[i] = put(UINT32_MAX, 9000 + 111 * i, 100 + i);
        ck_assert(i == 0 || a[i].at == behind(&a[i - 1]));
        ck_assert(i == 0 || b[i].at == behind(&b[i - 1]));
    }
    for (uint32_t i = 0; i < 40; i++) {
        check_record(&a[i]);
        check_record(&b[i]);
    }
    /* A hole in front isn't gone back to as long as there is room behind. */
    drop(&a[3]);
    a[3] = put(7, 5000, 99);
    ck_assert_uint_eq(a[3].at, behind(&a[39]));
    /* All of a group in one go. */
    const size_t n = (size_t)(behind(&a[39]) - a[0].at);
    uint8_t *all = malloc(n);
    ck_assert_ptr_nonnull(all);
    ck_assert_int_eq(kvc__scratch_get(file, a[0].at, all, n - GRANULE, &err), KVC_OK);
    for (uint32_t i = 0; i < 39; i++) {
        if (i == 3) {
            continue;
        }
        uint8_t *p = bytes_of(&a[i]);
        ck_assert_mem_eq(all + (a[i].at - a[0].at), p, a[i].n);
        free(p);
    }
    free(all);
}
END_TEST

START_TEST(room_is_used_again) {
    enum { N = 300 };
    record r[N];
    for (uint32_t i = 0; i < N; i++) {
        r[i] = put(1, 64 << 10, i);
    }
    /* 300 × 64 KiB: 19 units, so the file has taken three steps of eight. */
    ck_assert_uint_eq(kvc__scratch_bytes(file), 24 * MIB);
    for (uint32_t i = 0; i < N; i += 2) {
        drop(&r[i]);
    }
    for (uint32_t i = 0; i < N; i += 2) {
        r[i] = put(1, 64 << 10, 1000 + i);
    }
    ck_assert_uint_eq(kvc__scratch_bytes(file), 24 * MIB);
    /* What one group leaves another takes. */
    for (uint32_t i = 0; i < N; i++) {
        check_record(&r[i]);
        drop(&r[i]);
        if (i == 0) {
            r[0] = put(2, 64 << 10, 0);
        }
    }
    ck_assert_uint_eq(kvc__scratch_bytes(file), 24 * MIB);
    for (uint32_t i = 1; i < N; i++) {
        r[i] = put(2, 64 << 10, 2000 + i);
    }
    ck_assert_uint_eq(kvc__scratch_bytes(file), 24 * MIB);
    for (uint32_t i = 0; i < N; i++) {
        check_record(&r[i]);
    }
}
END_TEST

/* A unit that is full but for a hole takes a record that fits, and none that doesn't. */
START_TEST(a_hole_is_found) {
    record r[16];
    for (uint32_t i = 0; i < 16; i++) {
        r[i] = put(1, 64 << 10, i);
    }
    drop(&r[5]);
    const record large = put(1, (64 << 10) + 1, 50), small = put(1, 64 << 10, 51);
    ck_assert_uint_ge(large.at, MIB);
    ck_assert_uint_eq(small.at, behind(&large));
    record fill = put(1, MIB - (128 << 10) - GRANULE, 52);
    ck_assert_uint_eq(fill.at, behind(&small));
    const record in_hole = put(1, 64 << 10, 53);
    ck_assert_uint_eq(in_hole.at, r[5].at);
    check_record(&large);
    check_record(&small);
    check_record(&in_hole);
    check_record(&r[4]);
    check_record(&r[6]);
}
END_TEST

START_TEST(records_of_any_size) {
    static const size_t size[] = {1,           GRANULE - 1, GRANULE,     GRANULE + 1, MIB - 1,
                                  MIB,         MIB + 1,     2 * MIB,     5 * MIB + 3, 8 * MIB,
                                  9 * MIB + 1, MIB - 1,     3 * MIB - 1, 1,           MIB};
    enum { N = sizeof size / sizeof *size };
    record r[N];
    for (int round = 0; round < 2; round++) {
        for (uint32_t i = 0; i < N; i++) {
            r[i] = put(i % 3, size[i], i);
        }
        for (uint32_t i = 0; i < N; i++) {
            check_record(&r[i]);
            for (uint32_t j = 0; j < i; j++) {
                ck_assert(r[i].at >= behind(&r[j]) || r[j].at >= behind(&r[i]));
            }
        }
        for (uint32_t i = 0; i < N; i++) {
            drop(&r[(i * 7) % N]);
        }
        ck_assert_uint_eq(kvc__scratch_bytes(file), 0);
    }
}
END_TEST

/* Random steps against a list. */
START_TEST(random_steps) {
    enum { N = 400, STEPS = 3000 };
    static record r[N];
    struct stat st;
    int64_t counted = 0;
    uint64_t x = 88172645463325252u + (uint64_t)_i;
    memset(r, 0, sizeof r);
    for (int step = 0; step < STEPS; step++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        record *p = &r[x % N];
        if (p->n > 0) {
            check_record(p);
            drop(p);
            p->n = 0;
        } else {
            const size_t n = x >> 40 & 127 ? 1 + (x >> 20) % 40000 : 1 + (x >> 20) % (3 * MIB);
            *p = put((uint32_t)(x >> 50) % 5, n, (uint32_t)step);
        }
        counted += kvc__scratch_change(file);
        ck_assert_int_eq(counted, (int64_t)kvc__scratch_bytes(file));
    }
    for (uint32_t i = 0; i < N; i++) {
        for (uint32_t j = 0; j < i; j++) {
            ck_assert(r[i].n == 0 || r[j].n == 0 || r[i].at >= behind(&r[j]) ||
                      r[j].at >= behind(&r[i]));
        }
    }
    ck_assert_int_eq(fstat(fault.fd, &st), 0);
    ck_assert_uint_eq((uint64_t)st.st_size, kvc__scratch_bytes(file));
    ck_assert_uint_ge((uint64_t)st.st_blocks * 512, kvc__scratch_bytes(file));
    for (uint32_t i = 0; i < N; i++) {
        if (r[i].n > 0) {
            check_record(&r[i]);
            drop(&r[i]);
        }
    }
    ck_assert_uint_eq(kvc__scratch_bytes(file), 0);
    ck_assert_int_eq(counted + kvc__scratch_change(file), 0);
    ck_assert_int_eq(fstat(fault.fd, &st), 0);
    ck_assert_int_eq(st.st_size, 0);
}
END_TEST

START_TEST(bounds) {
    uint8_t buffer[4096];
    const record a = put(0, 3000, 1), b = put(0, 3000, 2);
    ck_assert_int_eq(kvc__scratch_get(file, a.at + 1, buffer, 10, &err), KVC_E_RANGE);
    ck_assert_int_eq(kvc__scratch_get(file, a.at, buffer, 0, &err), KVC_E_RANGE);
    ck_assert_int_eq(kvc__scratch_get(file, UINT64_MAX - GRANULE + 1, buffer, 10, &err),
                     KVC_E_RANGE);
    ck_assert_int_eq(kvc__scratch_get(file, a.at, buffer, SIZE_MAX, &err), KVC_E_RANGE);
    ck_assert_int_eq(kvc__scratch_get(file, 8 * MIB - GRANULE, buffer, GRANULE + 1, &err),
                     KVC_E_IO);
    ck_assert_int_eq(kvc__scratch_get(file, 8 * MIB, buffer, 1, &err), KVC_E_IO);
    ck_assert_ptr_nonnull(strstr(err.text, dir));
    ck_assert_int_eq(kvc__scratch_get(file, (uint64_t)1 << 60, buffer, 1, &err), KVC_E_IO);
    ck_assert_int_eq(kvc__scratch_put(file, 0, buffer, 0, &(uint64_t){0}, &err), KVC_E_RANGE);
    ck_assert_int_eq(kvc__scratch_put(file, 0, buffer, SIZE_MAX, &(uint64_t){0}, &err),
                     KVC_E_RANGE);
    /* Room that is no record's can't be given back. */
    kvc__scratch_drop(file, a.at + 1, 3000);
    kvc__scratch_drop(file, a.at, 0);
    kvc__scratch_drop(file, a.at, SIZE_MAX);
    kvc__scratch_drop(file, b.at, 3001 + GRANULE);
    kvc__scratch_drop(file, MIB, 1);
    kvc__scratch_drop(file, 8 * MIB, 1);
    kvc__scratch_drop(file, (uint64_t)1 << 60, 1);
    ck_assert_uint_eq(put(0, 1, 3).at, behind(&b));
    drop(&a);
    drop(&a);
    check_record(&b);
    ck_assert_uint_eq(kvc__scratch_bytes(file), 8 * MIB);
}
END_TEST

/* ---------------------------------------------------------------- names and directories */

/* Names in the directory. */
static int names(void) {
    DIR *d = opendir(dir);
    int n = 0;
    ck_assert_ptr_nonnull(d);
    for (const struct dirent *e; (e = readdir(d)) != NULL;) {
        n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
    }
    closedir(d);
    return n;
}

START_TEST(no_name_is_left) {
    struct stat st;
    fault.no_unnamed = _i == 1;
    open_file();
    ck_assert_int_eq(names(), 0);
    const record r = put(0, 100, 1);
    check_record(&r);
    ck_assert_int_eq(fstat(fault.fd, &st), 0);
    ck_assert_uint_eq(st.st_nlink, 0);
    ck_assert_int_eq(st.st_mode & 0777, 0600);
    ck_assert_int_eq(names(), 0);
}
END_TEST

START_TEST(a_directory_that_isnt_there) {
    char path[100];
    snprintf(path, sizeof path, "%s/none", dir);
    ck_assert_int_eq(kvc__scratch_open(&mem, path, &file, &err), KVC_E_NOT_FOUND);
    ck_assert_ptr_nonnull(strstr(err.text, path));
    ck_assert_ptr_nonnull(strstr(err.text, strerror(ENOENT)));
    ck_assert_int_eq(kvc__scratch_open(&mem, "/dev/null", &file, &err), KVC_E_NOT_FOUND);
    ck_assert_ptr_nonnull(strstr(err.text, strerror(ENOTDIR)));
    char *too_long = malloc(5000);
    ck_assert_ptr_nonnull(too_long);
    memset(too_long, 'x', 5000);
    too_long[4999] = '\0';
    ck_assert_int_eq(kvc__scratch_open(&mem, too_long, &file, &err), KVC_E_IO);
    free(too_long);
    ck_assert_ptr_null(file);
}
END_TEST

/* Sets or clears a variable of the environment. */
static void set(const char *name, const char *value) {
    ck_assert_int_eq(value != NULL ? setenv(name, value, 1) : unsetenv(name), 0);
}

static void check_folder(const char *path) {
    struct stat st;
    ck_assert_msg(stat(path, &st) == 0, "%s: %s", path, strerror(errno));
    ck_assert_int_eq(st.st_mode & 0777, 0700);
    ck_assert_int_eq(rmdir(path), 0);
}

START_TEST(the_users_cache_directory) {
    char a[100], b[110], c[100];
    set("XDG_CACHE_HOME", NULL);
    set("HOME", dir);
    ck_assert_int_eq(kvc__scratch_open(&mem, NULL, &file, &err), KVC_OK);
    kvc__scratch_close(file);
    snprintf(a, sizeof a, "%s/.cache/kvc", dir);
    snprintf(b, sizeof b, "%s/.cache", dir);
    check_folder(a);
    /* Folders that are there already, and a relative path, which isn't heeded. */
    set("XDG_CACHE_HOME", "relative");
    ck_assert_int_eq(kvc__scratch_open(&mem, "", &file, &err), KVC_OK);
    kvc__scratch_close(file);
    check_folder(a);
    check_folder(b);
    snprintf(a, sizeof a, "%s/x/y", dir);
    set("XDG_CACHE_HOME", a);
    ck_assert_int_eq(kvc__scratch_open(&mem, "", &file, &err), KVC_OK);
    kvc__scratch_close(file);
    snprintf(b, sizeof b, "%s/kvc", a);
    snprintf(c, sizeof c, "%s/x", dir);
    check_folder(b);
    check_folder(a);
    check_folder(c);
    /* None of them, and one that can't be made. */
    set("XDG_CACHE_HOME", NULL);
    set("HOME", NULL);
    set("TMPDIR", dir);
    ck_assert_int_eq(kvc__scratch_open(&mem, NULL, &file, &err), KVC_OK);
    kvc__scratch_close(file);
    set("TMPDIR", "/dev/null");
    file = NULL;
    ck_assert_int_eq(kvc__scratch_open(&mem, NULL, &file, &err), KVC_E_NOT_FOUND);
    ck_assert_str_eq(err.text, "/dev/null: no scratch file can be made: Not a directory; name a "
                               "directory that can be written, dir=PATH");
    set("XDG_CACHE_HOME", "/dev/null/x");
    ck_assert_int_eq(kvc__scratch_open(&mem, "", &file, &err), KVC_E_NOT_FOUND);
    ck_assert_str_eq(err.text, "/dev/null/x/kvc: can't be made: Not a directory; name a directory "
                               "that can be written, dir=PATH");
    /* Whoever named one knows that. */
    ck_assert_int_eq(kvc__scratch_open(&mem, "/dev/null", &file, &err), KVC_E_NOT_FOUND);
    ck_assert_str_eq(err.text, "/dev/null: no scratch file can be made: Not a directory");
    ck_assert_ptr_null(file);
}
END_TEST

/* ---------------------------------------------------------------- failures */

/* A limit on the size of files stands for a full disk. */
START_TEST(a_full_disk) {
    struct rlimit was, tight;
    struct sigaction ignore = {.sa_handler = SIG_IGN}, before;
    enum { N = 30 };
    record r[N];
    uint32_t n = 0;
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &was), 0);
    sigaction(SIGXFSZ, &ignore, &before);
    tight = was;
    tight.rlim_cur = 3 * MIB + 1000;
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &tight), 0);
    int32_t rc = KVC_OK;
    while (n < N && rc == KVC_OK) {
        r[n] = (record){.n = 200000, .seed = n};
        rc = try_put(&r[n]);
        n += rc == KVC_OK;
    }
    /* Five of them go into each of three units. */
    ck_assert_uint_eq(n, 15);
    ck_assert_int_eq(rc, KVC_E_IO);
    ck_assert_msg(strstr(err.text, "no space") != NULL && strstr(err.text, dir) != NULL, "%s",
                  err.text);
    ck_assert_uint_eq(kvc__scratch_bytes(file), 3 * MIB);
    for (uint32_t i = 0; i < n; i++) {
        check_record(&r[i]);
    }
    /* What is given back can be taken again. */
    drop(&r[4]);
    r[4].seed = 99;
    ck_assert_int_eq(try_put(&r[4]), KVC_OK);
    record large = {.n = 2 * MIB, .group = 3};
    ck_assert_int_eq(try_put(&large), KVC_E_IO);
    for (uint32_t i = 0; i < n; i++) {
        check_record(&r[i]);
        drop(&r[i]);
    }
    ck_assert_int_eq(try_put(&large), KVC_OK);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &was), 0);
    sigaction(SIGXFSZ, &before, NULL);
    check_record(&large);
}
END_TEST

/* Puts, reads and drops records; every failing step is taken again. Returns the failures. */
static uint32_t work(void) {
    enum { N = 10 };
    record r[N];
    uint32_t failed = 0;
    for (uint32_t i = 0; i < N; i++) {
        r[i] = (record){.n = i == 5 ? 2 * MIB + 5 : 300000, .seed = i, .group = i % 2};
        int32_t rc = try_put(&r[i]);
        if (rc < 0) {
            ck_assert_int_eq(rc, KVC_E_IO);
            ck_assert_msg(strstr(err.text, dir) != NULL, "%s", err.text);
            failed++;
            rc = try_put(&r[i]);
        }
        ck_assert_int_eq(rc, KVC_OK);
    }
    for (uint32_t i = 0; i < N; i++) {
        if (try_get(&r[i]) < 0) {
            failed++;
            check_record(&r[i]);
        }
        drop(&r[i]);
    }
    ck_assert_uint_eq(kvc__scratch_bytes(file), 0);
    return failed;
}

/* Whether files in dir can be read so. */
static bool can_read_directly(void) {
    char path[sizeof dir + 8];
    snprintf(path, sizeof path, "%s/probe", dir);
    const int fd = open(path, O_RDWR | O_CREAT | O_DIRECT, 0600);
    (void)unlink(path);
    (void)close(fd);
    return fd >= 0;
}

START_TEST(aligned_reads_go_past_the_page_cache) {
    const record small = put(0, 3 * GRANULE, 1), large = put(0, 2 * MIB + 5, 2);
    void *q = NULL;
    fault.n_direct = 0;
    ck_assert_int_eq(posix_memalign(&q, GRANULE, 4 * GRANULE), 0);
    ck_assert_int_eq(kvc__scratch_get(file, small.at, (uint8_t *)q + 8, small.n, &err), KVC_OK);
    ck_assert_int_eq(kvc__scratch_get(file, small.at, q, small.n - 1, &err), KVC_OK);
    ck_assert_int_eq(fault.n_direct, 0);
    ck_assert_int_eq(kvc__scratch_get(file, small.at, q, small.n, &err), KVC_OK);
    ck_assert_int_eq(fault.n_direct, can_read_directly());
    check_record(&large);
    free(q);
}
END_TEST

START_TEST(every_call_fails_once) {
    int n = 0;
    ck_assert_uint_eq(work(), 0);
    for (;; n++) {
        arm(_i, n);
        const uint32_t failed = work();
        fault.armed = false;
        ck_assert_uint_le(failed, _i == SHORT || _i == INTERRUPTED ? 0 : 1);
        if (!fault.hit) {
            break;
        }
    }
    ck_assert_msg(n >= 20, "only %d calls were seen", n);
}
END_TEST

/* Room of a write that failed is the next record's. */
START_TEST(a_failed_write_gives_its_room_back) {
    const record a = put(0, 3000, 1);
    record b = {.n = 5000, .seed = 2};
    arm(FAIL_EIO, 0);
    ck_assert_int_eq(try_put(&b), KVC_E_IO);
    fault.armed = false;
    drop(&a);
    ck_assert_uint_eq(kvc__scratch_bytes(file), 0);
    arm(FAIL_EIO, 1); /* the first call takes room */
    ck_assert_int_eq(try_put(&b), KVC_E_IO);
    fault.armed = false;
    ck_assert_uint_eq(kvc__scratch_bytes(file), 0);
}
END_TEST

START_TEST(every_allocation_fails_once) {
    for (size_t n = 0;; n++) {
        kvc__mem_init(&mem, &failing, NULL);
        allocations_left = n;
        file = NULL;
        int32_t rc = kvc__scratch_open(&mem, dir, &file, &err);
        /* Seventeen groups: their table grows. */
        for (uint32_t i = 0; i < 17 && rc == KVC_OK; i++) {
            record r = {.n = 100, .seed = i, .group = i};
            rc = try_put(&r);
            if (rc == KVC_OK) {
                check_record(&r);
            }
        }
        kvc__scratch_close(file);
        file = NULL;
        ck_assert_uint_eq(atomic_load(&mem.used), 0);
        if (rc == KVC_OK) {
            ck_assert_uint_ge(n, 5);
            break;
        }
        ck_assert_int_eq(rc, KVC_E_NOMEM);
        ck_assert_uint_gt(strlen(err.text), 0);
        memset(&err, 0, sizeof err);
    }
}
END_TEST

/* More units than the first table of blocks has room for, in a file that takes none. */
START_TEST(a_large_file) {
    enum { N = 90 };
    uint64_t at[N];
    struct stat st;
    uint8_t *p = calloc(1, 16 * MIB);
    ck_assert_ptr_nonnull(p);
    fault.sparse = true;
    for (uint32_t i = 0; i < N; i++) {
        ck_assert_int_eq(kvc__scratch_put(file, i % 4, p, 16 * MIB, &at[i], &err), KVC_OK);
        ck_assert_uint_eq(at[i], i * 16 * MIB);
    }
    ck_assert_uint_eq(kvc__scratch_bytes(file), N * 16 * MIB);
    ck_assert_int_eq(fstat(fault.fd, &st), 0);
    ck_assert_uint_eq((uint64_t)st.st_size, N * 16 * MIB);
    free(p);
    for (uint32_t i = 0; i < N; i++) {
        kvc__scratch_drop(file, at[i], 16 * MIB);
    }
    ck_assert_uint_eq(kvc__scratch_bytes(file), 0);
}
END_TEST

/* ---------------------------------------------------------------- threads */

static void *hammer(void *arg) {
    enum { N = 30, STEPS = 1500 };
    record r[N];
    kvc__err own = {{0}};
    uint64_t x = (uint64_t)(uintptr_t)arg * 0x9e3779b97f4a7c15u + 1;
    uint8_t *back = malloc(100000);
    memset(r, 0, sizeof r);
    for (int step = 0; step < STEPS; step++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        record *p = &r[x % N];
        if (p->n > 0) {
            uint8_t *bytes = bytes_of(p);
            if (kvc__scratch_get(file, p->at, back, p->n, &own) != KVC_OK ||
                memcmp(back, bytes, p->n) != 0) {
                free(bytes);
                free(back);
                return "a record is not what it was";
            }
            free(bytes);
            kvc__scratch_drop(file, p->at, p->n);
            p->n = 0;
        } else {
            *p = (record){.n = 1 + (x >> 20) % 100000, .seed = (uint32_t)(x >> 30)};
            uint8_t *bytes = bytes_of(p);
            const int32_t rc =
                kvc__scratch_put(file, (uint32_t)(x >> 60), bytes, p->n, &p->at, &own);
            free(bytes);
            if (rc != KVC_OK) {
                free(back);
                return "a record can't be put";
            }
        }
    }
    for (int i = 0; i < N; i++) {
        if (r[i].n > 0) {
            kvc__scratch_drop(file, r[i].at, r[i].n);
        }
    }
    free(back);
    return NULL;
}

START_TEST(threads) {
    enum { N = 4 };
    pthread_t thread[N];
    for (uintptr_t i = 0; i < N; i++) {
        ck_assert_int_eq(pthread_create(&thread[i], NULL, hammer, (void *)(i + 1)), 0);
    }
    for (int i = 0; i < N; i++) {
        void *said = NULL;
        ck_assert_int_eq(pthread_join(thread[i], &said), 0);
        ck_assert_msg(said == NULL, "%s", (const char *)said);
    }
    ck_assert_uint_eq(kvc__scratch_bytes(file), 0);
}
END_TEST

/* ---------------------------------------------------------------- the page cache */

/* Bytes of the file that the system holds in memory. */
static size_t cached(size_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), n = bytes / page;
    unsigned char *in = malloc(n);
    void *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fault.fd, 0);
    size_t sum = 0;
    ck_assert_ptr_nonnull(in);
    ck_assert(map != MAP_FAILED && mincore(map, bytes, in) == 0);
    for (size_t i = 0; i < n; i++) {
        sum += in[i] & 1;
    }
    munmap(map, bytes);
    free(in);
    return sum * page;
}

START_TEST(the_page_cache_doesnt_keep_it) {
    enum { N = 96 };
    struct statfs fs;
    record r[N];
    size_t most = 0;
    for (uint32_t i = 0; i < N; i++) {
        r[i] = put(i % 8, MIB, i);
        const size_t now = cached(kvc__scratch_bytes(file));
        most = now > most ? now : most;
    }
    ck_assert_int_eq(fstatfs(fault.fd, &fs), 0);
    if (fs.f_type == 0x01021994) {
        return; /* tmpfs: the page cache is where its files live */
    }
    /* A step being written, one waiting to be, and what couldn't be forgotten at once. */
    ck_assert_msg(most <= 32 * MIB, "%zu MiB while it was written", most / MIB);
    for (uint32_t i = 0; i < N; i++) {
        check_record(&r[i]);
    }
    ck_assert_uint_le(cached(kvc__scratch_bytes(file)), 16 * MIB);
    for (uint32_t i = 0; i < N; i++) {
        check_record(&r[i]);
    }
    ck_assert_uint_le(cached(kvc__scratch_bytes(file)), MIB);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("scratch");
    TCase *tc = tcase_create("file");
    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, a_groups_records_lie_side_by_side);
    tcase_add_test(tc, room_is_used_again);
    tcase_add_test(tc, a_hole_is_found);
    tcase_add_test(tc, records_of_any_size);
    every_add(tc, random_steps, 3, 8);
    tcase_add_test(tc, bounds);
    tcase_add_test(tc, a_full_disk);
    tcase_add_test(tc, aligned_reads_go_past_the_page_cache);
    every_add(tc, every_call_fails_once, N_MODE, 8);
    tcase_add_test(tc, a_failed_write_gives_its_room_back);
    tcase_add_test(tc, a_large_file);
    tcase_add_test(tc, threads);
    tcase_add_test(tc, the_page_cache_doesnt_keep_it);
    suite_add_tcase(suite, tc);
    tc = tcase_create("opening");
    tcase_add_checked_fixture(tc, setup_dir, teardown);
    tcase_add_loop_test(tc, no_name_is_left, 0, 2);
    tcase_add_test(tc, a_directory_that_isnt_there);
    tcase_add_test(tc, the_users_cache_directory);
    tcase_add_test(tc, every_allocation_fails_once);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}

/* SPDX-License-Identifier: MIT
 * os.c: what differs between operating systems, here Linux: read-only maps of files, reserved
 * address space, the clock, how many cores there are. The one place besides cpu.c with platform
 * conditions. It must not know what is in a file or who uses the space. */
#define _GNU_SOURCE /* dladdr, O_TMPFILE, O_DIRECT, sched_getaffinity, MAP_ANONYMOUS, madvise */
#include "os.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---------------------------------------------------------------- files */

int kvc__fd_raise(int fd) {
    if (fd < 0 || fd > STDERR_FILENO) {
        return fd;
    }
    const int other = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1), code = errno;
    (void)close(fd);
    errno = code;
    return other;
}

int kvc__unnamed_open(const char *path) {
    char dir[4096];
    const char *slash = strrchr(path, '/');
    const int n = slash != NULL ? snprintf(dir, sizeof dir, "%.*s", (int)(slash - path) + 1, path)
                                : snprintf(dir, sizeof dir, ".");
    /* Without /proc the file could be written but never named. */
    if (n < 0 || (size_t)n >= sizeof dir || access("/proc/self/fd", X_OK) != 0) {
        return -1;
    }
    return kvc__fd_raise(open(dir, O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600));
}

int kvc__unnamed_link(int fd, const char *path) {
    char self[64];
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    return linkat(AT_FDCWD, self, AT_FDCWD, path, AT_SYMLINK_FOLLOW);
}

int kvc__scratch_fd(const char *dir) {
    char path[4096];
    int fd = open(dir, O_TMPFILE | O_RDWR | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) {
        /* Not every file system has files without a name: one that loses its own will do. */
        const int n = snprintf(path, sizeof path, "%s/kvc.%llx%llx", dir,
                               (unsigned long long)getpid(), (unsigned long long)kvc__clock_ns());
        if (n < 0 || (size_t)n >= sizeof path) {
            errno = ENAMETOOLONG;
            return -1;
        }
        fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (fd >= 0) {
            (void)unlink(path);
        }
    }
    fd = kvc__fd_raise(fd);
    if (fd >= 0) {
        /* Nothing is read ahead: whoever reads knows better what comes next. */
        (void)posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
    }
    return fd;
}

/* Reads exactly n bytes at `at`. */
static bool read_at(int fd, void *out, size_t n, uint64_t at) {
    return at <= PTRDIFF_MAX && pread(fd, out, n, (off_t)at) == (ssize_t)n;
}

/* Whether what a library's program headers want loaded lies in a file of that size. */
static bool loads_within(int fd, uint64_t size) {
    ElfW(Ehdr) head;
    ElfW(Phdr) part;
    if (!read_at(fd, &head, sizeof head, 0) || memcmp(head.e_ident, ELFMAG, SELFMAG) != 0 ||
        head.e_ident[EI_CLASS] != (sizeof(void *) == 8 ? ELFCLASS64 : ELFCLASS32)) {
        return true;
    }
    for (uint32_t i = 0; i < head.e_phnum; i++) {
        /* e_phoff may be anything: a sum that wraps is found by read_at() or by its bounds. */
        const uint64_t at = head.e_phoff + (uint64_t)i * sizeof part;
        if (at < head.e_phoff || !read_at(fd, &part, sizeof part, at)) {
            return false;
        }
        if (part.p_type == PT_LOAD &&
            (part.p_offset > size || part.p_filesz > size - part.p_offset)) {
            return false;
        }
    }
    return true;
}

bool kvc__library_is_whole(const char *path) {
    struct stat st;
    const int fd = kvc__fd_raise(open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
    if (fd < 0) {
        return true;
    }
    const bool whole = fstat(fd, &st) != 0 || loads_within(fd, (uint64_t)st.st_size);
    (void)close(fd);
    return whole;
}

int kvc__direct_fd(int fd) {
    char self[64];
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    return kvc__fd_raise(open(self, O_RDONLY | O_DIRECT | O_CLOEXEC));
}

void kvc__write_behind(int fd) {
    (void)sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE);
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
}

void kvc__forget(int fd, uint64_t at, size_t n) {
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    const uint64_t from = at / page * page, end = (at + n + page - 1) / page * page;
    (void)posix_fadvise(fd, (off_t)from, (off_t)(end - from), POSIX_FADV_DONTNEED);
}

static int32_t fail_errno(kvc__err *err, const char *what, const char *path) {
    int code = errno;
    char buffer[128];
    const char *text = strerror_r(code, buffer, sizeof(buffer));
    if (code == ENOENT || code == ENOTDIR) {
        return kvc__fail(err, KVC_E_NOT_FOUND, "%s: no such file; check the path", path);
    }
    return kvc__fail(err, KVC_E_IO, "%s: can't %s the file: %s", path, what, text);
}

/* Maps the open file. The map stays valid when fd is closed. A file that another process cuts
 * short while it is mapped kills this one by SIGBUS, as with every map. */
static int32_t map_fd(int fd, const char *path, kvc__map *out, kvc__err *err) {
    struct stat st;
    if (fstat(fd, &st) != 0) {
        return fail_errno(err, "examine", path);
    }
    if (!S_ISREG(st.st_mode)) {
        return kvc__fail(err, KVC_E_FORMAT, "%s: not a regular file; give the path of a file",
                         path);
    }
    if (st.st_size <= 0) {
        return kvc__fail(err, KVC_E_FORMAT, "%s: the file is empty; fetch it again", path);
    }
    if ((uintmax_t)st.st_size > PTRDIFF_MAX) {
        return kvc__fail(err, KVC_E_IO, "%s: the file is larger than the address space", path);
    }
    size_t size = (size_t)st.st_size;
    void *data = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) {
        return fail_errno(err, "map", path);
    }
    out->data = data;
    out->size = size;
    return KVC_OK;
}

int32_t kvc__map_file(const char *path, kvc__map *out, kvc__err *err) {
    out->data = NULL;
    out->size = 0;
    /* O_NONBLOCK: opening a pipe that nobody writes to must not hang. */
    int fd = kvc__fd_raise(open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
    if (fd < 0) {
        return fail_errno(err, "open", path);
    }
    int32_t rc = map_fd(fd, path, out, err);
    close(fd);
    return rc;
}

void kvc__unmap(kvc__map *map) {
    if (map->data) {
        munmap((void *)(uintptr_t)map->data, map->size);
    }
    map->data = NULL;
    map->size = 0;
}

/* ---------------------------------------------------------------- address space */

void *kvc__reserve(size_t size) {
    if (size == 0) {
        return NULL;
    }
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

void kvc__prefer_large(void *p, size_t size) {
#ifdef MADV_HUGEPAGE
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), head = (page - (uintptr_t)p % page) % page;
    if (size > head) {
        (void)madvise((char *)p + head, size - head, MADV_HUGEPAGE);
    }
#else
    (void)p, (void)size;
#endif
}

void kvc__release(void *p, size_t size) {
    if (p) {
        munmap(p, size);
    }
}

void kvc__discard(void *p, size_t size) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t head = (page - (uintptr_t)p % page) % page;
    if (!p || size < head + page) {
        return;
    }
    size_t whole = (size - head) / page * page;
    madvise((char *)p + head, whole, MADV_DONTNEED);
}

/* ---------------------------------------------------------------- clock, cores, environment */

uint64_t kvc__clock_ns(void) {
    struct timespec t = {0, 0};
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Cores of the affinity mask; those that are online when the mask is larger than cpu_set_t. */
static uint32_t affinity_cores(void) {
    cpu_set_t set;
    CPU_ZERO(&set);
    long n = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set)
                                                          : sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : (uint32_t)n;
}

/* Cores that the quota of one group allows, rounded up; UINT32_MAX when it has none. */
static uint32_t group_cores(const char *group) {
    char path[1100];
    unsigned long long quota = 0;
    unsigned long long period = 0;
    if ((size_t)snprintf(path, sizeof(path), "/sys/fs/cgroup%s/cpu.max", group) >= sizeof(path)) {
        return UINT32_MAX;
    }
    FILE *f = fopen(path, "re");
    if (!f) {
        return UINT32_MAX;
    }
    int n = fscanf(f, "%20llu %20llu", &quota, &period);
    fclose(f);
    if (n != 2 || quota == 0 || period == 0) {
        return UINT32_MAX;
    }
    unsigned long long cores = (quota - 1) / period + 1;
    return cores < UINT32_MAX ? (uint32_t)cores : UINT32_MAX;
}

/* The least quota of the process's group and of those above it (cgroup v2; a quota of version 1 is
 * not seen). */
static uint32_t quota_cores(void) {
    char line[1024];
    uint32_t least = UINT32_MAX;
    FILE *f = fopen("/proc/self/cgroup", "re");
    while (f && fgets(line, sizeof(line), f)) {
        if (strncmp(line, "0::/", 4) != 0) {
            continue;
        }
        char *group = line + 3;
        group[strcspn(group, "\n")] = '\0';
        for (char *slash = group; slash; *slash = '\0') {
            uint32_t cores = group_cores(group);
            least = cores < least ? cores : least;
            slash = strrchr(group, '/');
            if (!slash) {
                break;
            }
        }
    }
    if (f) {
        fclose(f);
    }
    return least;
}

uint32_t kvc__n_core(void) {
    uint32_t cores = affinity_cores();
    uint32_t quota = quota_cores();
    return quota < cores ? quota : cores;
}

const char *kvc__env(const char *name) {
    return getauxval(AT_SECURE) ? NULL : getenv(name);
}

int kvc__thread_start(pthread_t *out, void *(*fn)(void *), void *arg) {
    /* Blocked, these would end the process without a handler. */
    static const int fault[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT};
    sigset_t all, before;
    sigfillset(&all);
    for (size_t i = 0; i < sizeof fault / sizeof *fault; i++) {
        sigdelset(&all, fault[i]);
    }
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int failed = pthread_create(out, NULL, fn, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failed;
}

void kvc__pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb" ::: "memory");
#endif
}

int kvc__beside_library(const char *name, char *out, size_t cap) {
    /* Any object of the library tells where it lies. */
    static const char here;
    Dl_info info;
    if (dladdr(&here, &info) == 0 || info.dli_fname == NULL) {
        return 0;
    }
    const char *slash = strrchr(info.dli_fname, '/');
    if (slash == NULL) {
        return 0;
    }
    const int n =
        snprintf(out, cap, "%.*s/%s", (int)(slash - info.dli_fname), info.dli_fname, name);
    return n > 0 && (size_t)n < cap;
}

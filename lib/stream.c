/* SPDX-License-Identifier: MIT
 * stream.c: buffered files and memory as streams. System calls are repeated when a signal cut them
 * short. */
#include "stream.h"

#include "os.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>

#define BUFFER ((size_t)1 << 20)

static int32_t io_failed(kvc__stream *s, const char *what) {
    return kvc__fail(s->err, KVC_E_IO, "%s: %s: %s", s->path, what, strerror(errno));
}

/* What all kinds share: checksum, and a buffer of cap bytes. */
static int32_t begin(kvc__mem *mem, size_t cap, kvc__stream *s, kvc__err *err) {
    *s = (kvc__stream){.mem = mem, .err = err, .fd = -1, .cap = cap};
    s->hash = XXH3_createState();
    s->buf = kvc__alloc(mem, cap);
    if (s->hash == NULL || s->buf == NULL) {
        kvc__stream_close(s);
        return kvc__fail(err, KVC_E_NOMEM, "no memory for a stream's buffer");
    }
    XXH3_64bits_reset(s->hash);
    return KVC_OK;
}

/* Room for the second path: a dot, two numbers in hexadecimal, the NUL. */
#define TEMP_EXTRA (2 + 2 * 16 + 1)

/* Copies of the path and of the temporary one, in one block. */
static int32_t set_path(kvc__stream *s, const char *path) {
    const size_t n = strlen(path) + 1;
    s->path_bytes = 2 * n + TEMP_EXTRA;
    s->path = kvc__alloc(s->mem, s->path_bytes);
    if (s->path == NULL) {
        return kvc__fail(s->err, KVC_E_NOMEM, "no memory for a path");
    }
    memcpy(s->path, path, n);
    return KVC_OK;
}

/* Opens what is to become the file: without a name where the system can, so that nothing is left
 * behind whatever happens to the process; else under a name beside it. */
static int32_t open_temp(kvc__stream *s) {
    const size_t n = strlen(s->path) + 1;
    char *temp = s->path + n;
    memcpy(temp, s->path, n);
    snprintf(temp + n - 1, TEMP_EXTRA + 1, ".%llx%llx", (unsigned long long)getpid(),
             (unsigned long long)kvc__clock_ns());
    s->fd = kvc__unnamed_open(s->path);
    s->unnamed = s->fd >= 0;
    if (s->fd < 0) {
        const int fd = open(temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        s->temp = fd >= 0 ? temp : NULL; /* there is a file to be taken away */
        s->fd = kvc__fd_raise(fd);
    }
    if (s->fd < 0) {
        return io_failed(s, "can't write a file beside it");
    }
    s->temp = temp;
    return KVC_OK;
}

int32_t kvc__stream_create(kvc__mem *mem, const char *path, kvc__stream *out, kvc__err *err) {
    KVC_TRY(begin(mem, BUFFER, out, err));
    int32_t rc = set_path(out, path);
    if (rc == KVC_OK) {
        rc = open_temp(out);
    }
    if (rc < 0) {
        kvc__stream_close(out);
    }
    return rc;
}

int32_t kvc__stream_open(kvc__mem *mem, const char *path, kvc__stream *out, kvc__err *err) {
    struct stat st;
    KVC_TRY(begin(mem, BUFFER, out, err));
    int32_t rc = set_path(out, path);
    if (rc == KVC_OK) {
        /* O_NONBLOCK: opening a pipe that nobody writes to must not hang. */
        out->fd = kvc__fd_raise(open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
        if (out->fd < 0) {
            rc = errno == ENOENT
                     ? kvc__fail(err, KVC_E_NOT_FOUND, "%s: no such file; check the path", path)
                     : io_failed(out, "can't be read");
        } else if (fstat(out->fd, &st) != 0 || !S_ISREG(st.st_mode)) {
            rc = kvc__fail(err, KVC_E_IO,
                           "%s: not a regular file; give the path of a saved session", path);
        } else {
            out->left = (uint64_t)st.st_size;
        }
    }
    if (rc < 0) {
        kvc__stream_close(out);
    }
    return rc;
}

int32_t kvc__stream_memory(kvc__mem *mem, kvc__stream *out, kvc__err *err) {
    return begin(mem, 4096, out, err);
}

/* ---------------------------------------------------------------- writing */

static int32_t flush(kvc__stream *s) {
    for (size_t at = 0; at < s->n;) {
        ssize_t n = write(s->fd, s->buf + at, s->n - at);
        if (n < 0 && errno != EINTR) {
            return io_failed(s, "can't be written");
        }
        at += n > 0 ? (size_t)n : 0;
    }
    s->n = 0;
    return KVC_OK;
}

/* Room for n more bytes in memory. */
static int32_t grow(kvc__stream *s, size_t n) {
    size_t need, cap = s->cap;
    if (!kvc__add_size(s->n, n, &need)) {
        return KVC_E_NOMEM;
    }
    while (cap < need) {
        cap = cap > SIZE_MAX / 2 ? need : cap * 2;
    }
    uint8_t *p = kvc__realloc(s->mem, s->buf, s->cap, cap, 64);
    if (p == NULL) {
        return kvc__fail(s->err, KVC_E_NOMEM, "no memory for a policy's state of %zu bytes", need);
    }
    s->buf = p;
    s->cap = cap;
    return KVC_OK;
}

int32_t kvc__stream_write(kvc__stream *s, const void *p, size_t n) {
    const uint8_t *from = p;
    XXH3_64bits_update(s->hash, p, n);
    if (s->fd < 0 && s->cap - s->n < n) {
        KVC_TRY(grow(s, n));
    }
    while (n > 0) {
        if (s->n == s->cap) {
            KVC_TRY(flush(s));
        }
        const size_t m = n < s->cap - s->n ? n : s->cap - s->n;
        memcpy(s->buf + s->n, from, m);
        s->n += m;
        from += m;
        n -= m;
    }
    return KVC_OK;
}

int32_t kvc__stream_commit(kvc__stream *s) {
    KVC_TRY(flush(s));
    if (fsync(s->fd) != 0) {
        return io_failed(s, "can't be written");
    }
    if (s->unnamed && kvc__unnamed_link(s->fd, s->temp) != 0) {
        s->temp = NULL;
        return io_failed(s, "can't be given its name");
    }
    s->unnamed = false;
    const int fd = s->fd;
    s->fd = -1;
    if (close(fd) != 0) {
        return io_failed(s, "can't be written");
    }
    if (rename(s->temp, s->path) != 0) {
        return io_failed(s, "can't be replaced");
    }
    /* The name is on disk when its directory is. */
    char *slash = strrchr(s->path, '/');
    memcpy(s->temp, s->path, slash != NULL ? (size_t)(slash - s->path) + 1 : 0);
    s->temp[slash != NULL ? slash - s->path + 1 : 0] = '\0';
    const int dir = kvc__fd_raise(open(s->temp[0] != '\0' ? s->temp : ".", O_RDONLY | O_CLOEXEC));
    s->temp = NULL;
    if (dir >= 0) {
        (void)fsync(dir); /* some file systems can't; the file itself is whole either way */
        (void)close(dir);
    }
    return KVC_OK;
}

/* ---------------------------------------------------------------- reading */

/* Fills the empty buffer from the file. */
static int32_t refill(kvc__stream *s) {
    ssize_t n;
    do {
        n = read(s->fd, s->buf, s->cap);
    } while (n < 0 && errno == EINTR);
    if (n < 0) {
        return io_failed(s, "can't be read");
    }
    s->at = 0;
    s->n = (size_t)n;
    s->left = n == 0 || s->left < (uint64_t)n ? 0 : s->left - (uint64_t)n;
    return KVC_OK;
}

int32_t kvc__stream_read(kvc__stream *s, void *p, size_t n) {
    uint8_t *to = p;
    const size_t all = n;
    while (n > 0) {
        if (s->at == s->n && s->fd >= 0) {
            KVC_TRY(refill(s));
        }
        const size_t have = s->n - s->at, m = n < have ? n : have;
        if (m == 0) {
            return kvc__fail(s->err, KVC_E_FORMAT, "%s: cut short or damaged",
                             s->path != NULL ? s->path : "state");
        }
        memcpy(to, s->buf + s->at, m);
        s->at += m;
        to += m;
        n -= m;
    }
    XXH3_64bits_update(s->hash, p, all);
    return KVC_OK;
}

uint64_t kvc__stream_left(const kvc__stream *s) {
    return s->left + (s->n - s->at);
}

uint64_t kvc__stream_hash(const kvc__stream *s) {
    return XXH3_64bits_digest(s->hash);
}

void kvc__stream_close(kvc__stream *s) {
    if (s->mem == NULL) {
        return;
    }
    if (s->fd >= 0) {
        (void)close(s->fd);
    }
    if (s->temp != NULL && !s->unnamed) {
        (void)unlink(s->temp);
    }
    (void)XXH3_freeState(s->hash);
    kvc__free(s->mem, s->buf, s->buf != NULL ? s->cap : 0);
    kvc__free(s->mem, s->path, s->path_bytes);
    *s = (kvc__stream){0};
}

/* SPDX-License-Identifier: MIT
 * os.h: what differs between operating systems: files mapped read-only, reserved address space,
 * threads, the clock. */
#ifndef KVC_OS_H
#define KVC_OS_H

#include "err.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** A file mapped read-only. */
typedef struct kvc__map {
    const uint8_t *data;
    size_t size;
} kvc__map;

/** Maps the regular file at path. KVC_E_NOT_FOUND, KVC_E_IO, KVC_E_FORMAT (empty or not a regular
 * file). */
int32_t kvc__map_file(const char *path, kvc__map *out, kvc__err *err);
/** Unmaps; a zeroed map is legal. */
void kvc__unmap(kvc__map *map);

/** fd, or where it stands in the place of a standard stream, which the program has closed, another
 * descriptor of its file that doesn't: what the program prints would land in the file. What open()
 * answers goes through here everywhere; fopen() and opendir() open for a moment, and only to read.
 * -1 stays -1; -1 with errno, and fd is closed, when there is no other. */
int kvc__fd_raise(int fd);

/** Opens a file without a name for writing in the directory of path, which vanishes with its
 * descriptor; -1 where the system can't. */
int kvc__unnamed_open(const char *path);
/** Gives an unnamed file its name, which must be free: 0, or -1 with errno. */
int kvc__unnamed_link(int fd, const char *path);

/** Opens a file without a name in the directory dir for reading and writing, which vanishes with
 * its descriptor and isn't read ahead: a descriptor, or -1 with errno. */
int kvc__scratch_fd(const char *dir);
/** False when the file at path is a library of this machine's word size whose loadable parts reach
 * beyond its end: mapping it would end the process by SIGBUS. True for anything else, which the
 * loader itself refuses. */
bool kvc__library_is_whole(const char *path);

/** Another descriptor of the file at fd, for reading past the page cache, which wants place, length
 * and memory aligned: -1 where the system can't. */
int kvc__direct_fd(int fd);
/** Keeps a file that is being written out of the system's page cache: waits for the disk to have
 * what it was handed the last time, hands it what was written since, and forgets what it has. */
void kvc__write_behind(int fd);
/** Takes what the disk has of bytes [at, at + n) out of the page cache. */
void kvc__forget(int fd, uint64_t at, size_t n);

/** Reserves size bytes of zeroed address space that take memory only when touched; NULL when
 * refused. */
void *kvc__reserve(size_t size);
/** Asks the system to back [p, p + size) by large pages, where it has them: looking addresses up is
 * then cheaper, and the memory is committed in larger pieces. To be called before the first use. */
void kvc__prefer_large(void *p, size_t size);
/** Gives reserved space back. */
void kvc__release(void *p, size_t size);
/** Gives the memory of the whole OS pages inside [p, p + size) back; they read as zeros afterwards.
 */
void kvc__discard(void *p, size_t size);

/** Nanoseconds of a monotonic clock. */
uint64_t kvc__clock_ns(void);
/** Cores that the process may use, at least 1. */
uint32_t kvc__n_core(void);
/** The path of `name` in the directory that this library was loaded from; 0 when that isn't known
 * or too long. */
int kvc__beside_library(const char *name, char *out, size_t cap);
/** An environment variable, NULL when unset or when the process runs with raised privileges. */
const char *kvc__env(const char *name);
/** Starts a thread with signals blocked, so that the program's handlers run on its own threads; but
 * those that a fault raises. 0, or an errno. */
int kvc__thread_start(pthread_t *out, void *(*fn)(void *), void *arg);
/** Tells the core that this thread spins. */
void kvc__pause(void);

#endif

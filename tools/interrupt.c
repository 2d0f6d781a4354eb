/* SPDX-License-Identifier: MIT
 * interrupt.c: a thread of its own waits for SIGINT, so that cancelling runs as ordinary code and
 * not inside a signal handler, where locks are not allowed. It knows sessions only by their handle.
 */
#include "interrupt.h"

#include "figures.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

/* Of each policy 64 sessions that decode together, and forks of them. */
#define MAX_WATCH (CMP_MAX_POLICY * 64u + 64u)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static kvc_session *watched[MAX_WATCH];
static const char *unfinished;
static void (*tidy)(void);
static atomic_int interrupted;

/* Cancels what runs; with nothing to unwind the process ends here. */
static void handle(void) {
    int n = 0;
    pthread_mutex_lock(&lock);
    int again = atomic_exchange(&interrupted, 1);
    for (size_t i = 0; i < MAX_WATCH; i++) {
        if (watched[i] != NULL) {
            kvc_session_cancel(watched[i]);
            n++;
        }
    }
    if (n == 0 || again) {
        if (unfinished != NULL) {
            unlink(unfinished);
        }
        if (tidy != NULL) {
            tidy();
        }
        static const char erase[] = "\r\033[K";
        if (isatty(STDERR_FILENO)) {
            (void)!write(STDERR_FILENO, erase, sizeof erase - 1);
        }
        _exit(130);
    }
    pthread_mutex_unlock(&lock);
}

static void *listen_loop(void *arg) {
    const sigset_t *set = arg;
    for (;;) {
        int sig = 0;
        if (sigwait(set, &sig) == 0 && sig == SIGINT) {
            handle();
        }
    }
    return NULL;
}

int cmp_interrupt_start(void) {
    static sigset_t set;
    pthread_t thread;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    /* Threads inherit the mask: SIGINT is left to the listener alone. */
    if (pthread_sigmask(SIG_BLOCK, &set, NULL) != 0 ||
        pthread_create(&thread, NULL, listen_loop, &set) != 0) {
        return -1;
    }
    return pthread_detach(thread) == 0 ? 0 : -1;
}

void cmp_interrupt_watch(kvc_session *session) {
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < MAX_WATCH; i++) {
        if (watched[i] == NULL) {
            watched[i] = session;
            break;
        }
    }
    if (atomic_load(&interrupted)) {
        kvc_session_cancel(session);
    }
    pthread_mutex_unlock(&lock);
}

void cmp_interrupt_forget(kvc_session *session) {
    if (session == NULL) {
        return;
    }
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < MAX_WATCH; i++) {
        if (watched[i] == session) {
            watched[i] = NULL;
        }
    }
    pthread_mutex_unlock(&lock);
}

int cmp_interrupted(void) {
    return atomic_load(&interrupted);
}

void cmp_interrupt_again(void) {
    pthread_mutex_lock(&lock);
    atomic_store(&interrupted, 0);
    pthread_mutex_unlock(&lock);
}

void cmp_interrupt_tidy(void (*fn)(void)) {
    pthread_mutex_lock(&lock);
    tidy = fn;
    pthread_mutex_unlock(&lock);
}

void cmp_interrupt_remove(const char *path) {
    pthread_mutex_lock(&lock);
    unfinished = path;
    pthread_mutex_unlock(&lock);
}

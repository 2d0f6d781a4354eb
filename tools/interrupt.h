/* SPDX-License-Identifier: MIT
 * interrupt.h: Ctrl-C. Sessions that are watched are cancelled and the run unwinds; when there is
 * none, the process ends at once with code 130. */
#ifndef KVC_INTERRUPT_H
#define KVC_INTERRUPT_H

#include "kvc/kvc.h"

/** Starts listening; before any other thread is started. Returns 0, or -1 when the system refuses.
 */
int cmp_interrupt_start(void);
/** Cancels session when Ctrl-C comes. */
void cmp_interrupt_watch(kvc_session *session);
/** Stops doing so; before the session is closed. NULL is legal. */
void cmp_interrupt_forget(kvc_session *session);
/** 1 after Ctrl-C. */
int cmp_interrupted(void);
/** Forgets a Ctrl-C that was dealt with: the next one is a first one again. A session may still be
 * cancelled once by it. */
void cmp_interrupt_again(void);
/** Calls fn before Ctrl-C ends the process, in another thread; NULL: nothing. */
void cmp_interrupt_tidy(void (*fn)(void));
/** Names a file to remove if Ctrl-C comes; NULL: none. The text must live until the next call. */
void cmp_interrupt_remove(const char *path);

#endif

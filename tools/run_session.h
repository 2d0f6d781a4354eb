/* SPDX-License-Identifier: MIT
 * run_session.h: the session of a run: new, from a file, to a file, or under another policy. It
 * knows no chats. */
#ifndef KVC_RUN_SESSION_H
#define KVC_RUN_SESSION_H

#include "run_generate.h"

/** Opens job->session: from the file of --session if that is there, else a new one. What the
 * command line asks for and the file has otherwise is refused, and so is a file that couldn't be
 * written at the end. Returns 0, or an exit code after a sentence. */
int run_session_open(run_job *job);
/** Computes what is pending, as far as there is room, and writes the session to path. Returns 0, or
 * an exit code after a sentence; the file is then what it was. */
int run_session_save(run_job *job, const char *path);
/** Refuses a path where something else than a saved session is. Returns 0, or an exit code after a
 * sentence. */
int run_session_check_place(const char *path);
/** Puts a new session with these policies in the place of job->session; keep: with its tokens,
 * which are computed again. Returns 0, or an exit code after a sentence; the session then stays. */
int run_session_renew(run_job *job, const char *spec, bool keep);
/** Closes what it opened. */
void run_session_close(run_job *job);

#endif

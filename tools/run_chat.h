/* SPDX-License-Identifier: MIT
 * run_chat.h: a conversation in a terminal. */
#ifndef KVC_RUN_CHAT_H
#define KVC_RUN_CHAT_H

#include "run_turn.h"

/** Reads messages and answers them until the user ends it; then saves the session if --session was
 * given. Returns an exit code. */
int run_chat(run_job *job, const run_form *form);

#endif

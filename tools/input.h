/* SPDX-License-Identifier: MIT
 * input.h: the whole of a text that a tool is given. It knows nothing of what it is for. */
#ifndef KVC_INPUT_H
#define KVC_INPUT_H

#include "outcome.h"

/** Reads a file, or standard input when path is "-", into *out, which is the caller's to free, be
 * it after a failure; of at most 64 MiB. Returns 0, or an exit code after a sentence. */
int cmp_input_read(const char *path, cmp_bytes *out);

#endif

/* SPDX-License-Identifier: MIT
 * err.h: a sentence kept beside a status. Every handle owns one; nothing is thread-local. */
#ifndef KVC_ERR_H
#define KVC_ERR_H

#include "kvc/status.h"

#include <stdint.h>

/** The last error's sentence. */
typedef struct kvc__err {
    char text[1024];
} kvc__err;

/** Writes the sentence (printf style; err may be NULL) and returns code. Over-long text is cut at a
 * character; control characters and what isn't UTF-8 become question marks. */
int32_t kvc__fail(kvc__err *err, int32_t code, const char *format, ...)
#if defined(__GNUC__)
    __attribute__((format(printf, 3, 4)))
#endif
    ;

/** Leaves with a failing status at once; for functions that own nothing at that point. */
#define KVC_TRY(call)                                                                              \
    do {                                                                                           \
        int32_t kvc__status_ = (call);                                                             \
        if (kvc__status_ < 0) {                                                                    \
            return kvc__status_;                                                                   \
        }                                                                                          \
    } while (0)

/** The same for functions that clean up under `out:` and return `rc`. */
#define KVC_CHECK(call)                                                                            \
    do {                                                                                           \
        rc = (call);                                                                               \
        if (rc < 0) {                                                                              \
            goto out;                                                                              \
        }                                                                                          \
    } while (0)

#endif

/* SPDX-License-Identifier: MIT
 * anchor.c: a library that only the ABI check builds, with debug information. Its one function takes
 * every public type and every exported function, so that abidw sees what the real interface hides
 * behind pointers: tables that reach a plugin as void *, types that no exported function takes.
 * list.h is made by renew. */
#include <kvc/kvc.h>

#define ABI_TYPE(name)     const name *name##_;
#define ABI_FUNCTION(name) __typeof__(name) *name##_;

struct anchor {
#include "list.h"
};

void anchor(const struct anchor *a);

void anchor(const struct anchor *a) {
    (void)a;
}

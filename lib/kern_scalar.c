/* SPDX-License-Identifier: MIT
 * kern_scalar.c: the kernels in plain C. They run on every machine and are what the other levels
 * are held against, bit for bit. */
#include "vec_scalar.h"
#include "kern_impl.h"
#include "kern_level.h"

static const kvc__kern table = KERN_TABLE("scalar");

const kvc__kern *kvc__kern_scalar(void) {
    return &table;
}

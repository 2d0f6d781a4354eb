/* SPDX-License-Identifier: MIT
 * aarch64_pretok.c: stands in for lib/pretok.c in check_aarch64.sh, since PCRE2 for the other
 * machine isn't at hand. Models can be opened and decoded; text can't be cut. */
#include "pretok.h"

/* Any but NULL, which a vocabulary without a pre-tokenizer has. */
struct kvc__pretok {
    int none;
};
static kvc__pretok stand_in;

int32_t kvc__pretok_create(kvc__mem *mem, kvc__str name, kvc__pretok **out, kvc__err *err) {
    (void)mem;
    (void)name;
    (void)err;
    *out = &stand_in;
    return KVC_OK;
}

void kvc__pretok_destroy(kvc__pretok *p) {
    (void)p;
}

uint32_t kvc__pretok_traits(const kvc__pretok *p) {
    (void)p;
    return 0;
}

int32_t kvc__pretok_work_create(const kvc__pretok *p, kvc__pretok_work **out, kvc__err *err) {
    (void)p;
    *out = NULL;
    return kvc__fail(err, KVC_E_UNSUPPORTED, "text can't be cut in this build");
}

void kvc__pretok_work_destroy(const kvc__pretok *p, kvc__pretok_work *work) {
    (void)p;
    (void)work;
}

size_t kvc__utf8_len(const uint8_t *p, size_t n) {
    (void)p;
    (void)n;
    return 1;
}

size_t kvc__utf8_valid(const uint8_t *text, size_t n) {
    (void)text;
    return n;
}

int32_t kvc__pretok_split(const kvc__pretok *p, kvc__pretok_work *work, const uint8_t *text,
                          size_t n, kvc__pretok_fn fn, void *ctx, kvc__err *err) {
    (void)p;
    (void)work;
    (void)text;
    (void)n;
    (void)fn;
    (void)ctx;
    return kvc__fail(err, KVC_E_UNSUPPORTED, "text can't be cut in this build");
}

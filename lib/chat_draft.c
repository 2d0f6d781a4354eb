/* SPDX-License-Identifier: MIT
 * chat_draft.c: parts of a chat, put one after the other in memory that grows. It must not know
 * what a family's markers are. */
#include "chat_draft.h"

#include <string.h>

const char *const kvc__role_name[KVC__N_ROLE] = {"system", "user", "assistant"};

const kvc_chat_message *kvc__draft_message(const kvc__chat_call *call, uint32_t i) {
    return (const kvc_chat_message *)(const void *)((const char *)call->message +
                                                    (size_t)i * call->stride);
}

uint32_t kvc__draft_role(const kvc__chat_call *call, uint32_t i) {
    const char *name = kvc__draft_message(call, i)->role;
    uint32_t role = 0;
    while (role < KVC__N_ROLE && strcmp(name, kvc__role_name[role]) != 0) {
        role++;
    }
    return role;
}

/* p with room for n + more elements, *cap of them now; twice what is needed when it must grow. NULL
 * when there is no memory, p then unchanged. */
static void *reserve(kvc__draft *d, void *p, size_t *cap, size_t n, size_t more, size_t size) {
    size_t need = 0, bytes = 0;
    if (more <= *cap - n) {
        return p;
    }
    bool fits = kvc__add_size(n, more, &need) && kvc__mul_size(need, 2 * size, &bytes);
    void *q = fits ? kvc__realloc(d->mem, p, *cap * size, bytes, 16) : NULL;
    if (q == NULL) {
        d->rc = kvc__fail(d->err, KVC_E_NOMEM, "no memory for a chat of %zu bytes", d->n);
        return NULL;
    }
    *cap = 2 * need;
    return q;
}

/* Appends a part; parts of text that have the same kind become one. */
static void write_part(kvc__draft *d, int32_t kind, const char *p, size_t n) {
    char *text = d->rc < 0 ? NULL : reserve(d, d->text, &d->cap, d->n, n + 1, 1);
    d->text = text != NULL ? text : d->text;
    kvc__span *span =
        d->rc < 0 ? NULL : reserve(d, d->span, &d->cap_span, d->n_span, 1, sizeof *span);
    d->span = span != NULL ? span : d->span;
    if (d->rc < 0) {
        return;
    }
    if (n > 0) {
        memcpy(d->text + d->n, p, n);
    }
    d->n += n;
    if (kind >= 0 || d->n_span == 0 || d->span[d->n_span - 1].kind != kind) {
        d->n_span++;
    }
    d->span[d->n_span - 1] = (kvc__span){.end = d->n, .kind = kind};
}

void kvc__draft_mark(kvc__draft *d, const char *mark) {
    write_part(d, KVC__TEXT_MARK, mark, strlen(mark));
}

void kvc__draft_plain(kvc__draft *d, const char *p, size_t n) {
    write_part(d, KVC__TEXT_PLAIN, p, n);
}

void kvc__draft_token(kvc__draft *d, int32_t id) {
    if (id >= 0) {
        write_part(d, id, NULL, 0);
    }
}

void kvc__draft_free(kvc__draft *d) {
    kvc__free(d->mem, d->text, d->cap);
    kvc__free(d->mem, d->span, d->cap_span * sizeof *d->span);
}

/* SPDX-License-Identifier: MIT
 * chat.c: a chat to tokens. The template's family is recognised by the markers in its text, which
 * is never run; the family writes the chat as parts, markers and contents (chat_family.c), and the
 * vocabulary finds special tokens in markers alone. It must not know a family's form. */
#include "chat.h"

#include "chat_family.h"
#include "pretok.h"

#include <string.h>

/* ---------------------------------------------------------------- reading a template */

/* The text of a string literal of Jinja, from p to its closing quote, up to `stop`: unescaped into
 * out (as long as the literal at most). false when the literal ends before. */
static bool literal_until(const char *p, const char *end, char quote, const char *stop, char *out,
                          size_t *n) {
    *n = 0;
    for (; p < end && *p != quote; p++) {
        if ((size_t)(end - p) >= strlen(stop) && memcmp(p, stop, strlen(stop)) == 0) {
            return true;
        }
        if (*p == '\\' && p + 1 < end) {
            p++;
            out[(*n)++] = (char)(*p == 'n' ? '\n' : *p == 't' ? '\t' : *p);
        } else {
            out[(*n)++] = *p;
        }
    }
    return false;
}

#define MAX_TRY 16 /* places: bounds the work on a hostile template */

/* The default system message: a literal that holds the whole turn. */
static int32_t read_system(kvc__mem *mem, kvc__str t, kvc__chat *c, kvc__err *err) {
    static const char begin[] = "<|im_start|>system";
    const char *end = t.p + t.n;
    char *out = kvc__alloc(mem, t.n + 1);
    size_t n = 0;
    if (out == NULL) {
        return kvc__fail(err, KVC_E_NOMEM, "no memory for a chat template of %zu bytes", t.n);
    }
    kvc__str rest = t;
    const char *p = t.p;
    for (int i = 0; i < MAX_TRY && c->system == NULL; i++) {
        p = kvc__chat_find(rest, begin);
        if (p == NULL) {
            break;
        }
        char quote = (char)(p > t.p ? p[-1] : 0);
        p += sizeof begin - 1;
        rest = (kvc__str){p, (size_t)(end - p)};
        if ((quote == '\'' || quote == '"') &&
            literal_until(p, end, quote, "<|im_end|>", out, &n) && n > 1 && out[0] == '\n') {
            c->system = kvc__strndup(mem, out + 1, n - 1);
            c->n_system = n - 1;
            if (c->system == NULL) {
                kvc__free(mem, out, t.n + 1);
                return kvc__fail(err, KVC_E_NOMEM, "no memory for a system message");
            }
        }
    }
    kvc__free(mem, out, t.n + 1);
    return KVC_OK;
}

int32_t kvc__chat_read(kvc__mem *mem, const kvc__gguf *g, kvc__chat *out, kvc__err *err) {
    kvc__str t = {"", 0};
    *out = (kvc__chat){0};
    KVC_TRY(kvc__gguf_str(g, "tokenizer.chat_template", "", &t, err));
    out->has_template = t.n > 0;
    for (uint32_t i = 0; i < kvc__n_chat_family && out->family == NULL; i++) {
        out->family = kvc__chat_families[i].is_this(t) ? &kvc__chat_families[i] : NULL;
    }
    out->details = kvc__chat_details(t);
    return out->family != NULL ? read_system(mem, t, out, err) : KVC_OK;
}

void kvc__chat_free(kvc__mem *mem, kvc__chat *c) {
    kvc__free(mem, c->system, c->n_system + 1);
    *c = (kvc__chat){0};
}

const char *kvc__chat_name(const kvc__chat *c) {
    return c->family != NULL ? c->family->name : "";
}

/* ---------------------------------------------------------------- messages */

static int32_t check_message(const kvc__chat_call *call, uint32_t i, kvc__err *err) {
    const kvc_chat_message *m = kvc__draft_message(call, i);
    if (m->role == NULL || (m->content == NULL && m->n_content > 0)) {
        return kvc__fail(err, KVC_E_ARG, "message %u: role or content is NULL", i);
    }
    const uint32_t role = kvc__draft_role(call, i);
    if (role == KVC__N_ROLE) {
        return kvc__fail(err, KVC_E_ARG,
                         "message %u: role '%.64s' is none of 'system', 'user', 'assistant'", i,
                         m->role);
    }
    if (role == KVC__ROLE_SYSTEM && i > 0) {
        return kvc__fail(err, KVC_E_ARG,
                         "message %u: a system message is the first of a chat or none", i);
    }
    size_t valid =
        m->n_content > 0 ? kvc__utf8_valid((const uint8_t *)m->content, m->n_content) : 0;
    if (valid < m->n_content) {
        return kvc__fail(err, KVC_E_UTF8,
                         "message %u: invalid UTF-8 at byte %zu (0x%02x); convert it to UTF-8", i,
                         valid, (unsigned char)m->content[valid]);
    }
    return KVC_OK;
}

/* After a system message user and assistant in turn, the user first. */
static int32_t check_turns(const kvc__chat_call *call, const char *family, kvc__err *err) {
    const uint32_t first = kvc__draft_role(call, 0) == KVC__ROLE_SYSTEM;
    if (first == call->n) {
        return kvc__fail(err, KVC_E_ARG,
                         "family '%s' needs a user message after the system message", family);
    }
    for (uint32_t i = first; i < call->n; i++) {
        const uint32_t want = (i - first) % 2 == 0 ? KVC__ROLE_USER : KVC__ROLE_ASSISTANT;
        if (kvc__draft_role(call, i) != want) {
            return kvc__fail(err, KVC_E_ARG,
                             "message %u: family '%s' wants user and assistant in turn, here '%s'",
                             i, family, kvc__role_name[want]);
        }
    }
    return KVC_OK;
}

/* ---------------------------------------------------------------- a chat to tokens */

static int32_t fail_unknown(const kvc__chat *c, const char *name, kvc__err *err) {
    char known[128] = "'";
    for (uint32_t i = 0; i < kvc__n_chat_family; i++) {
        strncat(known, i > 0 ? "', '" : "", sizeof known - strlen(known) - 1);
        strncat(known, kvc__chat_families[i].name, sizeof known - strlen(known) - 1);
    }
    if (name != NULL) {
        return kvc__fail(err, KVC_E_UNSUPPORTED,
                         "chat family '%.64s' is not known; use one of %s', or write the prompt "
                         "yourself and tokenize it",
                         name, known);
    }
    return kvc__fail(err, KVC_E_UNSUPPORTED,
                     "%s; name the family, one of %s', or write the prompt yourself and tokenize "
                     "it",
                     c->has_template ? "tokenizer.chat_template is of no known family"
                                     : "the file has no tokenizer.chat_template",
                     known);
}

static const kvc__chat_family *family_find(const kvc__chat *c, const char *name) {
    if (name == NULL) {
        return c->family;
    }
    for (uint32_t i = 0; i < kvc__n_chat_family; i++) {
        if (strcmp(kvc__chat_families[i].name, name) == 0) {
            return &kvc__chat_families[i];
        }
    }
    return NULL;
}

int32_t kvc__chat_tokenize(const kvc__chat *c, const kvc__vocab *v, kvc__mem *mem,
                           const kvc__chat_call *call, kvc__err *err) {
    static const kvc__chat named;
    const kvc__chat_family *f = family_find(c, call->family);
    *call->n_out = 0;
    if (f == NULL) {
        return fail_unknown(c, call->family, err);
    }
    for (uint32_t i = 0; i < call->n; i++) {
        KVC_TRY(check_message(call, i, err));
    }
    if (f->in_turn) {
        KVC_TRY(check_turns(call, f->name, err));
    }
    kvc__draft d = {.chat = call->family != NULL ? &named : c,
                    .vocab = v,
                    .call = call,
                    .mem = mem,
                    .err = err};
    f->write(&d);
    int32_t rc = d.rc < 0 ? d.rc
                          : kvc__vocab_tokenize_spans(v, d.text, d.n, d.span, d.n_span, call->out,
                                                      call->cap, call->n_out, err);
    kvc__draft_free(&d);
    return rc;
}

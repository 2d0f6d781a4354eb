/* SPDX-License-Identifier: MIT
 * chat.c: families of chat templates as rows of a table. A template is recognised by the markers in
 * its text and never run. A family's function writes the chat as parts, markers and contents, which
 * the vocabulary tokenizes: special tokens are found in markers alone. It must not know how. */
#include "chat.h"

#include "pretok.h"

#include <string.h>

/* ---------------------------------------------------------------- the text of a chat */

enum { ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT, N_ROLE };

static const char *const role_name[N_ROLE] = {"system", "user", "assistant"};

/* A chat that is being written. */
typedef struct draft {
    const kvc__chat *chat; /* details and default; zeroed when the caller named the family */
    const kvc__vocab *vocab;
    const kvc__chat_call *call;
    kvc__mem *mem;
    kvc__err *err;
    char *text;
    size_t n, cap;
    kvc__span *span;
    size_t n_span, cap_span;
    int32_t rc; /* the first failure; nothing is written after it */
} draft;

/* p with room for n + more elements, *cap of them now; twice what is needed when it must grow. NULL
 * when there is no memory, p then unchanged. */
static void *reserve(draft *d, void *p, size_t *cap, size_t n, size_t more, size_t size) {
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
static void write_part(draft *d, int32_t kind, const char *p, size_t n) {
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

static void write_mark(draft *d, const char *mark) {
    write_part(d, KVC__TEXT_MARK, mark, strlen(mark));
}

static void write_plain(draft *d, const char *p, size_t n) {
    write_part(d, KVC__TEXT_PLAIN, p, n);
}

/* A token by its id; -1 is one that the model doesn't have. */
static void write_token(draft *d, int32_t id) {
    if (id >= 0) {
        write_part(d, id, NULL, 0);
    }
}

/* ---------------------------------------------------------------- messages */

static const kvc_chat_message *message_at(const kvc__chat_call *call, uint32_t i) {
    return (const kvc_chat_message *)(const void *)((const char *)call->message +
                                                    (size_t)i * call->stride);
}

/* Checked before by check_message(). */
static uint32_t role_at(const draft *d, uint32_t i) {
    uint32_t role = 0;
    while (strcmp(message_at(d->call, i)->role, role_name[role]) != 0) {
        role++;
    }
    return role;
}

static void write_content(draft *d, uint32_t i) {
    const kvc_chat_message *m = message_at(d->call, i);
    write_plain(d, m->content, m->n_content);
}

static int32_t check_message(const kvc__chat_call *call, uint32_t i, kvc__err *err) {
    const kvc_chat_message *m = message_at(call, i);
    uint32_t role = 0;
    if (m->role == NULL || (m->content == NULL && m->n_content > 0)) {
        return kvc__fail(err, KVC_E_ARG, "message %u: role or content is NULL", i);
    }
    while (role < N_ROLE && strcmp(m->role, role_name[role]) != 0) {
        role++;
    }
    if (role == N_ROLE) {
        return kvc__fail(err, KVC_E_ARG,
                         "message %u: role '%s' is none of 'system', 'user', 'assistant'", i,
                         m->role);
    }
    if (role == ROLE_SYSTEM && i > 0) {
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

/* ---------------------------------------------------------------- families */

enum { DETAIL_BOS = 1u << 0 /* the template writes the beginning of text */ };

static void write_chatml_turn(draft *d, uint32_t role) {
    write_mark(d, "<|im_start|>");
    write_mark(d, role_name[role]);
    write_mark(d, "\n");
}

static void write_chatml(draft *d) {
    if ((d->chat->details & DETAIL_BOS) != 0 || kvc__vocab_adds_bos(d->vocab)) {
        write_token(d, kvc__vocab_bos(d->vocab));
    }
    if (d->chat->system != NULL && role_at(d, 0) != ROLE_SYSTEM) {
        write_chatml_turn(d, ROLE_SYSTEM);
        write_plain(d, d->chat->system, d->chat->n_system);
        write_mark(d, "<|im_end|>\n");
    }
    for (uint32_t i = 0; i < d->call->n; i++) {
        write_chatml_turn(d, role_at(d, i));
        write_content(d, i);
        write_mark(d, "<|im_end|>\n");
    }
    if ((d->call->flags & KVC_CHAT_PROMPT) != 0) {
        write_chatml_turn(d, ROLE_ASSISTANT);
    }
}

/* One family: how its templates are known, how its chats are written. */
typedef struct chat_family {
    const char *name;
    bool (*is_this)(kvc__str template);
    void (*write)(draft *d);
} chat_family;

/* Where `what` stands in s, or NULL. */
static const char *find(kvc__str s, const char *what) {
    const size_t n = strlen(what);
    for (const char *p = s.p; s.n >= n && p <= s.p + s.n - n; p++) {
        p = memchr(p, what[0], (size_t)(s.p + s.n - p) - n + 1);
        if (p == NULL || memcmp(p, what, n) == 0) {
            return p;
        }
    }
    return NULL;
}

/* Phi-4 has the marker too, but another form. */
static bool is_chatml(kvc__str t) {
    return find(t, "<|im_start|>") != NULL && find(t, "<|im_sep|>") == NULL;
}

/* In the order in which they are tried. */
static const chat_family family[] = {
    {"chatml", is_chatml, write_chatml},
};
#define N_FAMILY (sizeof family / sizeof family[0])

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
    for (const char *p; (p = find(rest, begin)) != NULL && c->system == NULL;) {
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
    for (size_t i = 0; i < N_FAMILY && out->family == NULL; i++) {
        out->family = family[i].is_this(t) ? &family[i] : NULL;
    }
    if (out->family == NULL) {
        return KVC_OK;
    }
    out->details = find(t, "bos_token") != NULL ? DETAIL_BOS : 0;
    return read_system(mem, t, out, err);
}

void kvc__chat_free(kvc__mem *mem, kvc__chat *c) {
    kvc__free(mem, c->system, c->n_system + 1);
    *c = (kvc__chat){0};
}

const char *kvc__chat_name(const kvc__chat *c) {
    return c->family != NULL ? c->family->name : "";
}

/* ---------------------------------------------------------------- a chat to tokens */

static int32_t fail_unknown(const kvc__chat *c, const char *name, kvc__err *err) {
    char known[128] = "";
    for (size_t i = 0; i < N_FAMILY; i++) {
        strncat(known, i > 0 ? "', '" : "'", sizeof known - strlen(known) - 1);
        strncat(known, family[i].name, sizeof known - strlen(known) - 1);
    }
    if (name != NULL) {
        return kvc__fail(err, KVC_E_UNSUPPORTED,
                         "chat family '%s' is not known; use one of %s', or write the prompt "
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

static const chat_family *family_find(const kvc__chat *c, const char *name) {
    if (name == NULL) {
        return c->family;
    }
    for (size_t i = 0; i < N_FAMILY; i++) {
        if (strcmp(family[i].name, name) == 0) {
            return &family[i];
        }
    }
    return NULL;
}

int32_t kvc__chat_tokenize(const kvc__chat *c, const kvc__vocab *v, kvc__mem *mem,
                           const kvc__chat_call *call, kvc__err *err) {
    static const kvc__chat named;
    const chat_family *f = family_find(c, call->family);
    *call->n_out = 0;
    if (f == NULL) {
        return fail_unknown(c, call->family, err);
    }
    for (uint32_t i = 0; i < call->n; i++) {
        KVC_TRY(check_message(call, i, err));
    }
    draft d = {.chat = call->family != NULL ? &named : c,
               .vocab = v,
               .call = call,
               .mem = mem,
               .err = err};
    f->write(&d);
    int32_t rc = d.rc < 0 ? d.rc
                          : kvc__vocab_tokenize_spans(v, d.text, d.n, d.span, d.n_span, call->out,
                                                      call->cap, call->n_out, err);
    kvc__free(mem, d.text, d.cap);
    kvc__free(mem, d.span, d.cap_span * sizeof *d.span);
    return rc;
}

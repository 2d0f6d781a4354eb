/* SPDX-License-Identifier: MIT
 * chat_family.c: the table of families. A row's function writes a chat as its models' published
 * templates do; what differs within a family is read from the template (details) or the vocabulary.
 * It must not know how text is tokenized. */
#include "chat_family.h"

#include <string.h>

/* ---------------------------------------------------------------- what several families do */

static void write_bos_if_wanted(kvc__draft *d) {
    if ((d->chat->details & KVC__CHAT_BOS) != 0 || kvc__vocab_adds_bos(d->vocab)) {
        kvc__draft_token(d, kvc__vocab_bos(d->vocab));
    }
}

static void write_str(kvc__draft *d, kvc__str s) {
    kvc__draft_plain(d, s.p, s.n);
}

static kvc__str content_at(const kvc__draft *d, uint32_t i) {
    const kvc_chat_message *m = kvc__draft_message(d->call, i);
    return (kvc__str){m->n_content > 0 ? m->content : "", m->n_content};
}

/* The first message when it is a system message, else nothing. */
static kvc__str system_of(const kvc__draft *d, bool *has) {
    *has = kvc__draft_role(d->call, 0) == KVC__ROLE_SYSTEM;
    return *has ? content_at(d, 0) : (kvc__str){"", 0};
}

static bool wants_prompt(const kvc__draft *d) {
    return (d->call->flags & KVC_CHAT_PROMPT) != 0;
}

/* White space as Python's str.strip() has it, which templates trim by. */
static const char *const white[] = {
    "\t",           "\n",           "\v",           "\f",           "\r",           " ",
    "\x1c",         "\x1d",         "\x1e",         "\x1f",         "\xc2\x85",     "\xc2\xa0",
    "\xe1\x9a\x80", "\xe2\x80\x80", "\xe2\x80\x81", "\xe2\x80\x82", "\xe2\x80\x83", "\xe2\x80\x84",
    "\xe2\x80\x85", "\xe2\x80\x86", "\xe2\x80\x87", "\xe2\x80\x88", "\xe2\x80\x89", "\xe2\x80\x8a",
    "\xe2\x80\xa8", "\xe2\x80\xa9", "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80"};

/* Bytes of the white space at the beginning of s, or at its end. */
static size_t white_len(kvc__str s, bool at_end) {
    for (size_t i = 0; i < sizeof white / sizeof *white; i++) {
        const size_t n = strlen(white[i]);
        if (s.n >= n && memcmp(at_end ? s.p + s.n - n : s.p, white[i], n) == 0) {
            return n;
        }
    }
    return 0;
}

static kvc__str trim_right(kvc__str s) {
    for (size_t n; (n = white_len(s, true)) > 0;) {
        s.n -= n;
    }
    return s;
}

static kvc__str trim(kvc__str s) {
    for (size_t n; (n = white_len(s, false)) > 0;) {
        s.p += n;
        s.n -= n;
    }
    return trim_right(s);
}

/* ---------------------------------------------------------------- ChatML */

/* The last user message, or 0. */
static uint32_t last_user(const kvc__draft *d) {
    uint32_t i = d->call->n - 1;
    while (i > 0 && kvc__draft_role(d->call, i) != KVC__ROLE_USER) {
        i--;
    }
    return i;
}

/* An earlier answer without what the model thought before it. */
static kvc__str without_thoughts(kvc__str s) {
    static const char end[] = "</think>";
    kvc__str rest = s;
    for (const char *p; (p = kvc__chat_find(rest, end)) != NULL;) {
        p += sizeof end - 1;
        rest = (kvc__str){p, (size_t)(s.p + s.n - p)};
    }
    while (rest.p != s.p && rest.n > 0 && rest.p[0] == '\n') {
        rest.p++;
        rest.n--;
    }
    return rest;
}

static void write_chatml_turn(kvc__draft *d, uint32_t role) {
    kvc__draft_mark(d, "<|im_start|>");
    kvc__draft_mark(d, kvc__role_name[role]);
    kvc__draft_mark(d, "\n");
}

static void write_chatml(kvc__draft *d) {
    const bool think = (d->chat->details & KVC__CHAT_THINK) != 0;
    const uint32_t last = last_user(d);
    write_bos_if_wanted(d);
    if (d->chat->system != NULL && kvc__draft_role(d->call, 0) != KVC__ROLE_SYSTEM) {
        write_chatml_turn(d, KVC__ROLE_SYSTEM);
        kvc__draft_plain(d, d->chat->system, d->chat->n_system);
        kvc__draft_mark(d, "<|im_end|>\n");
    }
    for (uint32_t i = 0; i < d->call->n; i++) {
        const uint32_t role = kvc__draft_role(d->call, i);
        const kvc__str s = content_at(d, i);
        const bool cut = think && role == KVC__ROLE_ASSISTANT && i < last;
        write_chatml_turn(d, role);
        write_str(d, cut ? without_thoughts(s) : s);
        kvc__draft_mark(d, "<|im_end|>\n");
    }
    if (wants_prompt(d)) {
        write_chatml_turn(d, KVC__ROLE_ASSISTANT);
    }
}

/* Phi-4 has the marker too, but another form. */
static bool is_chatml(kvc__str t) {
    return kvc__chat_find(t, "<|im_start|>") != NULL && kvc__chat_find(t, "<|im_sep|>") == NULL;
}

/* ---------------------------------------------------------------- Llama 3 */

static void write_llama3_turn(kvc__draft *d, uint32_t role) {
    kvc__draft_mark(d, "<|start_header_id|>");
    kvc__draft_mark(d, kvc__role_name[role]);
    kvc__draft_mark(d, "<|end_header_id|>\n\n");
}

/* Since 3.1 there is always a system message and it begins with dates; today's is the one that the
 * templates fall back to, so that a chat gives the same tokens on any day. */
static void write_llama3(kvc__draft *d) {
    bool has = false;
    const kvc__str system = system_of(d, &has);
    const bool date = (d->chat->details & KVC__CHAT_DATE) != 0;
    kvc__draft_token(d, kvc__vocab_bos(d->vocab));
    if (has || date) {
        write_llama3_turn(d, KVC__ROLE_SYSTEM);
        if (date) {
            kvc__draft_mark(d,
                            "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n");
        }
        write_str(d, trim(system));
        kvc__draft_mark(d, "<|eot_id|>");
    }
    for (uint32_t i = has; i < d->call->n; i++) {
        write_llama3_turn(d, kvc__draft_role(d->call, i));
        write_str(d, trim(content_at(d, i)));
        kvc__draft_mark(d, "<|eot_id|>");
    }
    if (wants_prompt(d)) {
        write_llama3_turn(d, KVC__ROLE_ASSISTANT);
    }
}

static bool is_llama3(kvc__str t) {
    return kvc__chat_find(t, "<|start_header_id|>") != NULL;
}

/* ---------------------------------------------------------------- Gemma */

/* It has no system message: Gemma 3 puts one before the first user message. */
static void write_gemma(kvc__draft *d) {
    bool has = false;
    const kvc__str system = system_of(d, &has);
    kvc__draft_token(d, kvc__vocab_bos(d->vocab));
    for (uint32_t i = has; i < d->call->n; i++) {
        const bool user = kvc__draft_role(d->call, i) == KVC__ROLE_USER;
        kvc__draft_mark(d, user ? "<start_of_turn>user\n" : "<start_of_turn>model\n");
        if (has && i == 1) {
            write_str(d, system);
            kvc__draft_mark(d, "\n\n");
        }
        write_str(d, trim(content_at(d, i)));
        kvc__draft_mark(d, "<end_of_turn>\n");
    }
    if (wants_prompt(d)) {
        kvc__draft_mark(d, "<start_of_turn>model\n");
    }
}

static bool is_gemma(kvc__str t) {
    return kvc__chat_find(t, "<start_of_turn>") != NULL;
}

/* ---------------------------------------------------------------- Llama 2 */

/* The system message and the first user message are trimmed as one. */
static void write_llama2_user(kvc__draft *d, kvc__str content, bool has, kvc__str system) {
    kvc__draft_token(d, kvc__vocab_bos(d->vocab));
    kvc__draft_mark(d, "[INST] ");
    if (has) {
        content = trim_right(content);
        kvc__draft_mark(d, "<<SYS>>\n");
        write_str(d, system);
        kvc__draft_mark(d, content.n > 0 ? "\n<</SYS>>\n\n" : "\n<</SYS>>");
    }
    write_str(d, has ? content : trim(content));
    kvc__draft_mark(d, " [/INST]");
}

static void write_llama2(kvc__draft *d) {
    bool has = false;
    const kvc__str system = system_of(d, &has);
    for (uint32_t i = has; i < d->call->n; i++) {
        if (kvc__draft_role(d->call, i) == KVC__ROLE_USER) {
            write_llama2_user(d, content_at(d, i), has && i == 1, system);
        } else {
            kvc__draft_mark(d, " ");
            write_str(d, trim(content_at(d, i)));
            kvc__draft_mark(d, " ");
            kvc__draft_token(d, kvc__vocab_eos(d->vocab));
        }
    }
}

static bool is_llama2(kvc__str t) {
    return kvc__chat_find(t, "[INST]") != NULL && kvc__chat_find(t, "<<SYS>>") != NULL;
}

/* ---------------------------------------------------------------- Mistral */

/* Its versions differ in what is a token and where spaces are: [INST] is text in the first, a token
 * since the third; vocabularies of bytes (tekken) have no spaces at all. A space that follows a
 * special token is not written where the vocabulary puts one there itself. */
typedef struct mistral {
    bool token;      /* [INST] is one */
    const char *gap; /* behind a special token */
    uint32_t with;   /* the user message that the system message stands with, or UINT32_MAX */
} mistral;

static mistral mistral_of(const kvc__draft *d, bool has) {
    const bool own = kvc__vocab_special(d->vocab, "[SYSTEM_PROMPT]") >= 0 &&
                     (d->chat->details & KVC__CHAT_TURN) != 0;
    mistral m = {.token = kvc__vocab_special(d->vocab, "[INST]") >= 0, .with = UINT32_MAX};
    const bool spaces = !m.token || kvc__vocab_is_spm(d->vocab);
    m.gap = spaces && !kvc__vocab_puts_space(d->vocab) ? " " : "";
    for (uint32_t i = 1; has && !own && i < d->call->n; i++) {
        const bool last = (d->chat->details & KVC__CHAT_LAST) != 0;
        if (kvc__draft_role(d->call, i) == KVC__ROLE_USER && (last || m.with == UINT32_MAX)) {
            m.with = i;
        }
    }
    return m;
}

static void write_mistral_user(kvc__draft *d, const mistral *m, uint32_t i, kvc__str system) {
    if (m->token) {
        kvc__draft_mark(d, "[INST]");
        kvc__draft_mark(d, m->gap);
    } else {
        kvc__draft_mark(d, m->gap);
        kvc__draft_mark(d, "[INST] ");
    }
    if (i == m->with) {
        write_str(d, system);
        kvc__draft_mark(d, "\n\n");
    }
    write_str(d, content_at(d, i));
    kvc__draft_mark(d, m->token ? "[/INST]" : " [/INST]");
}

static void write_mistral(kvc__draft *d) {
    bool has = false;
    const kvc__str system = system_of(d, &has);
    const mistral m = mistral_of(d, has);
    kvc__draft_token(d, kvc__vocab_bos(d->vocab));
    if (has && m.with == UINT32_MAX) {
        kvc__draft_mark(d, "[SYSTEM_PROMPT]");
        kvc__draft_mark(d, m.gap);
        write_str(d, system);
        kvc__draft_mark(d, "[/SYSTEM_PROMPT]");
    }
    for (uint32_t i = has; i < d->call->n; i++) {
        const kvc__str s = content_at(d, i);
        if (kvc__draft_role(d->call, i) == KVC__ROLE_USER) {
            write_mistral_user(d, &m, i, system);
        } else {
            kvc__draft_mark(d, m.token ? m.gap : " ");
            write_str(d, (d->chat->details & KVC__CHAT_TRIM) != 0 ? trim(s) : s);
            kvc__draft_token(d, kvc__vocab_eos(d->vocab));
        }
    }
}

static bool is_mistral(kvc__str t) {
    return kvc__chat_find(t, "[INST]") != NULL;
}

/* ---------------------------------------------------------------- Zephyr */

static void write_zephyr_turn(kvc__draft *d, uint32_t role) {
    kvc__draft_mark(d, "<|");
    kvc__draft_mark(d, kvc__role_name[role]);
    kvc__draft_mark(d, "|>\n");
}

static void write_zephyr(kvc__draft *d) {
    write_bos_if_wanted(d);
    for (uint32_t i = 0; i < d->call->n; i++) {
        write_zephyr_turn(d, kvc__draft_role(d->call, i));
        write_str(d, content_at(d, i));
        kvc__draft_token(d, kvc__vocab_eos(d->vocab));
        kvc__draft_mark(d, "\n");
    }
    if (wants_prompt(d)) {
        write_zephyr_turn(d, KVC__ROLE_ASSISTANT);
    }
}

/* Others have its markers too; its user's turn ends with the end of text. */
static bool is_zephyr(kvc__str t) {
    const char *user = kvc__chat_find(t, "<|user|>");
    if (user == NULL) {
        return false;
    }
    kvc__str rest = {user, (size_t)(t.p + t.n - user)};
    const char *end = kvc__chat_find(rest, "}}");
    rest.n = end != NULL ? (size_t)(end - user) : rest.n;
    return kvc__chat_find(rest, "eos_token") != NULL ||
           kvc__chat_find(rest, "<|endoftext|>") != NULL;
}

/* ---------------------------------------------------------------- the table */

const kvc__chat_family kvc__chat_families[] = {
    {"chatml", is_chatml, false, write_chatml},   {"llama3", is_llama3, false, write_llama3},
    {"gemma", is_gemma, true, write_gemma},       {"llama2", is_llama2, true, write_llama2},
    {"mistral", is_mistral, true, write_mistral}, {"zephyr", is_zephyr, false, write_zephyr},
};
const uint32_t kvc__n_chat_family = sizeof kvc__chat_families / sizeof kvc__chat_families[0];

/* Where `what` stands in s, or NULL. */
const char *kvc__chat_find(kvc__str s, const char *what) {
    const size_t n = strlen(what);
    for (const char *p = s.p; s.n >= n && p <= s.p + s.n - n; p++) {
        p = memchr(p, what[0], (size_t)(s.p + s.n - p) - n + 1);
        if (p == NULL || memcmp(p, what, n) == 0) {
            return p;
        }
    }
    return NULL;
}

uint32_t kvc__chat_details(kvc__str text) {
    static const struct {
        const char *text;
        uint32_t bit;
    } sign[] = {
        {"bos_token", KVC__CHAT_BOS},
        {"</think>", KVC__CHAT_THINK},
        {"Cutting Knowledge Date", KVC__CHAT_DATE},
        {"loop.last and system_message", KVC__CHAT_LAST},
        {"[SYSTEM_PROMPT]", KVC__CHAT_TURN},
        {"|trim", KVC__CHAT_TRIM},
        {"| trim", KVC__CHAT_TRIM},
    };
    uint32_t bits = 0;
    for (size_t i = 0; i < sizeof sign / sizeof sign[0]; i++) {
        bits |= kvc__chat_find(text, sign[i].text) != NULL ? sign[i].bit : 0;
    }
    return bits;
}

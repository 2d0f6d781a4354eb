/* SPDX-License-Identifier: MIT
 * run_chat.c: the loop of a conversation: a message or a command, an answer, its figures. Answers
 * go to stdout, all else to stderr. Ctrl-C ends an answer (interrupt.h), and is a key at the
 * prompt (run_edit.h). */
#include "run_chat.h"

#include "interrupt.h"
#include "outcome.h"
#include "run_edit.h"
#include "run_figures.h"
#include "run_session.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What the loop keeps. */
typedef struct chat {
    run_job *job;
    const run_form *form;
    run_tokens turn; /* scratch */
    bool ends;
    bool unsaved; /* saving failed once: the next end is final */
    int code;
} chat;

/* ---------------------------------------------------------------- a message */

static bool is_continued(const char *line, size_t n) {
    size_t slashes = 0;
    while (slashes < n && line[n - 1 - slashes] == '\\') {
        slashes++;
    }
    return slashes % 2 == 1;
}

/* A message: lines as long as they end in a backslash. *out is the caller's to free; NULL unless
 * RUN_EDIT_LINE is returned. */
static int read_message(char **out) {
    char *text = NULL;
    size_t n = 0;
    *out = NULL;
    for (;;) {
        const char *line;
        const int what = run_edit_line(n == 0 ? "> " : ". ", &line);
        const size_t length = strlen(line);
        char *grown = what == RUN_EDIT_LINE ? realloc(text, n + length + 1) : NULL;
        if (grown == NULL) {
            free(text);
            return what == RUN_EDIT_LINE             ? RUN_EDIT_END
                   : n > 0 && what == RUN_EDIT_BREAK ? RUN_EDIT_CLEARED
                                                     : what;
        }
        text = grown;
        memcpy(text + n, line, length + 1);
        n += length;
        if (!is_continued(text, n)) {
            *out = text;
            return RUN_EDIT_LINE;
        }
        text[n - 1] = '\n';
    }
}

/* ---------------------------------------------------------------- the end */

/* Ends, when what was to be saved is saved. */
static void leave(chat *c) {
    const char *path = c->job->o->session;
    cmp_interrupt_again();
    c->ends = true;
    if (path == NULL || run_session_save(c->job, path) == 0) {
        c->code = 0;
        return;
    }
    c->code = CMP_EXIT_FAILED;
    if (!c->unsaved) {
        c->ends = false;
        c->unsaved = true;
        run_note("(Save it elsewhere with /save FILE; ending again ends without.)");
    }
}

/* ---------------------------------------------------------------- an answer */

static void say_end(const chat *c, const run_answer *answer) {
    if (answer->end == RUN_END_UNREAD) {
        run_note("(Not read: the conversation is as before.)");
        return;
    }
    if (answer->end == RUN_END_CONTEXT) {
        kvc_session_stats stats = {.struct_size = sizeof stats};
        kvc_session_get_stats(c->job->session, &stats);
        cmp_complain(0, "the context of %u tokens is full, the answer is cut off: %s", stats.n_ctx,
                     c->job->way_out);
    }
    if (!c->job->o->quiet) {
        run_figures_line(c->job, answer);
    }
}

static void answer_message(chat *c, const char *message) {
    run_job *job = c->job;
    run_text text;
    run_answer answer = {0};
    cmp_interrupt_again();
    run_edit_hush();
    int code = run_turn_message(job, c->form, message, strlen(message), &c->turn);
    if (code == 0) {
        run_text_begin(&text, stdout, job->o->stop, job->o->n_stop, RUN_TEXT_TRIM);
        code = run_generate(job, c->turn.p, c->turn.n, &text, &answer);
        run_text_end(&text);
        fputs(answer.end != RUN_END_UNREAD || code != 0 ? "\n" : "", stdout);
        fflush(stdout);
    }
    cmp_interrupt_again();
    if (code == 0) {
        say_end(c, &answer);
    }
    if (code == 0 && answer.end != RUN_END_UNREAD) {
        run_turn_close(job, c->form);
    }
    fputc('\n', stderr);
    free(answer.token.p);
    if (ferror(stdout)) {
        leave(c); /* no answer can be shown any more */
        c->code = CMP_EXIT_FAILED;
    }
}

/* ---------------------------------------------------------------- commands */

static void help(void) {
    run_note("/clear         forget the conversation");
    run_note("/policy        say the policy");
    run_note("/policy SPEC   go on under another one: all is computed again");
    run_note("/stats         what the session holds");
    run_note("/save FILE     save the conversation, for --session");
    run_note("/exit          end, as Ctrl-D does");
    run_note("A line that ends in \\ goes on in the next; pasted text is one message.");
    run_note("Ctrl-C ends an answer.");
}

static void save_to(chat *c, const char *path) {
    if (path[0] == '\0') {
        cmp_complain(0, "/save needs the name of a file");
    } else if (run_session_check_place(path) == 0 && run_session_save(c->job, path) == 0) {
        run_note("(Saved; go on with --session %s.)", path);
        c->unsaved = true; /* no reason to hold back any more */
    }
}

static void use_policy(chat *c, const char *spec) {
    if (spec[0] == '\0') {
        run_note("%s", kvc_session_spec(c->job->session));
    } else if (run_session_renew(c->job, spec, true) == 0) {
        run_note("(%u tokens under %s.)", kvc_session_n_past(c->job->session),
                 kvc_session_spec(c->job->session));
    }
}

static void clear(chat *c) {
    char *spec = strdup(c->job->spec);
    if (spec != NULL && run_session_renew(c->job, spec, false) == 0) {
        run_note("(A new conversation.)");
    }
    free(spec);
}

/* A line that begins with a slash. */
static void obey(chat *c, char *line) {
    const size_t n = strcspn(line, " \t");
    char *rest = line + n + strspn(line + n, " \t");
    size_t end = strlen(rest);
    while (end > 0 && (rest[end - 1] == ' ' || rest[end - 1] == '\t')) {
        rest[--end] = '\0';
    }
    line[n] = '\0';
    cmp_interrupt_again();
    if (strcmp(line, "/help") == 0) {
        help();
    } else if (strcmp(line, "/exit") == 0 || strcmp(line, "/quit") == 0) {
        leave(c);
    } else if (strcmp(line, "/clear") == 0) {
        clear(c);
    } else if (strcmp(line, "/stats") == 0) {
        run_figures_stats(c->job);
    } else if (strcmp(line, "/policy") == 0) {
        use_policy(c, rest);
    } else if (strcmp(line, "/save") == 0) {
        save_to(c, rest);
    } else {
        cmp_complain(0, "%s isn't a command; /help lists them (a message may begin with a blank)",
                     line);
    }
}

/* ---------------------------------------------------------------- the loop */

static void say_head(const chat *c) {
    const run_job *job = c->job;
    const char *family = c->form->family != NULL ? c->form->family : job->info.chat;
    kvc_session_stats stats = {.struct_size = sizeof stats};
    kvc_session_get_stats(job->session, &stats);
    run_note("%s (%s, %s), chat template %s, policy %s, context %u tokens",
             job->info.name[0] != '\0' ? job->info.name : job->o->model, job->info.arch,
             job->info.weights, family, job->spec, stats.n_ctx);
    if (stats.n_past > 0) {
        run_note("The conversation in %s goes on: %u tokens.", job->o->session, stats.n_past);
    }
    run_note("/help lists commands, Ctrl-D ends.");
    fputc('\n', stderr);
}

static void one_turn(chat *c, bool *broke) {
    char *message;
    const int what = read_message(&message);
    const bool twice = what == RUN_EDIT_BREAK && *broke;
    *broke = what == RUN_EDIT_BREAK;
    if (what == RUN_EDIT_END || twice) {
        fputs(what == RUN_EDIT_END ? "\n" : "", stderr);
        leave(c);
        *broke = false;
    } else if (what == RUN_EDIT_BREAK) {
        run_note("(Ctrl-C again or Ctrl-D ends.)");
    } else if (what == RUN_EDIT_LINE && message[strspn(message, " \t\n")] != '\0') {
        run_edit_remember(message);
        if (message[0] == '/' && strchr(message, '\n') == NULL) {
            obey(c, message);
        } else {
            answer_message(c, message);
        }
    }
    free(message);
}

int run_chat(run_job *job, const run_form *form) {
    chat c = {.job = job, .form = form};
    bool broke = false;
    job->way_out = job->o->session != NULL ? "begin anew with /clear, or name another --session"
                                           : "begin anew with /clear, or with a larger --ctx";
    if (run_edit_start(isatty(STDOUT_FILENO) ? stdout : stderr) != 0) {
        return cmp_complain(CMP_EXIT_FAILED, "the terminal can't be used for a chat");
    }
    cmp_interrupt_tidy(run_edit_restore);
    if (!job->o->quiet) {
        say_head(&c);
    }
    while (!c.ends) {
        one_turn(&c, &broke);
    }
    cmp_interrupt_tidy(NULL);
    run_edit_end();
    free(c.turn.p);
    return c.code;
}

/* SPDX-License-Identifier: MIT
 * run_edit.c: the chat's line, by libedit. Ctrl-C and Ctrl-Z are keys here, not signals, while a
 * line is read. Pasted text comes between two marks (bracketed paste), so that its line ends don't
 * send it. State is the process's, as its terminal is. */
#include "run_edit.h"

#include <histedit.h>
#include <langinfo.h>
#include <locale.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>
#include <wchar.h>

#define PASTE_ON  "\033[?2004h"
#define PASTE_OFF "\033[?2004l"

static EditLine *editor;
static History *history_list;
static FILE *screen;
static const char *prompt_text;
static char *text; /* the line without its end */
static struct termios saved;
static bool is_saved;
static bool broken_off; /* by Ctrl-C */
static bool was_empty;

static char *show_prompt(EditLine *el) {
    (void)el;
    return (char *)(uintptr_t)prompt_text;
}

/* Ctrl-C: the line stays to be seen, a new one begins. */
static unsigned char on_interrupt(EditLine *el, int c) {
    (void)c;
    const LineInfo *line = el_line(el);
    broken_off = true;
    was_empty = line->lastchar == line->buffer;
    return CC_NEWLINE;
}

static void say(const char *escape) {
    fputs(escape, screen);
    fflush(screen);
}

/* Ctrl-Z: libedit's handler puts the terminal right, stops, and goes on. */
static unsigned char on_suspend(EditLine *el, int c) {
    (void)el, (void)c;
    say(PASTE_OFF);
    raise(SIGTSTP);
    say(PASTE_ON);
    return CC_REFRESH;
}

/* A pasted text, up to the mark behind it. */
static unsigned char on_paste(EditLine *el, int c) {
    static const wchar_t mark[] = L"\033[201~";
    const size_t n_mark = sizeof mark / sizeof *mark - 1;
    wchar_t *pasted = NULL, w;
    size_t n = 0, cap = 0;
    (void)c;
    while (el_wgetc(el, &w) == 1) {
        if (n + 1 >= cap) {
            cap = 2 * cap + 1024;
            wchar_t *grown = realloc(pasted, cap * sizeof *grown);
            if (grown == NULL) {
                break;
            }
            pasted = grown;
        }
        pasted[n++] = w == L'\r' ? L'\n' : w;
        if (n >= n_mark && wmemcmp(pasted + n - n_mark, mark, n_mark) == 0) {
            pasted[n - n_mark] = L'\0';
            el_winsertstr(el, pasted);
            break;
        }
    }
    free(pasted);
    return CC_REFRESH;
}

/* libedit reads characters of the locale; the texts here are UTF-8. */
static void choose_locale(void) {
    if (setlocale(LC_CTYPE, "") == NULL || strcmp(nl_langinfo(CODESET), "UTF-8") != 0) {
        setlocale(LC_CTYPE, "C.UTF-8");
    }
}

static void bind(const char *key, const char *name, unsigned char (*fn)(EditLine *, int)) {
    el_set(editor, EL_ADDFN, name, name, fn);
    el_set(editor, EL_BIND, key, name, NULL);
}

int run_edit_start(FILE *out) {
    HistEvent event;
    choose_locale();
    screen = out;
    is_saved = tcgetattr(STDIN_FILENO, &saved) == 0;
    editor = el_init("kvrun", stdin, out, stderr);
    history_list = history_init();
    if (editor == NULL || history_list == NULL) {
        run_edit_end();
        return -1;
    }
    history(history_list, &event, H_SETSIZE, 1000);
    el_set(editor, EL_PROMPT, show_prompt);
    el_set(editor, EL_EDITOR, "emacs");
    el_set(editor, EL_SIGNAL, 1);
    el_set(editor, EL_HIST, history, history_list);
    el_set(editor, EL_SETTY, "-d", "-isig", NULL);
    bind("^C", "kvrun-interrupt", on_interrupt);
    bind("^Z", "kvrun-suspend", on_suspend);
    bind("\\e[200~", "kvrun-paste", on_paste);
    return 0;
}

int run_edit_line(const char *prompt, const char **line) {
    int n = 0;
    prompt_text = prompt;
    broken_off = false;
    if (is_saved) {
        tcsetattr(STDIN_FILENO, TCSANOW, &saved);
    }
    say(PASTE_ON);
    const char *got = el_gets(editor, &n);
    *line = "";
    if (broken_off) {
        fputs("^C\n", screen);
        return was_empty ? RUN_EDIT_BREAK : RUN_EDIT_CLEARED;
    }
    if (got == NULL || n <= 0) {
        return RUN_EDIT_END;
    }
    free(text);
    text = strdup(got);
    if (text == NULL) {
        return RUN_EDIT_END;
    }
    const size_t length = strlen(text);
    if (length > 0 && text[length - 1] == '\n') {
        text[length - 1] = '\0';
    }
    *line = text;
    return RUN_EDIT_LINE;
}

void run_edit_remember(const char *message) {
    HistEvent event;
    history(history_list, &event, H_ENTER, message);
}

void run_edit_restore(void) {
    if (is_saved) {
        tcsetattr(STDIN_FILENO, TCSANOW, &saved);
        (void)!write(fileno(screen), PASTE_OFF, sizeof PASTE_OFF - 1);
    }
}

void run_edit_hush(void) {
    if (is_saved) {
        struct termios t = saved;
        t.c_lflag &= ~(tcflag_t)(ECHO | ICANON);
        tcsetattr(STDIN_FILENO, TCSANOW, &t);
    }
}

void run_edit_end(void) {
    run_edit_restore();
    if (history_list != NULL) {
        history_end(history_list);
    }
    if (editor != NULL) {
        el_end(editor);
    }
    free(text);
    history_list = NULL;
    editor = NULL;
    text = NULL;
}

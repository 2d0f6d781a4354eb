/* SPDX-License-Identifier: MIT
 * check_file.c: the group "file": what can be said of a policy's file without computing anything:
 * first by its bytes alone, then by loading it. */
#include "check_elf.h"
#include "check_kit.h"
#include "policy_list.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Names of a list, ", " between them; as many as fit. */
typedef struct names {
    chk *c;
    char text[512];
    size_t n;
    uint32_t count;
} names;

static void add_name(names *s, const char *name) {
    const size_t n = strlen(name);
    s->count++;
    if (s->n + n + 8 < sizeof s->text) {
        s->n += (size_t)snprintf(s->text + s->n, sizeof s->text - s->n, "%s%s",
                                 s->n > 0 ? ", " : "", name);
    } else if (s->n > 0 && s->text[s->n - 1] != '.') {
        s->n += (size_t)snprintf(s->text + s->n, sizeof s->text - s->n, ", ...");
    }
}

static bool listed(const char *const *list, const char *name) {
    for (size_t i = 0; list[i] != NULL; i++) {
        if (strcmp(list[i], name) == 0) {
            return true;
        }
    }
    return false;
}

static bool open_elf(chk *c, chk_elf *e) {
    char why[256];
    if (!chk_elf_open(c->path, e, why, sizeof why)) {
        chk_fail(c, "the file %s", why);
        return false;
    }
    return true;
}

/* ---------------------------------------------------------------- by its bytes */

void chk_file_elf(chk *c) {
    chk_elf e, own;
    char why[256];
    if (!open_elf(c, &e)) {
        return;
    }
    if (!e.is_library) {
        chk_fail(c, "the file is an ELF file, but no shared object; link it with -shared");
    }
    if (chk_elf_open("/proc/self/exe", &own, why, sizeof why)) {
        if (own.machine != e.machine) {
            chk_fail(c, "the file is for ELF machine %u, this one is %u; build it for this machine",
                     e.machine, own.machine);
        }
        chk_elf_close(&own);
    }
    chk_info(c, "%zu bytes", e.n);
    chk_elf_close(&e);
}

/* What linkers and run-time libraries export on their own. */
static bool is_linkers(const char *name) {
    static const char *const known[] = {"_init",       "_fini",  "_edata", "_end",
                                        "__bss_start", "_start", NULL};
    return listed(known, name) || strncmp(name, "__asan_", 7) == 0 ||
           strncmp(name, "__odr_asan", 10) == 0 || strncmp(name, "__gcov", 6) == 0 ||
           strncmp(name, "__start_", 8) == 0 || strncmp(name, "__stop_", 7) == 0;
}

typedef struct exports {
    bool entry;
    names other;
} exports;

static void see_export(void *arg, const chk_symbol *s) {
    exports *x = arg;
    if (s->defined && strcmp(s->name, "kvc_policy_entry") == 0) {
        x->entry = true;
    } else if (s->defined && !is_linkers(s->name)) {
        add_name(&x->other, s->name);
    }
}

void chk_file_symbols(chk *c) {
    chk_elf e;
    exports x = {.entry = false};
    if (!open_elf(c, &e)) {
        return;
    }
    if (!chk_elf_symbols(&e, see_export, &x)) {
        chk_warn(c, "the file has no table of dynamic symbols that can be read");
    } else if (!x.entry) {
        chk_fail(c, "the file exports no kvc_policy_entry; put KVC_POLICY_EXPORT in front of it");
    }
    if (x.other.count > 0) {
        chk_warn(c,
                 "it exports %u symbols more than kvc_policy_entry, which may clash with those "
                 "of others: %s; compile with -fvisibility=hidden",
                 x.other.count, x.other.text);
    }
    chk_elf_close(&e);
}

static void see_needed(void *arg, const char *name) {
    static const char *const usual[] = {"libc.so.6",       "libm.so.6",  "libpthread.so.0",
                                        "libdl.so.2",      "librt.so.1", "libgcc_s.so.1",
                                        "linux-vdso.so.1", NULL};
    names *other = arg;
    if (strstr(name, "libkvc") != NULL) {
        chk_fail(other->c,
                 "it links %s; a policy gets all it needs from its host's tables: link "
                 "it without",
                 name);
    } else if (!listed(usual, name) && strncmp(name, "ld-linux", 8) != 0) {
        add_name(other, name);
    }
}

void chk_file_needed(chk *c) {
    chk_elf e;
    names other = {.c = c};
    if (!open_elf(c, &e)) {
        return;
    }
    if (!chk_elf_needed(&e, see_needed, &other)) {
        chk_warn(c, "the file has no dynamic section that can be read");
    }
    if (other.count > 0) {
        chk_info(c, "it needs %s beside the C library", other.text);
    }
    chk_elf_close(&e);
}

void chk_file_constructors(chk *c) {
    chk_elf e;
    if (!open_elf(c, &e)) {
        return;
    }
    /* One is the compiler's own (frame_dummy). */
    const uint64_t n = chk_elf_constructors(&e);
    if (n > 1) {
        chk_warn(c,
                 "%llu functions of its own run when it is loaded, before anyone has asked for "
                 "it; do in create() what must be done",
                 (unsigned long long)n - 1);
    }
    chk_elf_close(&e);
}

typedef struct calls {
    names kvc, never, memory;
} calls;

static void see_call(void *arg, const chk_symbol *s) {
    static const char *const never[] = {
        "abort",  "exit",    "_exit",   "_Exit",        "quick_exit",    "printf",
        "puts",   "putchar", "perror",  "__printf_chk", "__assert_fail", "vprintf",
        "signal", "raise",   "longjmp", "sigaction",    "__longjmp_chk", "stdout",
        "system", "setenv",  "putenv",  "setlocale",    "fork",          NULL};
    static const char *const memory[] = {"malloc",        "calloc",         "realloc", "strdup",
                                         "aligned_alloc", "posix_memalign", NULL};
    calls *x = arg;
    if (s->defined || s->weak) {
        return;
    }
    if (strncmp(s->name, "kvc_", 4) == 0) {
        add_name(&x->kvc, s->name);
    } else if (listed(never, s->name)) {
        add_name(&x->never, s->name);
    } else if (listed(memory, s->name)) {
        add_name(&x->memory, s->name);
    }
}

void chk_file_undefined(chk *c) {
    chk_elf e;
    calls x = {.kvc = {.c = c}};
    if (!open_elf(c, &e)) {
        return;
    }
    (void)chk_elf_symbols(&e, see_call, &x);
    if (x.kvc.count > 0) {
        chk_fail(c, "it calls %s; a policy calls its host by the tables it is given, never by name",
                 x.kvc.text);
    }
    if (x.never.count > 0) {
        chk_warn(c,
                 "it uses %s; a policy never prints, exits, aborts, or changes what belongs to "
                 "the whole program",
                 x.never.text);
    }
    if (x.memory.count > 0) {
        chk_info(c, "it takes memory by %s, which the host can't count; use host->realloc()",
                 x.memory.text);
    }
    chk_elf_close(&e);
}

/* ---------------------------------------------------------------- by loading it */

/* As a user would, by its path. */
void chk_file_load(chk *c) {
    char spec[4200];
    const chk_shape shape = chk_base;
    kvc_model *model = chk_open_model(c, &shape, 1);
    kvc_params *p = chk_params(c, "f32", 64, false);
    kvc_session *s = NULL;
    if (strpbrk(c->path, ":+,") != NULL) {
        chk_skip(c, "a path with ':', '+' or ',' can't stand in a spec; tested by its name alone");
        goto out;
    }
    snprintf(spec, sizeof spec, "%s%s%s", c->path, c->params[0] != '\0' ? ":" : "", c->params);
    const int32_t rc = model != NULL ? kvc_session_open(model, spec, p, &s) : KVC_OK;
    const char *why = kvc_params_error(p);
    if (rc == KVC_E_LOAD_NAME && strstr(why, "can't say which") != NULL) {
        chk_info(c, "%s", why);
    } else if ((rc <= KVC_E_LOAD_FILE && rc >= KVC_E_LOAD_REQUIRES) || rc == KVC_E_SPEC) {
        chk_fail(c, "%s (%s)", why, kvc_status_name(rc));
    }
out:
    kvc_session_close(s);
    kvc_params_destroy(p);
    kvc_model_close(model);
}

/* A policy that is found by its name must be in a file of that name. */
static void judge_name(chk *c, const char *name) {
    const char *slash = strrchr(c->path, '/'), *file = slash != NULL ? slash + 1 : c->path;
    const size_t n = strlen(name);
    if (strncmp(file, name, n) != 0 || strcmp(file + n, ".so") != 0) {
        chk_fail(c, "%s holds policy \"%s\", which its name alone can't reach; name the file %s.so",
                 file, name, name);
    }
}

static void say_json(chk *c, const kvc_policies *list) {
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    if (f == NULL) {
        return;
    }
    const int rc = cmp_list_json(f, list);
    if (fclose(f) == 0 && rc == 0) {
        c->put(c->put_ctx, CHK_TABLE, text);
    }
    free(text);
}

/* What a sound policy says of itself. */
static void say_policy(chk *c, const kvc_policies *list, uint32_t i, const kvc_policy_info *info) {
    chk_info(c, "%s %s, ABI %u, %s: %s", info->name, info->version, info->abi, info->license,
             info->summary);
    for (uint32_t k = 0; k < info->n_param; k++) {
        const kvc_param *p = NULL;
        char line[1024];
        if (kvc_policies_param(list, i, k, &p) == KVC_OK) {
            cmp_list_param(p, line, sizeof line);
            chk_info(c, "%s", line);
        }
    }
    if ((info->caps & ~(uint64_t)(KVC_CAP_CHUNK_INVARIANT | KVC_CAP_LOSSLESS)) != 0) {
        chk_warn(c, "%s claims capabilities that this host doesn't know", info->name);
    }
}

/* Every table of the file, as the library reads it. */
void chk_file_table(chk *c) {
    const kvc_policy *(*entry)(uint32_t, uint32_t) = NULL;
    kvc_params *p = NULL;
    kvc_policies *list = NULL;
    if (!chk_entry(c, &entry) || kvc_params_create(&p) < 0) {
        return;
    }
    kvc_params_set_i64(p, "policy_env", 0);
    kvc_params_set_i64(p, "policy_default", 0);
    if (kvc_params_add_policy(p, entry) < 0 || kvc_policies_open(p, &list) < 0) {
        chk_fail(c, "its tables can't be listed: %s", kvc_params_error(p));
    }
    const uint32_t n = kvc_policies_count(list);
    for (uint32_t i = 0; i < n; i++) {
        kvc_policy_info info = {.struct_size = sizeof info};
        (void)kvc_policies_get(list, i, &info);
        if (info.status < 0) {
            chk_fail(c, "%s (%s)", info.error, kvc_status_name(info.status));
            continue;
        }
        say_policy(c, list, i, &info);
        if (n == 1) {
            judge_name(c, info.name);
        }
    }
    if (list != NULL) {
        say_json(c, list);
    }
    kvc_policies_close(list);
    kvc_params_destroy(p);
}

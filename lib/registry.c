/* SPDX-License-Identifier: MIT
 * registry.c: finds policies and loads their files. It stands
 * between the spec's words and the stack, which calls the policies. It must not know any policy by
 * name and calls no function of one but its entry. */
#include "registry.h"

#include "os.h"
#include "spec.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Where installed policies lie, seen from the library's own directory. */
#define POLICY_DIR "kvc/policies"

#define MAX_INDEX 64u   /* policies of one file: an entry that never answers NULL must end */
#define MAX_PATH  4096u /* bytes of a path with its NUL */

/* ---------------------------------------------------------------- files */

/* Opens the library at path, which holds a '/', and finds its entry. It stays mapped for good:
 * copies of its tables, and threads inside it, may outlive every session. */
static int32_t entry_open(const char *path, kvc__entry_fn *out, kvc__err *err) {
    struct stat st;
    if (stat(path, &st) != 0) {
        return kvc__fail(err, KVC_E_LOAD_FILE, "%s: can't be read: %s; check the path", path,
                         strerror(errno));
    }
    if (!S_ISREG(st.st_mode) || st.st_size == 0) {
        return kvc__fail(err, KVC_E_LOAD_FILE, "%s: %s; give the .so file of a policy", path,
                         S_ISREG(st.st_mode) ? "is an empty file" : "is not a regular file");
    }
    if (!kvc__library_is_whole(path)) {
        return kvc__fail(err, KVC_E_LOAD_OPEN, "%s: the file is cut off; copy or build it again",
                         path);
    }
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (handle == NULL) {
        const char *text = dlerror();
        return kvc__fail(err, KVC_E_LOAD_OPEN,
                         "%s: is not a library that can be loaded here: %s; build it for this "
                         "machine",
                         path, text ? text : "no reason given");
    }
    void *symbol = dlsym(handle, "kvc_policy_entry");
    dlclose(handle);
    if (symbol == NULL) {
        return kvc__fail(err, KVC_E_LOAD_SYMBOL,
                         "%s: exports no kvc_policy_entry; put KVC_POLICY_EXPORT in front of it",
                         path);
    }
    /* ISO C has no conversion from object to function pointers; POSIX promises equal bits. */
    memcpy(out, &symbol, sizeof *out);
    return KVC_OK;
}

static int is_named(const kvc_policy *p, const char *name) {
    return kvc__abi_accepted(p) && p->struct_size >= sizeof *p && p->name != NULL &&
           strcmp(p->name, name) == 0;
}

/* Number of policies that entry answers, MAX_INDEX + 1 when there are more. */
static uint32_t entry_count(kvc__entry_fn entry) {
    uint32_t n = 0;
    while (n <= MAX_INDEX && entry(KVC_POLICY_ABI, n) != NULL) {
        n++;
    }
    return n;
}

static int32_t count_check(uint32_t n, const char *path, kvc__err *err) {
    if (n == 0) {
        return kvc__fail(
            err, KVC_E_LOAD_TABLE,
            "%s: kvc_policy_entry answers no policy for ABI %u; answer one for index 0",
            kvc__policy_where(path), KVC_POLICY_ABI);
    }
    if (n > MAX_INDEX) {
        return kvc__fail(err, KVC_E_LOAD_TABLE,
                         "%s: kvc_policy_entry answers more than %u policies; answer NULL past the "
                         "last",
                         kvc__policy_where(path), MAX_INDEX);
    }
    return KVC_OK;
}

/* Loads the policy called name from the file, or its only one when name is NULL. */
static int32_t file_load(kvc__mem *mem, const char *path, const char *name, kvc__policy *out,
                         kvc__err *err) {
    kvc__entry_fn entry;
    KVC_TRY(entry_open(path, &entry, err));
    uint32_t n = entry_count(entry);
    KVC_TRY(count_check(n, path, err));
    if (name == NULL && n > 1) {
        return kvc__fail(err, KVC_E_LOAD_NAME,
                         "%s: holds %u policies, and a path can't say which; put it into a "
                         "directory of KVC_POLICY_PATH and give the name",
                         path, n);
    }
    for (uint32_t i = 0; i < n; i++) {
        const kvc_policy *theirs = entry(KVC_POLICY_ABI, i);
        if (name == NULL || is_named(theirs, name)) {
            return kvc__policy_check(mem, theirs, path, out, err);
        }
    }
    KVC_TRY(kvc__policy_check(mem, entry(KVC_POLICY_ABI, 0), path, out, err));
    int32_t rc = kvc__fail(err, KVC_E_LOAD_NAME,
                           "%s: holds policy \"%s\", not \"%s\"; a file is named after its policy",
                           path, out->desc.name, name);
    kvc__policy_free(mem, out);
    return rc;
}

/* ---------------------------------------------------------------- the search */

/* Walks the directories of a search in order. */
typedef struct dirs {
    const kvc__search *search;
    uint32_t next;   /* of the added directories */
    const char *env; /* what is left of the environment's list, or NULL */
    int use_default; /* 1: the installed directory is still to come */
    char home[4096]; /* that directory */
} dirs;

static dirs dirs_begin(const kvc__search *search) {
    return (dirs){.search = search,
                  .env = search->use_env ? kvc__env("KVC_POLICY_PATH") : NULL,
                  .use_default = search->use_default};
}

/* The next directory and its length, without trailing slashes; 0 past the last. An empty element
 * would mean the current directory and is skipped. */
static int dirs_next(dirs *d, const char **dir, size_t *n) {
    *n = 0;
    while (*n == 0) {
        if (d->next < d->search->n_dir) {
            *dir = d->search->dir[d->next++];
            *n = strlen(*dir);
        } else if (d->env != NULL && d->env[0] != '\0') {
            *dir = d->env;
            *n = strcspn(d->env, ":");
            d->env += *n + (d->env[*n] == ':');
        } else if (d->use_default) {
            d->use_default = 0;
            if (kvc__beside_library(POLICY_DIR, d->home, sizeof d->home)) {
                *dir = d->home;
                *n = strlen(*dir);
            }
        } else {
            return 0;
        }
    }
    while (*n > 1 && (*dir)[*n - 1] == '/') {
        --*n;
    }
    return 1;
}

/* dir/name and suffix into path[MAX_PATH]; 0 when it doesn't fit. */
static int path_join(char *path, const char *dir, size_t n, const char *name, const char *suffix) {
    int length =
        n < MAX_PATH ? snprintf(path, MAX_PATH, "%.*s/%s%s", (int)n, dir, name, suffix) : -1;
    return length > 0 && (uint32_t)length < MAX_PATH;
}

/* All directories of the search with ':' between them; free with strlen + 1. NULL: no memory. */
static char *dirs_join(kvc__mem *mem, const kvc__search *search) {
    const char *dir;
    size_t n, total = 0;
    for (dirs d = dirs_begin(search); dirs_next(&d, &dir, &n);) {
        total += n + 1;
    }
    char *out = kvc__alloc(mem, total ? total : 1);
    if (out == NULL) {
        return NULL;
    }
    char *p = out;
    for (dirs d = dirs_begin(search); dirs_next(&d, &dir, &n);) {
        if (p > out) {
            *p++ = ':';
        }
        memcpy(p, dir, n);
        p += n;
    }
    return out;
}

static int is_library(const char *file) {
    size_t n = strlen(file);
    return n > 3 && strcmp(file + n - 3, ".so") == 0;
}

/* ---------------------------------------------------------------- one word */

/* The name nearest to a word that wasn't found. */
typedef struct nearest {
    const char *word;
    char name[KVC__MAX_NAME + 1];
    uint32_t distance;
} nearest;

static void nearest_offer(nearest *best, const char *name, size_t n) {
    char text[KVC__MAX_NAME + 1];
    if (n > KVC__MAX_NAME) {
        return;
    }
    memcpy(text, name, n);
    text[n] = '\0';
    uint32_t distance = kvc__text_distance(best->word, text);
    if (distance < best->distance) {
        best->distance = distance;
        memcpy(best->name, text, n + 1);
    }
}

static void nearest_search(nearest *best, const kvc__search *search) {
    for (uint32_t i = 0; i < search->n_entry; i++) {
        uint32_t n = entry_count(search->entry[i]);
        for (uint32_t k = 0; k < n; k++) {
            const kvc_policy *p = search->entry[i](KVC_POLICY_ABI, k);
            if (kvc__abi_accepted(p) && p->struct_size >= sizeof *p && p->name != NULL) {
                nearest_offer(best, p->name, strlen(p->name));
            }
        }
    }
    const char *dir;
    size_t n;
    for (dirs d = dirs_begin(search); dirs_next(&d, &dir, &n);) {
        char path[MAX_PATH];
        DIR *open = path_join(path, dir, n, "", "") ? opendir(path) : NULL;
        for (struct dirent *e; open != NULL && (e = readdir(open)) != NULL;) {
            if (is_library(e->d_name)) {
                nearest_offer(best, e->d_name, strlen(e->d_name) - 3);
            }
        }
        if (open != NULL) {
            closedir(open);
        }
    }
}

static int32_t not_found(kvc__mem *mem, const kvc__search *search, const char *word,
                         kvc__err *err) {
    nearest best = {.word = word, .distance = UINT32_MAX};
    nearest_search(&best, search);
    char *path = dirs_join(mem, search);
    if (path == NULL) {
        return kvc__fail(err, KVC_E_NOMEM, "no memory to look for policy \"%.60s\"", word);
    }
    int near = best.distance != UINT32_MAX;
    int32_t rc = kvc__fail(err, KVC_E_NOT_FOUND,
                           "policy \"%.60s\" is not found%s%s%s; searched %s%s%.600s; "
                           "add its directory to KVC_POLICY_PATH%s",
                           word, near ? ", did you mean \"" : "", best.name, near ? "\"?" : "",
                           search->n_entry > 0 ? "those linked in and " : "",
                           path[0] ? "" : "no directory", path,
                           search->saved ? ", or to the options by kvc_params_add_policy_dir()"
                                         : " or give a path with '/'");
    kvc__free(mem, path, strlen(path) + 1);
    return rc;
}

/* The linked-in policy of that name, or NULL. */
static const kvc_policy *linked_find(const kvc__search *search, const char *name) {
    for (uint32_t i = 0; i < search->n_entry; i++) {
        uint32_t n = entry_count(search->entry[i]);
        for (uint32_t k = 0; k < n; k++) {
            const kvc_policy *p = search->entry[i](KVC_POLICY_ABI, k);
            if (is_named(p, name)) {
                return p;
            }
        }
    }
    return NULL;
}

/* The first file of that name decides, sound or broken: a policy is never replaced silently. */
int32_t kvc__registry_load(kvc__mem *mem, const kvc__search *search, const char *word,
                           kvc__policy *out, kvc__err *err) {
    *out = (kvc__policy){0};
    if (strchr(word, '/') != NULL) {
        return file_load(mem, word, NULL, out, err);
    }
    if (!kvc__name_valid(word, KVC__MAX_NAME, true)) {
        return not_found(mem, search, word, err);
    }
    const kvc_policy *linked = linked_find(search, word);
    if (linked != NULL) {
        return kvc__policy_check(mem, linked, "", out, err);
    }
    const char *dir;
    size_t n;
    for (dirs d = dirs_begin(search); dirs_next(&d, &dir, &n);) {
        char path[MAX_PATH];
        struct stat st;
        if (path_join(path, dir, n, word, ".so") &&
            (stat(path, &st) == 0 || (errno != ENOENT && errno != ENOTDIR))) {
            return file_load(mem, path, word, out, err);
        }
    }
    return not_found(mem, search, word, err);
}

/* ---------------------------------------------------------------- the list */

static void listed_free(kvc__mem *mem, struct kvc__listed *item) {
    kvc__policy_free(mem, &item->policy);
    kvc__free(mem, item->name, item->name ? strlen(item->name) + 1 : 0);
    kvc__free(mem, item->error, item->error ? strlen(item->error) + 1 : 0);
    *item = (struct kvc__listed){0};
}

/* Room for one more item, zeroed; NULL: no memory. Tables point into their item and are mended when
 * the array moves. */
static struct kvc__listed *list_grow(struct kvc_policies *list) {
    if (list->n == list->cap) {
        uint32_t cap = list->cap ? 2 * list->cap : 16;
        struct kvc__listed *item =
            kvc__realloc(&list->own, list->item, list->cap * sizeof *item, cap * sizeof *item, 64);
        if (item == NULL) {
            return NULL;
        }
        list->item = item;
        list->cap = cap;
    }
    return &list->item[list->n];
}

static int32_t list_nomem(kvc__err *err) {
    return kvc__fail(err, KVC_E_NOMEM, "no memory to list policies");
}

/* Adds what is broken: file is the last part of path. */
static int32_t broken_add(struct kvc_policies *list, const char *path, int32_t status,
                          const char *why, kvc__err *err) {
    struct kvc__listed *item = list_grow(list);
    if (item == NULL) {
        return list_nomem(err);
    }
    const char *slash = strrchr(path, '/');
    const char *file = slash ? slash + 1 : path[0] ? path : "(linked in)";
    item->status = status;
    item->name = kvc__strndup(&list->own, file, strlen(file));
    item->error = kvc__strndup(&list->own, why, strlen(why));
    item->policy.path = kvc__strndup(&list->own, path, strlen(path));
    item->policy.path_bytes = strlen(path) + 1;
    list->n++; /* counted in any case, so that it is freed with the list */
    return item->name && item->error && item->policy.path ? KVC_OK : list_nomem(err);
}

/* Adds one policy of a file or of the program, as sound or as broken. */
static int32_t policy_add(struct kvc_policies *list, const kvc_policy *theirs, const char *path,
                          kvc__err *err) {
    kvc__err why;
    kvc__policy policy;
    int32_t rc = kvc__policy_check(&list->own, theirs, path, &policy, &why);
    if (rc == KVC_E_NOMEM) {
        return list_nomem(err);
    }
    if (rc < 0) {
        return broken_add(list, path, rc, why.text, err);
    }
    const char *name = policy.desc.name, *slash = strrchr(path, '/');
    size_t n = strlen(name);
    uint32_t i = 0;
    while (i < list->n &&
           (list->item[i].status < 0 || strcmp(list->item[i].policy.desc.name, name) != 0)) {
        i++;
    }
    if (slash != NULL && (strncmp(slash + 1, name, n) != 0 || strcmp(slash + 1 + n, ".so") != 0)) {
        rc = kvc__fail(&why, KVC_E_LOAD_NAME,
                       "%s: holds policy \"%s\", which its name alone can't reach; name the file "
                       "%s.so",
                       path, name, name);
    } else if (i < list->n) {
        rc = kvc__fail(&why, KVC_E_LOAD_NAME,
                       "%s: policy \"%s\" is shadowed by that of %s, which is found first; remove "
                       "one or give this one's path",
                       kvc__policy_where(path), name, kvc__policy_where(list->item[i].policy.path));
    }
    if (rc < 0) {
        kvc__policy_free(&list->own, &policy);
        return broken_add(list, path, rc, why.text, err);
    }
    struct kvc__listed *item = list_grow(list);
    if (item == NULL) {
        kvc__policy_free(&list->own, &policy);
        return list_nomem(err);
    }
    item->policy = policy;
    list->n++;
    return KVC_OK;
}

static int32_t entry_list(struct kvc_policies *list, kvc__entry_fn entry, const char *path,
                          kvc__err *err) {
    kvc__err why;
    uint32_t n = entry_count(entry);
    int32_t rc = count_check(n, path, &why);
    if (rc < 0) {
        return broken_add(list, path, rc, why.text, err);
    }
    for (uint32_t i = 0; i < n; i++) {
        KVC_TRY(policy_add(list, entry(KVC_POLICY_ABI, i), path, err));
    }
    return KVC_OK;
}

static int32_t file_list(struct kvc_policies *list, const char *path, kvc__err *err) {
    kvc__err why;
    kvc__entry_fn entry;
    int32_t rc = entry_open(path, &entry, &why);
    if (rc < 0) {
        return broken_add(list, path, rc, why.text, err);
    }
    return entry_list(list, entry, path, err);
}

/* The libraries of a directory; one that can't be read has none. */
static int32_t dir_list(struct kvc_policies *list, const char *dir, size_t n, kvc__err *err) {
    char path[MAX_PATH];
    int32_t rc = KVC_OK;
    DIR *open = path_join(path, dir, n, "", "") ? opendir(path) : NULL;
    for (struct dirent *e; rc == KVC_OK && open != NULL && (e = readdir(open)) != NULL;) {
        if (is_library(e->d_name) && path_join(path, dir, n, e->d_name, "")) {
            rc = file_list(list, path, err);
        }
    }
    if (open != NULL) {
        closedir(open);
    }
    return rc;
}

static const char *listed_name(const struct kvc__listed *item) {
    return item->status < 0 ? item->name : item->policy.desc.name;
}

static int listed_compare(const void *a, const void *b) {
    const struct kvc__listed *x = a, *y = b;
    if ((x->status < 0) != (y->status < 0)) {
        return x->status < 0 ? 1 : -1;
    }
    int order = strcmp(listed_name(x), listed_name(y));
    order = order ? order : strcmp(x->policy.path, y->policy.path);
    return order || x->status >= 0 ? order : strcmp(x->error, y->error);
}

int32_t kvc__registry_list(const kvc__search *search, struct kvc_policies *list, kvc__err *err) {
    list->path = dirs_join(&list->own, search);
    if (list->path == NULL) {
        return list_nomem(err);
    }
    for (uint32_t i = 0; i < search->n_entry; i++) {
        KVC_TRY(entry_list(list, search->entry[i], "", err));
    }
    const char *dir;
    size_t n;
    for (dirs d = dirs_begin(search); dirs_next(&d, &dir, &n);) {
        KVC_TRY(dir_list(list, dir, n, err));
    }
    if (list->n > 1) {
        qsort(list->item, list->n, sizeof list->item[0], listed_compare);
    }
    for (uint32_t i = 0; i < list->n; i++) {
        list->item[i].policy.desc.api = &list->item[i].policy.api;
    }
    return KVC_OK;
}

void kvc__registry_unlist(struct kvc_policies *list) {
    for (uint32_t i = 0; i < list->n; i++) {
        listed_free(&list->own, &list->item[i]);
    }
    kvc__free(&list->own, list->item, list->cap * sizeof list->item[0]);
    kvc__free(&list->own, list->path, list->path ? strlen(list->path) + 1 : 0);
    list->item = NULL;
    list->path = NULL;
    list->n = list->cap = 0;
}

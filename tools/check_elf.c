/* SPDX-License-Identifier: MIT
 * check_elf.c: reads ELF by its section headers. Every offset and count comes from the file and is
 * checked against its size; nothing is mapped or run. (System V ABI, chapter 4.) */
#include "check_elf.h"

#include <elf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MAX_FILE ((off_t)1 << 30)

/* Copies size bytes at offset; false when the file ends before. */
static bool get(const chk_elf *e, uint64_t offset, void *out, size_t size) {
    if (offset > e->n || size > e->n - offset) {
        return false;
    }
    memcpy(out, e->bytes + offset, size);
    return true;
}

static bool get_section(const chk_elf *e, uint64_t i, Elf64_Shdr *out) {
    return i < e->n_section && get(e, e->section + i * sizeof *out, out, sizeof *out);
}

/* A text of a string section, NULL when it doesn't end inside. */
static const char *get_text(const chk_elf *e, const Elf64_Shdr *strings, uint64_t at) {
    if (strings->sh_offset > e->n || strings->sh_size > e->n - strings->sh_offset ||
        at >= strings->sh_size) {
        return NULL;
    }
    const char *p = (const char *)e->bytes + strings->sh_offset + at;
    return memchr(p, '\0', strings->sh_size - at) != NULL ? p : NULL;
}

/* ---------------------------------------------------------------- the file */

static bool read_whole(const char *path, chk_elf *e, char *why, size_t cap) {
    struct stat st;
    FILE *f = NULL;
    if (stat(path, &st) != 0) {
        snprintf(why, cap, "can't be read: %s", strerror(errno));
        return false;
    }
    if (!S_ISREG(st.st_mode)) {
        snprintf(why, cap, "is not a regular file");
        return false;
    }
    if (st.st_size > MAX_FILE || (f = fopen(path, "rb")) == NULL) {
        snprintf(why, cap, "can't be read: %s",
                 st.st_size > MAX_FILE ? "it has more than 1 GiB" : strerror(errno));
        return false;
    }
    e->bytes = malloc((size_t)st.st_size + 1);
    e->n = e->bytes != NULL ? fread(e->bytes, 1, (size_t)st.st_size, f) : 0;
    fclose(f);
    if (e->bytes == NULL) {
        snprintf(why, cap, "no memory for its %lld bytes", (long long)st.st_size);
    }
    return e->bytes != NULL;
}

static bool read_header(chk_elf *e, char *why, size_t cap) {
    const uint16_t one = 1;
    unsigned char little;
    Elf64_Ehdr h;
    memcpy(&little, &one, 1);
    if (!get(e, 0, &h, SELFMAG) || memcmp(&h, ELFMAG, SELFMAG) != 0) {
        snprintf(why, cap, "is not an ELF file");
        return false;
    }
    if (!get(e, 0, &h, sizeof h)) {
        snprintf(why, cap, "is cut off: %zu bytes are less than an ELF header", e->n);
        return false;
    }
    if (h.e_ident[EI_CLASS] != ELFCLASS64 ||
        h.e_ident[EI_DATA] != (little != 0 ? ELFDATA2LSB : ELFDATA2MSB)) {
        snprintf(why, cap, "is an ELF file of another word size or byte order");
        return false;
    }
    e->machine = h.e_machine;
    e->is_library = h.e_type == ET_DYN;
    e->section = h.e_shoff;
    e->n_section = h.e_shentsize == sizeof(Elf64_Shdr) && h.e_shoff != 0 ? h.e_shnum : 0;
    if (e->section > e->n || e->n_section > (e->n - e->section) / sizeof(Elf64_Shdr)) {
        snprintf(why, cap, "is cut off: its section headers lie past the end of %zu bytes", e->n);
        return false;
    }
    return true;
}

bool chk_elf_open(const char *path, chk_elf *out, char *why, size_t cap) {
    memset(out, 0, sizeof *out);
    if (read_whole(path, out, why, cap) && read_header(out, why, cap)) {
        return true;
    }
    chk_elf_close(out);
    return false;
}

void chk_elf_close(chk_elf *e) {
    free(e->bytes);
    memset(e, 0, sizeof *e);
}

/* ---------------------------------------------------------------- sections */

/* The first section of a type and the string section that it names. */
static bool find(const chk_elf *e, uint32_t type, Elf64_Shdr *out, Elf64_Shdr *strings) {
    for (uint64_t i = 0; get_section(e, i, out); i++) {
        if (out->sh_type == type) {
            return get_section(e, out->sh_link, strings);
        }
    }
    return false;
}

bool chk_elf_symbols(const chk_elf *e, void (*fn)(void *arg, const chk_symbol *s), void *arg) {
    Elf64_Shdr table, strings;
    Elf64_Sym sym;
    if (!find(e, SHT_DYNSYM, &table, &strings)) {
        return false;
    }
    const uint64_t n = table.sh_size / sizeof sym;
    for (uint64_t i = 1; i < n && get(e, table.sh_offset + i * sizeof sym, &sym, sizeof sym); i++) {
        const uint32_t bind = ELF64_ST_BIND(sym.st_info);
        const chk_symbol s = {.name = get_text(e, &strings, sym.st_name),
                              .defined = sym.st_shndx != SHN_UNDEF,
                              .weak = bind == STB_WEAK};
        if (s.name != NULL && s.name[0] != '\0' && bind != STB_LOCAL) {
            fn(arg, &s);
        }
    }
    return true;
}

bool chk_elf_needed(const chk_elf *e, void (*fn)(void *arg, const char *name), void *arg) {
    Elf64_Shdr table, strings;
    Elf64_Dyn d;
    if (!find(e, SHT_DYNAMIC, &table, &strings)) {
        return false;
    }
    const uint64_t n = table.sh_size / sizeof d;
    for (uint64_t i = 0; i < n && get(e, table.sh_offset + i * sizeof d, &d, sizeof d); i++) {
        if (d.d_tag == DT_NULL) {
            break;
        }
        const char *name = d.d_tag == DT_NEEDED ? get_text(e, &strings, d.d_un.d_val) : NULL;
        if (name != NULL) {
            fn(arg, name);
        }
    }
    return true;
}

uint64_t chk_elf_constructors(const chk_elf *e) {
    Elf64_Shdr s;
    uint64_t n = 0;
    for (uint64_t i = 0; get_section(e, i, &s); i++) {
        if (s.sh_type == SHT_INIT_ARRAY) {
            n += s.sh_size / sizeof(Elf64_Addr);
        }
    }
    return n;
}

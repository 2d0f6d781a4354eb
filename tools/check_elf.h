/* SPDX-License-Identifier: MIT
 * check_elf.h: what a shared object says in its sections: machine, symbols, needed libraries,
 * functions that run when it is loaded. The file may hold any bytes. */
#ifndef KVC_CHECK_ELF_H
#define KVC_CHECK_ELF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** A file in memory. */
typedef struct chk_elf {
    unsigned char *bytes; /* owned */
    size_t n;
    uint32_t machine;
    bool is_library;
    uint64_t section, n_section; /* offset and number of section headers; 0: none */
} chk_elf;

/** Reads a file and its ELF header. False, with a sentence in why: it is none of 64 bits and this
 * byte order. */
bool chk_elf_open(const char *path, chk_elf *out, char *why, size_t cap);
/** Frees it. */
void chk_elf_close(chk_elf *elf);

/** A dynamic symbol. */
typedef struct chk_symbol {
    const char *name;
    bool defined, weak;
} chk_symbol;

/** Calls fn for each global dynamic symbol. False: the file has no table of them that can be read.
 */
bool chk_elf_symbols(const chk_elf *elf, void (*fn)(void *arg, const chk_symbol *s), void *arg);
/** Calls fn for each library that the file needs. */
bool chk_elf_needed(const chk_elf *elf, void (*fn)(void *arg, const char *name), void *arg);
/** Functions that run when the file is loaded. */
uint64_t chk_elf_constructors(const chk_elf *elf);

#endif

#!/bin/sh
# SPDX-License-Identifier: MIT
# check_aarch64.sh SOURCE OUT DIGEST SOURCES MODEL...: the library compiles for aarch64 without
# warnings, and its kernels and whole models give the bits there that the scalar level gives here.
# DIGEST is this machine's build of digest.c, SOURCES the library's files, separated by commas; OUT
# is a directory. Skipped (77) without the cross compiler or the emulator.
set -u
src=$1
out=$2
digest=$3
sources=$(printf '%s' "$4" | tr ',' ' ')
shift 4

for tool in aarch64-linux-gnu-gcc qemu-aarch64-static; do
    command -v "$tool" >/dev/null ||
        { echo "skipped: no $tool (Debian: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user-static)"; exit 77; }
done
rm -rf "$out"
mkdir -p "$out"
cd "$src" || exit 1

# Headers that are the same on every machine (PCRE2, xxHash, Check) are taken from this one.
# xxHash's functions come with its header too; what needs PCRE2 is compiled, and left out of the
# program.
flags='-std=c11 -O3 -D_POSIX_C_SOURCE=200809L -Wall -Wextra -Wshadow -Wconversion
-Wstrict-prototypes -Wmissing-prototypes -Wvla -Wundef -Werror -Wno-error=maybe-uninitialized
-ffp-contract=off -fno-math-errno -Iinclude -Ilib -Itests -idirafter /usr/include'
for f in $sources tests/aarch64_pretok.c tests/digest.c; do
    printf '%s\n' "$f"
done | xargs -P 2 -I '{}' sh -c \
    'aarch64-linux-gnu-gcc '"$(printf '%s' "$flags" | tr '\n' ' ')"' -c "$1" -o "$2/$(basename "$1" .c).o"' \
    sh '{}' "$out" || exit 1
rm "$out/pretok.o"
printf '#define XXH_IMPLEMENTATION\n#define XXH_STATIC_LINKING_ONLY\n#include <xxhash.h>\n' |
    aarch64-linux-gnu-gcc -O2 -idirafter /usr/include -x c -c - -o "$out/xxhash.o" || exit 1
# Opening plugins by name needs the libraries of the machine; this program opens none.
aarch64-linux-gnu-gcc -static "$out"/*.o -o "$out/digest" -lm -lpthread 2>"$out/link" ||
    { cat "$out/link"; exit 1; }

KVC_CPU=scalar "$digest" "$@" >"$out/here" || exit 1
qemu-aarch64-static "$out/digest" "$@" >"$out/there" || exit 1
diff "$out/here" "$out/there" || { echo 'aarch64 (>) gives other bits than the scalar level here (<)'; exit 1; }
echo "$(wc -l <"$out/here") results are the same"

#!/bin/sh
# SPDX-License-Identifier: MIT
# check_abi.sh layout|types SOURCE OUT CC PYTHON: whether the headers are still those that plugins and
# programs were compiled with. layout: sizes, offsets and numbers, by a compiler alone. types: all
# else, by abidiff against tests/abi/baseline.xml; skipped (77) without it. OUT is a directory.
set -u
what=$1
src=$2
out=$3
cc=$4
python=$5
changed='the ABI has changed. If that is meant: tests/abi/renew, and say so in the commit.'

mkdir -p "$out"
cd "$src" || exit 1
if [ "$what" = layout ]; then
    "$cc" -std=c11 -Wall -Wextra -pedantic -Werror -fsyntax-only -Iinclude tests/abi/layout.c ||
        { echo "$changed"; exit 1; }
    "$python" tests/abi/renew --list >"$out/list.h" && diff tests/abi/list.h "$out/list.h" ||
        { echo "types or functions were added or taken out: tests/abi/renew"; exit 1; }
    exit 0
fi
command -v abidiff >/dev/null || { echo "skipped: no abidiff (Debian: abigail-tools)"; exit 77; }
"$cc" -g -O0 -shared -fPIC -Iinclude tests/abi/anchor.c -o "$out/anchor.so" || exit 1
abidiff --no-show-locs --no-architecture tests/abi/baseline.xml "$out/anchor.so" || { echo "$changed"; exit 1; }

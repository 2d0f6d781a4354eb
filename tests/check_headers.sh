#!/bin/sh
# SPDX-License-Identifier: MIT
# check_headers.sh SOURCE CC: each public header compiles alone, twice included, as C99, C11 and
# C++17, without a warning.
set -u
src=$1
cc=$2
failed=0

for header in "$src"/include/kvc/*.h; do
    name=kvc/${header##*/}
    for std in c99 c11 c++17; do
        case $std in c++*) lang=c++ ;; *) lang=c ;; esac
        if ! printf '#include <%s>\n#include <%s>\nextern int kvc_test_unit;\n' "$name" "$name" |
            "$cc" -x $lang -std=$std -Wall -Wextra -Wundef -pedantic -Werror -fsyntax-only \
                -I"$src/include" -; then
            echo "$name doesn't compile as $std"
            failed=1
        fi
    done
done
exit $failed

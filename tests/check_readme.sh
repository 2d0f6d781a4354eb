#!/bin/sh
# SPDX-License-Identifier: MIT
# check_readme.sh SOURCE OUT STAGE CC LIBDIR [CFLAG...]: the examples of README.md and docs/*.md
# compile against the tree installed in STAGE and run. An example is a block marked ```c whose first
# line is the comment "file: NAME.c"; NAME policy_X is the policy X, any other a program that is run
# with a model as its argument.
set -u
src=$1
out=$2
stage=$3
cc=$4
libdir=$5
shift 5
model=${KVC_TEST_MODEL:-$KVC_TEST_MODELS/tiny-q4_0.gguf}
PKG_CONFIG_PATH=$stage/$libdir/pkgconfig
KVC_POLICY_PATH=$out/policies:$stage/$libdir/kvc/policies
export PKG_CONFIG_PATH KVC_POLICY_PATH
failed=0

rm -rf "$out"
mkdir -p "$out/policies"
cd "$out" || exit 1
awk '
    /^```c *$/ { fresh = 1; next }
    /^```/ { fresh = 0; if (file != "") close(file); file = ""; next }
    fresh && match($0, /^\/\* file: [a-z0-9_]+\.c \*\/$/) { file = $3; print file > "list" }
    { fresh = 0 }
    file != "" { print > file }
' "$src/README.md" "$src"/docs/*.md
touch list
if [ -n "$(sort list | uniq -d)" ]; then
    echo "examples share a name:" $(sort list | uniq -d)
    exit 1
fi

warn="-std=c11 -O1 -Wall -Wextra -Werror -pedantic"
for file in $(grep '^policy_' list); do
    name=${file#policy_}
    name=${name%.c}
    echo "policy $name"
    # shellcheck disable=SC2046,SC2086
    "$cc" "$@" $warn -fPIC -fvisibility=hidden -shared -Wl,-z,defs $(pkg-config --cflags kvc) \
        -o "policies/$name.so" "$file" &&
        "$stage/bin/kvcompare" -m "$KVC_TEST_MODELS/tiny-q4_0.gguf" --policy "$name" \
            --ctx 256 --tokens 64 || failed=1
done
for file in $(grep -v '^policy_' list); do
    echo "program ${file%.c}"
    # shellcheck disable=SC2046,SC2086
    "$cc" "$@" $warn -D_POSIX_C_SOURCE=200809L -o "${file%.c}" "$file" \
        $(pkg-config --cflags --libs kvc) "-Wl,-rpath,$stage/$libdir" -lm &&
        "./${file%.c}" "$model" || failed=1
done
echo "$(wc -l <list) examples"
exit $failed

#!/bin/sh
# SPDX-License-Identifier: MIT
# check_install.sh SOURCE BUILD STAGE CMAKE CC LIBDIR [CFLAG...]: installs into STAGE,
# builds a program by pkg-config and again by find_package with a policy of its own, and runs them.
# LIBDIR is relative to the prefix. The installed library must find its policies beside itself.
set -eu
src=$1
build=$2
stage=$3
cmake=$4
cc=$5
libdir=$6
policydir=$stage/$libdir/kvc/policies
shift 6
consumer=$src/tests/consumer
model=$KVC_TEST_MODELS/tiny-q4_0.gguf

rm -rf "$stage" "$stage-consumer"
mkdir -p "$stage-consumer"
"$cmake" --install "$build" --prefix "$stage" >"$stage-consumer/install.log"

echo "by pkg-config"
PKG_CONFIG_PATH=$stage/$libdir/pkgconfig
export PKG_CONFIG_PATH
"$cc" "$@" -std=c11 -Wall -Wextra -Werror -o "$stage-consumer/by-pkg-config" \
    "$consumer/consumer.c" $(pkg-config --cflags --libs kvc) "-Wl,-rpath,$stage/$libdir"
"$stage-consumer/by-pkg-config" "$model" full "$policydir"

[ "$(pkg-config --modversion kvc)" = "$(sed -n 's/^#define KVC_VERSION_STRING "\(.*\)".*/\1/p' "$src/include/kvc/version.h")" ] ||
    { echo "kvc.pc is of another version"; exit 1; }
# While the major version is 0, a minor one may break.
minor=$(pkg-config --modversion kvc | sed 's/\.[^.]*$//')
readelf -d "$stage/$libdir/libkvc.so" | grep -q "SONAME.*\[libkvc\.so\.$minor\]" ||
    { echo "the SONAME isn't libkvc.so.$minor"; exit 1; }

echo "by find_package"
"$cmake" -S "$consumer" -B "$stage-consumer/b" -DCMAKE_C_COMPILER="$cc" -DCMAKE_C_FLAGS="$*" \
    -DCMAKE_PREFIX_PATH="$stage" >"$stage-consumer/configure.log"
"$cmake" --build "$stage-consumer/b" >"$stage-consumer/build.log"
KVC_POLICY_PATH=$stage-consumer/b/policies \
    "$stage-consumer/b/consumer" "$model" recent:size=100 "$policydir"
"$stage-consumer/b/consumer" "$model" "$stage-consumer/b/policies/recent.so" "$policydir"

echo "by the template"
KVC_POLICY_PATH=$stage-consumer/b/policies \
    "$stage-consumer/b/consumer" "$model" latest:size=100+quant8 "$policydir"

echo "installed tools"
"$stage/bin/kvcompare" --list | grep -q "^full " || { echo "the installed tool doesn't find its policies"; exit 1; }
"$stage/bin/kvcheck" -q "$stage-consumer/b/policies/recent.so:size=100" || { echo "kvcheck doesn't pass the consumer's policy"; exit 1; }

#!/bin/sh
# SPDX-License-Identifier: MIT
# check_bindings.sh rust|go|same|readme SOURCE OUT STAGE CC LIBDIR: the bindings against the tree installed
# in STAGE. rust, go: formatted, without warnings, and their own tests pass. same: the programs
# "generate" in C, Rust and Go print the same tokens, text and hash of the logits, byte for byte, on
# KVC_TEST_MODEL or else on a tiny model. readme: so do the three programs of README.md, each in an
# empty folder, by the commands that stand there. What is built lies in OUT. Exits with 77 when a
# toolchain is missing.
set -u
what=$1
src=$2
out=$3
stage=$4
cc=$5
libdir=$6
failed=0

export CC="$cc" CARGO_TARGET_DIR="$out/rust" GOCACHE="$out/go-cache" GOPATH="$out/go-path" \
    GOFLAGS="-mod=readonly -buildvcs=false" GOTOOLCHAIN=local PKG_CONFIG_PATH="$stage/$libdir/pkgconfig" LD_LIBRARY_PATH="$stage/$libdir" \
    KVC_POLICY_PATH=
mkdir -p "$out/bin"
# Go's cache doesn't look into headers of others.
headers=$(cat "$(pkg-config --variable=includedir kvc)"/kvc/*.h | cksum | cut -d ' ' -f 1)
export CGO_CFLAGS="-O2 -g -DKVC_HEADERS=$headers"

skip() {
    echo "skipped: $*"
    exit 77
}

need_rust() {
    cargo --version >/dev/null 2>&1 ||
        skip "cargo isn't there; install Rust (Debian 12: rustc-web and cargo-web)"
}

# The Go package iterates over functions and cleans up behind the collector.
need_go() {
    go version >/dev/null 2>&1 || skip "go isn't there; install Go 1.24 or later"
    go version | awk '{ split(substr($3, 3), v, /[.a-z]/); exit !(v[1] > 1 || v[2] >= 24) }' ||
        skip "$(go version) is too old; install Go 1.24 or later"
}

rust() {
    need_rust
    cd "$src/bindings/rust" || exit 1
    if cargo fmt --version >/dev/null 2>&1; then
        cargo fmt --check || failed=1
    fi
    if cargo clippy --version >/dev/null 2>&1; then
        cargo clippy -q --locked --all-targets -- -D warnings || failed=1
    fi
    RUSTFLAGS="-D warnings" cargo test -q --locked || failed=1
}

go_tests() {
    need_go
    cd "$src/bindings/go" || exit 1
    unformatted=$("$(go env GOROOT)/bin/gofmt" -l .)
    [ -z "$unformatted" ] || { echo "not formatted: $unformatted"; failed=1; }
    go vet ./... || failed=1
    GODEBUG=cgocheck=1 go test -count=1 -timeout 120s ./... || failed=1
}

build_all() {
    # shellcheck disable=SC2046
    "$cc" -std=c11 -O2 -Wall -Wextra -Werror -pedantic -o "$out/bin/c" \
        "$src/bindings/c/generate.c" $(pkg-config --cflags --libs kvc) || return 1
    (cd "$src/bindings/rust" && cargo build -q --locked --example generate) || return 1
    cp "$CARGO_TARGET_DIR/debug/examples/generate" "$out/bin/rust"
    (cd "$src/bindings/go" && go build -o "$out/bin/go" ./examples/generate)
}

# one ARGUMENT...: all three with the same arguments.
one() {
    for language in c rust go; do
        "$out/bin/$language" "$@" >"$out/$language.txt" 2>"$out/stderr"
        echo "exit $?" | cat "$out/stderr" - >>"$out/$language.txt"
    done
    if cmp -s "$out/c.txt" "$out/rust.txt" && cmp -s "$out/c.txt" "$out/go.txt"; then
        grep -a '^logits\|^generate:' "$out/c.txt" | sed "s/\$/  ${3-quant8} ${4:-32} ${5:-greedy}/"
    else
        echo "not the same:" "$@"
        head "$out/c.txt" "$out/rust.txt" "$out/go.txt"
        failed=1
    fi
}

same() {
    need_rust
    need_go
    build_all || exit 1
    model=${KVC_TEST_MODEL:-$KVC_TEST_MODELS/tiny-q4_0.gguf}
    text="The key and the value of every token"
    one "$model" "$text"
    # The tiny model may end its text earlier.
    [ -z "${KVC_TEST_MODEL:-}" ] || [ "$(grep -a '^tokens' "$out/c.txt" | wc -w)" -eq 33 ] ||
        { echo "not 32 tokens"; failed=1; }
    one "$model" "$text" window:size=64+quant8 100 7
    one "$model" "Größe, 大小, 🍎" "" 16 5
    one "$model" "$text" full 1
    one "$model" "$text" no_such_policy
    one "$model" "" quant8
    one "$model" "$text" quant8 0
    one "$model" "$text" quant8 99999999999999999999
    one "$model" "$text" quant8 5 -1
    one "$model"
    one /no/such/model.gguf "$text"
}

# of_section AWK: lines of README's section on the three languages.
of_section() {
    awk '/^## / { inside = /^## From C, Go and Rust/ } inside' "$src/README.md" | awk "$1"
}

# snippet LANGUAGE FILE FIRST: puts the program into an empty folder and runs README's lines there
# that begin with one of the words FIRST; the last of them runs the program.
snippet() {
    rm -rf "$out/readme-$1"
    mkdir -p "$out/readme-$1/$(dirname "$2")"
    cd "$out/readme-$1" || exit 1
    of_section "/^\`\`\`/ { inside = 0 } inside { print } /^\`\`\`$1 *\$/ { inside = 1 }" >"$2"
    of_section "/^    ($3) /" | sed "s|DIR|$stage|g; s|model\.gguf|$model|g" >commands
    head -n 1 "$2" | grep -q "file: $2" || { echo "no program in $1"; failed=1; }
    sed '$d' commands >build
    sh -eu build >build.log 2>&1 && tail -n 1 commands | sh -eu >"../readme-$1.txt" ||
        { echo "$1 failed"; cat commands build.log "../readme-$1.txt"; failed=1; }
}

readme() {
    need_rust
    need_go
    model=${KVC_TEST_MODEL:-$KVC_TEST_MODELS/tiny-q4_0.gguf}
    (cd "$src/bindings/rust" && cargo fetch -q --locked) || exit 1
    export CARGO_NET_OFFLINE=true CARGO_TERM_QUIET=true GOFLAGS=-buildvcs=false GOPROXY=off
    snippet c generate.c 'cc|[.]\/generate'
    snippet rust src/main.rs cargo
    snippet go main.go go
    cd "$out" || exit 1
    # The tiny model gives bytes that are no text, which C prints as they are.
    for language in c rust go; do
        LC_ALL=C tr -cd '\n\40-\176' <"readme-$language.txt" >"$language.ascii"
    done
    cat readme-c.txt
    if [ -n "${KVC_TEST_MODEL:-}" ]; then
        cmp readme-c.txt readme-rust.txt && cmp readme-c.txt readme-go.txt || failed=1
    fi
    cmp c.ascii rust.ascii && cmp c.ascii go.ascii || failed=1
    [ "$(wc -c <c.ascii)" -gt 40 ] || { echo "nothing is printed"; failed=1; }
}

case $what in
rust) rust ;;
go) go_tests ;;
same) same ;;
readme) readme ;;
esac
exit $failed

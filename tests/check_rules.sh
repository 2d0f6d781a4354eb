#!/bin/sh
# SPDX-License-Identifier: MIT
# check_rules.sh SOURCE LIBKVC POLICIES: the rules of the code that a compiler doesn't check. Prints
# each place that breaks one. SOURCE is the source tree, LIBKVC the shared library, POLICIES the
# directory of the built policies.
set -u
src=$1
lib=$2
policies=$3
cd "$src" || exit 1

# rule TEXT: standard input holds the places where it is broken; none is what is wanted.
rule() {
    found=$(cat)
    if [ -n "$found" ]; then
        printf '%s:\n%s\n' "$1" "$found" | sed '2,$s/^/    /'
    fi
}

# code PATTERN FILES: lines outside comments that match, as FILE:LINE:TEXT.
code() {
    pattern=$1
    shift
    grep -nE -- "$pattern" "$@" /dev/null | grep -vE '^[^:]*:[0-9]+: *(/\*|\*|//)'
}

# but FILES: standard input without places in these files (a regular expression).
but() {
    grep -vE "^($1):"
}

check_all() {
    # "none" is a word of GGUF too: the kind of RoPE scaling.
    names=$(for f in policies/*.c; do basename "$f" .c; done | paste -sd '|' -)
    code "\"($names)[\":+]" lib/*.[ch] | but 'lib/rope\.c' |
        rule 'the library names a policy'

    # The probe measures the instructions themselves: what the machine can do, in no library's words.
    code '<[a-z0-9]*intrin\.h>|\b_mm[0-9]*_|\b__m(128|256|512)' lib/*.[ch] tools/*.[ch] |
        but 'lib/(kern|vec)_avx[0-9a-z]*\.[ch]|lib/cpu\.c|tools/probe_avx[0-9]*\.c' |
        rule 'intrinsics outside the kernels for one instruction set'

    code '\bdl(open|sym|close|error)\b *\(' lib/*.[ch] | but 'lib/registry\.c' |
        rule 'only registry.c opens shared objects'

    code '^ *# *(if|ifdef|ifndef|elif)\b.*\b(__linux__|__unix__|__APPLE__|_WIN32|__x86_64__|__i386__|__amd64__|__aarch64__|__arm__|__AVX|__SSE|__F16C__|__FMA__|__GLIBC__)' \
        lib/*.[ch] | but 'lib/(os|cpu)\.c|lib/(kern|vec)[a-z0-9_]*\.[ch]' |
        rule 'platform conditionals outside os.c, cpu.c and the kernels'

    code '\bapi(->|\.)[a-z_]+ *\(' lib/*.[ch] | but 'lib/(stack[a-z_]*|codec|tier)\.c' |
        rule 'only stack.c, codec.c and tier.c call into policies'

    code '\b(abort|assert|exit|_exit|quick_exit|printf|puts|putchar|perror|fprintf|vprintf|vfprintf|signal|sigaction|longjmp) *\(' \
        lib/*.[ch] | rule 'the library never prints, exits, aborts or handles a signal'

    code '\b(malloc|calloc|strdup|strndup|posix_memalign|aligned_alloc|alloca) *\(' lib/*.[ch] |
        but 'lib/mem\.c' | rule 'memory comes from mem.h'

    code '\bgetenv *\(' lib/*.[ch] | but 'lib/os\.c' | rule 'the environment is read by kvc__env()'

    grep -nE -- '-march=native|-mtune=native|-ffast-math|-Ofast|-ffp-contract=(fast|on)' CMakeLists.txt \
        CMakePresets.json tests/CMakeLists.txt policies/*.cmake lib/*.[ch] policies/*.c tools/*.c |
        rule 'a flag that changes results or ties the binary to one machine'

    # A policy's own files and libraries begin with its name or are listed for it.
    code '^ *# *include' policies/*.[ch] |
        grep -vE '^policies/offload[a-z_]*\.[ch]:.*# *include *("offload_page\.h"|<(xxhash|zstd|zstd_errors)\.h>)' |
        grep -vE '# *include *(<|")kvc/policy\.h|# *include *<(assert|ctype|errno|float|inttypes|limits|math|stdalign|stdarg|stdatomic|stdbool|stddef|stdint|stdio|stdlib|string)\.h>' |
        rule 'a policy includes kvc/policy.h and the C library alone'

    code '^ *# *include' tools/*.[ch] | grep -E '"(\.\./)*lib/' |
        rule 'tools use the public headers alone'

    for f in lib/*.[ch] include/kvc/*.h policies/*.c tools/*.[ch] tests/*.c; do
        [ -f "$f" ] || continue
        head -n 1 "$f" | grep -q '^/\* SPDX-License-Identifier: MIT' || echo "$f"
    done | rule 'a source file begins with its SPDX line'

    find bindings -name target -prune -o \( -name '*.rs' -o -name '*.go' -o -name '*.[ch]' -o -name '*.toml' \) -print |
        while read -r f; do
            head -n 1 "$f" | grep -qE '^(//|/\*|#) SPDX-License-Identifier: MIT' || echo "$f"
        done | rule 'a source file of the bindings begins with its SPDX line'

    code '^ *# *include' bindings/c/*.c | grep -E '"' |
        rule 'bindings use the public headers alone'

    # A version's own name is an absolute symbol of the library.
    nm -D --defined-only "$lib" | awk '$2 != "A" { sub(/@.*/, "", $3); print $3 }' |
        LC_ALL=C sort -u | diff tests/symbols.txt - |
        rule 'exported symbols differ from tests/symbols.txt (< there, > in the library)'

    for so in "$policies"/*.so; do
        [ -f "$so" ] || echo "none in $policies"
        readelf -d "$so" | grep 'NEEDED.*libkvc' | sed "s|^|${so##*/}: |"
        nm -D --defined-only "$so" | awk -v so="${so##*/}" '$3 != "kvc_policy_entry" { print so ": " $3 }'
    done | rule 'a policy links libkvc or exports more than kvc_policy_entry'
}

broken=$(check_all)
if [ -n "$broken" ]; then
    printf '%s\n' "$broken"
    exit 1
fi

#!/bin/sh
# SPDX-License-Identifier: MIT
# check_probe.sh OBJECT...: the loops that measure the peak of multiply-adds hold nothing but
# registers. A sum that the compiler keeps in memory halves what is measured, and so flatters every
# share of the limit that a report prints. OBJECTs are the compiled tools/probe_avx*.c.
set -u
failed=0

# inner OBJECT FUNCTION INSTRUCTION: the shortest loop of FUNCTION that holds INSTRUCTION, from the
# target of a backward jump to the jump.
inner() {
    objdump -d --no-show-raw-insn "$1" | awk -v want="<$2>:" -v what="$3" '
        $2 == want { on = 1; next }
        on && NF == 0 { exit }
        on {
            at = $1
            sub(/:$/, "", at)
            line[++n] = $0
            place[at] = n
            holds[n] = holds[n - 1] + ($2 == what)
            if ($2 ~ /^j/ && ($3 in place) && holds[n] > holds[place[$3] - 1] &&
                (last == 0 || n - place[$3] < last - first)) {
                first = place[$3]
                last = n
            }
        }
        END { for (i = first; i > 0 && i <= last; i++) print line[i] }'
}

# check OBJECT FUNCTION INSTRUCTION COUNT
check() {
    loop=$(inner "$1" "$2" "$3")
    got=$(printf '%s\n' "$loop" | grep -c "$3")
    if [ "$got" -lt "$4" ]; then
        echo "$2: $got of $4 $3 in the inner loop"
        failed=1
    fi
    # ( stands in an operand that is memory; %rip ones too.
    if printf '%s\n' "$loop" | grep -F '('; then
        echo "$2: the inner loop reads or writes memory"
        failed=1
    fi
}

for object in "$@"; do
    case $object in
    *probe_avx512*) check "$object" cmp_probe_int8_avx512 vpdpbusd 12 ;;
    *probe_avx2*) check "$object" cmp_probe_int8_avx2 vpmaddubsw 4 ;;
    esac
done
exit $failed

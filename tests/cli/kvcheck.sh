#!/bin/sh
# SPDX-License-Identifier: MIT
# kvcheck.sh KVCHECK POLICIES BROKEN [PYTHON [asan]]: the tool as its users meet it. Every policy of the
# tree passes; every broken one fails the test that is there for it. POLICIES and BROKEN are
# directories. asan: all is built with AddressSanitizer, which ends a test where kvcheck would say a
# failure, and takes its time: only what handles memory is run, and of the broken ones the deep.
set -u
tool=$1
policies=$2
broken=$3
python=${4:-python3}
asan=${5:-}
some= # tests, where all would be too many; and how many of them pass
least=30
if [ -n "$asan" ]; then
    some='--test meaning/runs --test inside/entries --test codec --test memory/balance --test state/hostile'
    least=3
fi
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
failed=0

bad() {
    echo "FAILED: $*"
    sed 's/^/    /' "$tmp/err"
    failed=1
}

# code WANT ARGUMENTS: runs the tool; its output is in $tmp/out and $tmp/err.
code() {
    want=$1
    shift
    "$tool" "$@" >"$tmp/out" 2>"$tmp/err"
    got=$?
    [ "$got" -eq "$want" ] || bad "exit $got, not $want: kvcheck $*"
}

# says TEXT: the last run's report or standard error holds it.
says() {
    tr -s ' \n' ' ' <"$tmp/out" | grep -qF -- "$1" || grep -qF -- "$1" "$tmp/err" || bad "nothing about '$1'"
}

# holds EXPRESSION: true in Python, where r is the JSON of the last run.
holds() {
    "$python" - "$tmp/out" "$1" 2>>"$tmp/err" <<'END' || bad "not true: $1"
import json, sys
r = json.load(open(sys.argv[1]))
f = r["files"]
sys.exit(not eval(sys.argv[2]))
END
}

usage() {
    code 0 --help
    says 'Exit codes'
    says 'n_ctx of 320'
    code 0 --version
    "$tool" --list >&- 2>"$tmp/err"
    [ $? -eq 1 ] || bad 'a list to nowhere'
    "$tool" "$policies/full.so" --test file >&- 2>"$tmp/err"
    [ $? -eq 1 ] && grep -q "the report can't be written" "$tmp/err" || bad 'a report to nowhere'
    code 0 --list
    says 'meaning/chunks'
    code 2
    code 2 --no-such-option
    code 2 "$tmp/none.so"
    says none.so
    for wrong in --test=nothing --test=meaning/nothing --seed=x --timeout=0 --format=xml --param=x --in-process; do
        code 2 "$wrong" "$policies/full.so"
    done
}

# All of the tree, small parameters, with nothing worse than a warning.
sound() {
    for file in "$policies"/*.so; do
        case $file in
        */window.so) file=$file:size=64:sinks=2 ;;
        esac
        code 0 -o json $some "$file"
        holds 'r["schema"] == "kvcheck/1" and r["counts"]["failed"] == r["counts"]["crashed"] == 0'
        holds "r['counts']['passed'] >= $least"' and len(f[0]["policies"]) == 1'
        holds 'all(n["text"] for p in f[0]["policies"] for t in p["tests"] for n in t["notes"])'
        holds 'f[0]["tables"][0]["name"] == f[0]["policies"][0]["name"]'
    done
    # A codec without score(), mix(), move() and fields(), and one whose entries can't be moved.
    code 0 --test codec "$broken/../policies/t_codec.so" "$policies/kivi.so:bits=2" -o json
    holds 'r["counts"] == {"passed": 5, "warned": 0, "failed": 0, "crashed": 0, "skipped": 5}'
    code 0 "$policies/window.so:size=64" --param sinks=2 "$policies/window.so" --seed 7 --test inside
    says 'window:size=64:sinks=2'
    says 'seed 7'
    awk 'length($0) > 80' "$tmp/out" | grep -v "^$policies" | grep -q . && bad 'lines wider than 80 columns'
    grep -q "$(printf '\033')" "$tmp/out" && bad 'escape sequences in a file'
    code 0 "$policies/quant8.so" --test file/table -o json --output "$tmp/report.json"
    [ -s "$tmp/out" ] && bad 'a report on standard output too'
    cp "$tmp/report.json" "$tmp/out"
    holds 'f[0]["tables"][0]["params"][0]["name"] == "hadamard"'
    code 0 "$policies/quant8.so" --test memory/balance -o json
    holds 'r["counts"]["passed"] == 1 and f[0]["tests"] == [] and f[0]["tables"]'
    code 0 "$policies/full.so" --test meaning/runs --in-process
}

# Which test finds which break: CASE TEST OUTCOME.
cases() {
    # AddressSanitizer's malloc doesn't say what is in use, and it sees a write past a block itself.
    if [ -n "$asan" ]; then
        all_cases | sed -n '/^deep_malloc /d; s/^\(deep_overrun .*\) failed$/\1 crashed/; /^deep_/p'
    else
        all_cases
    fi
}

all_cases() {
    cat <<'END'
abi_min file/load failed
abi_new file/load failed
abi_old file/load failed
append_fails parameters/default failed
begin_fails parameters/default failed
begin_high parameters/default failed
begin_negative parameters/default failed
begin_nomem parameters/default failed
codec_decode parameters/default failed
codec_encode parameters/default failed
codec_move parameters/default failed
codec_nan parameters/default failed
codec_page0 parameters/default failed
codec_page_bytes parameters/default failed
codec_page_huge parameters/default failed
codec_size parameters/default failed
create_code parameters/default failed
create_fails parameters/default failed
create_mute parameters/default failed
create_nomem parameters/default failed
decode_fails parameters/default failed
deep_accepts parameters/most failed
deep_bounded inside/bounded failed
deep_chunks meaning/chunks failed
deep_code memory/failures failed
deep_codec_bytes_differ codec/pages failed
deep_codec_bytes_grow codec/pages failed
deep_codec_decode_far codec/pages warned
deep_codec_decode_nan codec/pages failed
deep_codec_decode_over codec/pages failed
deep_codec_decode_part codec/pages failed
deep_codec_decode_writes codec/pages failed
deep_codec_encode_over codec/pages failed
deep_codec_encode_stride codec/pages failed
deep_codec_fields_beyond codec/fields failed
deep_codec_fields_kind codec/fields failed
deep_codec_fields_many codec/fields failed
deep_codec_fields_overlap codec/fields failed
deep_codec_fields_size codec/fields failed
deep_codec_fields_stride codec/fields failed
deep_codec_instance codec/pages failed
deep_codec_mix_last codec/mix failed
deep_codec_mix_nan codec/mix failed
deep_codec_mix_over codec/mix failed
deep_codec_mix_sets codec/mix failed
deep_codec_move_fails codec/move failed
deep_codec_move_keys codec/move failed
deep_codec_move_nothing codec/move failed
deep_codec_move_over codec/move failed
deep_codec_move_scale codec/move failed
deep_codec_move_takes codec/move failed
deep_codec_score_half codec/score failed
deep_codec_score_over codec/score failed
deep_codec_score_part codec/score failed
deep_codec_score_rows codec/score failed
deep_constructor file/constructors warned
deep_crashes meaning/runs crashed
deep_entries inside/entries warned
deep_exits parameters/default crashed
deep_exports file/symbols warned
deep_fork state/fork failed
deep_fork state/save failed
deep_global isolation/threads failed
deep_global meaning/company failed
deep_global isolation/interleaved failed
deep_links file/needed failed
deep_links file/undefined failed
deep_load state/hostile crashed
deep_lossless meaning/lossless failed
deep_lossless inside/entries failed
deep_lost memory/failures failed
deep_malloc memory/outside warned
deep_mute parameters/least failed
deep_mute parameters/most failed
deep_mute parameters/random failed
deep_nomem memory/failures crashed
deep_overrun memory/balance failed
deep_prints file/undefined warned
deep_prints meaning/runs warned
deep_repeat meaning/runs failed
deep_shapes meaning/shapes failed
deep_size memory/balance failed
deep_threads meaning/threads failed
deep_truncate meaning/truncate failed
encode_fails parameters/default failed
end_fails parameters/default failed
endless file/load failed
keep_in_begin parameters/default failed
keep_order parameters/default failed
keep_range parameters/default failed
keep_unsaid parameters/default failed
leaks memory/balance failed
name_bad file/load failed
name_long file/load failed
name_null file/load failed
name_other file/table failed
no_api file/load failed
no_create file/load failed
no_summary file/load failed
no_symbol file/symbols failed
no_symbol file/load failed
null_table file/load failed
page_end_fails parameters/default failed
param_bool file/load failed
param_choice file/load failed
param_choice_def file/load failed
param_choice_null file/load failed
param_def file/load failed
param_help file/load failed
param_inf file/load failed
param_many file/load failed
param_name file/load failed
param_name_null file/load failed
param_nan file/load failed
param_null file/load failed
param_size file/load failed
param_stride file/load failed
param_twice file/load failed
param_type file/load failed
plan_answers_bits parameters/default failed
plan_cache_evicts parameters/default failed
plan_columns parameters/default failed
plan_observe parameters/default failed
plan_positions parameters/default failed
plan_quantum parameters/default failed
plan_type parameters/default failed
plan_unsaid parameters/default failed
plan_where parameters/default failed
requires file/load failed
rewind_high meaning/truncate failed
select_fails parameters/default failed
size_api file/load failed
size_small file/load failed
size_tiny file/load failed
tier_format parameters/default failed
tier_get_code parameters/default failed
tier_get_nowhere parameters/default failed
tier_get_odd parameters/default failed
tier_get_outside parameters/default failed
tier_get_short parameters/default failed
tier_get_unnamed parameters/default failed
tier_hook parameters/default failed
tier_hot parameters/default failed
tier_no_drop parameters/default failed
tier_no_get parameters/default failed
tier_no_put parameters/default failed
tier_open_fails parameters/default failed
tier_put_code parameters/default failed
tier_record0 parameters/default failed
tier_record_huge parameters/default failed
tier_record_short parameters/default failed
tier_size parameters/default failed
tier_unpack_code parameters/default failed
tier_unsaid parameters/default failed
two file/table failed
visible_many parameters/default failed
visible_order parameters/default failed
END
}

# Cases that keep the contract, whatever their names say; deep_unsaved can't be forked or saved, and
# goes on when it gets no memory for what it can do without.
harmless='deep_codec_sound deep_pair deep_sound deep_unsaved nothing plan_answers visible_future visible_none'

# Each case runs the tests that are to find it, a harmless one all; then its lines are looked up.
zoo() {
    mkdir "$tmp/zoo"
    cases >"$tmp/cases"
    for case in $(cut -d ' ' -f 1 "$tmp/cases" | sort -u); do
        tests=$(awk -v c="$case" '$1 == c { print "--test " $2 }' "$tmp/cases")
        "$tool" $tests -o json "$broken/b_$case.so" >"$tmp/zoo/$case" 2>"$tmp/err"
        got=$?
        want=1
        grep -q "^$case .* \(failed\|crashed\)$" "$tmp/cases" || want=0
        [ "$got" -eq "$want" ] || bad "exit $got, not $want, for $case"
    done
    for case in $harmless; do
        code 0 $some "$broken/b_$case.so" -o json
        cp "$tmp/out" "$tmp/zoo/$case"
    done
    "$python" - "$tmp/zoo" "$tmp/cases" "$broken" "$asan" <<'END' || bad 'not found as they should be'
import json, os, sys
wrong = 0
def say(*text):
    global wrong
    wrong = 1
    print(*text)
seen = {}
for name in os.listdir(sys.argv[1]):
    with open(os.path.join(sys.argv[1], name)) as report:
        f = json.load(report)["files"][0]
    tests = f["tests"] + [t for p in f["policies"] for t in p["tests"]]
    seen[name] = {t["group"] + "/" + t["name"]: t for t in tests}
for line in open(sys.argv[2]):
    case, test, outcome = line.split()
    t = seen[case].get(test)
    if t is None or t["outcome"] != outcome:
        say(case, test, "is not", outcome, "but", t, {k: v["outcome"] for k, v in seen[case].items()})
    elif not any(n["text"] for n in t["notes"]):
        say(case, test, "says nothing")
for file in os.listdir(sys.argv[3]):
    case = file[2:-3]
    if case not in seen and case != "hangs" and not sys.argv[4]:
        say(case, "has no line in this script")
sys.exit(wrong)
END
}

several() {
    code 0 "$broken/b_deep_pair.so:value=9" --test meaning/runs -o json
    holds '[p["name"] for p in f[0]["policies"]] == ["b_deep_pair", "b_deep_pair-2"]'
    holds 'all(p["tests"][0]["outcome"] == "passed" for p in f[0]["policies"])'
    code 0 "$broken/b_deep_pair.so" --test meaning/runs
    says 'policy b_deep_pair-2'
}

hang() {
    code 1 --timeout 1 "$broken/b_hangs.so" --test parameters/default --test meaning
    says 'not done after 1 seconds'
    says 'parameters/default failed'
}

files() {
    printf 'no library\n' >"$tmp/text.so"
    code 1 "$tmp/text.so"
    says 'is not an ELF file'
    : >"$tmp/empty.so"
    code 1 "$tmp/empty.so"
    size=$(wc -c <"$policies/full.so")
    for part in 10 60 1000 $((size / 2)) $((size - 100)); do
        head -c "$part" "$policies/full.so" >"$tmp/full.so"
        code 1 "$tmp/full.so"
        says 'the file is'
    done
    # Bytes 18 and 19 of an ELF file are its machine.
    cp "$policies/full.so" "$tmp/full.so"
    printf '\377\177' | dd of="$tmp/full.so" bs=1 seek=18 conv=notrunc 2>/dev/null
    code 1 "$tmp/full.so"
    says 'is for ELF machine 32767'
    # Any bytes at all: the reader of ELF must not crash.
    "$python" - "$policies/full.so" "$tmp" <<'END'
import random, sys
random.seed(1)
whole = open(sys.argv[1], "rb").read()
for i in range(40):
    b = bytearray(whole)
    lo, hi = ((0, 64) if i % 2 else (len(b) - 2200, len(b)))
    for _ in range(1 + i % 8):
        b[random.randrange(lo, hi)] = random.choice((0, 255, 127, 128, random.randrange(256)))
    open("%s/any%d.so" % (sys.argv[2], i), "wb").write(b)
END
    "$tool" -o json --test file/elf --test file/symbols --test file/needed --test file/constructors \
        --test file/undefined "$tmp"/any*.so >"$tmp/out" 2>"$tmp/err"
    holds 'len(f) == 40'
    holds 'not any(t["outcome"] == "crashed" and t["name"] != "table" for x in f for t in x["tests"])'
}

interrupt() {
    "$tool" --timeout 100 "$broken/b_hangs.so" --output "$tmp/cut" >"$tmp/out" 2>"$tmp/err" &
    pid=$!
    sleep 1
    kill -TERM "$pid" 2>/dev/null || bad 'the run ended before it could be interrupted'
    wait "$pid"
    got=$?
    [ "$got" -eq 130 ] || bad "exit $got, not 130, when interrupted"
    [ -e "$tmp/cut" ] && bad 'a file is left when interrupted'
}

: >"$tmp/err"
: >"$tmp/out"
TMPDIR=$tmp/dir
export TMPDIR
mkdir "$TMPDIR"
usage
sound
zoo
several
hang
files
interrupt
[ -z "$(ls "$TMPDIR")" ] || bad "left behind: $(ls "$TMPDIR")"
exit "$failed"

#!/bin/sh
# SPDX-License-Identifier: MIT
# bench.sh KVCOMPARE MODEL [PYTHON]: `kvcompare bench` as its users meet it: exit codes, the shape of
# its reports, what is left behind by Ctrl-C. MODEL is a small model. No figure is judged.
set -u
tool=$1
model=$2
python=${3:-python3}
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
failed=0

bad() {
    echo "FAILED: $*"
    sed 's/^/    /' "$tmp/err"
    failed=1
}

# code WANT ARGUMENTS: runs the subcommand; its output is in $tmp/out and $tmp/err.
code() {
    want=$1
    shift
    "$tool" bench "$@" >"$tmp/out" 2>"$tmp/err"
    got=$?
    [ "$got" -eq "$want" ] || bad "exit $got, not $want: kvcompare bench $*"
}

# says TEXT: the last run's standard error holds it.
says() {
    grep -qF -- "$1" "$tmp/err" || bad "nothing about '$1'"
}

# short WANT ARGUMENTS: a short run.
short() {
    want=$1
    shift
    code "$want" -m "$model" -d 0,100 -n 4 --pp 16 --rounds 2 "$@"
}

# holds EXPRESSION: true in Python, where r is the JSON of the last run and rows its rows.
holds() {
    "$python" - "$tmp/out" "$1" 2>>"$tmp/err" <<'PY' || bad "not true: $1"
import json, sys
def refuse(word):
    raise ValueError(word)
r = json.load(open(sys.argv[1]), parse_constant=refuse)
rows = r["rows"]
def of(**want):
    return [x for x in rows if all(x[k] == v for k, v in want.items())]
sys.exit(not eval(sys.argv[2]))
PY
}

usage() {
    code 0 --help
    grep -q 'Exit codes' "$tmp/out" || bad '--help says nothing about exit codes'
    grep -q 'bandwidth' "$tmp/out" || bad '--help says nothing about limits'
    code 2
    says --model
    code 2 -m "$model" stray
    says stray
    for wrong in -d -d, -dx -d1,,2 -d-1 -nx --pp=-1 --sessions=0 --sessions=65 --sessions=1,x \
        --rounds=0 --format=xml --threads=x --seed=-1 -p full,,none; do
        code 2 -m "$model" "$wrong"
    done
    code 2 -m "$model" -n 0 --pp 0
    says 'nothing to time'
    code 2 -m "$tmp/none.gguf"
    says none.gguf
    for wrong in no_such_policy full:typo=f32 full+quant8; do
        short 2 -p "$wrong"
        [ -s "$tmp/err" ] || bad "no sentence for $wrong"
        [ -s "$tmp/out" ] && bad "a report for $wrong"
    done
    short 2 -p full --hot 8M
    says "'hot'"
}

report() {
    list=full,none,window:size=64:sinks=4
    short 0 -p "$list" -o json --sessions 3,1
    holds 'r["schema"] == "kvbench/1"'
    holds '{"host", "limits", "rows", "model", "settings"} <= set(r)'
    holds 'r["limits"]["read_gb_s"] > 0 and r["limits"]["int8_gmac_s"] > 0'
    holds 'r["host"]["threads"] > 0 and r["host"]["level"]'
    holds 'len(rows) == 3 * 2 * (1 + 2)'
    holds '[x["depth"] for x in of(spec="full", test="tg", sessions=3)] == [0, 100]'
    holds 'all(x["n"] == (4 if x["test"] == "tg" else 16) for x in rows)'
    holds 'all(0 < x["tok_s"]["min"] <= x["tok_s"]["median"] <= x["tok_s"]["max"] for x in rows)'
    holds 'all(x["share"] > 0 for x in rows if x["spec"] != "none")'
    holds 'all(x["share"] is None for x in of(spec="none", test="tg"))'
    holds 'all(abs(x["ms"] * x["tok_s"]["median"] - 1e3) < 1e-3 for x in rows)'
    holds 'all((x["slope_ms"] is None) == (x["depth"] == 0) for x in rows)'
    holds 'all(x["wait_share"] is None for x in rows)'
    # What a token reads: the weights, and the cache, which grows with depth and with sessions.
    holds 'all(x["read_bytes"] is None for x in of(test="pp"))'
    holds 'all(x["mac"] == r["per_token"]["mac"] > 0 for x in of(test="pp", spec="full"))'
    holds 'of(spec="full", test="tg", depth=100, sessions=1)[0]["read_bytes"] > of(spec="full", test="tg", depth=0, sessions=1)[0]["read_bytes"] > r["per_token"]["weight_bytes"]'
    holds 'of(spec="full", test="tg", depth=0, sessions=3)[0]["read_bytes"] < r["per_token"]["weight_bytes"]'
    # The share is the formula of docs/measuring.md.
    holds 'all(abs(x["read_bytes"] * x["tok_s"]["median"] / r["limits"]["read_gb_s"] / 1e9 / x["share"] - 1) < 1e-6 for x in of(test="tg", spec="full"))'
    holds 'all(abs(x["mac"] * x["tok_s"]["median"] / r["limits"]["int8_gmac_s"] / 1e9 / x["share"] - 1) < 1e-6 for x in of(test="pp", spec="full"))'
    short 0 -p "$list" -o csv --sessions 1,3
    "$python" - "$tmp/out" <<'PY' || bad 'CSV of another shape'
import csv, sys
rows = list(csv.DictReader(open(sys.argv[1], newline="")))
ok = len(rows) == 18 and all(float(x["tok_s.median"]) > 0 and x["test"] in ("pp", "tg") for x in rows)
ok = ok and all(float(x["read_gb_s"]) > 0 for x in rows) and None not in rows[0]
sys.exit(not ok)
PY
    short 0 -p "$list" -o md
    grep -q '^| `full` | tg4 | 100 |' "$tmp/out" || bad 'no row of decode in Markdown'
    short 0 -p "$list" --sessions 1,3
    awk 'length($0) > 80' "$tmp/out" | grep -q . && bad 'a table wider than 80 columns'
    grep -q 'multiply-adds/s' "$tmp/out" || bad 'no limits in the table'
    grep -q '^\[1\] ' "$tmp/out" || bad 'no note about none'
    for format in table md; do
        code 0 -m "$model" -d 0 -n 2 --pp 0 --rounds 1 -p none --no-repack -o "$format"
        sed 's/^  machine  //' "$tmp/out" | tr '\n' ' ' | tr -s ' ' |
            grep -q 'weights left in the file' || bad "no word of --no-repack in $format"
    done
    code 0 -m "$model" -d 0 -n 2 --pp 0 --rounds 1 -p none --no-repack -o json
    holds 'r["settings"]["repack"] is False'
    short 0 -p full --pp 0 -o json
    holds 'r["settings"]["repack"] is True'
    holds '{x["test"] for x in rows} == {"tg"}'
    code 0 -m "$model" -d 700 -n 4 --pp 0 --rounds 1 -p none,full -o json
    holds 'of(spec="none")[0]["tok_s"]["median"] is None and of(spec="full")[0]["tok_s"]["median"] > 0'
}

# Pages in a tier: waiting is a column, and each value of --hot a row.
tier() {
    short 0 -p full,offload:dir="$tmp" --hot 16M,32M -o json
    holds '[x["spec"].rsplit(":", 1)[-1] for x in of(test="pp", depth=0)] == ["full", "hot=16M", "hot=32M"]'
    holds 'all((x["wait_share"] is None) == (x["spec"] == "full") for x in of(test="tg"))'
    holds 'all(0 <= x["wait_share"] <= 1 for x in of(test="tg") if x["spec"] != "full")'
}

output() {
    short 0 -p full -o json --output "$tmp/report.json"
    [ -s "$tmp/out" ] && bad 'a report on standard output too'
    cp "$tmp/report.json" "$tmp/out"
    holds 'len(rows) == 4'
    short 1 -p full --output "$tmp/no/report.json"
    says report.json
}

interrupt() {
    mkdir "$tmp/dir"
    "$tool" bench -m "$model" -p full --rounds 1000 -n 4000 --output "$tmp/dir/cut" >"$tmp/out" 2>"$tmp/err" &
    pid=$!
    sleep 2
    kill -INT "$pid" 2>/dev/null || bad 'the run ended before it could be interrupted'
    wait "$pid"
    got=$?
    [ "$got" -eq 130 ] || bad "exit $got, not 130, after Ctrl-C"
    [ -z "$(ls -A "$tmp/dir")" ] || bad 'a file is left after Ctrl-C'
}

: >"$tmp/err"
usage
report
tier
output
interrupt
exit "$failed"

#!/bin/sh
# SPDX-License-Identifier: MIT
# kvcompare.sh KVCOMPARE MODEL PLUGINS BROKEN [PYTHON]: the tool as its users meet it: exit codes,
# the JSON, what is left behind by a failure. MODEL is a small model; policies are found where the
# tool looks for them, those of the tests in PLUGINS, such as break the contract in BROKEN.
set -u
tool=$1
model=$2
plugins=$3
broken=$4
python=${5:-python3}
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
    [ "$got" -eq "$want" ] || bad "exit $got, not $want: kvcompare $*"
}

# says TEXT: the last run's standard error holds it.
says() {
    grep -qF -- "$1" "$tmp/err" || bad "nothing about '$1'"
}

# holds EXPRESSION: true in Python, where r is the JSON of the last run and p its policies.
holds() {
    "$python" - "$tmp/out" "$1" 2>>"$tmp/err" <<'EOF' || bad "not true: $1"
import json, sys
def refuse(word):
    raise ValueError(word)
r = json.load(open(sys.argv[1]), parse_constant=refuse)
p = r.get("policies")
sys.exit(not eval(sys.argv[2]))
EOF
}

# compare ARGUMENTS: a short comparison.
compare() {
    want=$1
    shift
    code "$want" -m "$model" --ctx 256 --tokens 128 --rounds 1 --speed-tokens 8 "$@"
}

usage() {
    code 0 --help
    grep -q 'Exit codes' "$tmp/out" || bad '--help says nothing about exit codes'
    code 0 --version
    code 2
    code 2 --no-such-option
    code 2 -m "$model" -p full stray
    says stray
    for wrong in --ctx=1 --ctx=12x --ctx=-5 --tokens=0 --compute=f64 --format=xml --list=yaml; do
        code 2 -m "$model" -p full "$wrong"
    done
    code 2 -m "$model" -p full --ctx 128 --tokens 128
    says 'no prompt'
    code 2 -m "$model" -p full,,none
    code 2 -m "$tmp/none.gguf" -p full
    says none.gguf
    compare 0 --rounds 0 -o json
    holds '[x["spec"] for x in p] == ["full", "quant8"]'
}

listing() {
    code 0 --list
    grep -q '^window ' "$tmp/out" || bad 'no window in --list'
    grep -q 'budget=25% (budget; tokens per lane, a share' "$tmp/out" || bad 'no budget in --list'
    code 0 --list=json
    holds 'r["schema"] == "kvcompare-list/1"'
    holds '{"none", "full", "window", "quant8"} <= {x["name"] for x in p}'
    holds 'all(x["abi"] >= 1 and x["file"] and x["version"] and x["summary"] for x in p if not x["broken"])'
    holds '[q for x in p if x["name"] == "full" for q in x["params"]][0]["choices"] == ["f16", "f32", "bf16"]'
    holds '[(q["type"], q["default"], q["min"]) for x in p if x["name"] == "h2o" for q in x["params"]][0] == ("budget", "25%", None)'
    mkdir "$tmp/policies"
    echo 'no library' >"$tmp/policies/bad.so"
    KVC_POLICY_PATH=$tmp/policies code 0 --list=json
    holds 'any(x["broken"] and "bad" in x["name"] and x["error"] for x in p)'
    holds '"full" in [x["name"] for x in p]'
}

policies() {
    for wrong in no_such_policy full:typo=f32 full:type=f8 'full+' full+quant8 ./no/such.so; do
        compare 2 -p "$wrong"
        [ -s "$tmp/err" ] || bad "no sentence for $wrong"
        [ -s "$tmp/out" ] && bad "a report for $wrong"
    done
    compare 2 -p full --baseline no_such_policy
    # A file that is no policy was named by mistake; what a policy does wrong is its own fault.
    echo 'no library' >"$tmp/text.so"
    for wrong in "$tmp/text.so" "$broken/b_no_symbol.so" "$broken/b_create_fails.so"; do
        compare 2 -p "$wrong"
    done
    for wrong in abi_old size_small name_bad param_twice requires create_code plan_quantum codec_page0 \
        tier_record0 begin_fails codec_nan; do
        compare 1 -p "$broken/b_$wrong.so"
        [ -s "$tmp/err" ] || bad "no sentence for $wrong"
    done
}

# polite: nothing of the last run but text and line ends.
polite() {
    "$python" - "$tmp/out" "$tmp/err" <<'EOF' || bad "control characters: $*"
import sys, unicodedata
for path in sys.argv[1:]:
    for c in open(path, encoding="utf-8").read():
        if unicodedata.category(c) == "Cc" and c != "\n":
            sys.exit(repr(c))
EOF
}

# A policy whose texts would redden a terminal.
rude() {
    KVC_POLICY_PATH=$plugins code 0 --list
    polite --list
    grep -q 't_rude 1?\[0m' "$tmp/out" || bad 'no t_rude in --list'
    grep -q 'summary ?\[31mred?line?' "$tmp/out" || bad 'no summary of t_rude'
    KVC_POLICY_PATH=$plugins code 0 --list=json
    polite --list=json
    compare 0 -v --rounds 0 -p "$plugins/t_rude.so"
    polite log
    says 'warning: log ?[31mred?line?'
    compare 2 -p "$plugins/t_rude.so:mood=x"
    polite choices
    compare 1 -p "$plugins/t_rude.so:mood=$(printf 'f\033[1mail')"
    polite fail
    says 'fail ?[31mred'
}

unwritable() {
    XDG_CACHE_HOME=/dev/null/x compare 2 -p offload
    says "policy 'offload' can't be created: /dev/null/x/kvc: can't be made"
    says 'dir=PATH'
    XDG_CACHE_HOME=/dev/null/x compare 0 --rounds 0 -p "offload:dir=$tmp"
}

text() {
    compare 2 -p full --ctx 100000
    says 'built-in text'
    compare 2 -p full -f "$tmp/none.txt"
    echo 'A few words.' >"$tmp/short.txt"
    compare 2 -p full -f "$tmp/short.txt"
    says short.txt
    printf 'not UTF-8: \377\n' >"$tmp/latin.txt"
    compare 1 -p full -f "$tmp/latin.txt"
    "$python" -c 'print("The quick brown fox. " * 400)' >"$tmp/long.txt"
    compare 0 -p full -f "$tmp/long.txt" -o json
    holds 'r["settings"]["text"].endswith("long.txt")'
    "$tool" -m "$model" --ctx 64 --tokens 8 --rounds 0 -p full -f - <"$tmp/long.txt" >"$tmp/out" 2>"$tmp/err" ||
        bad 'text from standard input'
}

report() {
    list=quant8,none,full:type=f32,window:size=64:sinks=4,full
    compare 0 -p "$list" -o json
    holds 'r["schema"] == "kvcompare/1"'
    holds '",".join(x["spec"] for x in p) == "'"$list"'"'
    holds '[x["name"] for x in p] == ["quant8", "none", "full", "window", "full"]'
    holds 'r["baseline"] == "full:type=f32"'
    holds 'p[2]["divergence"]["kld"] == {"mean": 0, "p99": 0, "max": 0}'
    holds 'p[2]["divergence"]["top1_agreement"] == 1 and p[2]["divergence"]["ppl_ratio"] == 1'
    holds 'p[2]["divergence"]["first_divergence"] is None'
    holds 'p[0]["divergence"]["kld"]["mean"] > p[4]["divergence"]["kld"]["mean"] > 0'
    holds 'p[1]["divergence"]["scored"] == 64 and p[0]["divergence"]["scored"] == 128'
    holds 'p[1]["divergence"]["generated"] <= 16'
    holds 'p[3]["memory"]["bytes_per_token"] == 0 and p[1]["memory"]["bytes_per_token"] == 0'
    holds 'p[2]["memory"]["bytes_per_token"] == 2 * p[4]["memory"]["bytes_per_token"] > 0'
    holds 'all(x["memory"]["kv_peak_bytes"] >= x["memory"]["kv_bytes"] for x in p)'
    holds 'all(x["speed"][k] > 0 for x in p for k in ("prefill_tok_s", "ttft_ms", "decode_tok_s"))'
    holds 'all(x["speed"]["decode_ms"]["p50"] <= x["speed"]["decode_ms"]["p99"] for x in p)'
    compare 0 -p window:size=64+quant8+offload -o json --rounds 0
    holds '[s["name"] for s in p[0]["stages"]] == ["window", "quant8", "offload"]'
    holds '[s["payload_bytes"] > 0 for s in p[0]["stages"]] == [False, True, False]'
    holds '[s["worker_ms"] > 0 for s in p[0]["stages"]] == [False, True, False]'
    holds '[s["tier_ms"] > 0 or s["n_put"] > 0 for s in p[0]["stages"]][:2] == [False, False]'
    # Pages that a tier keeps in memory cost what pages cost; on a disk no memory.
    compare 0 -p "full,$plugins/t_tier.so:memory=on,$plugins/t_tier.so,quant8+$plugins/t_tier.so:memory=on,quant8" \
        -o json --rounds 0
    holds '[x["memory"]["bytes_per_token"] for x in p[:2]] == 2 * [p[0]["memory"]["bytes_per_token"]] != [0, 0]'
    holds 'p[2]["memory"]["bytes_per_token"] == 0 and p[2]["memory"]["disk_bytes"] > 0'
    holds 'p[3]["memory"]["bytes_per_token"] == p[4]["memory"]["bytes_per_token"] > 0'
    compare 0 -p none -o json --baseline none
    holds 'p[0]["divergence"]["kld"]["max"] == 0 and p[0]["divergence"]["ppl_ratio"] == 1'
    compare 0 -p full -o json --compute int8 --rounds 0
    holds 'r["noise_floor"]["kld"]["mean"] > 0 and p[0]["speed"]["ttft_ms"] is None'
    # A report says it when the weights stayed in the file.
    for format in table md; do
        compare 0 -p none --rounds 0 --no-repack -o "$format"
        sed 's/^  machine  //' "$tmp/out" | tr '\n' ' ' | tr -s ' ' |
            grep -q 'weights left in the file' || bad "no word of --no-repack in $format"
        compare 0 -p none --rounds 0 -o "$format"
        grep -q 'weights left' "$tmp/out" && bad "a word of --no-repack in $format"
    done
    compare 0 -p none --rounds 0 -o json
    holds 'r["settings"]["repack"] is True'
    compare 0 -p none --rounds 0 --no-repack -o json
    holds 'r["settings"]["repack"] is False'
    for format in table csv md; do
        compare 0 -p "$list" -o "$format"
    done
    compare 0 -p "$list"
    awk 'length($0) > 80' "$tmp/out" | grep -q . && bad 'a table wider than 80 columns'
    grep -q "$(printf '\033')" "$tmp/out" "$tmp/err" && bad 'escape sequences in a file'
}

# The likelihood of two tokens is that of the first times that of the second after it, however they
# are cut into prompt and scored tokens.
chain() {
    for cut in '256 2' '255 1' '256 1'; do
        code 0 -m "$model" --rounds 0 -p full -o json --ctx "${cut% *}" --tokens "${cut#* }"
        "$python" -c 'import json, sys; print(json.load(sys.stdin)["baseline_ppl"])' <"$tmp/out" \
            >>"$tmp/ppl"
    done
    "$python" -c 'import sys
a, b, c = map(float, open(sys.argv[1]))
sys.exit(abs(a * a / (b * c) - 1) > 1e-4)' "$tmp/ppl" || bad "perplexities $(paste -sd ' ' "$tmp/ppl")"
}

gates() {
    compare 0 -p quant8 --fail-if 'quant8.kld.mean>1e9'
    compare 3 -p quant8 --fail-if 'quant8.kld.mean>1e-12' --fail-if 'quant8.kv_bytes>0'
    says 'kld.mean>1e-12'
    says 'kv_bytes>0'
    [ -s "$tmp/out" ] || bad 'no report beside a missed gate'
    compare 3 -p quant8 --rounds 0 --fail-if 'quant8.ttft_ms>1e9'
    compare 0 -p full:type=f32,full --fail-if 'full:type=f32.kld.max>0'
    compare 2 -p full:type=f32,full:type=f16 --fail-if 'full.kld.max>0'
    code 2 -m "$tmp/none.gguf" -p quant8 --fail-if 'quant8.kld>1'
    says "gate 'quant8.kld>1'"
}

output() {
    compare 0 -p full -o json --output "$tmp/report.json"
    [ -s "$tmp/out" ] && bad 'a report on standard output too'
    cp "$tmp/report.json" "$tmp/out"
    holds 'len(p) == 1'
    # Only the file that was named is written, be there one of any name beside it.
    mkdir "$tmp/dir"
    echo mine >"$tmp/dir/report.json.tmp"
    compare 0 -p full -o json --output "$tmp/dir/report.json"
    [ "$(cat "$tmp/dir/report.json.tmp")" = mine ] || bad 'a file of the user is gone'
    compare 1 -p full --output "$tmp/no/report.json"
    says "kvcompare: $tmp/no/report.json can't be written"
    # What is no regular file is written where it is.
    mkfifo "$tmp/pipe"
    cat "$tmp/pipe" >"$tmp/piped" &
    compare 0 -p full -o json --output "$tmp/pipe"
    wait
    [ -p "$tmp/pipe" ] && [ -s "$tmp/piped" ] || bad 'a pipe was replaced'
    mkdir "$tmp/dir/sub"
    compare 1 -p full --output "$tmp/dir/sub"
    says "kvcompare: $tmp/dir/sub can't be written"
    [ "$(ls -A "$tmp/dir" | paste -sd ' ' -)" = 'report.json report.json.tmp sub' ] ||
        bad 'a half-made file is left'
    "$tool" -m "$model" --ctx 64 --tokens 8 --rounds 0 -p full >&- 2>"$tmp/err"
    [ $? -eq 1 ] || bad 'no failure without standard output'
    says "can't be written to standard output"
    if [ -c /dev/full ]; then
        "$tool" -m "$model" --ctx 64 --tokens 8 --rounds 0 -p full >/dev/full 2>"$tmp/err"
        [ $? -eq 1 ] || bad 'a full disk goes unnoticed'
        says 'standard output'
    fi
}

interrupt() {
    "$tool" -m "$model" -p full --rounds 1000 --speed-tokens 200 --output "$tmp/dir/cut" >"$tmp/out" 2>"$tmp/err" &
    pid=$!
    sleep 1
    kill -INT "$pid" 2>/dev/null || bad 'the run ended before it could be interrupted'
    wait "$pid"
    got=$?
    [ "$got" -eq 130 ] || bad "exit $got, not 130, after Ctrl-C"
    [ "$(ls -A "$tmp/dir" | paste -sd ' ' -)" = 'report.json report.json.tmp sub' ] ||
        bad 'a file is left after Ctrl-C'
}

: >"$tmp/err"
usage
listing
policies
rude
unwritable
text
report
chain
gates
output
interrupt
exit "$failed"

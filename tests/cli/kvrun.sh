#!/bin/sh
# SPDX-License-Identifier: MIT
# kvrun.sh KVRUN MODEL OTHER [PYTHON]: the tool as scripts meet it: exit codes, what goes to which
# stream, text that is always UTF-8, sessions that are resumed or refused, a disk that is full.
# MODEL and OTHER are small models without a chat template. What a person meets in a terminal is in
# kvrun_chat.py.
set -u
tool=$1
model=$2
other=$3
python=${4:-python3}
tests=$(cd "$(dirname "$0")/.." && pwd)
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
    "$tool" "$@" >"$tmp/out" 2>"$tmp/err" <"${stdin:-/dev/null}"
    got=$?
    [ "$got" -eq "$want" ] || bad "exit $got, not $want: kvrun $*"
}

# raw, chat WANT ARGUMENTS: a short text, a short answer.
raw() {
    want=$1
    shift
    code "$want" -m "$model" --raw "$@"
}
chat() {
    want=$1
    shift
    code "$want" -m "$model" --chat-template chatml "$@"
}

# says TEXT: the last run's standard error holds it; shows TEXT: its standard output.
says() {
    grep -qF -- "$1" "$tmp/err" || bad "nothing about '$1'"
}
shows() {
    grep -qF -- "$1" "$tmp/out" || bad "'$1' isn't shown"
}

# holds EXPRESSION: true in Python, where r is the JSON of the last run, d(NAME) that of a file in
# $tmp, and raw(r) the bytes of its tokens, of which the special ones have none.
holds() {
    "$python" - "$tests" "$tmp" "$1" 2>>"$tmp/err" <<'END' || bad "not true: $1"
import json, sys
sys.path.insert(0, sys.argv[1])
import make_model
tokens = make_model.make_vocab(320)[0]
byte = {c: b for b, c in make_model.byte_alphabet().items()}
def d(name):
    return json.load(open(f"{sys.argv[2]}/{name}"))
def raw(r):
    return bytes(byte[c] for t in r["tokens"] if t > 2 for c in tokens[t])
r = d("out")
sys.exit(not eval(sys.argv[3]))
END
}

usage() {
    code 0 --help
    shows 'Exit codes'
    shows 'kvrun -m model.gguf --raw'
    code 0 --version
    shows 'kvrun '
    code 2
    says 'give a model'
    code 2 -m "$model" hello
    says '--prompt'
    for wrong in --no-such-option --predict=0 --predict=-1 --temp=x --temp=-1 --top-p=2 --min-p=1.5 \
        --top-k=1.5 --seed=-1 --ctx=1 --compute=f64 --format=xml --stop= --threads=x; do
        raw 2 -p a "$wrong"
        [ -s "$tmp/err" ] || bad "no sentence for $wrong"
        [ -s "$tmp/out" ] && bad "an answer for $wrong"
    done
    # What was typed reaches the terminal as text: by argp, by getopt, and by the tool's own words.
    esc=$(printf 'a\033[31mb\rc\302\233d\ne')
    for wrong in "--$esc" "--temp$esc=1" "--predict=$esc" "--format=$esc" "--compute=$esc" "$esc" \
        "-$esc" "-$(printf '\033')" "--policy=$esc" "--system=$esc" "--file=$esc" "--temp=$esc"; do
        raw 2 -p 'a' "$wrong"
        LC_ALL=C tr -d '\n\040-\176\200-\377' <"$tmp/err" | grep -q . && bad 'a control character'
        LC_ALL=C grep -q "$(printf '\302\233')" "$tmp/err" && bad 'a control character of two bytes'
    done
    raw 2 "--predict=$esc"
    says 'kvrun: --predict=a?[31mb?c??d?e: give a whole number'
    says 'Try `kvrun --help'
    raw 0 -p "$(printf -- '- a\tb\n- c')" -n 2
    raw 2 -p a --threads=257
    says 'to 256'
    raw 2 -p a -f b
    says '--file'
    raw 2 -p a --system b
    says '--system'
    raw 2 -p a --chat-template chatml
    says '--chat-template'
    code 2 -m "$tmp/none.gguf" --raw -p a
    says none.gguf
    raw 2 -f "$tmp/none.txt"
    says none.txt
    raw 2 -p a --policy no_such_policy
    says no_such_policy
    raw 2 -p a --policy full:type=f8
    code 2 -m "$model" -p a
    says "$model"
    says '--chat-template'
    says '--raw'
    code 2 -m "$model" -p a --chat-template no_such
    says '--chat-template=no_such'
    says chatml
    chat 2 -p ''
    says 'prompt is empty'
    chat 2 -f /dev/null
    says 'prompt is empty'
    code 1 -m /dev/null --raw -p a
    printf 'a\377b' >"$tmp/latin1"
    raw 2 -f "$tmp/latin1"
    says 'the prompt: '
}

streams() {
    raw 0 -p 'the cat' -n 20
    says '[4 + 20 tokens, first in '
    says 'tokens/s, cache '
    says '(full)]'
    raw 0 -p 'the cat' -n 20 -q
    [ -s "$tmp/err" ] && bad 'figures with --quiet'
    cp "$tmp/out" "$tmp/by-option"
    echo 'the cat' >"$tmp/text"
    raw 0 -f "$tmp/text" -n 20
    cmp -s "$tmp/out" "$tmp/by-option" || bad 'another answer to a file'
    stdin=$tmp/text raw 0 -n 20
    cmp -s "$tmp/out" "$tmp/by-option" || bad 'another answer to standard input'
    stdin=$tmp/text raw 0 -f - -n 20
    cmp -s "$tmp/out" "$tmp/by-option" || bad 'another answer to -'
    for policy in quant8 window:size=100+quant8 none full:type=f32; do
        raw 0 -p 'the cat' -n 5 --policy $policy
        says "($policy)]"
    done
    # What never ends is refused before all memory is full of it.
    timeout 60 "$tool" -m "$model" --raw -f /dev/zero >"$tmp/out" 2>"$tmp/err"
    [ $? -eq 1 ] || bad 'no failure of a file without an end'
    says '/dev/zero has more than 64 MiB'
    yes | timeout 60 "$tool" -m "$model" --raw >"$tmp/out" 2>"$tmp/err"
    [ $? -eq 1 ] || bad 'no failure of an input without an end'
    says 'standard input has more than 64 MiB'
    [ -w /dev/full ] || return 0
    "$tool" -m "$model" --raw -p a -n 5 >/dev/full 2>"$tmp/err"
    [ $? -eq 1 ] || bad 'no failure on a full disk'
    says "can't be written"
}

# Without standard output, or anything else: nothing that is opened takes its place.
closed() {
    cp "$model" "$tmp/model.gguf"
    for session in '' "$tmp/closed.kvc"; do
        rm -f "$tmp/closed.kvc"
        "$tool" -m "$tmp/model.gguf" --raw -p a -n 5 ${session:+--session "$session"} >&- 2>"$tmp/err" <&-
        [ $? -eq 1 ] || bad 'no failure without standard output'
        says "the answer can't be written"
    done
    "$tool" -m "$tmp/model.gguf" --raw -p a -n 5 -o json >&- 2>"$tmp/err"
    [ $? -eq 1 ] || bad 'no failure of JSON without standard output'
    says "can't be written to standard output"
    "$tool" -m "$tmp/model.gguf" --raw -p a -n 5 --policy offload:dir="$tmp" >&- 2>"$tmp/err"
    [ $? -eq 1 ] || bad 'the answer went into a file of the policy'
    says "the answer can't be written"
    "$tool" -m "$tmp/model.gguf" --raw -p a -n 5 --policy offload:dir="$tmp" >&- 2>&- <&-
    [ $? -eq 1 ] || bad 'no failure without any stream'
    echo hello | "$tool" -m "$tmp/model.gguf" --raw -n 5 >&- 2>"$tmp/err"
    [ $? -eq 1 ] || bad 'no failure without standard output'
    raw 0 -p a -n 5
    "$tool" -m "$tmp/model.gguf" --raw -p a -n 5 >"$tmp/again" 2>&- <&- || bad 'a failure without stderr'
    cmp -s "$tmp/out" "$tmp/again" || bad 'another answer without stderr'
    cmp -s "$model" "$tmp/model.gguf" || bad 'the model was written to'
}

# What is shown is the tokens' bytes, but for what no text may hold.
text() {
    for seed in 1 2 3; do
        raw 0 -p 'the cat' -n 300 --temp 2 --seed $seed -o json
        holds 'r["schema"] == "kvrun/1" and r["prompt_tokens"] == 4 and r["policy"] == "full:type=f16"'
        holds 'raw(r).decode(errors="replace") == r["text"]'
        holds '(r["end"] == "length") == (len(r["tokens"]) == 300) and r["end"] in ("length", "model")'
        holds 'r["first_token_ms"] > 0 and r["tokens_per_s"] > 0 and r["kv_bytes"] > 0'
        cp "$tmp/out" "$tmp/json"
        raw 0 -p 'the cat' -n 300 --temp 2 --seed $seed
        "$python" - "$tmp/json" "$tmp/out" <<'END' || bad 'another text than in JSON'
import json, re, sys
whole = json.load(open(sys.argv[1]))["text"] + "\n"
shown = open(sys.argv[2], encoding="utf-8", newline="").read()
# A carriage return passes before a line end, no other control character does but tabs.
whole = re.sub("\r(?!\n)|[\0-\b\v\f\x0e-\x1f\x7f-\x9f]", "\ufffd", whole)
sys.exit(shown != whole or "\ufffd" not in whole)
END
    done
    raw 0 -p 'the cat' -n 60 -o json
    cp "$tmp/out" "$tmp/long"
    stop=$("$python" -c 'import json, re, sys
print(re.search("[a-z]{2}", json.load(open(sys.argv[1]))["text"][9:])[0])' "$tmp/long")
    raw 0 -p 'the cat' -n 60 --stop no_such_text --stop "$stop" -o json
    holds 'r["end"] == "stop"'
    holds "r['text'] == d('long')['text'][:d('long')['text'].find('''$stop''')]"
    holds 'r["tokens"] == d("long")["tokens"][:len(r["tokens"])]'
}

sampling() {
    raw 0 -p a -n 40 -o json
    cp "$tmp/out" "$tmp/greedy"
    raw 0 -p a -n 40 -o json --temp 1.5 --top-k 1
    holds 'r["tokens"] == d("greedy")["tokens"]'
    raw 0 -p a -n 40 -o json --temp 1.5 --seed 4
    cp "$tmp/out" "$tmp/seed4"
    holds 'r["tokens"] != d("greedy")["tokens"]'
    raw 0 -p a -n 40 -o json --temp 1.5 --seed 4 --threads 1
    holds 'r["tokens"] == d("seed4")["tokens"]'
    raw 0 -p a -n 40 -o json --temp 1.5 --seed 5
    holds 'r["tokens"] != d("seed4")["tokens"]'
    raw 0 -p a -n 40 -o json --compute f32
}

context() {
    raw 1 -p 'the cat' --ctx 20
    says 'the context of 20 tokens is full'
    says '[4 + 17 tokens'
    raw 1 -p 'the cat sat on the mat' --ctx 8
    says 'the prompt is too long'
    says 'larger --ctx'
    [ -s "$tmp/out" ] && bad 'an answer to a prompt that is too long'
    raw 0 -p 'the cat' --ctx 20 -n 17
    # What has no room isn't counted, and a full session gives no token again and again.
    raw 1 -p 'the cat' --ctx 20 --session "$tmp/full.kvc" -o json
    holds 'r["n_past"] == 20 and r["end"] == "context" and len(r["tokens"]) == 17'
    says 'give a larger --ctx'
    cp "$tmp/full.kvc" "$tmp/full0.kvc"
    for prompt in '' a; do
        raw 1 -p "$prompt" --session "$tmp/full.kvc"
        [ -s "$tmp/out" ] && bad 'an answer of a full context'
        says 'the context of 20 tokens is full: name another --session'
    done
    cmp -s "$tmp/full.kvc" "$tmp/full0.kvc" || bad 'a refused run changed the session'
}

# As one run of n tokens, so two that meet in a session, with random numbers too.
resume() {
    for policy in full quant8 window:size=64:sinks=2+quant8 h2o:budget=80; do
        rm -f "$tmp/s"
        raw 0 -p 'the cat' -n 130 --temp 1 --seed 7 --policy $policy -o json
        cp "$tmp/out" "$tmp/whole"
        raw 0 -p 'the cat' -n 70 --temp 1 --seed 7 --policy $policy -o json --session "$tmp/s"
        cp "$tmp/out" "$tmp/part"
        raw 0 -p '' -n 60 --temp 1 --seed 7 -o json --session "$tmp/s"
        holds 'd("part")["tokens"] + r["tokens"] == d("whole")["tokens"]'
        holds 'r["policy"] == d("whole")["policy"] and r["prompt_tokens"] == 0'
    done
    rm -f "$tmp/s"
    # An answer that was cut off is closed by <|im_end|> and a line end, and so is a text.
    chat 0 -p 'the cat' -n 30 --session "$tmp/s" --system 'be brief' -o json
    holds 'r["end"] == "length"'
    cp "$tmp/out" "$tmp/part"
    chat 0 -p 'and' -n 30 --session "$tmp/s" --system 'be brief' -o json
    holds 'r["n_past"] == d("part")["n_past"] + 2 + r["prompt_tokens"] + len(r["tokens"])'
    raw 0 -p 'the cat' -n 30 --session "$tmp/text.kvc" -o json
    cp "$tmp/out" "$tmp/part"
    chat 0 -p 'and' -n 30 --session "$tmp/text.kvc" -o json
    holds 'r["n_past"] == d("part")["n_past"] + r["prompt_tokens"] + len(r["tokens"])'
    cp "$tmp/s" "$tmp/s0"
    chat 2 -p 'and' --session "$tmp/s" --system 'be long'
    says 'another system text'
    cp "$tmp/s" "$tmp/families"
    for family in llama2 llama3 gemma mistral zephyr; do
        code 2 -m "$model" -p a --session "$tmp/s" --chat-template $family
        says "$tmp/s began with another template: leave --chat-template out"
    done
    cmp -s "$tmp/s" "$tmp/families" || bad 'a refused run changed the session'
    for family in llama2 llama3 gemma mistral zephyr; do
        for prompt in a b; do
            code 0 -m "$model" -p $prompt -n 5 --session "$tmp/$family" --chat-template $family
        done
        chat 2 -p a --session "$tmp/$family"
        says "$tmp/$family began with another template"
    done
    chat 2 -p a --session "$tmp/s" --policy quant8
    says 'with the policy full:type=f16, not quant8'
    chat 2 -p a --session "$tmp/s" --ctx 77
    says '--ctx'
    chat 2 -p a --session "$tmp/s" --compute f32
    says '--compute=int8'
    code 2 -m "$other" --raw -p a --session "$tmp/s"
    says 'another model'
    chat 2 -p a --session "$tmp/s/x"
    chat 2 -p a --session "$tmp/none/x"
    says "can't be written"
    echo 'no session' >"$tmp/text"
    chat 1 -p a --session "$tmp/text"
    says 'not a saved session'
    head -c 1000 "$tmp/s0" >"$tmp/cut"
    chat 1 -p a --session "$tmp/cut"
    cmp -s "$tmp/s" "$tmp/s0" || bad 'a refused run changed the session'
    chat 0 -p a -n 5 --session "$tmp/s" --policy full:type=f16 --ctx 1024 --compute int8
    chat 1 -p a --session "$tmp/small" --ctx 30
    chat 1 -p a --session "$tmp/small"
    says 'name another --session'
}

# A session names its policies without their paths: --policy says where they are, or the
# environment does.
by_path() {
    mkdir "$tmp/so"
    cp "$KVC_TEST_PLUGINS/template.so" "$tmp/so/template.so"
    spec="quant8:hadamard=off+$tmp/so/template.so:size=64"
    raw 0 -p 'the cat' -n 5 --policy "$spec" --session "$tmp/by-path"
    raw 0 -p '' -n 5 --policy "$spec" --session "$tmp/by-path" -o json
    holds '"template:size=64" in r["policy"] and r["prompt_tokens"] == 0'
    home=$PWD
    cd "$tmp/so" || exit 1
    raw 0 -p '' -n 5 --policy 'quant8:hadamard=off+./template.so:size=64' --session "$tmp/by-path"
    raw 2 -p '' -n 5 --policy ./template.so:size=65 --session "$tmp/by-path"
    says 'was saved with the policy'
    cd "$home" || exit 1
    export KVC_POLICY_PATH="$tmp/so"
    raw 0 -p '' -n 5 --session "$tmp/by-path"
    unset KVC_POLICY_PATH
    raw 2 -p '' -n 5 --session "$tmp/by-path"
    says '"template" is not found'
    says KVC_POLICY_PATH
    says 'a --policy with its path'
}

# The old file stays, whole, and nothing lies beside it.
full_disk() {
    mkdir "$tmp/disk"
    chat 0 -p 'the cat' -n 30 --session "$tmp/disk/s"
    cp "$tmp/disk/s" "$tmp/s0"
    (trap '' XFSZ && ulimit -f 8 && exec "$tool" -m "$model" --chat-template chatml -p a -n 30 \
        --session "$tmp/disk/s" >/dev/null 2>"$tmp/disk-err")
    [ $? -eq 1 ] || bad 'no failure on a full disk'
    cp "$tmp/disk-err" "$tmp/err"
    says "the conversation can't be saved"
    cmp -s "$tmp/disk/s" "$tmp/s0" || bad 'the old session is gone'
    [ "$(ls -A "$tmp/disk")" = s ] || bad 'something lies beside the session'
}

usage
streams
closed
text
sampling
context
resume
by_path
full_disk
[ $failed -eq 0 ] && echo passed
exit $failed

#!/bin/sh
# SPDX-License-Identifier: MIT
# kvrun_model.sh KVRUN: a real model's chat: its template is recognised, it ends its answers, and it
# goes by what was said before, in another run. Needs KVC_TEST_MODEL.
set -u
tool=$1
[ -n "${KVC_TEST_MODEL:-}" ] || exit 77
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
failed=0

# answers TEXT ARGUMENTS: an answer that the model itself ends holds TEXT.
answers() {
    want=$1
    shift
    "$tool" -m "$KVC_TEST_MODEL" -n 100 -o json "$@" >"$tmp/out" 2>"$tmp/err" &&
        grep -q '"end": "model"' "$tmp/out" && grep '"text": ' "$tmp/out" | grep -qF "$want" || {
        echo "FAILED: not '$want': kvrun $*"
        grep '"text"\|"end"' "$tmp/out"
        cat "$tmp/err"
        failed=1
    }
}

# Asked alone, the second question isn't answered in the words of the first answer.
for policy in full quant8; do
    rm -f "$tmp/s"
    answers 'The answer to this classic math problem is 4.' -p 'What is 2 plus 2?' --policy $policy \
        --session "$tmp/s"
    answers 'The answer to this classic math problem is ' -p 'And what is 3 plus 3?' --session "$tmp/s"
done
exit $failed

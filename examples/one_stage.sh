#!/usr/bin/env bash
# Runs the README's learning chapter from nothing: a server, 900 calls, one stage, its gates. Ends with 0 if every run promoted its
# candidate.
#
#   examples/one_stage.sh [directory of the programs, default target/release] [runs, default 1] [first seed, default 1]
#
# Needs curl and xargs, and the programs (cargo build --release --workspace). CALLS and LEARN change the number of calls and the file of settings.
set -euo pipefail
cd "$(dirname "$0")/.."
programs=${1:-target/release}
runs=${2:-1}
first=${3:-1}
calls=${CALLS:-900}
learn=${LEARN:-models/pocket/learn.toml}
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT

# The value of a key of a JSON text that has it once, outside of nested objects.
value() { sed -n "s/.*\"$1\":\"\{0,1\}\([^\",}]*\).*/\1/p"; }

promoted=0
for ((run = 0; run < runs; run++)); do
  seed=$((first + run))
  data=$work/data-$seed
  "$programs/selfjudge" serve --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 --data-dir "$data" --learn "$learn" 2>"$work/log-$seed" &
  server=$!
  until grep -q '^for operators: ' "$work/log-$seed"; do
    kill -0 "$server" 2>/dev/null || { cat "$work/log-$seed"; exit 1; }
    sleep 0.1
  done
  url=$(grep -o -m1 ' on http://[0-9.:]*[0-9]' "$work/log-$seed" | cut -c5-)
  admin=$(sed -n 's/^for operators: //p' "$work/log-$seed")
  begun=$SECONDS
  "$programs/pocket" traffic --calls "$calls" --seed "$seed" >"$work/traffic.jsonl"
  xargs -P 8 -d '\n' -I{} curl -sS -f -o /dev/null "$url/generate" -d {} <"$work/traffic.jsonl"
  called=$SECONDS
  until
    train=$(curl -sS "$admin/train")
    outcome=$(value last_outcome <<<"$train")
    [ -n "$outcome" ] && [ "$outcome" != null ]
  do
    if ((SECONDS - called > 1800)); then
      echo "no stage ended within half an hour: $train"
      exit 1
    fi
    sleep 1
  done
  echo "seed $seed: $outcome; $calls calls in $((called - begun)) s, the stage ended $((SECONDS - called)) s later"
  curl -sS "$admin/train" | sed 's/.*"gates":\[\(.*\)\],"last_outcome.*/\1/; s/},{/}\n{/g' |
    sed 's/^/  /'
  echo
  [ "$outcome" = promoted ] && promoted=$((promoted + 1))
  kill "$server"
  wait "$server" || true
  server=
  rm -rf "$data"
done
echo "$promoted of $runs promoted"
[ "$promoted" -eq "$runs" ]

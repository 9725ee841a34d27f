#!/usr/bin/env bash
# From nothing to generation 1 serves: starts a server in an empty directory, sends 900 calls, waits for one stage of learning and
# prints its gates. docs/learning.md explains the steps. Ends with 0 if every run promoted its candidate.
#
#   cargo build --release -p selfjudge -p pocket
#   examples/one_stage.sh [directory of the programs, default target/release] [runs, default 1] [first seed, default 1]
#
# Needs curl and xargs, and less than a minute for each run on two cores. CALLS changes the number of calls, LEARN the file of settings.
set -euo pipefail
cd "$(dirname "$0")/.."
programs=${1:-target/release}
runs=${2:-1}
first=${3:-1}
calls=${CALLS:-900}
learn=${LEARN:-models/pocket/learn.toml}
for program in selfjudge pocket; do
  [ -x "$programs/$program" ] || { echo "$programs/$program is missing: cargo build --release -p selfjudge -p pocket" >&2; exit 1; }
done
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT

# Prints the value of a key that a JSON text has once, outside of nested objects.
value() { sed -n "s/.*\"$1\":\"\{0,1\}\([^\",}]*\).*/\1/p"; }

promoted=0
for ((run = 0; run < runs; run++)); do
  seed=$((first + run))
  data=$work/data-$seed

  # A server with a log, a learner and a listener for operators, on free ports.
  "$programs/selfjudge" serve --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 --data-dir "$data" --learn "$learn" 2>"$work/log-$seed" &
  server=$!
  until grep -q '^for operators: ' "$work/log-$seed"; do
    kill -0 "$server" 2>/dev/null || { cat "$work/log-$seed"; exit 1; }
    sleep 0.1
  done
  url=$(grep -o -m1 ' on http://[0-9.:]*[0-9]' "$work/log-$seed" | cut -c5-)
  admin=$(sed -n 's/^for operators: //p' "$work/log-$seed")

  # Calls that may be kept and trained on.
  begun=$SECONDS
  "$programs/pocket" traffic --calls "$calls" --seed "$seed" >"$work/traffic.jsonl"
  xargs -P 8 -d '\n' -I{} curl -sS -f -o /dev/null "$url/generate" -d {} <"$work/traffic.jsonl"
  called=$SECONDS

  # The stage has ended once it has an outcome.
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
  # The gates, one a line.
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

#!/usr/bin/env bash
# Makes the default model from nothing in target/pocket. Run again after an interruption, it goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/../../.."
cargo build --release
recipe=models/pocket/recipe out=target/pocket
mkdir -p "$out"

selfjudge() { target/release/selfjudge "$@"; }

# Makes $1 by the rest of the line, unless it is there; whole or not at all.
make() {
  local made=$1
  shift
  if [[ ! -e $made ]]; then
    rm -rf "$made.part"
    "$@" "$made.part"
    mv "$made.part" "$made"
  fi
}

train() {
  [[ -e $out/$1/model ]] || selfjudge train jsft --config "$recipe/$2" --resume
}

make "$out/1-corpus" selfjudge pocket corpus --seed 1 --pairs 500000 --out
train 1 1-mixture.toml

make "$out/2-corpus" selfjudge pocket corpus --seed 12 --pairs 40000 --options "$recipe/later-corpus.toml" --out
make "$out/2-own-pairs.jsonl" selfjudge pocket own-pairs --model "$out/1/model" --seed 11 --instructions 30000 --out
train 2 2-own-samples.toml

make "$out/3-corpus" selfjudge pocket corpus --seed 14 --pairs 30000 --options "$recipe/later-corpus.toml" --out
make "$out/3-own-pairs.jsonl" selfjudge pocket own-pairs --model "$out/2/model" --seed 13 --instructions 60000 --easy 0.25 --out
train 3 3-own-mistakes.toml

selfjudge eval pocket --model "$out/3/model" --json "$out/evaluation.json" --plot "$out/best_of_n.svg"

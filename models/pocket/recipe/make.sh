#!/usr/bin/env bash
# Makes the default model from nothing in target/pocket. Run again after an interruption, it goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/../../.."
cargo build --release --workspace
recipe=models/pocket/recipe out=target/pocket
mkdir -p "$out"

selfjudge() { target/release/selfjudge "$@"; }
pocket() { target/release/pocket "$@"; }

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

make "$out/1-corpus" pocket corpus --seed 1 --pairs 500000 --out
train 1 1-mixture.toml

make "$out/2-corpus" pocket corpus --seed 12 --pairs 40000 --options "$recipe/later-corpus.toml" --out
make "$out/2-own-pairs.jsonl" pocket own-pairs --model "$out/1/model" --seed 11 --instructions 30000 --out
train 2 2-own-samples.toml

make "$out/3-corpus" pocket corpus --seed 14 --pairs 30000 --options "$recipe/later-corpus.toml" --out
make "$out/3-own-pairs.jsonl" pocket own-pairs --model "$out/2/model" --seed 13 --instructions 60000 --easy 0.25 --out
train 3 3-own-mistakes.toml

make "$out/4-corpus" pocket corpus --seed 16 --pairs 40000 --options "$recipe/last-corpus.toml" --out
make "$out/4-own-pairs.jsonl" pocket own-pairs --model "$out/3/model" --seed 15 --instructions 120000 --easy 0.12 --out
train 4 4-own-mistakes.toml

make "$out/5-corpus" pocket corpus --seed 18 --pairs 40000 --options "$recipe/last-corpus.toml" --out
make "$out/5-own-pairs.jsonl" pocket own-pairs --model "$out/4/model" --seed 17 --instructions 118016 --easy 0.1 --out
train 5 5-own-mistakes.toml

make "$out/6-corpus" pocket corpus --seed 20 --pairs 30000 --options "$recipe/last-corpus.toml" --out
make "$out/6-sums-corpus" pocket corpus --seed 21 --pairs 40000 --options "$recipe/sums-corpus.toml" --out
make "$out/6-own-pairs.jsonl" pocket own-pairs --model "$out/5/model" --seed 19 --instructions 60000 \
  --kinds add,subtract,pick,multiple,count,sort --easy 0.05 --out
train 6 6-sums.toml

pocket evaluate --model "$out/6/model" --json "$out/evaluation.json" --plot "$out/best_of_n.svg"

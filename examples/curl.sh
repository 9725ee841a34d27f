#!/usr/bin/env bash
# Makes one call of each kind and prints the answers. Ends with 0 if every call was answered.
#
#   examples/curl.sh [URL of a running server, default http://127.0.0.1:8080]
#
# Start the server with: cargo run --release -- serve
# For a server with keys set SELFJUDGE_KEY to a caller's key.
set -euo pipefail
url=${1:-http://127.0.0.1:8080}
question="What is 45 plus 17?"

# Prints what a call does, and its answer.
call() {
  echo "# $1"
  curl --silent --show-error --fail-with-body --no-buffer ${SELFJUDGE_KEY:+--header "Authorization: Bearer $SELFJUDGE_KEY"} \
    "$url$2" ${3:+--json "$3"}
  printf '\n\n'
}

call "Is the server ready?" /ready
call "Generate one answer" /generate "{\"prompt\": \"$question\", \"seed\": 5}"
call "Generate four answers and return the best by a tournament" /generate "{\"prompt\": \"$question\", \"best_of\": 4, \"seed\": 5}"
call "Stream an answer" /generate \
  "{\"messages\": [{\"role\": \"system\", \"content\": \"Be brief.\"}, {\"role\": \"user\", \"content\": \"$question\"}],
    \"temperature\": 0, \"stream\": true}"
call "Judge two answers" /judge "{\"prompt\": \"$question\", \"candidates\": [\"62\", \"52\"]}"
call "Judge two answers under a principle" /judge \
  "{\"prompt\": \"$question\", \"candidates\": [\"62\", \"Sure! 62. Glad to help!\"], \"principles\": [\"polite\"]}"
call "Rank four answers" /judge \
  "{\"prompt\": \"$question\", \"candidates\": [\"62\", \"52\", \"[62]\", \"63\"], \"method\": \"tournament\"}"
call "Chat in OpenAI's form" /v1/chat/completions \
  "{\"model\": \"pocket\", \"messages\": [{\"role\": \"user\", \"content\": \"$question\"}], \"temperature\": 0}"
call "Generate digits alone, by a grammar" /generate \
  "{\"prompt\": \"$question\", \"temperature\": 0, \"structured_outputs\": {\"regex\": \"[0-9]+\"}}"
call "Choose between options, as probabilities (for chat models: \`label_mass\` of the default model is near 0)" /v1/decisions \
  "{\"input\": \"$question\", \"questions\": [{\"type\": \"choice\", \"instructions\": \"What is asked for?\",
    \"choices\": [{\"value\": \"a sum\"}, {\"value\": \"a word\"}]}]}"
call "Count tokens" /tokenize "{\"text\": \"$question\"}"

#!/bin/sh
# Sends example calls to the server until it is stopped, so that dashboards have something to show and learning something to learn
# from: sums, in part as streams, tournaments and judgements.
#
#   URL=http://localhost:8080 SELFJUDGE_API_KEYS=app:secret CALLS=20 PAUSE=0 sh docker/traffic.sh
URL=${URL:-http://selfjudge:8080}
# The first key, without its name.
key=$(printf '%s' "$SELFJUDGE_API_KEYS" | head -n 1 | sed 's/^[^:]*://')
call() {
  curl --silent --show-error --fail --output /dev/null --header "Authorization: Bearer $key" \
    --header 'Content-Type: application/json' --data "$2" "$URL$1" || failed=$((failed + 1))
}
n=0
failed=0
while [ -z "$CALLS" ] || [ "$n" -lt "$CALLS" ]; do
  question="What is $((10 + n % 80)) plus $((10 + n * 7 % 80))?"
  chat="\"messages\": [{\"role\": \"user\", \"content\": \"$question\"}], \"max_tokens\": 48"
  log='"log": {"retain": true, "train": true}'
  case $((n % 5)) in
    0) call /v1/chat/completions "{\"model\": \"pocket\", $chat, $log, \"stream\": true}" ;;
    1) call /v1/chat/completions "{\"model\": \"pocket\", $chat, $log, \"best_of\": 4}" ;;
    2) call /judge "{\"prompt\": \"$question\", \"candidates\": [\"12\", \"The sum is 12.\"]}" ;;
    *) call /v1/chat/completions "{\"model\": \"pocket\", $chat, $log}" ;;
  esac
  n=$((n + 1))
  sleep "${PAUSE:-1}"
done
echo "$n calls, $failed of them failed"
[ "$failed" -eq 0 ]

#!/usr/bin/env python3
"""Writes openapi/examples.json: what a server answers to the requests that the API's description shows.

    selfjudge serve --data-dir DIR --retain --learn default --admin-listen 127.0.0.1:8081
    python3 openapi/make_examples.py http://127.0.0.1:8080 http://127.0.0.1:8081
"""

import json
import pathlib
import re
import sys
import urllib.error
import urllib.request

common, operators = sys.argv[1:]
here = pathlib.Path(__file__).parent
JSON, SSE, TEXT = "application/json", "text/event-stream", "text/plain"


def call(method, path, body=None):
    admin = path.startswith(("/train", "/generations", "/events")) or (method, path) == ("PUT", "/principles")
    request = urllib.request.Request(
        (operators if admin else common) + path,
        None if body is None else json.dumps(body).encode(),
        {"content-type": JSON},
        method=method,
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.read().decode()


def shown_body(path):
    """Returns the only example of a body that the description shows, so that its answer belongs to it."""
    description = json.loads(call("GET", "/openapi.json"))
    return description["paths"][path]["post"]["requestBody"]["content"][JSON]["example"]


def good(method, path, body=None, shown=None):
    examples.setdefault(f"{method} {shown or path}", {})["200"] = {JSON: json.loads(call(method, path, body))}


examples = {}
question = "What is 45 plus 17?"
good("POST", "/generate", {"prompt": question, "seed": 1})
good("POST", "/judge", {"prompt": question, "candidates": ["62", "52"]})
good("POST", "/tokenize", {"text": question})
good("POST", "/detokenize", {"tokens": [51, 52, 32, 43]})
good("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": question}], "seed": 1})
good("POST", "/v1/completions", {"prompt": "5+7=12, 4+1+1=", "max_tokens": 8, "temperature": 0})
good("POST", "/v1/responses", {"input": question, "seed": 1})
good("POST", "/v1/decisions", shown_body("/v1/decisions"))
good("GET", "/v1/models")
good("GET", "/v1/models/pocket", shown="/v1/models/{id}")
kept = json.loads(call("POST", "/generate", {"prompt": question, "n": 2, "max_tokens": 2, "seed": 1, "log": {"retain": True}}))
record = kept["record_id"]
good("POST", "/feedback", {"record_id": record, "preferred": 1})
good("GET", f"/records/{record}", shown="/records/{id}")
good("DELETE", f"/records/{record}", shown="/records/{id}")
examples["DELETE /records"] = {"200": {JSON: {"records": 12}}}
good("GET", "/principles")
table = json.loads(call("GET", "/principles"))
good("PUT", "/principles", table)
for path in ("/train", "/generations", "/events?limit=2"):
    good("GET", path, shown=path.split("?")[0])
good("POST", "/train/pause")
good("POST", "/train/resume")
examples["POST /train/abandon"] = {"200": {JSON: {"stage": 3, "released": 256, "kept": 0}}}
for move in ("promote", "rollback"):
    good("POST", f"/generations/base/{move}", {"expected": "base"}, shown="/generations/{id}/" + move)
good("GET", "/health")
good("GET", "/ready")
lines = [line for line in call("GET", "/metrics").splitlines() if "num_requests_running" in line]
examples["GET /metrics"] = {"200": {TEXT: "\n".join(lines) + "\n"}}
for path, body in (
    ("/generate", {"prompt": question, "seed": 1}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": question}], "seed": 1}),
    ("/v1/completions", {"prompt": "5+7=12, 4+1+1=", "max_tokens": 8, "temperature": 0}),
    ("/v1/responses", {"input": question, "seed": 1}),
):
    stream = call("POST", path, {**body, "stream": True}).splitlines()
    events = [line[len("data: ") :] for line in stream if line.startswith("data: ")]
    delta = next((event for event in events if '"delta":"' in event), events[0])
    examples[f"POST {path}"]["200"][SSE] = {"data": delta}
errors = {
    "4XX": call("POST", "/generate", {"prompt": question, "temprature": 0.5}),
    "5XX": call("POST", "/generate", {"prompt": question, "timeout": 0.000001}),
}
examples["*"] = {status: {JSON: json.loads(error)} for status, error in errors.items()}
examples["*"]["503"] = {
    JSON: {"error": {"code": "engine_down", "message": "the engine has stopped", "param": None, "type": "server_error"}}
}
text = json.dumps(examples, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
# Of the machine nothing is shown.
text = re.sub(r'("holder": )"[^"]*"', r'\1"host:/var/lib/selfjudge"', text)
(here / "examples.json").write_text(text)

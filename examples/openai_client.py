#!/usr/bin/env python3
"""Calls a running selfjudge server with OpenAI's client: a chat, the best of four answers, a streamed answer and a verdict.

    python -m venv venv && venv/bin/pip install openai
    venv/bin/python examples/openai_client.py [URL of a running server, default http://127.0.0.1:8080]

Start the server with: cargo run --release -- serve
For a server with keys set SELFJUDGE_KEY to a caller's key.
"""
import json
import os
import sys
import urllib.request

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
key = os.environ.get("SELFJUDGE_KEY", "none")  # a server without keys accepts any
client = OpenAI(base_url=f"{url}/v1", api_key=key)
question = [{"role": "user", "content": "What is 45 plus 17?"}]


def post(path, body):
    """Makes a call of a route that OpenAI's client does not have."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(url + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as response:
        return json.load(response)


# A chat.
chat = client.chat.completions.create(model="pocket", messages=question, temperature=0)
print("chat:", chat.choices[0].message.content)

# The best of four answers: fields that OpenAI does not have are sent in extra_body.
best = client.chat.completions.create(model="pocket", messages=question, seed=5, extra_body={"best_of": 4})
tournament = best.model_extra["tournament"]
print("best of 4:", best.choices[0].message.content, "after", tournament["comparisons"], "comparisons")

# A streamed answer.
print("stream:", end=" ")
for chunk in client.chat.completions.create(model="pocket", messages=question, temperature=0, stream=True):
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()

# A verdict on two answers.
verdict = post("/judge", {"messages": question, "candidates": ["62", "52"]})
print(f"judge: candidate {verdict['winner']} wins, p = {verdict['p']:.4f}, reliable = {verdict['reliable']}")

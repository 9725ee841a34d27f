"""Calls a running server with OpenAI's client: python openai_client.py BASE_URL.

With --check it only tests that the client is installed.
"""

import json
import sys
from typing import Literal

from openai import APIStatusError, OpenAI, pydantic_function_tool
from pydantic import BaseModel

if sys.argv[1] == "--check":
    sys.exit(0)

client = OpenAI(base_url=sys.argv[1] + "/v1", api_key="secret", max_retries=0)
model = client.models.list().data[0].id
messages = [{"role": "user", "content": "What is 34 plus 28?"}]

chat = client.chat.completions.create(model=model, messages=messages, seed=1, n=2, logprobs=True, top_logprobs=3)
assert len(chat.choices) == 2 and chat.choices[0].message.role == "assistant"
assert chat.choices[0].finish_reason == "stop" and chat.usage.completion_tokens > 0
assert len(chat.choices[0].logprobs.content[0].top_logprobs) == 3

pieces = ["", ""]
usage = None
for event in client.chat.completions.create(
    model=model, messages=messages, seed=1, n=2, stream=True, stream_options={"include_usage": True}
):
    for choice in event.choices:
        pieces[choice.index] += choice.delta.content or ""
    usage = event.usage or usage
assert pieces == [choice.message.content for choice in chat.choices], (pieces, chat)
assert usage.completion_tokens == chat.usage.completion_tokens

best = client.chat.completions.create(model=model, messages=messages, seed=1, extra_body={"best_of": 4})
assert len(best.choices) == 1 and len(best.tournament["ranking"]) == 4

# The client's message object is sent back with all its fields. Fields with values that ask for nothing are accepted.
again = [*messages, chat.choices[0].message.model_dump(), {"role": "user", "content": "And 3 plus 4?"}]
same = [*messages, {"role": "assistant", "content": chat.choices[0].message.content}, again[-1]]
nothing = dict(store=False, metadata={"topic": "sums"}, service_tier="auto", tools=[], safety_identifier="x", prompt_cache_key="y")
answers = [
    client.chat.completions.create(model=model, messages=again, seed=1, **nothing),
    client.chat.completions.create(model=model, messages=same, seed=1),
]
assert answers[0].choices[0].message == answers[1].choices[0].message, answers
assert client.models.retrieve(model).id == model

scored = client.completions.create(model=model, prompt="2 plus 3", echo=True, logprobs=1, max_tokens=0)
listed = scored.choices[0].logprobs
assert scored.choices[0].text == "2 plus 3" and listed.token_logprobs[0] is None and listed.token_logprobs[1] < 0

schema = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"], "additionalProperties": False}
shaped = client.chat.completions.create(
    model=model,
    messages=messages,
    seed=1,
    max_completion_tokens=60,
    response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}},
)
assert shaped.choices[0].message.content.startswith("{"), shaped


class Weather(BaseModel):
    """Tells the weather."""

    city: Literal["Bonn", "Paris"]
    days: Literal[1, 2]


# A whole round trip of a tool: a call, its result, an answer.
parameters = {"type": "object", "properties": {"city": {"enum": ["Bonn", "Paris"]}}, "required": ["city"]}
tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
asked = [{"role": "user", "content": "Weather?"}]
called = client.chat.completions.create(model=model, messages=asked, tools=tools, tool_choice="required", parallel_tool_calls=False, seed=1)
message = called.choices[0].message
assert called.choices[0].finish_reason == "tool_calls" and message.content is None, called
assert len(message.tool_calls) == 1 and message.tool_calls[0].type == "function"
assert json.loads(message.tool_calls[0].function.arguments)["city"] in ("Bonn", "Paris")
result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "18 degrees"}
for back in (message, message.model_dump(), message.model_dump(exclude_none=True)):
    answer = client.chat.completions.create(model=model, messages=[*asked, back, result], tools=tools, seed=1, max_tokens=4)
    assert answer.usage.prompt_tokens > called.usage.prompt_tokens and answer.choices[0].message.role == "assistant"

# The client parses tool calls, in whole answers and in streams.
choice = {"type": "function", "function": {"name": "weather"}}
modelled = [pydantic_function_tool(Weather, name="weather")]
same = dict(model=model, messages=asked, tools=modelled, tool_choice=choice, seed=2)
parsed = client.chat.completions.parse(**same)
assert parsed.choices[0].finish_reason == "stop"
weather = parsed.choices[0].message.tool_calls[0].function.parsed_arguments
assert isinstance(weather, Weather), parsed
pieces = []
with client.chat.completions.stream(**same) as stream:
    for event in stream:
        if event.type == "tool_calls.function.arguments.delta":
            pieces.append(event.arguments_delta)
    final = stream.get_final_completion()
assert len(pieces) > 3 and Weather.model_validate_json("".join(pieces)) == weather
assert final.choices[0].message.tool_calls[0].function.parsed_arguments == weather
again = client.chat.completions.create(
    model=model,
    messages=[*asked, final.choices[0].message, {**result, "tool_call_id": final.choices[0].message.tool_calls[0].id}],
    tools=tools,
    max_tokens=4,
)
assert again.choices[0].message.role == "assistant"
deltas = list(client.chat.completions.create(stream=True, **same))
first = next(c for event in deltas for choice in event.choices for c in choice.delta.tool_calls or [])
assert first.index == 0 and first.id.startswith("call_") and first.function.name == "weather" and first.function.arguments == ""
assert not any(choice.delta.content for event in deltas for choice in event.choices)

text = client.completions.create(model=model, prompt=["2 plus", "3 plus"], n=2, best_of=3, max_tokens=8, seed=2, logprobs=1)
assert [choice.index for choice in text.choices] == [0, 1, 2, 3]
assert len(text.choices[0].logprobs.tokens) == len(text.choices[0].logprobs.token_logprobs)
streamed = "".join(
    event.choices[0].text
    for event in client.completions.create(model=model, prompt="2 plus", max_tokens=8, seed=2, stop=["z"], stream=True)
)
whole = client.completions.create(model=model, prompt="2 plus", max_tokens=8, seed=2, stop=["z"])
assert streamed == whole.choices[0].text

decided = client.decisions.create(
    model=model,
    input="34 plus 28 is 62.",
    questions=[
        {"type": "predicate", "instructions": "The sum is right."},
        {"type": "choice", "instructions": "Which?", "choices": [{"value": "a"}, {"value": "b"}]},
    ],
)
assert 0 <= decided.answers[0].probability <= 1
assert decided.answers[1].choice in ("a", "b")

# The Responses API: whole, streamed raw and by the client's helper, and parsed. The returned message is sent again unchanged.
question = "What is 34 plus 28?"
seeded = dict(extra_body={"seed": 1})
answer = client.responses.create(model=model, input=question, instructions="Be brief.", metadata={"topic": "sums"}, **seeded)
assert answer.status == "completed" and answer.error is None and answer.incomplete_details is None
assert answer.output_text == answer.output[0].content[0].text and answer.output[0].role == "assistant"
assert answer.metadata == {"topic": "sums"} and answer.instructions == "Be brief." and answer.usage.output_tokens > 0
events = list(client.responses.create(model=model, input=question, instructions="Be brief.", stream=True, **seeded))
assert [event.sequence_number for event in events] == list(range(len(events)))
assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == answer.output_text
assert events[-1].type == "response.completed" and events[-1].response.output_text == answer.output_text
with client.responses.stream(model=model, input=question, instructions="Be brief.", **seeded) as stream:
    snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
    final = stream.get_final_response()
assert snapshots[-1] == final.output_text == answer.output_text
more = [{"role": "user", "content": question}, *answer.output, {"role": "user", "content": "And 3 plus 4?"}]
assert client.responses.create(model=model, input=more, store=False, **seeded).output_text
told = client.responses.create(
    model=model, input=question, include=["message.output_text.logprobs"], top_logprobs=2, max_output_tokens=2, **seeded
)
assert told.status == "incomplete" and told.incomplete_details.reason == "max_output_tokens"
assert len(told.output[0].content[0].logprobs) == 2 and len(told.output[0].content[0].logprobs[0].top_logprobs) == 2


class Sum(BaseModel):
    sum: Literal[62, 52]


parsed = client.responses.parse(model=model, input=question, text_format=Sum, max_output_tokens=60, **seeded)
assert parsed.output_parsed.sum in (62, 52), parsed
with client.responses.stream(model=model, input=question, text_format=Sum, max_output_tokens=60, **seeded) as stream:
    assert stream.get_final_response().output_parsed == parsed.output_parsed
for refused in (dict(previous_response_id="resp_1"), dict(tools=[{"type": "web_search"}]), dict(background=True)):
    try:
        client.responses.create(model=model, input=question, **refused)
        raise AssertionError(f"{refused} was accepted")
    except APIStatusError as error:
        assert error.status_code == 400 and error.body["param"] in refused, error

try:
    client.chat.completions.create(model=model, messages=messages, temperature=-1)
    raise AssertionError("nonsense was accepted")
except APIStatusError as error:
    assert error.status_code == 400 and error.body["param"] == "temperature", error

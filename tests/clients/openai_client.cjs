// Calls a running server with OpenAI's client: node openai_client.cjs BASE_URL. With --check it only tests that it is installed.

const assert = require("node:assert");
const { OpenAI } = require("openai");

async function main(url) {
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "secret", maxRetries: 0 });
  const model = (await client.models.list()).data[0].id;
  assert.equal((await client.models.retrieve(model)).id, model);
  const messages = [{ role: "user", content: "What is 34 plus 28?" }];

  const chat = await client.chat.completions.create({ model, messages, seed: 1, logprobs: true, top_logprobs: 2 });
  assert.equal(chat.choices[0].message.role, "assistant");
  // The client's message object is sent back unchanged. Fields with values that ask for nothing are accepted.
  const more = { role: "user", content: "And 3 plus 4?" };
  const again = await client.chat.completions.create({
    model,
    messages: [...messages, { refusal: null, tool_calls: [], ...chat.choices[0].message }, more],
    seed: 1,
    store: false,
    metadata: { topic: "sums" },
    tools: [],
    stop: null,
  });
  assert.ok(again.choices[0].message.content.length > 0);

  let streamed = "";
  const stream = client.chat.completions.stream({ model, messages, seed: 1, stream_options: { include_usage: true } });
  for await (const event of stream) streamed += event.choices[0]?.delta?.content ?? "";
  assert.equal(streamed, chat.choices[0].message.content);
  assert.ok((await stream.totalUsage()).completion_tokens > 0);

  const scored = await client.completions.create({ model, prompt: "2 plus 3", echo: true, logprobs: 1, max_tokens: 0 });
  assert.equal(scored.choices[0].text, "2 plus 3");
  assert.equal(scored.choices[0].logprobs.token_logprobs[0], null);

  // A whole round trip of a tool: a call, its result, an answer. The client parses tool calls in streams.
  const parameters = {
    type: "object",
    properties: { city: { enum: ["Bonn", "Paris"] }, days: { enum: [1, 2] } },
    required: ["city", "days"],
    additionalProperties: false,
  };
  const tools = [{ type: "function", function: { name: "weather", description: "Tells the weather.", parameters, strict: true } }];
  const asked = [{ role: "user", content: "Weather?" }];
  const required = { model, messages: asked, tools, tool_choice: "required", parallel_tool_calls: false, seed: 1 };
  const called = await client.chat.completions.create(required);
  const call = called.choices[0].message.tool_calls[0];
  assert.equal(called.choices[0].finish_reason, "tool_calls");
  assert.equal(called.choices[0].message.content, null);
  assert.ok(["Bonn", "Paris"].includes(JSON.parse(call.function.arguments).city));
  const result = { role: "tool", tool_call_id: call.id, content: "18 degrees" };
  const told = await client.chat.completions.create({
    model, messages: [...asked, called.choices[0].message, result], tools, max_tokens: 4,
  });
  assert.equal(told.choices[0].message.role, "assistant");
  const running = client.chat.completions.stream(required);
  const whole = (await running.finalChatCompletion()).choices[0];
  assert.equal(whole.finish_reason, "tool_calls");
  assert.equal(whole.message.tool_calls[0].function.arguments, call.function.arguments);
  let ran = null;
  const runner = client.chat.completions.runTools({
    model, messages: asked, seed: 1, max_tokens: 120, tool_choice: { type: "function", function: { name: "weather" } },
    tools: [{ type: "function", function: {
      name: "weather", parameters, strict: true, parse: JSON.parse, function: (given) => { ran = given; return "18 degrees"; },
    } }],
  });
  await runner.done();
  assert.ok(["Bonn", "Paris"].includes(ran.city), JSON.stringify(ran));
  // The Responses API: whole, streamed raw and by the client's helper, and parsed. The returned message is sent again unchanged.
  const said = { model, input: "What is 34 plus 28?", instructions: "Be brief.", seed: 1 };
  const answer = await client.responses.create({ ...said, metadata: { topic: "sums" } });
  assert.equal(answer.status, "completed");
  assert.equal(answer.output_text, answer.output[0].content[0].text);
  assert.deepEqual(answer.metadata, { topic: "sums" });
  let [text, last] = ["", null];
  for await (const event of await client.responses.create({ ...said, stream: true })) {
    if (event.type === "response.output_text.delta") text += event.delta;
    last = event;
  }
  assert.equal(text, answer.output_text);
  assert.equal(last.type, "response.completed");
  const helper = client.responses.stream(said);
  let deltas = 0;
  helper.on("response.output_text.delta", () => (deltas += 1));
  const final = await helper.finalResponse();
  assert.ok(deltas > 0);
  assert.equal(final.output_text, answer.output_text);
  const input = [{ role: "user", content: said.input }, ...answer.output, more];
  assert.ok((await client.responses.create({ ...said, input, store: false })).output_text.length > 0);
  const schema = { type: "object", properties: { sum: { enum: [62, 52] } }, required: ["sum"], additionalProperties: false };
  const parsed = await client.responses.parse({
    ...said,
    max_output_tokens: 60,
    text: { format: { type: "json_schema", name: "sum", strict: true, schema } },
  });
  assert.ok([62, 52].includes(parsed.output_parsed.sum));
  for (const refused of [{ previous_response_id: "resp_1" }, { tools: [{ type: "web_search" }] }, { background: true }]) {
    const [param] = Object.keys(refused);
    await assert.rejects(client.responses.create({ ...said, ...refused }), { status: 400, param });
  }
  await assert.rejects(
    async () => {
      for await (const _ of await client.responses.create({ ...said, stream: true, ignore_eos: true, timeout: 1e-6 }));
    },
    { code: "deadline_exceeded" },
  );

  await assert.rejects(client.chat.completions.create({ model, messages, temperature: -1 }), { status: 400, param: "temperature" });
}

if (process.argv[2] !== "--check") main(process.argv[2]);

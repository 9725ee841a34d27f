// Calls a running server with OpenAI's own client: node openai_client.cjs BASE_URL (or --check: is the client there?).

const assert = require("node:assert");
const { OpenAI } = require("openai");

async function main(url) {
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "secret", maxRetries: 0 });
  const model = (await client.models.list()).data[0].id;
  assert.equal((await client.models.retrieve(model)).id, model);
  const messages = [{ role: "user", content: "What is 34 plus 28?" }];

  const chat = await client.chat.completions.create({ model, messages, seed: 1, logprobs: true, top_logprobs: 2 });
  assert.equal(chat.choices[0].message.role, "assistant");
  // The client's own message object goes back as it is; so do fields that ask for nothing.
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

  await assert.rejects(client.chat.completions.create({ model, messages, temperature: -1 }), { status: 400, param: "temperature" });
}

if (process.argv[2] !== "--check") main(process.argv[2]);

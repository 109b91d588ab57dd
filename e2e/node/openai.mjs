// Uses a server as an unmodified openai client for Node does: chat, stream, tools, structured output, logprobs, errors, cancel, responses.
//
// Prints one JSON object: the name of each story and what it saw. A story that is not as the client expects throws.

import assert from "node:assert/strict";

import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", timeout: 120_000, maxRetries: 0 });
const question = "What is the capital of France?";
const messages = [{ role: "user", content: question }];
const common = { model, temperature: 0, seed: 1 };
const parameters = {
  type: "object",
  properties: { city: { type: "string", enum: ["Paris", "Rome"] } },
  required: ["city"],
  additionalProperties: false,
};
const weather = { name: "get_weather", description: "The weather of a city", parameters };
const tools = [{ type: "function", function: weather }];
const Capital = z.object({
  country: z.string().regex(/^[A-Z][a-z]{2,12}$/),
  inhabitants: z.number().int().min(0).max(99_999_999),
});
const isCity = (text) => assert.ok(["Paris", "Rome"].includes(JSON.parse(text).city), text);

const stories = {
  async chat() {
    const answer = await client.chat.completions.create({ ...common, messages, max_tokens: 24 });
    assert.match(answer.choices[0].message.content, /Paris/);
    assert.ok(answer._request_id, "every answer has the number of its request");
    return answer.choices[0].message.content;
  },

  async stream() {
    const stream = client.chat.completions.stream({ ...common, messages, max_tokens: 24, stream_options: { include_usage: true } });
    const final = await stream.finalChatCompletion();
    assert.match(final.choices[0].message.content, /Paris/);
    assert.ok(final.usage.completion_tokens > 0);
    return final.choices[0].message.content;
  },

  async requiredTool() {
    const answer = await client.chat.completions.create({ ...common, messages, tools, tool_choice: "required", max_tokens: 200 });
    const { finish_reason, message } = answer.choices[0];
    assert.equal(finish_reason, "tool_calls");
    isCity(message.tool_calls[0].function.arguments);
    const again = [...messages, message, { role: "tool", tool_call_id: message.tool_calls[0].id, content: "sunny" }];
    const follow = await client.chat.completions.create({ ...common, messages: again, tools, max_tokens: 8 });
    assert.equal(follow.choices[0].message.role, "assistant");
    return message.tool_calls[0].function.arguments;
  },

  async streamedTool() {
    const tool_choice = { type: "function", function: { name: "get_weather" } };
    const stream = client.chat.completions.stream({ ...common, messages, tools, tool_choice, max_tokens: 200 });
    const text = await stream.finalFunctionToolCall();
    isCity(text.arguments);
    return text.arguments;
  },

  async structured() {
    const response_format = zodResponseFormat(Capital, "capital");
    const answer = await client.chat.completions.parse({ ...common, messages, response_format, max_tokens: 200 });
    Capital.parse(answer.choices[0].message.parsed);
    return answer.choices[0].message.parsed;
  },

  async logprobs() {
    const answer = await client.chat.completions.create({ ...common, messages, max_tokens: 4, logprobs: true, top_logprobs: 3 });
    const { content } = answer.choices[0].logprobs;
    assert.equal(content.length, 4);
    assert.ok(content.every((token) => token.top_logprobs.length === 3 && token.logprob <= 0));
    return content.map((token) => token.token);
  },

  async errors() {
    const names = [];
    for (const [fields, kind] of [
      [{ model: "no-such-model" }, OpenAI.NotFoundError],
      [{ temperature: 9 }, OpenAI.BadRequestError],
      [{ tool_choice: "required" }, OpenAI.BadRequestError],
    ]) {
      await assert.rejects(client.chat.completions.create({ ...common, messages, ...fields }), (error) => {
        assert.ok(error instanceof kind && error.message && error.requestID, `${error}`);
        names.push(error.code);
        return true;
      });
    }
    return names;
  },

  async cancel() {
    const stream = await client.chat.completions.create({ ...common, messages, max_tokens: 2000, ignore_eos: true, stream: true });
    for await (const _ of stream) break;
    stream.controller.abort();
    const after = await client.chat.completions.create({ ...common, messages, max_tokens: 2 });
    return after.choices[0].finish_reason;
  },

  async responses() {
    const answer = await client.responses.create({ model, temperature: 0, instructions: "Be brief.", input: question, max_output_tokens: 24 });
    assert.match(answer.output_text, /Paris/);
    assert.ok(answer.usage.output_tokens > 0);
    return answer.output_text;
  },

  async streamedResponse() {
    const stream = client.responses.stream({ model, temperature: 0, input: question, max_output_tokens: 24 });
    let text = "";
    stream.on("response.output_text.delta", (event) => (text += event.delta));
    const final = await stream.finalResponse();
    assert.equal(text, final.output_text);
    assert.match(text, /Paris/);
    return final.status;
  },

  async structuredResponse() {
    const text = { format: zodTextFormat(Capital, "capital") };
    const answer = await client.responses.parse({ model, temperature: 0, input: question, text, max_output_tokens: 200 });
    return Capital.parse(answer.output_parsed);
  },

  async responseTool() {
    const input = [{ role: "user", content: question }];
    const tools = [{ type: "function", ...weather, strict: true }];
    const answer = await client.responses.create({ model, temperature: 0, input, tools, tool_choice: "required", max_output_tokens: 200 });
    const call = answer.output.find((item) => item.type === "function_call");
    isCity(call.arguments);
    input.push(...answer.output, { type: "function_call_output", call_id: call.call_id, output: "sunny" });
    const follow = await client.responses.create({ model, temperature: 0, input, tools, max_output_tokens: 8 });
    assert.ok(follow.output.length > 0);
    return call.arguments;
  },
};

const seen = {};
for (const [name, story] of Object.entries(stories)) seen[name] = await story();
console.log(JSON.stringify(seen));

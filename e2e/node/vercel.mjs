// Uses a server as Vercel's AI SDK does, by its provider for compatible servers and, for the Responses API and logprobs, by OpenAI's own.
//
// Prints one JSON object: the name of each story and what it saw. A story that is not as the SDK expects throws.

import assert from "node:assert/strict";

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const [baseURL, name] = process.argv.slice(2);
const compatible = createOpenAICompatible({ name: "chandler", baseURL, includeUsage: true, supportsStructuredOutputs: true });
const openai = createOpenAI({ baseURL, apiKey: "none" });
const model = compatible(name);
const common = { model, prompt: "What is the capital of France?", temperature: 0, seed: 1, maxRetries: 0 };
const schema = z.object({ country: z.string().regex(/^[A-Z][a-z]{2,12}$/), inhabitants: z.number().int().min(0).max(99_999_999) });
const city = z.object({ city: z.enum(["Paris", "Rome"]) });

const stories = {
  async chat() {
    const { text, usage } = await generateText({ ...common, maxOutputTokens: 24 });
    assert.match(text, /Paris/);
    assert.ok(usage.outputTokens > 0);
    return text;
  },

  async stream() {
    const { textStream, usage } = streamText({ ...common, maxOutputTokens: 24 });
    let text = "";
    for await (const delta of textStream) text += delta;
    assert.match(text, /Paris/);
    assert.ok((await usage).outputTokens > 0);
    return text;
  },

  async tools() {
    const asked = [];
    const execute = async ({ city }) => (asked.push(city), "sunny");
    const tools = { get_weather: tool({ description: "The weather of a city", inputSchema: city, execute }) };
    const { steps } = await generateText({
      ...common,
      tools,
      maxOutputTokens: 100,
      stopWhen: stepCountIs(2),
      // The model must call once, and answers freely after that.
      prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" }),
    });
    assert.equal(steps.length, 2);
    assert.ok(asked.length > 0 && asked.every((name) => ["Paris", "Rome"].includes(name)), `${asked}`);
    return asked;
  },

  async structured() {
    const { output } = await generateText({ ...common, output: Output.object({ schema }), maxOutputTokens: 200 });
    return schema.parse(output);
  },

  async logprobs() {
    const providerOptions = { openai: { logprobs: 3 } };
    const { providerMetadata } = await generateText({ ...common, model: openai.chat(name), maxOutputTokens: 4, providerOptions });
    const { logprobs } = providerMetadata.openai;
    assert.ok(logprobs.length === 4 && logprobs.every((token) => token.top_logprobs.length === 3), JSON.stringify(logprobs));
    return logprobs.map((token) => token.token);
  },

  async errors() {
    const codes = [];
    for (const wrong of [{ model: compatible("no-such-model") }, { temperature: 9 }]) {
      await assert.rejects(generateText({ ...common, ...wrong }), (error) => {
        assert.ok(APICallError.isInstance(error) && !error.isRetryable, `${error}`);
        codes.push(error.statusCode);
        return true;
      });
    }
    assert.deepEqual(codes, [404, 400]);
    return codes;
  },

  async cancel() {
    const controller = new AbortController();
    const { textStream } = streamText({ ...common, prompt: "Count to a thousand.", maxOutputTokens: 2000, abortSignal: controller.signal });
    for await (const _ of textStream) controller.abort();
    const { finishReason } = await generateText({ ...common, maxOutputTokens: 2 });
    return finishReason;
  },

  async responses() {
    const { text, usage } = await generateText({ ...common, seed: undefined, model: openai.responses(name), maxOutputTokens: 24 });
    assert.match(text, /Paris/);
    assert.ok(usage.outputTokens > 0);
    return text;
  },

  async streamedResponse() {
    const { textStream, finishReason } = streamText({ ...common, seed: undefined, model: openai.responses(name), maxOutputTokens: 24 });
    let text = "";
    for await (const delta of textStream) text += delta;
    assert.match(text, /Paris/);
    return await finishReason;
  },
};

const seen = {};
for (const [name, story] of Object.entries(stories)) seen[name] = await story();
console.log(JSON.stringify(seen));

// Shows pictures to a server as an unmodified openai client for Node does: one, several, streams, turns, responses, errors.
//
//     pictures.mjs URL MODEL IMAGES CASES
//
// IMAGES is a folder of PNG files, CASES a JSON file with the reference's prompts about them.
// Prints one JSON object: the name of each story and what it saw. A story that is not as the client expects throws.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";

import OpenAI from "openai";

const [baseURL, model, images, casesFile] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", timeout: 120_000, maxRetries: 0 });
const cases = Object.fromEntries(JSON.parse(readFileSync(casesFile)).cases.map((one) => [one.name, one]));
const common = { model, temperature: 0, max_tokens: 8 };
const text = (words) => ({ type: "text", text: words });
const url = (name) => `data:image/png;base64,${readFileSync(join(images, name)).toString("base64")}`;
const picture = (name) => ({ type: "image_url", image_url: { url: url(name) } });

// A conversation of the reference's, in the words of the API.
function messagesOf({ messages, images }) {
  const names = images.values();
  const part = (said) => (said.type === "image" ? picture(names.next().value) : text(said.text));
  return messages.map(({ role, content }) => (role === "user" ? { role, content: content.map(part) } : { role, content: content[0].text }));
}

async function countedAsTheReferenceDoes(name) {
  const answer = await client.chat.completions.create({ ...common, messages: messagesOf(cases[name]) });
  assert.equal(answer.usage.prompt_tokens, cases[name].prompt_tokens.length, name);
  assert.equal(answer.choices[0].message.role, "assistant");
  return answer.usage;
}

const stories = {
  async onePicture() {
    return (await countedAsTheReferenceDoes("one_image_square")).prompt_tokens;
  },

  async textBeforeAndAfter() {
    return (await countedAsTheReferenceDoes("one_image_big_text_first")).prompt_tokens;
  },

  async picturesBetweenTexts() {
    return (await countedAsTheReferenceDoes("two_images_interleaved")).prompt_tokens;
  },

  async turns() {
    await countedAsTheReferenceDoes("multi_turn_two_images");
    const usage = await countedAsTheReferenceDoes("multi_turn_two_images");
    assert.ok(usage.prompt_tokens_details.cached_tokens >= 64, JSON.stringify(usage));
    return usage.prompt_tokens_details.cached_tokens;
  },

  async stream() {
    const asked = { ...common, messages: messagesOf(cases.three_images_two_adjacent), ignore_eos: true };
    const whole = await client.chat.completions.create(asked);
    let [said, usage] = ["", null];
    for await (const chunk of await client.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } })) {
      said += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(said, whole.choices[0].message.content);
    assert.equal(usage.prompt_tokens, whole.usage.prompt_tokens);
    return usage.completion_tokens;
  },

  async responses() {
    const content = [
      { type: "input_image", image_url: url("square.png"), detail: "auto" },
      { type: "input_text", text: "What is in this image?" },
    ];
    const answer = await client.responses.create({ model, temperature: 0, max_output_tokens: 8, input: [{ role: "user", content }] });
    assert.equal(answer.usage.input_tokens, cases.one_image_square.prompt_tokens.length);
    return answer.status;
  },

  async errors() {
    const told = [];
    for (const [content, words] of [
      [[{ type: "image_url", image_url: { url: "data:image/png;base64,bm8gcGljdHVyZQ==" } }], "no PNG, JPEG, WebP or GIF"],
      [[{ type: "image_url", image_url: { url: "https://images.example.com/a.png" } }], "fetches no pictures"],
      [Array(4).fill(picture("tiny.png")), "4 pictures"],
    ]) {
      await assert.rejects(client.chat.completions.create({ ...common, messages: [{ role: "user", content }] }), (error) => {
        assert.ok(error instanceof OpenAI.BadRequestError && error.message.includes(words) && error.param === "messages", `${error}`);
        told.push(error.message);
        return true;
      });
    }
    return told;
  },
};

const seen = {};
for (const [name, story] of Object.entries(stories)) seen[name] = await story();
console.log(JSON.stringify(seen));

"""Shows pictures to a server as an unmodified openai client does: one, several, text around them, streams, turns, responses, errors.

    pictures.py URL MODEL IMAGES CASES

IMAGES is a folder of PNG files, CASES a JSON file with the reference's prompts and greedy answers about them.
Prints one JSON object: the name of each story and what it saw. A story that is not as the client expects raises.
"""

import base64
import json
import pathlib
import sys
import urllib.request

import openai

base_url, model, images, cases = sys.argv[1:]
client = openai.OpenAI(base_url=base_url, api_key="none", timeout=120, max_retries=0)
cases = {case["name"]: case for case in json.loads(pathlib.Path(cases).read_text())["cases"]}
common = {"model": model, "temperature": 0}
seen = {}


def story(function):
    seen[function.__name__] = function()


def url(name, kind="image/png"):
    data = base64.b64encode((pathlib.Path(images) / name).read_bytes()).decode()
    return f"data:{kind};base64,{data}"


def picture(name, **more):
    return {"type": "image_url", "image_url": {"url": url(name), **more}}


def text(words):
    return {"type": "text", "text": words}


def message(said, names):
    """A message of the reference's, in the words of the API."""
    if said["role"] != "user":
        return {"role": said["role"], "content": said["content"][0]["text"]}
    parts = [picture(next(names)) if part["type"] == "image" else text(part["text"]) for part in said["content"]]
    return {"role": "user", "content": parts}


def messages_of(case):
    names = iter(case["images"])
    return [message(said, names) for said in case["messages"]]


def shown(tokens):
    body = json.dumps({"tokens": tokens}).encode()
    address = base_url.removesuffix("/v1") + "/detokenize"
    request = urllib.request.Request(address, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["prompt"]


def as_the_reference_says(name):
    case = cases[name]
    answer = client.chat.completions.create(
        messages=messages_of(case), max_tokens=8, logprobs=True, extra_body={"ignore_eos": True}, **common
    )
    assert answer.usage.prompt_tokens == len(case["prompt_tokens"]), (name, answer.usage)
    said = b"".join(bytes(token.bytes) for token in answer.choices[0].logprobs.content)
    expected = shown(case["greedy_ids"][:8])
    assert said.decode(errors="replace") == expected, (name, said, expected)
    return answer.usage.prompt_tokens_details.cached_tokens


@story
def one_picture():
    return as_the_reference_says("one_image_square")


@story
def text_before_and_after():
    return as_the_reference_says("one_image_big_text_first")


@story
def system_and_transparency():
    return as_the_reference_says("one_image_rgba_system")


@story
def pictures_between_texts():
    return as_the_reference_says("two_images_interleaved")


@story
def adjacent_pictures():
    return as_the_reference_says("three_images_two_adjacent")


@story
def turns():
    as_the_reference_says("multi_turn_two_images")
    cached = as_the_reference_says("multi_turn_two_images")
    assert cached >= 64, cached
    return cached


@story
def stream():
    asked = {"messages": messages_of(cases["two_images_interleaved"]), "max_tokens": 8, "extra_body": {"ignore_eos": True}, **common}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **asked))
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content, (said, whole)
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens, (chunks[-1], whole.usage)
    return chunks[-1].usage.prompt_tokens


@story
def detail():
    """Taken and passed over: the model has one way to look."""
    content = lambda **more: [{"role": "user", "content": [picture("square.png", **more), text("?")]}]
    answers = [client.chat.completions.create(messages=content(detail=detail), max_tokens=4, **common) for detail in ("auto", "low", "high")]
    assert len({answer.usage.prompt_tokens for answer in answers}) == 1, answers
    return answers[0].usage.prompt_tokens


@story
def responses():
    content = [
        {"type": "input_text", "text": "Look at this: "},
        {"type": "input_image", "image_url": url("big.png"), "detail": "auto"},
        {"type": "input_text", "text": " and tell me the colours."},
    ]
    asked = {"model": model, "input": [{"role": "user", "content": content}], "max_output_tokens": 8, "temperature": 0}
    answer = client.responses.create(**asked)
    assert answer.usage.input_tokens == len(cases["one_image_big_text_first"]["prompt_tokens"]), answer.usage
    events = list(client.responses.create(stream=True, **asked))
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == answer.output_text, (said, answer)
    return answer.usage.input_tokens


@story
def errors():
    told = []
    for content, words in [
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,bm8gcGljdHVyZQ=="}}], "no PNG, JPEG, WebP or GIF"),
        ([{"type": "image_url", "image_url": {"url": "https://images.example.com/a.png"}}], "fetches no pictures"),
        ([picture("tiny.png")] * 4, "4 pictures"),
    ]:
        try:
            client.chat.completions.create(messages=[{"role": "user", "content": content}], **common)
        except openai.BadRequestError as error:
            assert words in error.body["message"] and error.param == "messages", error
            told.append(error.body["message"])
        else:
            raise AssertionError(f"{words}: not refused")
    try:
        client.responses.create(model=model, input=[{"role": "user", "content": [{"type": "input_image", "file_id": "file-1", "detail": "auto"}]}])
    except openai.BadRequestError as error:
        assert "input[0].content[0].image_url is missing" in error.body["message"], error
    else:
        raise AssertionError("a file that nobody has is taken")
    return told


print(json.dumps(seen))

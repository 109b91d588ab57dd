"""Uses a server as an unmodified openai client does: chat, stream, tools, structured output, logprobs, errors, cancel, responses.

Prints one JSON object: the name of each story and what it saw. A story that is not as the client expects raises.
"""

import json
import sys

import openai
import pydantic

base_url, model = sys.argv[1:]
client = openai.OpenAI(base_url=base_url, api_key="none", timeout=120, max_retries=0)
question = [{"role": "user", "content": "What is the capital of France?"}]
common = {"model": model, "temperature": 0, "seed": 1}
tools = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]
seen = {}


def story(function):
    seen[function.__name__] = function()


@story
def chat():
    answer = client.chat.completions.create(messages=question, max_tokens=24, **common)
    assert "Paris" in answer.choices[0].message.content, answer
    assert answer._request_id, "every answer has the number of its request"
    return answer.choices[0].message.content


@story
def stream():
    with client.chat.completions.stream(messages=question, max_tokens=24, **common) as events:
        final = events.get_final_completion()
    assert "Paris" in final.choices[0].message.content, final
    return final.choices[0].message.content


@story
def several():
    answer = client.chat.completions.create(messages=question, max_tokens=8, n=3, **{**common, "temperature": 1})
    assert [choice.index for choice in answer.choices] == [0, 1, 2], answer
    return len(answer.choices)


@story
def required_tool():
    answer = client.chat.completions.create(messages=question, tools=tools, tool_choice="required", max_tokens=200, **common)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls", answer
    call = choice.message.tool_calls[0]
    assert call.function.name == "get_weather" and json.loads(call.function.arguments)["city"] in ("Paris", "Rome"), call
    again = question + [choice.message.to_dict(), {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    follow = client.chat.completions.create(messages=again, tools=tools, max_tokens=8, **common)
    assert follow.choices[0].message.role == "assistant"
    return call.function.arguments


@story
def streamed_tool():
    named = {"type": "function", "function": {"name": "get_weather"}}
    pieces = []
    stream = client.chat.completions.create(messages=question, tools=tools, tool_choice=named, max_tokens=200, stream=True, **common)
    for chunk in stream:
        for delta in chunk.choices[0].delta.tool_calls or []:
            pieces.append(delta.function.arguments)
    assert json.loads("".join(pieces))["city"] in ("Paris", "Rome"), pieces
    return len(pieces)


class Capital(pydantic.BaseModel):
    country: str = pydantic.Field(pattern="^[A-Z][a-z]{2,12}$")
    inhabitants: int = pydantic.Field(ge=0, le=99_999_999)


@story
def structured():
    answer = client.chat.completions.parse(messages=question, response_format=Capital, max_tokens=200, **common)
    assert isinstance(answer.choices[0].message.parsed, Capital), answer
    return answer.choices[0].message.content


@story
def choice():
    answer = client.chat.completions.create(
        messages=question, max_tokens=8, extra_body={"structured_outputs": {"choice": ["Paris", "Rome"]}}, **common
    )
    assert answer.choices[0].message.content in ("Paris", "Rome"), answer
    return answer.choices[0].message.content


@story
def logprobs():
    answer = client.chat.completions.create(messages=question, max_tokens=4, logprobs=True, top_logprobs=3, **common)
    content = answer.choices[0].logprobs.content
    assert len(content) == 4 and all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in content), content
    return [token.token for token in content]


@story
def errors():
    names = []
    for fields, kind in [
        ({"model": "no-such-model"}, openai.NotFoundError),
        ({"temperature": 9}, openai.BadRequestError),
        ({"tool_choice": "required"}, openai.BadRequestError),
    ]:
        try:
            client.chat.completions.create(messages=question, **{**common, **fields})
        except kind as error:
            assert error.body["message"] and error.request_id, error
            names.append(error.code)
        else:
            raise AssertionError(f"{fields} is taken")
    return names


@story
def cancel():
    stream = client.chat.completions.create(messages=question, max_tokens=2000, stream=True, extra_body={"ignore_eos": True}, **common)
    next(iter(stream))
    stream.close()
    after = client.chat.completions.create(messages=question, max_tokens=2, **common)
    return after.choices[0].finish_reason


@story
def responses():
    answer = client.responses.create(model=model, input=question, instructions="Be brief.", max_output_tokens=24, temperature=0)
    assert "Paris" in answer.output_text and answer.status == "completed" and not answer.store, answer
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens, answer
    return answer.output_text


@story
def streamed_response():
    with client.responses.stream(model=model, input=question[0]["content"], max_output_tokens=24, temperature=0) as events:
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        final = events.get_final_response()
    assert "".join(deltas) == final.output_text and "Paris" in final.output_text, final
    return len(deltas)


@story
def structured_response():
    answer = client.responses.parse(model=model, input=question, text_format=Capital, max_output_tokens=200, temperature=0)
    assert isinstance(answer.output_parsed, Capital), answer
    return answer.output_text


@story
def response_tool():
    function = {"type": "function", "strict": True, **tools[0]["function"]}
    asked = {"model": model, "tools": [function], "temperature": 0}
    answer = client.responses.create(input=question, tool_choice="required", max_output_tokens=200, **asked)
    call = answer.output[0]
    assert call.type == "function_call" and json.loads(call.arguments)["city"] in ("Paris", "Rome"), answer
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    follow = client.responses.create(input=[*question, *answer.output, output], max_output_tokens=8, **asked)
    assert follow.output, follow
    return call.arguments


@story
def response_errors():
    for fields in [{"previous_response_id": "resp_1"}, {"store": True}, {"tools": [{"type": "web_search"}]}]:
        try:
            client.responses.create(model=model, input="Hello", **fields)
        except openai.BadRequestError as error:
            assert error.param == next(iter(fields)), error
        else:
            raise AssertionError(f"{fields} is taken")


print(json.dumps(seen))

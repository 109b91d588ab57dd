"""Uses a server as LangChain's ChatOpenAI does: chat, stream, tools, structured output, logprobs, errors, cancel, and the Responses API.

Prints one JSON object: the name of each story and what it saw. A story that is not as the client expects raises.
"""

import json
import sys
from typing import Literal

import openai
import pydantic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI

base_url, model = sys.argv[1:]
question = "What is the capital of France?"
seen = {}


def llm(**more):
    settings = {"model": model, "base_url": base_url, "api_key": "none", "timeout": 120, "max_retries": 0, "temperature": 0}
    return ChatOpenAI(**{**settings, **more})


def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


class Capital(pydantic.BaseModel):
    """A country and how many live there."""

    country: str = pydantic.Field(pattern="^[A-Z][a-z]{2,12}$")
    inhabitants: int = pydantic.Field(ge=0, le=99_999_999)


def story(function):
    seen[function.__name__] = function()


@story
def chat():
    answer = llm(max_tokens=24).invoke([("system", "You are a helpful assistant."), ("human", question)])
    assert "Paris" in answer.content and answer.usage_metadata["output_tokens"] > 0, answer
    return answer.content


@story
def stream():
    chunks = list(llm(max_tokens=24, stream_usage=True).stream(question))
    text = "".join(chunk.text for chunk in chunks)
    assert "Paris" in text and len(chunks) > 3, chunks
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) > 0, chunks
    return text


@story
def batch():
    answers = llm(max_tokens=8).batch([question] * 3)
    assert len({answer.content for answer in answers}) == 1, answers
    return len(answers)


@story
def tools():
    bound = llm(max_tokens=200).bind_tools([get_weather], tool_choice="required")
    asked = HumanMessage(question)
    called = bound.invoke([asked])
    call = called.tool_calls[0]
    assert call["name"] == "get_weather" and call["args"]["city"] in ("Paris", "Rome"), called
    outputs = [ToolMessage(get_weather(**call["args"]), tool_call_id=call["id"]) for call in called.tool_calls]
    follow = llm(max_tokens=8).bind_tools([get_weather]).invoke([asked, called, *outputs])
    assert follow.type == "ai", follow
    return call["args"]


@story
def streamed_tools():
    bound = llm(max_tokens=200).bind_tools([get_weather], tool_choice="get_weather")
    whole = None
    for chunk in bound.stream(question):
        whole = chunk if whole is None else whole + chunk
    assert whole.tool_calls[0]["args"]["city"] in ("Paris", "Rome"), whole
    return whole.tool_calls[0]["args"]


@story
def structured():
    found = {}
    for method in ("json_schema", "function_calling"):
        found[method] = llm(max_tokens=200).with_structured_output(Capital, method=method).invoke(question)
        assert isinstance(found[method], Capital), found
    return {method: capital.country for method, capital in found.items()}


@story
def logprobs():
    answer = llm(max_tokens=4, logprobs=True, top_logprobs=3).invoke(question)
    content = answer.response_metadata["logprobs"]["content"]
    assert len(content) == 4 and all(len(token["top_logprobs"]) == 3 for token in content), content
    return [token["token"] for token in content]


@story
def errors():
    names = []
    for fields, kind in [({"model": "no-such-model"}, openai.NotFoundError), ({"temperature": 9}, openai.BadRequestError)]:
        try:
            llm(**fields).invoke(question)
        except kind as error:
            names.append(error.code)
        else:
            raise AssertionError(f"{fields} is taken")
    return names


@story
def cancel():
    stream = llm(max_tokens=2000, extra_body={"ignore_eos": True}).stream(question)
    next(stream)
    stream.close()
    return llm(max_tokens=2).invoke(question).response_metadata["finish_reason"]


@story
def responses():
    with_responses = llm(max_tokens=24, use_responses_api=True)
    answer = with_responses.invoke(question)
    assert "Paris" in answer.text and answer.usage_metadata["output_tokens"] > 0, answer
    streamed = "".join(chunk.text for chunk in with_responses.stream(question))
    assert streamed == answer.text, (streamed, answer.text)
    called = llm(max_tokens=200, use_responses_api=True).bind_tools([get_weather], tool_choice="required").invoke(question)
    assert called.tool_calls[0]["args"]["city"] in ("Paris", "Rome"), called
    return answer.text


print(json.dumps(seen))

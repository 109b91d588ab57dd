"""Asks one question with the openai client, streaming, and prints what came as one JSON object."""

import json
import sys
import time

import openai

base_url, model, question = sys.argv[1:]
client = openai.OpenAI(base_url=base_url, api_key="none", timeout=60, max_retries=0)

names = [entry.id for entry in client.models.list()]
pieces, finish, usage, times = [], None, None, []
stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": question}],
    temperature=0,
    max_tokens=24,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    if chunk.usage is not None:
        usage = chunk.usage.completion_tokens
    for choice in chunk.choices:
        if choice.delta.content:
            pieces.append(choice.delta.content)
            times.append(time.monotonic())
        finish = choice.finish_reason or finish

whole = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": question}],
    temperature=0,
    max_tokens=24,
)
try:
    client.chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "hello"}])
    refusal = None
except openai.NotFoundError as error:
    refusal = error.message

print(
    json.dumps(
        {
            "models": names,
            "pieces": len(pieces),
            "text": "".join(pieces),
            "finish": finish,
            "completionTokens": usage,
            "spreadSeconds": times[-1] - times[0] if times else 0,
            "whole": whole.choices[0].message.content,
            "refusal": refusal,
        }
    )
)

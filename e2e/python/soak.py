"""Random clients against a running server for SECONDS_LONG: they cancel, stall, send half of what they announce, or nonsense.

Each has a seed, so that a run can be told again. When all have left, everything that they took must be free: blocks of the arena, places,
connections, memory; and the server must answer as it did before. Prints figures; ends with an error where something is left or broke.
"""

import asyncio
import collections
import json
import os
import random
import re
import socket
import struct
import sys
import time
import urllib.request

HOST, PORT = re.fullmatch(r"http://([^:]+):(\d+)", os.environ["SERVER"]).groups()
MANAGEMENT = os.environ["MANAGEMENT"]
PROCESS = os.environ["SERVER_PROCESS"]
LOG = os.environ["SERVER_LOG"]
LONG = float(os.environ["SECONDS_LONG"])
SEED = int(os.environ.get("SEED", "1"))
CLIENTS = 48
# Longer than the server's own patience with a request's head.
PATIENCE = 100
# What a process of this size may take more at the end than when it was warm, in MB: caches of the allocator, not of ours.
MOST_GROWTH = 48
WORDS = "the of and to in a is that it was for on are as with his they at be this from I have or by one had not but".split()

counts = collections.Counter()
trouble = []


def metrics():
    with urllib.request.urlopen(f"{MANAGEMENT}/metrics", timeout=PATIENCE) as answer:
        return answer.read().decode()


def value(text, name):
    found = re.search(rf"^{re.escape(name)}(?:{{[^}}]*}})? ([0-9.e+-]+)$", text, re.MULTILINE)
    if not found:
        sys.exit(f"soak: the metrics have no {name}")
    return float(found[1])


def used_blocks(text):
    blocks = re.search(r'num_gpu_blocks="(\d+)"', text)
    return round(value(text, "vllm:kv_cache_usage_perc") * int(blocks[1]))


def resident():
    with open(f"/proc/{PROCESS}/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+) kB", status.read())[1]) / 1024


def descriptors():
    return len(os.listdir(f"/proc/{PROCESS}/fd"))


def ask(path, body):
    request = urllib.request.Request(
        f"http://{HOST}:{PORT}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.loads(answer.read())


def text_of(rng, most):
    return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))


def chat_body(rng):
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": text_of(rng, 60)} for _ in range(rng.choice([1, 1, 1, 3]))],
        "max_tokens": rng.choice([1, 5, 40, 200]),
        "temperature": rng.choice([0, 1]),
        "stream": rng.random() < 0.6,
    }
    extras = [
        {"n": rng.randint(2, 8)},
        {"logprobs": True, "top_logprobs": rng.randint(0, 20)},
        {"stop": rng.choices(WORDS, k=rng.randint(1, 4))},
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"regex": "[a-z]{1,40}"}},
        {"logit_bias": {str(rng.randrange(500)): rng.uniform(-100, 100)}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}], "tool_choice": "required"},
        {"presence_penalty": 1.5, "ignore_eos": True},
        {"cache_salt": rng.choice(WORDS)},
        {"stream": False, "prompt_logprobs": 3},
        {"stream_options": {"include_usage": True}},
    ]
    for extra in rng.sample(extras, rng.choice([0, 0, 1, 2])):
        body.update(extra)
    return "/v1/chat/completions", body


def request_body(rng):
    kind = rng.random()
    if kind < 0.6:
        return chat_body(rng)
    if kind < 0.75:
        prompt = rng.choice([text_of(rng, 150), [rng.randrange(500) for _ in range(rng.randint(1, 240))]])
        return "/v1/completions", {"model": "tiny", "prompt": prompt, "max_tokens": rng.choice([1, 16, 100]), "stream": rng.random() < 0.5}
    if kind < 0.9:
        return "/v1/responses", {"model": "tiny", "input": text_of(rng, 60), "max_output_tokens": rng.choice([1, 30]), "stream": rng.random() < 0.5}
    return "/tokenize", {"prompt": text_of(rng, 100)}


def head(path, length, more=""):
    return f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{more}\r\n".encode()


class Connection:
    """A socket whose end can be rude."""

    async def __aenter__(self):
        self.reader, self.writer = await asyncio.open_connection(HOST, int(PORT), limit=1 << 20)
        return self

    async def __aexit__(self, *_):
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass

    def send(self, data):
        self.writer.write(data)

    def reset(self):
        """The next close is a reset, as from a machine that lost power."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def answer(self):
        """The status and the whole answer of a request that closes its connection."""
        data = await asyncio.wait_for(self.reader.read(-1), PATIENCE)
        status = int(data[9:12]) if data.startswith(b"HTTP/1.1 ") else 0
        counts[status] += 1
        if status >= 500:
            trouble.append(data[:2000].decode(errors="replace"))
        return status, data


async def patient(rng, connection):
    """Reads all of its answer."""
    path, body = request_body(rng)
    body = json.dumps(body).encode()
    connection.send(head(path, len(body), "connection: close\r\n") + body)
    status, data = await connection.answer()
    if status not in (200, 400, 429):
        trouble.append(f"{status} for {body[:500]}")


async def leaver(rng, connection):
    """Leaves at any moment, politely or not."""
    path, body = request_body(rng)
    body = json.dumps({**body, "stream": True}).encode()
    connection.send(head(path, len(body)) + body)
    if rng.random() < 0.7:
        for _ in range(rng.randint(0, 6)):
            await asyncio.wait_for(connection.reader.read(rng.choice([1, 100, 4096])), PATIENCE)
    if rng.random() < 0.5:
        connection.reset()


async def staller(rng, connection):
    """Asks for much and does not read."""
    connection.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    body = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 250, "n": 4, "stream": True, "ignore_eos": True, "logprobs": 20}).encode()
    connection.send(head("/v1/completions", len(body)) + body)
    await asyncio.sleep(rng.uniform(0, 3))
    if rng.random() < 0.5:
        connection.reset()


async def liar(rng, connection):
    """Announces another length than it sends."""
    path, body = request_body(rng)
    body = json.dumps(body).encode()
    lie = rng.choice(["longer", "shorter", "huge", "negative", "twice", "chunks", "chunks cut"])
    if lie == "longer":
        connection.send(head(path, len(body) + rng.randint(1, 5000)) + body)
        await asyncio.sleep(rng.uniform(0, 1))
        return
    if lie == "shorter":
        connection.send(head(path, max(len(body) - rng.randint(1, 50), 0), "connection: close\r\n") + body)
    elif lie == "huge":
        connection.send(head(path, rng.choice([1 << 25, 1 << 40, (1 << 64) - 1, 1 << 70]), "connection: close\r\n") + body)
    elif lie == "negative":
        connection.send(head(path, -5, "connection: close\r\n") + body)
    elif lie == "twice":
        connection.send(head(path, len(body), f"content-length: {len(body) + 1}\r\nconnection: close\r\n") + body)
    else:
        start = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
        size = len(body) if lie == "chunks" else rng.choice([len(body) + 7, 1 << 62])
        connection.send(start.encode() + f"{size:x}\r\n".encode() + body + b"\r\n0\r\n\r\n")
        if lie == "chunks cut":
            await asyncio.sleep(rng.uniform(0, 1))
            return
    await connection.answer()


async def trickler(rng, connection):
    """Sends its request letter by letter, and perhaps not to the end."""
    path, body = request_body(rng)
    body = json.dumps(body).encode()
    data = head(path, len(body), "connection: close\r\n") + body
    end = len(data) if rng.random() < 0.5 else rng.randrange(len(data))
    step = max(len(data) // 20, 1)
    for at in range(0, end, step):
        connection.send(data[at : min(at + step, end)])
        await asyncio.sleep(rng.uniform(0, 0.05))
    if end == len(data):
        await connection.answer()


async def babbler(rng, connection):
    """Sends nonsense, or a request with some bytes changed."""
    path, body = request_body(rng)
    data = bytearray(json.dumps(body).encode())
    if rng.random() < 0.7:
        for _ in range(rng.randint(1, 8)):
            at = rng.randrange(len(data))
            data[at : at + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 3)) or b"9"
        connection.send(head(path, len(data), "connection: close\r\n") + bytes(data))
    else:
        connection.send(rng.randbytes(rng.randint(1, 2000)) + b"\r\n\r\n")
        connection.writer.write_eof()
    await connection.answer()


KINDS = [(patient, 30), (leaver, 25), (staller, 5), (liar, 15), (trickler, 10), (babbler, 15)]


async def client(number, until):
    rng = random.Random(SEED * 1_000_003 + number)
    kinds, weights = zip(*KINDS)
    while time.monotonic() < until:
        kind = rng.choices(kinds, weights)[0]
        counts[kind.__name__] += 1
        try:
            async with Connection() as connection:
                await kind(rng, connection)
        except (ConnectionError, asyncio.IncompleteReadError):
            counts["cut"] += 1
        except asyncio.TimeoutError:
            trouble.append(f"{kind.__name__} of client {number} got no answer in {PATIENCE} s")


async def watch(until, samples):
    while time.monotonic() < until:
        await asyncio.sleep(min(5, LONG / 20))
        samples.append(resident())


async def soak():
    until = time.monotonic() + LONG
    samples = []
    await asyncio.gather(watch(until, samples), *(client(number, until) for number in range(CLIENTS)))
    return samples


def left():
    text = metrics()
    return {
        "blocks": used_blocks(text),
        "running": value(text, "vllm:num_requests_running"),
        "waiting": value(text, "vllm:num_requests_waiting"),
        "descriptors": max(descriptors() - descriptors_before, 0),
    }


question = {"model": "tiny", "messages": [{"role": "user", "content": "the of and"}], "temperature": 0, "max_tokens": 40}
before = ask("/v1/chat/completions", question)["choices"]
descriptors_before = descriptors()
samples = asyncio.run(soak())

deadline = time.monotonic() + PATIENCE
while any((over := left()).values()) and time.monotonic() < deadline:
    time.sleep(0.2)
after = ask("/v1/chat/completions", question)["choices"]
requests = sum(counts[kind.__name__] for kind, _ in KINDS)
# The allocator has what it needs after a fifth of the time.
warm = max(samples[: max(len(samples) // 5, 1)])
growth = max(samples[-max(len(samples) // 5, 1) :]) - warm
with open(LOG) as log:
    panics = log.read().count("panicked")

print(" ".join(f"{name}={count}" for name, count in sorted(counts.items(), key=lambda item: str(item[0]))))
print(f"figure soak_requests {requests}")
print(f"figure soak_seconds {LONG:.0f} s")
print(f"figure soak_leaked_blocks {over['blocks']}")
print(f"figure soak_rss_growth_mb {growth:.1f} MB")
for text in trouble[:10]:
    print(f"soak: {text}", file=sys.stderr)
if trouble or panics or any(over.values()) or after != before or growth > MOST_GROWTH or not counts[200]:
    sys.exit(f"soak: {len(trouble)} bad answers, {panics} panics, left over {over}, the same answer {after == before}, {growth:.1f} MB more")

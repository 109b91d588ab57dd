"""What a server on the GPU answers, from hack/gpu-check: serving.py RUNTIME FIXTURE DEVICE

Answers alone and in company, steps that are recorded and repeated, sampling with seeds, pictures, and more memory than there is.
"""

import base64
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from server import Server

TOKENS = 24
COMPANY = 8


def main() -> None:
    runtime, fixture, device = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    flags = ["--model", str(fixture / "model"), "--device", device, "--max-sequences", str(COMPANY), "--context-length", "512"]
    prompts = [[(at * (13 + number) + 7 * number) % 500 for at in range(5 + 17 * number)] for number in range(COMPANY)]
    invariant = ["--batch-invariant"] if device == "cuda" else []
    with Server(runtime, flags + invariant) as server:
        found = server.status()["device"]
        expect(found == device, f"it computes on {found}: {server.status()}")
        alone = [server.complete(prompt, TOKENS, temperature=0) for prompt in prompts]
        in_company(server, prompts, alone)
        seeds(server, prompts[2], alone[2])
        pictures(server, fixture)
    with Server(runtime, flags) as server:
        # The same once more and as fast as can be: tokens may differ where two are about equally likely.
        again = [server.complete(prompt, TOKENS, temperature=0) for prompt in prompts]
        same = sum(one == other for one, other in zip(alone, again))
        print(f"serving: {same} of {COMPANY} greedy answers are those of the batch-invariant mode")
        expect(same >= COMPANY // 2, "the fast mode answers otherwise")
        with ThreadPoolExecutor(COMPANY) as pool:
            together = list(pool.map(lambda prompt: server.complete(prompt, TOKENS, temperature=0), prompts))
        expect(all(len(answer) == TOKENS for answer in together), "answers in company are cut short")
    if device == "cuda":
        too_much(runtime, flags)
    print("serving: passed")


def in_company(server: Server, prompts: list[list[int]], alone: list[list[str]]) -> None:
    """Steps of every number of rows up to all, each more than once, and none changes a token."""
    for count in [2, 3, 5, COMPANY, COMPANY]:
        with ThreadPoolExecutor(count) as pool:
            answers = list(pool.map(lambda prompt: server.complete(prompt, TOKENS, temperature=0), prompts[:count]))
        expect(answers == alone[:count], f"{count} answers at once are not those of each alone")


def seeds(server: Server, prompt: list[int], greedy: list[str]) -> None:
    def sampled(**options: object) -> list[str]:
        return server.complete(prompt, TOKENS, **{"temperature": 1.0, "seed": 1, **options})

    expect(sampled() == sampled(), "a seed does not give the same answer twice")
    expect(len({tuple(sampled(seed=seed)) for seed in range(4)}) == 4, "seeds give the same answer")
    for only in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        expect(sampled(**only) == greedy, f"{only} is not the likeliest token")
    expect(sampled(top_k=5, top_p=0.9, min_p=0.01) == sampled(top_k=5, top_p=0.9, min_p=0.01), "limits break the seed")
    expect(sampled(frequency_penalty=2.0, temperature=0) != greedy, "a penalty changes nothing")


def pictures(server: Server, fixture: Path) -> None:
    picture = base64.b64encode((fixture / "images/square.png").read_bytes()).decode()
    content = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}, {"type": "text", "text": "What is it?"}]
    body = {"model": "model", "messages": [{"role": "user", "content": content}], "max_tokens": TOKENS, "temperature": 0}

    def text() -> str:
        code, answer = server.ask(server.port, "POST", "/v1/chat/completions", body)
        expect(code == 200, f"a picture gets {code}: {answer!r}")
        return json.loads(answer)["choices"][0]["message"]["content"]

    expect(text() == text(), "a picture that is known gets another answer")


def too_much(runtime: str, flags: list[str]) -> None:
    """More than any card has: the process says so and ends, and the next one finds everything as before."""
    try:
        with Server(runtime, [*flags, "--kv-cache-memory-bytes", str(1 << 50)]):
            sys.exit("serving: a cache of a pebibyte was promised")
    except RuntimeError as ended:
        expect("ended with 1" in str(ended) and "LoadFailed" in str(ended), f"too much memory is told otherwise: {ended}")
    with Server(runtime, flags) as server:
        expect(len(server.complete([1, 2, 3], 4)) == 4, "no answer after one that asked for too much")


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        sys.exit(f"serving: {otherwise}")


main()

"""Measures the runtime and its peers by turns and prints `figure NAME VALUE` lines; started by hack/bench-cpu.

Both servers are asked by the same client over HTTP, so that what is timed is what a user gets.
Rounds that other programs disturbed are dropped, as rounds.py says.
"""

import contextlib
import http.client
import json
import mmap
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from rounds import BUSY, figure, note, rounds, undisturbed

THREADS = int(os.environ.get("THREADS", "2"))
RUNTIME, LLAMA = os.environ["RUNTIME"], os.environ["LLAMA"]
FILES = {"q4_1": os.environ["Q4_1"], "q8_0": os.environ["Q8_0"], "bf16": os.environ.get("BF16")}
# Two sentences, six times: 288 tokens of SmolLM2 and the few that make each prompt new.
SENTENCES = (
    "A Kubernetes operator watches custom resources and keeps the state of a cluster close to what the user asked for. When a model is "
    "requested, the operator creates a deployment, waits until the weights are loaded, and routes traffic to it. "
)
ANSWER = 128
# SmolLM2-135M: 30 layers, keys and values, 3 heads of 64 numbers, in single precision; blocks of 32 tokens.
KV_TOKEN, KV_BLOCK = 30 * 2 * 3 * 64 * 4, 32

serial = 0


def new_prompt(repeats=6):
    """A prompt that no cache has seen."""
    global serial
    serial += 1
    return f"Note {serial} of {os.getpid()}. " + SENTENCES * repeats


def thread_seconds(pid):
    """Time on a processor of all threads of a process, to the nanosecond."""
    total = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/task/{thread}/schedstat") as stat:
            total += int(stat.read().split()[0])
    return total / 1e9


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Server:
    """A server of one file, on a port of its own, ended with its block."""

    def __init__(self, kind, file, sequences=1, context=1024, guesses=0):
        self.kind, self.port = kind, free_port()
        if kind == "ours":
            command = [
                RUNTIME, "serve", "--model", file, "--served-name", "model", "--threads", THREADS, "--listen", f"127.0.0.1:{self.port}",
                "--management-listen", f"127.0.0.1:{free_port()}", "--max-sequences", sequences, "--max-queue", 64,
                "--context-length", context, "--kv-cache-memory-bytes", (sequences + 1) * context * KV_TOKEN, "--drain-seconds", 0,
                "--speculative-tokens", guesses,
            ]  # fmt: skip
        else:
            command = [
                f"{LLAMA}/llama-server", "--model", file, "--alias", "model", "--threads", THREADS, "--threads-batch", THREADS,
                "--host", "127.0.0.1", "--port", self.port, "--parallel", sequences, "--ctx-size", sequences * context, "--cache-ram", 0,
            ]  # fmt: skip
        self.begin = time.monotonic()
        self.process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # Nothing is being answered any more, so there is nothing to drain.
        self.process.kill()
        self.process.wait()

    def now(self):
        return thread_seconds(self.process.pid) if BUSY else time.monotonic()

    def ask(self, prompt, tokens, **more):
        """Streams an answer: (seconds to the first text, seconds from it to the last, usage)."""
        body = {
            "model": "model", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True, "ignore_eos": True,
            "stream_options": {"include_usage": True}, "cache_prompt": False, **more,
        }  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        begin = self.now()
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise ConnectionError(f"{self.kind} answered {response.status}: {response.read()[:200]}")
        lines = []
        while line := response.readline():
            if line.startswith(b"data: {"):
                lines.append((self.now(), line))
        connection.close()
        first = last = usage = None
        for moment, line in lines:
            chunk = json.loads(line[6:])
            usage = chunk.get("usage") or usage
            if any(choice["text"] for choice in chunk["choices"]):
                first, last = first or moment, moment
        return first - begin, last - first, usage

    def ready(self):
        """Waits for the first answer and returns when it came, in seconds from the start of the program."""
        while True:
            try:
                self.ask("Hello", 1)
                return time.monotonic() - self.begin
            except OSError:
                if self.process.poll() is not None or time.monotonic() - self.begin > 120:
                    sys.exit(f"bench-cpu: {self.kind} does not answer")
                time.sleep(0.002)

    def speed(self):
        """Tokens a second of a new prompt and of its answer."""
        with undisturbed(self.process.pid):
            first, rest, usage = self.ask(new_prompt(), ANSWER)
        return usage["prompt_tokens"] / first, (usage["completion_tokens"] - 1) / rest

    def together(self, prompts, tokens, **more):
        """Asks for all at once; (seconds until the last is there, the answers)."""
        answers = [None] * len(prompts)

        def one(index):
            answers[index] = self.ask(prompts[index], tokens, **{name: value(index) for name, value in more.items()})

        threads = [threading.Thread(target=one, args=(index,)) for index in range(len(prompts))]
        begin = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if None in answers:
            sys.exit(f"bench-cpu: {self.kind} left requests unanswered")
        return time.monotonic() - begin, answers


def median_speeds(results):
    return [statistics.median(values) for values in zip(*results, strict=True)]


def of_server(kind, file, **settings):
    with Server(kind, file, **settings) as server:
        server.ready()
        server.ask(new_prompt(), 16)
        return median_speeds(server.speed() for _ in range(2))


def compare(name, theirs, peer):
    """Rounds of ours and a peer's, one after the other; figures of speeds and ratios."""
    results = rounds(lambda: (*of_server("ours", FILES[name]), *theirs()))
    prompt, decode, their_prompt, their_decode = median_speeds(results)
    note(f"{name}: ours {prompt:.0f} / {decode:.1f}, {peer} {their_prompt:.0f} / {their_decode:.1f} tokens a second, prompt / answer")
    unit = "_by_cpu_time" if BUSY else ""
    figure(f"cpu_{name}_prompt_ratio_{peer}{unit}", statistics.median(ours / other for ours, _, other, _ in results))
    figure(f"cpu_{name}_decode_ratio_{peer}{unit}", statistics.median(ours / other for _, ours, _, other in results))


def quantised(name):
    compare(name, lambda: of_server("llama.cpp", FILES[name]), "llamacpp")


@contextlib.contextmanager
def by_lines(python, script, weights, settings):
    """A program that is asked by lines and tells its speeds itself: what asks it, and its process."""
    command = [os.environ[python], os.path.join(os.path.dirname(__file__), script), weights]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, **settings}
    ) as process:

        def ask(prompt, tokens):
            process.stdin.write(json.dumps({"prompt": prompt, "tokens": tokens}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                sys.exit(f"bench-cpu: {script} ended")
            answer = json.loads(line)
            return answer["prompt"], answer["decode"]

        yield ask, process.pid


def mistralrs():
    limits = {"CANDLE_NUM_THREADS": str(THREADS), "RAYON_NUM_THREADS": str(THREADS)}

    def speeds():
        with by_lines("MISTRALRS", "ask_mistralrs.py", FILES["q4_1"], limits) as (ask, pid):
            ask(new_prompt(1), 4)
            with undisturbed(pid):
                return ask(new_prompt(), 32)

    compare("q4_1", speeds, "mistralrs")


def vllm():
    """From one folder of BF16 safetensors. vLLM is asked in its own process, without HTTP; it compiles the model at its first start."""
    home = os.path.dirname(os.path.dirname(os.environ["VLLM"]))
    processors = ",".join(str(processor) for processor in range(THREADS))
    settings = {
        # What vLLM sets where it starts workers, which it does not here, and what it wants to be started with.
        "OMP_NUM_THREADS": str(THREADS), "KMP_AFFINITY": f"granularity=fine,explicit,proclist=[{processors}]",
        "KMP_BLOCKTIME": "5", "KMP_TPAUSE": "0", "LD_PRELOAD": f"{home}/lib/libiomp5.so libtcmalloc_minimal.so.4",
        # Gigabytes.
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CACHE_ROOT": f"{home}/compiled", "TORCHINDUCTOR_CACHE_DIR": f"{home}/compiled",
    }  # fmt: skip

    def speeds():
        with by_lines("VLLM", "ask_vllm.py", FILES["bf16"], settings) as (ask, pid):
            ask(new_prompt(), 16)
            results = []
            for _ in range(2):
                with undisturbed(pid):
                    results.append(ask(new_prompt(), ANSWER))
        return median_speeds(results)

    compare("bf16", speeds, "vllmcpu")


def copying():
    """An answer that repeats its prompt, with tokens that are guessed from it and without."""
    results = rounds(lambda: [of_server("ours", FILES["q4_1"], guesses=guesses)[1] for guesses in (8, 0)])
    guessed, plain = median_speeds(results)
    note(f"an answer that repeats its prompt: {guessed:.0f} tokens a second with eight guesses, {plain:.0f} without")
    figure("copying_8_guesses_speedup", statistics.median(guessed / plain for guessed, plain in results))


def serve():
    """16 clients with two requests each."""

    def one(kind):
        with Server(kind, FILES["q4_1"], sequences=16, context=512) as server:
            server.ready()
            server.together([new_prompt() for _ in range(16)], 4)
            seconds, waits = 0, []
            with undisturbed(server.process.pid):
                for _ in range(2):
                    took, answers = server.together([new_prompt() for _ in range(16)], 64)
                    seconds += took
                    waits += [first for first, _, _ in answers]
            return seconds, statistics.quantiles(waits, n=100, method="inclusive")[98]

    results = rounds(lambda: (*one("ours"), *one("llama.cpp")))
    seconds, wait, their_seconds, their_wait = median_speeds(results)
    note(f"16 clients: ours {seconds:.2f} s, first token within {wait:.2f} s; llama.cpp {their_seconds:.2f} s, {their_wait:.2f} s")
    figure("serve_16_total_ratio_llamacpp", statistics.median(theirs / ours for ours, _, theirs, _ in results))
    figure("serve_16_ttft_p99_ratio_llamacpp", statistics.median(ours / theirs for _, ours, _, theirs in results))


def prefix():
    """16 clients at once with one prefix of 1,000 tokens; a salt of its own for each turns sharing off."""

    def one():
        with Server("ours", FILES["q4_1"], sequences=16, context=1280) as server:
            server.ready()
            took = []
            for shared in (True, False):
                beginning = new_prompt(21)
                prompts = [f"{beginning} Question {index}:" for index in range(16)]
                with undisturbed(server.process.pid):
                    took.append(server.together(prompts, 8, cache_salt=lambda index, s=shared: "all" if s else f"client {index}")[0])
        return took

    results = rounds(one)
    shared, alone = median_speeds(results)
    note(f"16 clients with one prefix: {shared:.2f} s, without sharing {alone:.2f} s")
    figure("prefix_16_speedup", statistics.median(alone / shared for shared, alone in results))


def neighbour():
    """One busy loop beside the server: what remains of the speed."""

    def one(kind):
        with Server(kind, FILES["q4_1"]) as server:
            server.ready()
            alone = server.speed()[1]
            with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as loop:
                try:
                    with undisturbed(server.process.pid, loop.pid):
                        _, rest, usage = server.ask(new_prompt(1), ANSWER)
                finally:
                    loop.kill()
        return (usage["completion_tokens"] - 1) / rest / alone

    kept, theirs = median_speeds(rounds(lambda: (one("ours"), one("llama.cpp"))))
    figure("decode_kept_with_busy_neighbour", kept)
    figure("decode_kept_with_busy_neighbour_llamacpp", theirs)


def have_memory(size=1 << 30):
    """Takes memory and gives it back, so that no program waits until a virtual machine's host gives what it had taken back."""
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for page in range(0, size, mmap.PAGESIZE):
            memory[page] = 1


def start():
    """From the start of the program to the first token, and what memory one answer leaves taken."""

    def one(kind):
        have_memory()
        with Server(kind, FILES["q4_1"]) as server:
            with undisturbed(server.process.pid):
                took = server.ready()
            _, _, usage = server.ask(new_prompt(), ANSWER)
            with open(f"/proc/{server.process.pid}/status") as status:
                resident = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))
        blocks = -(-(usage["prompt_tokens"] + usage["completion_tokens"]) // KV_BLOCK)
        return took, (resident - os.path.getsize(FILES["q4_1"]) - blocks * KV_BLOCK * KV_TOKEN) / 1e6

    results = rounds(lambda: (*one("ours"), *one("llama.cpp")))
    ours, memory, theirs, _ = median_speeds(results)
    note(f"from the start to the first token: ours {ours:.2f} s, llama.cpp {theirs:.2f} s")
    figure("start_to_first_token_ratio_llamacpp", statistics.median(ours / theirs for ours, _, theirs, _ in results))
    figure("rss_over_file_and_kv_mb", memory)


def divergence():
    """How far the predictions of the Q4_1 file are from those of the same weights in full precision, for each program by itself."""
    full = FILES["q4_1"].replace(".Q4_1.gguf", ".F32.gguf")
    if not os.path.exists(full):
        run(f"{LLAMA}/llama-quantize", "--allow-requantize", FILES["q4_1"], f"{full}.partial", "F32", THREADS)
        os.rename(f"{full}.partial", full)
    text, chunks = "ARCHITECTURE.md", 4
    ours = run(os.environ["DIVERGENCE"], full, FILES["q4_1"], text, chunks)
    with tempfile.NamedTemporaryFile() as base:
        common = ["--file", text, "--ctx-size", 512, "--chunks", chunks, "--threads", THREADS, "--kl-divergence-base", base.name]
        run(f"{LLAMA}/llama-perplexity", "--model", full, *common)
        theirs = run(f"{LLAMA}/llama-perplexity", "--model", FILES["q4_1"], *common, "--kl-divergence")
    mean = next(line for line in theirs.splitlines() if line.startswith("Mean    KLD"))
    figure("kl_ours", float(ours))
    figure("kl_llamacpp", float(mean.split(":")[1].split()[0]))


def run(*command):
    """What a program prints; its failure ends this one."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"bench-cpu: {command[0]} failed:\n{done.stdout[-2000:]}")
    return done.stdout


FIGURES = {
    "q4_1": lambda: quantised("q4_1"),
    "q8_0": lambda: quantised("q8_0"),
    "mistralrs": mistralrs,
    "copying": copying,
    "serve": serve,
    "prefix": prefix,
    "neighbour": neighbour,
    "start": start,
    "divergence": divergence,
    "vllm": vllm,
}

if __name__ == "__main__":
    wanted = os.environ.get("FIGURES", "").split() or list(FIGURES)
    if BUSY and (THREADS != 1 or set(wanted) - {"q4_1", "q8_0", "divergence", "vllm"}):
        sys.exit("bench-cpu: BUSY=1 measures q4_1, q8_0 and vllm with THREADS=1")
    if unknown := set(wanted) - set(FIGURES):
        sys.exit(f"bench-cpu: there are no figures {' '.join(unknown)}, only {' '.join(FIGURES)}")
    for name in wanted:
        FIGURES[name]()

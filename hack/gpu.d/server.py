"""A runtime that serves, for the scripts beside this one; standard library alone."""

import http.client
import json
import random
import socket
import subprocess
import tempfile
import time


def free() -> socket.socket:
    """A port below those that the system gives to others meanwhile."""
    while True:
        try:
            return socket.create_server(("127.0.0.1", random.randrange(10000, 32000)))
        except OSError:
            pass


class Server:
    """`with Server(runtime, flags) as server:` starts one and waits until it is ready."""

    def __init__(self, runtime: str, flags: list[str], seconds: float = 60) -> None:
        sockets = [free() for _ in range(2)]
        self.port, self.management = (taken.getsockname()[1] for taken in sockets)
        for taken in sockets:
            taken.close()
        listens = ["--listen", f"127.0.0.1:{self.port}", "--management-listen", f"127.0.0.1:{self.management}"]
        self.command = [runtime, "serve", "--served-name", "model", "--drain-seconds", "1", *listens, *flags]
        self.seconds = seconds

    def __enter__(self) -> "Server":
        self.log = tempfile.TemporaryFile()
        self.begun = time.monotonic()
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=subprocess.STDOUT)
        try:
            self.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def wait(self) -> None:
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}: {self.words()}")
            if time.monotonic() - self.begun > self.seconds:
                raise RuntimeError(f"the server is not ready after {self.seconds} s: {self.words()}")
            try:
                if self.ask(self.management, "GET", "/readyz")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.01)

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def words(self) -> str:
        self.log.seek(0)
        return self.log.read().decode(errors="replace")[-2000:]

    def ask(self, port: int, method: str, path: str, body: dict | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def status(self) -> dict:
        return json.loads(self.ask(self.management, "GET", "/status")[1])

    def complete(self, prompt: list[int], tokens: int, **options: object) -> list[str]:
        """The answer's tokens, by their names."""
        body = {"model": "model", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "logprobs": 0, **options}
        code, answer = self.ask(self.port, "POST", "/v1/completions", body)
        if code != 200:
            raise RuntimeError(f"status {code}: {answer.decode(errors='replace')}")
        return json.loads(answer)["choices"][0]["logprobs"]["tokens"]

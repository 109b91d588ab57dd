"""How long a start takes with weights that were read before, from the process to a first token: start.py RUNTIME MODEL DEVICE"""

import sys
import time

from server import Server


def main() -> None:
    runtime, model, device = sys.argv[1:]
    best = float("inf")
    for _ in range(3):
        with Server(runtime, ["--model", model, "--device", device, "--context-length", "1024"]) as server:
            server.complete([1, 2, 3], 1)
            best = min(best, time.monotonic() - server.begun)
            found = server.status()
        if found["device"] != device:
            sys.exit(f"start: it computes on {found['device']}: {found.get('deviceObstacle')}")
        print(f"start: {found['phases']}", file=sys.stderr)
    print(f"figure gpu_warm_start_to_first_token_s {best:.2f} s")


main()

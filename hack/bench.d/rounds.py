"""What benchmarks in Python share: figures, and rounds that count only where other programs left the processors alone."""

import contextlib
import os
import sys
import time

ROUNDS = int(os.environ.get("ROUNDS", "3"))
# Rounds count whatever else runs: for what is measured by processor time.
BUSY = bool(os.environ.get("BUSY"))
# Share of all processors that other programs may take in a round.
OTHERS = 0.06
TICK = os.sysconf("SC_CLK_TCK")


def figure(name, value):
    print(f"figure {name} {value:.3g}" if value < 1000 else f"figure {name} {value:.0f}", flush=True)


def note(text):
    print(text, flush=True)


class Starved(Exception):
    """Other programs took too much of the processor."""


def process_seconds(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def machine_seconds():
    """Time that all processors together were busy or taken away by the host."""
    with open("/proc/stat") as stat:
        user, nice, system, _idle, _wait, irq, softirq, steal = (int(field) for field in stat.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICK


@contextlib.contextmanager
def undisturbed(*pids):
    """Raises Starved where programs other than this one and those of `pids` were busy meanwhile."""

    def sample():
        own = os.times()
        return machine_seconds(), sum(process_seconds(pid) for pid in pids) + own.user + own.system, time.monotonic()

    busy, ours, begin = sample()
    yield
    busy_after, ours_after, end = sample()
    others = ((busy_after - busy) - (ours_after - ours)) / (end - begin) / os.cpu_count()
    if others > OTHERS and not BUSY:
        raise Starved(f"other programs took {others:.0%} of the processors")


def rounds(measure):
    """Calls `measure` until ROUNDS rounds were undisturbed; at most twice as many are tried. Their results."""
    kept = []
    for _ in range(2 * ROUNDS + 1):
        try:
            kept.append(measure())
        except Starved as reason:
            note(f"dropped a round: {reason}")
        if len(kept) == ROUNDS:
            return kept
    sys.exit("bench: this machine is too busy to measure on")

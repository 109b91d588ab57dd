"""Measures pictures with the runtime and Transformers by turns and prints `figure NAME VALUE` lines; started by hack/bench-vision.

Each program runs with the weights of one type at a time, does the same by the same command, and says how long it took.
"""

import json
import os
import statistics
import subprocess
import sys

from rounds import figure, note, rounds, undisturbed

THREADS = os.environ.get("THREADS", "2")
# Of one tile and of four.
SMALL, LARGE = (500, 400), (1100, 1000)

serial = 0


def fresh(size):
    """A picture that nobody has seen."""
    global serial
    serial += 1
    return [*size, serial]


def asked(story, prompt, pictures, tokens):
    return {"story": story, "prompt": prompt, "pictures": pictures, "tokens": tokens}


class Program:
    """Answers commands, one at a time; ends with its block."""

    def __init__(self, *command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def do(self, **command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"bench-vision: {self.process.args[0]} ended")
        return json.loads(line)

    def encode(self, size):
        """Seconds to the first token of a short prompt about a new picture."""
        return self.do(ask=[asked(1, 4, [fresh(size)], 2)])["first"][0]

    def decode(self, pictures):
        """Seconds for each token of an answer about so many large pictures."""
        took = self.do(ask=[asked(2, 64, [fresh(LARGE) for _ in range(pictures)], 33)])
        return (took["all"] - took["first"][0]) / 32

    def mixed(self):
        """Seconds for eight answers at once, half of which are about pictures."""
        shown = [[], [fresh(SMALL)], [], [fresh(LARGE)], [], [fresh(SMALL)], [], [fresh(SMALL), fresh(SMALL)]]
        return self.do(ask=[asked(story, 40 + 12 * story, pictures, 33) for story, pictures in enumerate(shown)])["all"]

    def second_turn(self):
        """Seconds to the first token of a chat's second turn about the picture of its first."""
        picture = fresh(LARGE)
        self.do(ask=[asked(3, 96, [picture], 2)])
        return self.do(ask=[asked(3, 160, [picture], 2)])["first"][0]

    def preprocess(self):
        return self.do(prepare=fresh((2048, 1536)))["all"]


def programs(folder):
    return Program(os.environ["OURS"], folder, THREADS), Program(os.environ["PYTHON"], os.environ["WORKER"], folder, THREADS)


def compare(name, ours, theirs, measure):
    def measured(program):
        with undisturbed(ours.process.pid, theirs.process.pid):
            return measure(program)

    results = rounds(lambda: (measured(ours), measured(theirs)))
    note(f"{name}: ours {statistics.median(own for own, _ in results):.3f} s, Transformers {statistics.median(other for _, other in results):.3f} s")
    figure(name, statistics.median(other / own for own, other in results))


# Those of each type of weights, in the order in which they are measured.
FIGURES = {
    "F32": {
        "preprocess": Program.preprocess,
        "vision_encode_1_tile_f32": lambda program: program.encode(SMALL),
        "vision_encode_4_tiles_f32": lambda program: program.encode(LARGE),
    },
    "BF16": {
        "vision_encode_bf16": lambda program: program.encode(LARGE),
        "vision_decode_1_image": lambda program: program.decode(1),
        "vision_decode_4_images": lambda program: program.decode(4),
        "vision_mixed_8": Program.mixed,
        "vision_second_turn": Program.second_turn,
    },
}


if __name__ == "__main__":
    wanted = os.environ.get("FIGURES", "").split()
    for name in set(wanted).difference(*FIGURES.values()):
        sys.exit(f"bench-vision: {name} is no figure")
    for weights, figures in FIGURES.items():
        measured = [name for name in figures if not wanted or name in wanted]
        if not measured:
            continue
        ours, theirs = programs(os.environ[weights])
        with ours, theirs:
            # What is done once, such as choosing kernels, is not measured.
            for program in (ours, theirs):
                program.encode(SMALL)
            for name in measured:
                compare(f"{name}_ratio_transformers", ours, theirs, figures[name])

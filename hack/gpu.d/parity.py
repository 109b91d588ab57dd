"""Runs `check` over fixtures on the GPU, from hack/gpu-check:

    parity.py f32 RUNTIME FIXTURE...        weights widened to F32; every station within 1e-4 of the reference
    parity.py rounded RUNTIME FIXTURE...    in BF16 as they lie, and in FP8; how far off, and PyTorch's own BF16 where it is

DEVICE=cpu tries this script where there is no GPU.
"""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

DEVICE = os.environ.get("DEVICE", "cuda")
TOLERANCE = 1e-4
# Of our error in BF16 to PyTorch's.
RATIO = 1.2


def main() -> None:
    mode, runtime, *fixtures = sys.argv[1:]
    with tempfile.TemporaryDirectory() as scratch:
        folders = []
        for fixture in map(Path, fixtures):
            folder = Path(scratch) / fixture.name
            lay_out(fixture, folder)
            folders.append(folder)
        if mode == "f32":
            exact(runtime, folders)
        else:
            rounded(runtime, folders)


def exact(runtime: str, folders: list[Path]) -> None:
    worst, passed = 0.0, True
    for folder in folders:
        widen(folder / "model/model.safetensors")
        errors, code = check(runtime, folder, "--tolerance", str(TOLERANCE))
        worst = max([worst, *errors.values()])
        passed &= code == 0
    print(f"figure gpu_parity_max_abs_f32 {worst:.3e}")
    if not passed or worst > TOLERANCE:
        sys.exit("parity: the card's numbers are not the reference's")


def rounded(runtime: str, folders: list[Path]) -> None:
    ours = {folder.name: logits(check(runtime, folder, "--tolerance", "inf")[0]) for folder in folders}
    eight = {folder.name: logits(check(runtime, folder, "--tolerance", "inf", "--fp8-weights")[0]) for folder in folders}
    for name in ours:
        print(f"figure gpu_bf16_error_{name.replace('-', '_')} {ours[name]:.3e}")
        print(f"figure gpu_fp8_error_{name.replace('-', '_')} {eight[name]:.3e}")
    script = Path(__file__).with_name("torch_error.py")
    ratios = []
    for folder in folders:
        found = subprocess.run([sys.executable, script, folder, DEVICE], capture_output=True, text=True)
        if found.returncode:
            last = (found.stderr.strip().splitlines() or ["no word"])[-1]
            print(f"parity: PyTorch's error is not known: {last}", file=sys.stderr)
            return
        theirs = float(found.stdout)
        print(f"figure torch_bf16_error_{folder.name.replace('-', '_')} {theirs:.3e}")
        ratios.append(ours[folder.name] / theirs)
    print(f"figure gpu_bf16_error_ratio_torch {max(ratios):.3f}")
    if max(ratios) > RATIO:
        sys.exit("parity: the card's BF16 is further off than PyTorch's")


def check(runtime: str, folder: Path, *flags: str) -> tuple[dict[tuple[str, str], float], int]:
    """The largest error of each case and station."""
    done = subprocess.run([runtime, "check", folder, "--device", DEVICE, *flags], capture_output=True, text=True)
    print(done.stdout, end="")
    errors = {}
    for line in done.stdout.splitlines()[1:]:
        row = re.match(r"(\S+)\s+(.+?)\s+(\S+)  (?:equal|different)", line)
        if not row:
            sys.exit(f"parity: {folder.name}: {line}")
        errors[row[1], row[2]] = float(row[3])
    if not errors:
        sys.exit(f"parity: {folder.name}: nothing was compared: {done.stderr}")
    return errors, done.returncode


def logits(errors: dict[tuple[str, str], float]) -> float:
    return max(error for (_, station), error in errors.items() if station in ("logits", "decode_logits"))


def lay_out(fixture: Path, folder: Path) -> None:
    """As `check` wants it: one file a case."""
    shutil.copytree(fixture, folder)
    together = folder / "decode_logits.safetensors"
    if together.exists():
        (folder / "cases").mkdir()
        header, numbers = read(together)
        for name, about in header.items():
            begin, end = about["data_offsets"]
            alone = {"decode_logits": {**about, "data_offsets": [0, end - begin]}}
            write(folder / "cases" / f"{name}.safetensors", alone, numbers[begin:end])


def read(path: Path) -> tuple[dict, bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    return header, content[8 + length :]


def write(path: Path, header: dict, numbers: bytes) -> None:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + numbers)


def widen(path: Path) -> None:
    """BF16 is the upper half of F32."""
    header, numbers = read(path)
    wide = bytearray(2 * len(numbers))
    wide[2::4], wide[3::4] = numbers[0::2], numbers[1::2]
    for about in header.values():
        if about["dtype"] != "BF16":
            sys.exit(f"parity: {path} holds {about['dtype']}")
        about["dtype"] = "F32"
        about["data_offsets"] = [2 * at for at in about["data_offsets"]]
    write(path, header, bytes(wide))
    described = path.with_name("config.json")
    described.write_text(described.read_text().replace('"bfloat16"', '"float32"'))


main()

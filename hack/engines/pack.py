"""Packs the images of the engines: Debian's Python, what the packages need of the system, the packages, a model.

    pack.py CACHE OUT.tar

The archive is of the older kind that every container runtime takes: layers, and a list of which image has which.
Both images share the large layer. They have root as their user and know no other, as the engines' own images do.
"""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

PYTHON = "/usr/bin/python3.11"
SITE = "/usr/local/lib/python3.11/dist-packages"
# Loaded by nothing here: kernels of GPUs, files for compilers.
LEFT_OUT = (
    "nvidia/cusolver/",
    "nvidia/cudnn/lib/libcudnn_",
    "nvidia/cuda_nvrtc/lib/libnvrtc-builtins",
    "torch/include/",
    "bin/",
)
ENDINGS_LEFT_OUT = (".a", ".h", ".hpp", ".cuh", ".pyc")


def main() -> None:
    cache, out = Path(sys.argv[1]), Path(sys.argv[2])
    layers = {
        "base.tar": lambda tar: (add_system(tar), add_folder(tar, cache / "site", SITE, LEFT_OUT), add_vllm(tar, cache)),
        "transformers.tar": lambda tar: (
            add_folder(tar, cache / "site5", "/opt/transformers", ()),
            add_folder(tar, cache / "model", "/opt/model", ()),
        ),
    }
    digests = {name: write_layer(cache / name, fill) for name, fill in layers.items()}
    path = "PATH=/usr/local/bin:/usr/bin:/bin"
    images = {
        "chandler.dev/engine-vllm:0.10.2": (["base.tar"], [path, "LD_PRELOAD=/usr/local/lib/streams.so"]),
        "chandler.dev/engine-transformers:5.24.0": (
            ["base.tar", "transformers.tar"],
            ["PATH=/opt/transformers/bin:/usr/bin:/bin", "PYTHONPATH=/opt/transformers"],
        ),
    }
    with tarfile.open(out, "w") as tar:
        listed = []
        for name, (parts, environment) in images.items():
            config = json.dumps({
                "architecture": "amd64",
                "os": "linux",
                "config": {"Env": environment, "WorkingDir": "/"},
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digests[part]}" for part in parts]},
            }).encode()
            file = hashlib.sha256(config).hexdigest() + ".json"
            add_bytes(tar, file, config)
            listed.append({"Config": file, "RepoTags": [name], "Layers": parts})
        for name in layers:
            tar.add(cache / name, name)
            os.remove(cache / name)
        add_bytes(tar, "manifest.json", json.dumps(listed).encode())


def write_layer(path: Path, fill) -> str:
    with tarfile.open(path, "w") as tar:
        fill(tar)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def add_system(tar: tarfile.TarFile) -> None:
    """Python with its library, what vLLM asks about processors, a shell, and the shared libraries of all of them."""
    programs = [PYTHON, "/usr/bin/lscpu", "/usr/bin/dash", "/usr/lib/x86_64-linux-gnu/libnuma.so.1", "/usr/lib/x86_64-linux-gnu/libstdc++.so.6"]
    extensions = [str(path) for path in Path("/usr/lib/python3.11/lib-dynload").glob("*.so")]
    seen = set(programs)
    for program in programs + extensions:
        printed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        seen |= {word for word in printed.split() if word.startswith("/")}
    # Asked for by name rather than linked.
    seen |= {f"/usr/lib/x86_64-linux-gnu/lib{name}" for name in ("dl.so.2", "rt.so.1", "pthread.so.0", "util.so.1", "nss_files.so.2", "nss_dns.so.2", "resolv.so.2")}
    for name in sorted(seen):
        if os.path.exists(name):
            target = "/usr" + name if name.startswith("/lib") else name
            add_file(tar, os.path.realpath(name), target)
    add_folder(tar, Path("/usr/lib/python3.11"), "/usr/lib/python3.11", ("test/", "config-3.11"))
    for link, to in {"/lib": "usr/lib", "/lib64": "usr/lib64", "/bin": "usr/bin", "/usr/bin/python3": "python3.11", "/usr/bin/python": "python3.11", "/usr/bin/sh": "dash"}.items():
        entry = tarfile.TarInfo(link[1:])
        entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, to, 0o777
        tar.addfile(entry)
    add_bytes(tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    add_bytes(tar, "etc/group", b"root:x:0:\n")
    add_bytes(tar, "etc/nsswitch.conf", b"hosts: files dns\n")


def add_vllm(tar: tarfile.TarFile, cache: Path) -> None:
    add_file(tar, str(cache / "site/bin/vllm"), "/usr/local/bin/vllm")
    add_file(tar, str(cache / "streams.so"), "/usr/local/lib/streams.so")


def add_folder(tar: tarfile.TarFile, source: Path, target: str, left_out: tuple[str, ...]) -> None:
    for folder, _, files in os.walk(source):
        for file in files:
            path = Path(folder) / file
            inside = path.relative_to(source).as_posix()
            if path.exists() and not inside.startswith(left_out) and not inside.endswith(ENDINGS_LEFT_OUT):
                add_file(tar, os.path.realpath(path), f"{target}/{inside}")


def add_file(tar: tarfile.TarFile, source: str, target: str) -> None:
    entry = tar.gettarinfo(source, target[1:])
    entry.type, entry.linkname = tarfile.REGTYPE, ""
    entry.size = os.path.getsize(source)
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = "root"
    entry.mode = 0o755 if os.access(source, os.X_OK) and entry.mode & 0o100 else 0o644
    with open(source, "rb") as file:
        tar.addfile(entry, file)


def add_bytes(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o644
    tar.addfile(entry, io.BytesIO(content))


main()

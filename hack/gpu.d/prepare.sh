# Sourced by hack/gpu-check and hack/gpu-bench, in the checkout: finds what hack/gpu-pack packed (PACK), CUDA's libraries and a card.
# Ends the script with 2, and the reason, where there is no card to use.
# shellcheck shell=bash

say() { echo "${0##*/}: $*" >&2; }

PACK="${PACK:-build/gpu}"
if [[ ! -d "$PACK" && -f build/gpu.tar.xz ]]; then
    python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall("build", filter="tar")' build/gpu.tar.xz
fi
if [[ ! -d "$PACK" ]]; then
    if ! command -v cargo >/dev/null; then
        say "there is neither build/gpu.tar.xz nor Rust to make it: run make gpu-pack where Rust is, and bring the file"
        exit 1
    fi
    hack/gpu-pack >&2
fi
PACK="$(realpath "$PACK")"
export PACK

# cuBLASLt: already found by the loader, or with PyTorch, or from PyPI.
cublas_folder() {
    ldconfig -p 2>/dev/null | grep -q 'libcublasLt\.so\.13' && return
    local folder
    folder="$(python3 -c 'import nvidia.cu13 as cuda; print(list(cuda.__path__)[0] + "/lib")' 2>/dev/null || true)"
    if [[ ! -e "$folder/libcublasLt.so.13" ]]; then
        folder="$(hack/cuda-toolkit libraries 2>/dev/null || true)"
    fi
    echo "$folder"
}
LD_LIBRARY_PATH="$(cublas_folder):/usr/local/nvidia/lib64:/usr/local/nvidia/lib:${LD_LIBRARY_PATH:-}"
export LD_LIBRARY_PATH
code=0
card="$("$PACK/bin/gpu_bench")" || code=$?
((code == 0)) || exit "$code"
say "$card"

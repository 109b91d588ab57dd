"""The same model by PyTorch and Transformers, on the same card in the same run, from hack/gpu-bench: torch_bench.py FOLDER

DEVICE=cpu with a small model tries this script where there is no GPU.
"""

import os
import sys
import time

import torch
from transformers import MllamaForConditionalGeneration

DEVICE = os.environ.get("DEVICE", "cuda")
# As examples/gpu_bench has them.
CONTEXT, ANSWERS = (1024, (17, 145)) if DEVICE == "cuda" else (32, (3, 7))
PREFILL = 8192 if DEVICE == "cuda" else 64


@torch.no_grad()
def main() -> None:
    begin = time.monotonic()
    model = MllamaForConditionalGeneration.from_pretrained(sys.argv[1], torch_dtype=torch.bfloat16).to(DEVICE).eval()
    wait()
    tell("torch_load_s", time.monotonic() - begin, "s")
    shown = picture(model.config)
    for name, answers, looks in (("text_b1", 1, False), ("image_b1", 1, True), ("b16", 16, True)):
        seconds = decode(model, answers, shown if looks else {})
        tell(f"torch_decode_{name}_tokens_s", answers / seconds, "")
    tokens = prompt(model, 1, PREFILL)
    seconds = timed(lambda: model(input_ids=tokens, logits_to_keep=1))
    tell(f"torch_prefill_{PREFILL // 1024}k_tokens_s", PREFILL / seconds, "")
    tower = getattr(model, "vision_model", None) or model.model.vision_model
    images = {name: value for name, value in shown.items() if name != "cross_attention_mask"}
    tell("torch_image_encode_ms", timed(lambda: tower(**images)) * 1e3, "ms")


def decode(model, answers: int, shown: dict) -> float:
    """Seconds of a step: what more tokens take longer."""
    tokens = prompt(model, answers, CONTEXT)
    shown = {name: value.expand(answers, *value.shape[1:]) for name, value in shown.items()}
    if shown:
        tokens[:, 1] = model.config.image_token_index
        mask = torch.ones(answers, CONTEXT, 1, 4, dtype=torch.long, device=DEVICE)
        shown["cross_attention_mask"] = mask

    def answer(count: int) -> float:
        begin = time.monotonic()
        model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), do_sample=False, min_new_tokens=count, max_new_tokens=count, **shown)
        wait()
        return time.monotonic() - begin

    short, long = ANSWERS
    answer(short)
    return (answer(long) - answer(short)) / (long - short)


def prompt(model, answers: int, tokens: int) -> torch.Tensor:
    return torch.randint(0, min(model.config.text_config.vocab_size, 500), (answers, tokens), device=DEVICE)


def picture(config) -> dict:
    side = config.vision_config.image_size
    return {
        "pixel_values": torch.randn(1, 1, 4, 3, side, side, device=DEVICE, dtype=torch.bfloat16),
        # The arrangement of two by two tiles.
        "aspect_ratio_ids": torch.full((1, 1), 6, device=DEVICE),
        "aspect_ratio_mask": torch.ones(1, 1, 4, dtype=torch.long, device=DEVICE),
    }


def timed(work) -> float:
    work()
    wait()
    begin = time.monotonic()
    for _ in range(3):
        work()
    wait()
    return (time.monotonic() - begin) / 3


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def tell(name: str, value: float, unit: str) -> None:
    print(f"figure {name} {value:.3f} {unit}", flush=True)


main()

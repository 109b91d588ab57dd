"""How far PyTorch's BF16 is from its own F32 on a fixture, by Transformers: torch_error.py FOLDER DEVICE prints the largest error of a logit."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, LlamaForCausalLM, MllamaForConditionalGeneration


@torch.no_grad()
def main() -> None:
    folder, device = Path(sys.argv[1]), sys.argv[2]
    torch.backends.cuda.matmul.allow_tf32 = False
    looks = AutoConfig.from_pretrained(folder / "model").model_type == "mllama"
    kind = MllamaForConditionalGeneration if looks else LlamaForCausalLM
    exact, rounded = (kind.from_pretrained(folder / "model", torch_dtype=dtype).to(device).eval() for dtype in (torch.float32, torch.bfloat16))
    listed = json.loads((folder / "cases.json").read_text())
    worst = 0.0
    for case in listed["cases"] if isinstance(listed, dict) else listed:
        # The answer's tokens too: its logits are compared with the same.
        tokens = torch.tensor([case["prompt_tokens"] + case["greedy_ids"][:-1]])
        shown = pictures(folder / "cases" / f"{case['name']}.safetensors", tokens.shape[1]) if case.get("images") else {}
        shown = {name: value.to(device) for name, value in shown.items()}
        one, other = (
            model(
                input_ids=tokens.to(device),
                **{name: value.to(model.dtype) if value.is_floating_point() else value for name, value in shown.items()},
            ).logits.float()
            for model in (exact, rounded)
        )
        first = 0 if tells_prompt(folder / "cases" / f"{case['name']}.safetensors") else len(case["prompt_tokens"]) - 1
        worst = max(worst, (one - other)[:, first:].abs().max().item())
    print(worst)


def tells_prompt(path: Path) -> bool:
    """Whether `check` compares the logits of the prompt's tokens too; without them it compares the answer's alone."""
    return path.exists() and "logits" in load_file(path)


def pictures(path: Path, length: int) -> dict:
    tensors = load_file(path)
    shown = {name: tensors[name] for name in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask", "cross_attention_mask")}
    # What the answer's tokens see is what the last one of the prompt sees.
    mask = shown["cross_attention_mask"]
    more = mask[:, -1:].expand(-1, length - mask.shape[1], -1, -1)
    return {**shown, "cross_attention_mask": torch.cat([mask, more], dim=1)}


main()

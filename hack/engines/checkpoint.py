"""Writes a GGUF file of the Llama family as the repository that engines in Python take: safetensors, configuration, tokenizer.

    checkpoint.py MODEL.gguf FOLDER

Weights are widened and rounded to BF16. The configuration says float32, in which Transformers then computes:
processors without AVX-512 have no fast BF16. vLLM computes in BF16 whatever it says.
"""

import json
import struct
import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader, TokenType, quants

LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def main() -> None:
    reader = GGUFReader(sys.argv[1])
    folder = Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)

    def told(key: str):
        return reader.fields[key].contents()

    config = configuration(told, {tensor.name for tensor in reader.tensors})
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {key: config[key] for key in ("bos_token_id", "eos_token_id")})
    write_tokenizer(folder, told)
    write_weights(folder / "model.safetensors", reader, config)


def configuration(told, names: set[str]) -> dict:
    if told("general.architecture") != "llama":
        sys.exit(f"checkpoint: {sys.argv[1]} is not of the Llama family")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": told("llama.embedding_length"),
        "intermediate_size": told("llama.feed_forward_length"),
        "num_hidden_layers": told("llama.block_count"),
        "num_attention_heads": told("llama.attention.head_count"),
        "num_key_value_heads": told("llama.attention.head_count_kv"),
        "max_position_embeddings": told("llama.context_length"),
        "rms_norm_eps": float(f"{told('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": told("llama.rope.freq_base"),
        "vocab_size": len(told("tokenizer.ggml.tokens")),
        "bos_token_id": told("tokenizer.ggml.bos_token_id"),
        "eos_token_id": told("tokenizer.ggml.eos_token_id"),
        "tie_word_embeddings": "output.weight" not in names,
        "torch_dtype": "float32",
    }


def write_tokenizer(folder: Path, told) -> None:
    if told("tokenizer.ggml.pre") != "smollm":
        sys.exit("checkpoint: only the splitting rule of SmolLM is known")
    tokens = told("tokenizer.ggml.tokens")
    special = [
        {"id": index, "content": tokens[index], "special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        for index, kind in enumerate(told("tokenizer.ggml.token_type"))
        if kind == TokenType.CONTROL
    ]
    bytes_as_letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    write_json(folder / "tokenizer.json", {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, bytes_as_letters]},
        "post_processor": None,
        "decoder": bytes_as_letters,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [pair.split(" ") for pair in told("tokenizer.ggml.merges")],
        },
    })
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[told("tokenizer.ggml.bos_token_id")],
        "eos_token": tokens[told("tokenizer.ggml.eos_token_id")],
        "pad_token": tokens[told("tokenizer.ggml.padding_token_id")],
        "chat_template": told("tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": told("llama.context_length"),
    })


def write_weights(path: Path, reader: GGUFReader, config: dict) -> None:
    """A length, a header that says where each tensor lies, the tensors."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    header, blocks, position = {"__metadata__": {"format": "pt"}}, [], 0
    for tensor in reader.tensors:
        wide = quants.dequantize(tensor.data, tensor.tensor_type)
        part = tensor.name.split(".")[-2]
        if part in heads:
            wide = unpermuted(wide, heads[part])
        block = bfloat16(wide)
        header[hub_name(tensor.name)] = {"dtype": "BF16", "shape": list(wide.shape), "data_offsets": [position, position + len(block)]}
        blocks.append(block)
        position += len(block)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(blocks)


def hub_name(name: str) -> str:
    words = name.split(".")
    if words[0] == "blk":
        return f"model.layers.{words[1]}.{LAYER[words[2]]}.weight"
    return f"{TOP[words[0]]}.weight"


def unpermuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """GGUF rotates neighbours, the hub's checkpoints rotate halves of a head."""
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def bfloat16(values: np.ndarray) -> bytes:
    """The upper half of each float, rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False))


main()

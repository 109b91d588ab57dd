"""Answers prompts with vLLM: a folder's path as argument, a JSON object a line on standard input, its speeds a line on standard output.

A prompt is given twice, first for one token and then for the whole answer; nothing of it is kept in between.
"""

import json
import os
import sys
import time

# One process, so that its time is known; nothing is fetched or reported.
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1")

# vLLM prints progress on standard output too.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

from vllm import LLM, SamplingParams  # noqa: E402

now = time.process_time if os.environ.get("BUSY") else time.monotonic
engine = LLM(sys.argv[1], dtype="bfloat16", max_model_len=1024, max_num_seqs=1, enable_prefix_caching=False)


def ask(prompt, tokens):
    """Seconds that an answer takes, and the tokens of its prompt."""
    begin = now()
    [output] = engine.generate(prompt, SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True), use_tqdm=False)
    return now() - begin, len(output.prompt_token_ids)


for line in sys.stdin:
    asked = json.loads(line)
    first, prompt_tokens = ask(asked["prompt"], 1)
    whole, _ = ask(asked["prompt"], asked["tokens"])
    print(json.dumps({"prompt": prompt_tokens / first, "decode": (asked["tokens"] - 1) / (whole - first)}), file=answers, flush=True)

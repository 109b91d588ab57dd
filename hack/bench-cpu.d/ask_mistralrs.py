"""Answers prompts with mistral.rs: a GGUF file's path as argument, a JSON object a line on standard input, its speeds a line on standard output."""

import json
import os
import sys

from mistralrs import CompletionRequest, Runner, Which

folder, name = os.path.split(os.path.abspath(sys.argv[1]))
# mistral.rs prints progress on standard output too.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
runner = Runner(which=Which.GGUF(quantized_model_id=folder, quantized_filename=name), max_seqs=1, prefix_cache_n=0)
for line in sys.stdin:
    asked = json.loads(line)
    request = CompletionRequest(model="default", prompt=asked["prompt"], max_tokens=asked["tokens"], temperature=0.0)
    usage = runner.send_completion_request(request).usage
    print(json.dumps({"prompt": usage.avg_prompt_tok_per_sec, "decode": usage.avg_compl_tok_per_sec}), file=answers, flush=True)

"""Does with Transformers what runtime-image/examples/vision_speed.rs does with the runtime, by the same commands and answers.

    transformers_worker.py FOLDER THREADS

Requests that are asked for together go in batches of equally many pictures, one after the other: padding would have pictures
computed that nobody shows. Pixels are prepared before the clock runs, as the runtime's are.
"""

import json
import sys
import time
from functools import cache
from itertools import groupby

import numpy as np
import torch
from PIL import Image
from transformers import MllamaForConditionalGeneration, MllamaImageProcessor, StoppingCriteria
from transformers.models.mllama.processing_mllama import convert_sparse_cross_attention_mask_to_dense, get_cross_attention_token_mask


class Moments(StoppingCriteria):
    """Ends nothing, and keeps when each token was there."""

    def __init__(self):
        self.moments = []

    def __call__(self, input_ids, scores, **_):
        self.moments.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


folder, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)
processor = MllamaImageProcessor.from_pretrained(folder)
model = MllamaForConditionalGeneration.from_pretrained(folder, torch_dtype="auto").eval()
picture_token = model.config.image_token_index
# What the tiny vocabulary says ends no answer here.
model.generation_config.eos_token_id = None
model.generation_config.pad_token_id = 0


@cache
def decoded(width, height, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@cache
def prepared(pictures):
    """Of a batch of lists of pictures."""
    return processor([[decoded(*picture) for picture in shown] for shown in pictures], return_tensors="pt")


def prepare(width, height, seed):
    picture = decoded(width, height, seed)
    begin = time.perf_counter()
    processor(picture, return_tensors="pt")
    return {"first": [], "all": time.perf_counter() - begin}


def ask(requests):
    requests.sort(key=lambda request: len(request["pictures"]))
    batches = [list(batch) for _, batch in groupby(requests, key=lambda request: len(request["pictures"]))]
    first, took = [], 0
    for given, tokens in [batch_of(batch) for batch in batches]:
        moments = Moments()
        begin = time.perf_counter()
        with torch.inference_mode():
            model.generate(**given, max_new_tokens=tokens, do_sample=False, temperature=None, top_p=None, stopping_criteria=[moments])
        first += [took + moments.moments[0] - begin] * len(given["input_ids"])
        took += moments.moments[-1] - begin
    return {"first": first, "all": took}


def batch_of(requests):
    """What the model is given for requests of equally many pictures, and how many tokens are wanted."""
    longest = max(request["prompt"] for request in requests)
    ids = torch.zeros((len(requests), longest), dtype=torch.long)
    attention = torch.zeros_like(ids)
    for row, request in enumerate(requests):
        prompt = [(at * 37 + request["story"] * 101 + 5) % 500 for at in range(request["prompt"])]
        for index in range(len(request["pictures"])):
            prompt[index + 1] = picture_token
        # Padding stands before the prompt, as generation wants it.
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        attention[row, longest - len(prompt) :] = 1
    given = {"input_ids": ids, "attention_mask": attention}
    shown = tuple(tuple(tuple(picture) for picture in request["pictures"]) for request in requests)
    if any(shown):
        pixels = prepared(shown)
        tiles = pixels["num_tiles"]
        sparse = [get_cross_attention_token_mask(row, picture_token) for row in ids.tolist()]
        given["cross_attention_mask"] = torch.from_numpy(
            convert_sparse_cross_attention_mask_to_dense(sparse, num_tiles=tiles, max_num_tiles=processor.max_image_tiles, length=longest)
        )
        given |= {name: pixels[name] for name in ("aspect_ratio_ids", "aspect_ratio_mask")}
        given["pixel_values"] = pixels["pixel_values"].to(model.dtype)
    return given, max(request["tokens"] for request in requests)


for line in sys.stdin:
    command = json.loads(line)
    took = prepare(*command["prepare"]) if "prepare" in command else ask(command["ask"])
    print(json.dumps(took), flush=True)

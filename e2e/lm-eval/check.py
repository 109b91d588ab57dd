"""Fails unless the results of lm-eval in a folder are those of a model that knows capitals, counts and has seen English."""

import glob
import json
import sys

(path,) = glob.glob(f"{sys.argv[1]}/**/results_*.json", recursive=True)
with open(path) as file:
    results = json.load(file)["results"]
seen = {
    "capitals": results["capitals"]["acc,none"],
    "counting": results["counting"]["exact_match,none"],
    "bits a byte": results["text"]["bits_per_byte,none"],
}
print("lm-eval:", ", ".join(f"{name} {value:.3g}" for name, value in seen.items()))
if not (seen["capitals"] == 1 and seen["counting"] == 1 and 0.5 < seen["bits a byte"] < 2):
    sys.exit(f"lm-eval: {path} has results that this model cannot have")

"""Continues a text with the model in this folder, by transformers.

pip install torch transformers    (and torchao, where config.json has a quantization_config)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from time import perf_counter

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default="Once upon a time")
    parser.add_argument("-n", "--tokens", type=int, default=40, help="how many to add (%(default)s)")
    parser.add_argument("--ids", action="store_true", help="print the new tokens' ids: to compare formats by them")
    asked = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(HERE)
    model = AutoModelForCausalLM.from_pretrained(HERE, dtype="auto").eval()
    inputs = tokenizer(asked.prompt, return_tensors="pt", return_token_type_ids=False)
    began = perf_counter()
    with torch.inference_mode():
        # Always the most likely token. For chance: do_sample=True, and temperature, top_p, top_k.
        out = model.generate(**inputs, max_new_tokens=asked.tokens, do_sample=False)
    seconds = perf_counter() - began
    new = out[0, inputs["input_ids"].shape[1] :].tolist()
    print(" ".join(map(str, new)) if asked.ids else tokenizer.decode(new, skip_special_tokens=True))
    print(f"{len(new)} tokens in {seconds:.2f} s, the prompt's included", file=sys.stderr)


if __name__ == "__main__":
    main()

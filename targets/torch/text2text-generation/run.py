"""Makes a text of another one, such as its translation, with the model in this folder, by transformers.

pip install torch transformers    (and torchao, where config.json has a quantization_config)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from time import perf_counter

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="?", default="The house is wonderful.")
    parser.add_argument("-n", "--tokens", type=int, default=40, help="how many to make at most (%(default)s)")
    parser.add_argument("--ids", action="store_true", help="print the new tokens' ids: to compare formats by them")
    asked = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(HERE)
    model = AutoModelForSeq2SeqLM.from_pretrained(HERE, dtype="auto").eval()
    inputs = tokenizer(asked.source, return_tensors="pt", return_token_type_ids=False)
    began = perf_counter()
    with torch.inference_mode():
        # Always the most likely token, as the other formats' programs do. Beams: num_beams=4.
        out = model.generate(**inputs, max_new_tokens=asked.tokens, do_sample=False, num_beams=1)
    seconds = perf_counter() - began
    new = out[0, 1:].tolist()  # the first is what every decoder begins with
    print(" ".join(map(str, new)) if asked.ids else tokenizer.decode(new, skip_special_tokens=True))
    print(f"{len(new)} tokens in {seconds:.2f} s, the source's included", file=sys.stderr)


if __name__ == "__main__":
    main()

"""Continues a text with the model in this folder, by onnxruntime-genai.

pip install onnxruntime-genai
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from time import perf_counter

import onnxruntime_genai as og

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default="Once upon a time")
    parser.add_argument("-n", "--tokens", type=int, default=40, help="how many to add (%(default)s)")
    parser.add_argument("--ids", action="store_true", help="print the new tokens' ids: to compare formats by them")
    asked = parser.parse_args()
    model = og.Model(str(HERE))
    tokenizer = og.Tokenizer(model)
    prompt = tokenizer.encode(asked.prompt)
    parameters = og.GeneratorParams(model)
    # Always the most likely token. For chance: do_sample=True, and temperature, top_p, top_k.
    parameters.set_search_options(max_length=len(prompt) + asked.tokens, do_sample=False)
    began = perf_counter()
    generator = og.Generator(model, parameters)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    seconds = perf_counter() - began
    new = [int(token) for token in generator.get_sequence(0)[len(prompt) :]]
    text = [token for token in new if token not in tokenizer.eos_token_ids]
    print(" ".join(map(str, new)) if asked.ids else tokenizer.decode(text))
    print(f"{len(new)} tokens in {seconds:.2f} s, the prompt's {len(prompt)} included", file=sys.stderr)


if __name__ == "__main__":
    main()

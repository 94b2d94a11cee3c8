"""Continues a text with the GGUF file in this folder, by llama.cpp.

pip install llama-cpp-python
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from time import perf_counter

from llama_cpp import Llama, llama_model_get_vocab, llama_vocab_is_eog

HERE = Path(__file__).resolve().parent


def weights() -> Path:
    """The model's file; of several parts the first, by whose name llama.cpp finds the others."""
    return min(path for path in HERE.glob("*.gguf") if path.name != "imatrix.gguf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default="Once upon a time")
    parser.add_argument("-n", "--tokens", type=int, default=40, help="how many to add (%(default)s)")
    parser.add_argument("--ids", action="store_true", help="print the new tokens' ids: to compare formats by them")
    asked = parser.parse_args()
    context = len(asked.prompt.encode()) + asked.tokens + 16  # no token is less than a byte, but for the special ones
    model = Llama(str(weights()), n_ctx=context, n_gpu_layers=-1, verbose=False)
    prompt = model.tokenize(asked.prompt.encode(), special=True)
    if not prompt:
        parser.error("the prompt has no token: give some text")
    vocabulary, new, began = llama_model_get_vocab(model.model), list[int](), perf_counter()
    # Always the most likely token. For chance: temp, top_p, top_k, min_p.
    for token in model.generate(prompt, temp=0.0):
        new.append(token)
        if llama_vocab_is_eog(vocabulary, token) or len(new) >= asked.tokens:
            break
    seconds = perf_counter() - began
    text = model.detokenize(new, prev_tokens=prompt).decode(errors="replace")
    print(" ".join(map(str, new)) if asked.ids else text)
    print(f"{len(new)} tokens in {seconds:.2f} s, the prompt's {len(prompt)} included", file=sys.stderr)


if __name__ == "__main__":
    main()

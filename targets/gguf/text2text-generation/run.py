"""Makes a text of another one, such as its translation, with the GGUF file in this folder, by llama.cpp.

pip install llama-cpp-python
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import llama_cpp
import numpy as np

HERE = Path(__file__).resolve().parent


def weights() -> Path:
    """The model's file; of several parts the first, by whose name llama.cpp finds the others."""
    return min(path for path in HERE.glob("*.gguf") if path.name != "imatrix.gguf")


def read(vocabulary: object, text: str) -> list[int]:
    """A text's tokens, with those that the model puts at its end."""
    raw = text.encode()
    room = (llama_cpp.llama_token * (len(raw) + 16))()
    count = llama_cpp.llama_tokenize(vocabulary, raw, len(raw), room, len(room), True, True)
    return list(room[:count])


def generate(model: object, source: list[int]) -> Iterator[int]:
    """The most likely first token, and the next after it, without end. The source is read once."""
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = max(1024, len(source))  # a source is read at once
    context = llama_cpp.llama_init_from_model(model, settings)
    ids = (llama_cpp.llama_token * len(source))(*source)
    if llama_cpp.llama_encode(context, llama_cpp.llama_batch_get_one(ids, len(source))) != 0:
        sys.exit("llama.cpp could not read the source")
    words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    token = llama_cpp.llama_model_decoder_start_token(model)
    while True:
        one = (llama_cpp.llama_token * 1)(token)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(one, 1)) != 0:
            sys.exit("llama.cpp could not go on: its context is full")
        token = int(np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), (words,)).argmax())
        yield token


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="?", default="The house is wonderful.")
    parser.add_argument("-n", "--tokens", type=int, default=40, help="how many to make at most (%(default)s)")
    parser.add_argument("--ids", action="store_true", help="print the new tokens' ids: to compare formats by them")
    asked = parser.parse_args()
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, None)
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(weights()).encode(), llama_cpp.llama_model_default_params())
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    source, new, began = read(vocabulary, asked.source), list[int](), perf_counter()
    for token in generate(model, source):
        new.append(token)
        if llama_cpp.llama_vocab_is_eog(vocabulary, token) or len(new) >= asked.tokens:
            break
    seconds = perf_counter() - began
    pieces = b""
    for token in new:
        room = ctypes.create_string_buffer(256)
        pieces += room[: llama_cpp.llama_token_to_piece(vocabulary, token, room, len(room), 0, False)]
    print(" ".join(map(str, new)) if asked.ids else pieces.decode(errors="replace").strip())
    print(f"{len(new)} tokens in {seconds:.2f} s, the source's {len(source)} included", file=sys.stderr)


if __name__ == "__main__":
    main()

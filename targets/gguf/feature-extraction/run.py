"""Texts' vectors, by the GGUF file in this folder and llama.cpp. Prints each as a line of JSON.

pip install llama-cpp-python
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from llama_cpp import LLAMA_POOLING_TYPE_NONE, Llama
from pooling import Pooling

HERE = Path(__file__).resolve().parent


def weights() -> Path:
    """The model's file; of several parts the first, by whose name llama.cpp finds the others."""
    return min(path for path in HERE.glob("*.gguf") if path.name != "imatrix.gguf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="*", default=["A sentence.", "Another one."])
    asked = parser.parse_args()
    pooling = Pooling(HERE)
    limit = pooling.limit or 512
    # Every token's state, which the model's own modules make a vector of; a whole text is one batch, for each token
    # sees all others.
    model = Llama(
        str(weights()), n_ctx=limit, n_batch=limit, n_ubatch=limit, n_gpu_layers=-1, embedding=True,
        pooling_type=LLAMA_POOLING_TYPE_NONE, verbose=False,
    )  # fmt: skip
    for text in asked.text:
        states = np.array(model.embed(pooling.text(text)), np.float32)
        print(json.dumps(pooling.vector(states).tolist()))


if __name__ == "__main__":
    main()

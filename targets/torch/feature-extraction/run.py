"""Texts' vectors, by the model in this folder and transformers. Prints each as a line of JSON.

pip install torch transformers    (and torchao, where config.json has a quantization_config)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from pooling import Pooling
from transformers import AutoModel, AutoTokenizer

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="*", default=["A sentence.", "Another one."])
    asked = parser.parse_args()
    pooling = Pooling(HERE)
    tokenizer = AutoTokenizer.from_pretrained(HERE)
    model = AutoModel.from_pretrained(HERE, dtype="auto").eval()
    cut = {} if pooling.limit is None else {"truncation": True, "max_length": pooling.limit}
    for text in asked.text:
        with torch.inference_mode():
            states = model(**tokenizer(pooling.text(text), return_tensors="pt", **cut)).last_hidden_state[0]
        print(json.dumps(pooling.vector(states.float().numpy()).tolist()))


if __name__ == "__main__":
    main()

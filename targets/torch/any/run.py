"""What the model in this folder says of a text, by transformers.

Prints it as a line of JSON; reading.py says what it means.
pip install torch transformers    (and torchao, where config.json has a quantization_config)
"""

from __future__ import annotations

import argparse
import json
from inspect import signature
from pathlib import Path

import torch
import transformers
from reading import Reading

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="+", help="a text; of a model that takes two, both: a question and its text")
    asked = parser.parse_args()
    config = transformers.AutoConfig.from_pretrained(HERE)
    model = getattr(transformers, config.architectures[0]).from_pretrained(HERE, dtype="auto").eval()
    reading = Reading(HERE)
    feeds = reading.feeds(*asked.text, limit=getattr(config, "max_position_embeddings", None))
    taken = signature(model.forward).parameters
    with torch.inference_mode():
        said = model(**{name: torch.tensor([values]) for name, values in feeds.items() if name in taken})
    # Of an answer in a text the logits of its begin and of its end.
    outputs = [said.logits] if "logits" in said else [said.start_logits, said.end_logits]
    logits = outputs[0][0] if len(outputs) == 1 else torch.stack([output[0] for output in outputs], -1)
    print(json.dumps(reading.answer(logits.float().numpy()), ensure_ascii=False))


if __name__ == "__main__":
    main()

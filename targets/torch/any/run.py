"""What the model in this folder says of a text or a picture, by transformers.

Prints it as a line of JSON; reading.py says what it means.
pip install torch transformers    (and pillow for pictures; and torchao, where config.json has a quantization_config)
"""

from __future__ import annotations

import argparse
import json
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from reading import Reading

HERE = Path(__file__).resolve().parent


def _one(values: Any, kind: torch.dtype) -> torch.Tensor:
    """A batch of one: token ids, or pixel values in the model's own type."""
    return torch.from_numpy(values[None]).to(kind) if isinstance(values, np.ndarray) else torch.tensor([values])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="+", help="a text, or a picture's file; of a model of two texts both")
    asked = parser.parse_args()
    config = transformers.AutoConfig.from_pretrained(HERE)
    model = getattr(transformers, config.architectures[0]).from_pretrained(HERE, dtype="auto").eval()
    reading = Reading(HERE)
    feeds = reading.feeds(*asked.text)
    taken = signature(model.forward).parameters
    with torch.inference_mode():
        said = model(**{name: _one(values, model.dtype) for name, values in feeds.items() if name in taken})
    # Of an answer in a text the logits of its begin and of its end; of a model without a head its last states.
    names = ("logits", "start_logits", "end_logits", "last_hidden_state")
    outputs = [said[name] for name in names if name in said][: 2 if "end_logits" in said else 1]
    logits = outputs[0][0] if len(outputs) == 1 else torch.stack([output[0] for output in outputs], -1)
    print(json.dumps(reading.answer(logits.float().numpy()), ensure_ascii=False))


if __name__ == "__main__":
    main()

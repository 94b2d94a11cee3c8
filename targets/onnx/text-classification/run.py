"""A text's labels, by onnx/model.onnx beside this file: ONNX Runtime and the tokenizer. Prints them as a line of JSON.

pip install onnxruntime tokenizers
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent


def open_tokenizer() -> Tokenizer:
    if (HERE / "tokenizer.json").is_file():
        return Tokenizer.from_file(str(HERE / "tokenizer.json"))
    from transformers import AutoTokenizer  # pip install transformers: it reads the older forms of a tokenizer

    return AutoTokenizer.from_pretrained(HERE).backend_tokenizer


def scores(config: dict[str, Any], logits: np.ndarray) -> dict[str, float]:
    """Each label's probability, the likeliest first; of a model that answers numbers, the numbers."""
    problem = config.get("problem_type") or ("regression" if len(logits) == 1 else "single_label_classification")
    if problem == "multi_label_classification":  # each label is a yes or no of its own
        answers = 1 / (1 + np.exp(-logits))
    elif problem == "regression" or len(logits) == 1:
        answers = logits
    else:
        powers = np.exp(logits - logits.max())
        answers = powers / powers.sum()
    names = config.get("id2label") or {}
    order = range(len(answers)) if answers is logits else np.argsort(-answers)
    return {names.get(str(at), f"LABEL_{at}"): float(answers[at]) for at in order}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="?", default="A sentence.")
    parser.add_argument("--pair", help="the second text, for a model of pairs: entailment, reranking")
    asked = parser.parse_args()
    config = json.loads((HERE / "config.json").read_text(encoding="utf-8"))
    settings = HERE / "tokenizer_config.json"
    said = json.loads(settings.read_text(encoding="utf-8")).get("model_max_length") if settings.is_file() else None
    limit = said or config.get("max_position_embeddings") or 0
    tokenizer = open_tokenizer()
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if 0 < limit < 1 << 20:  # a tokenizer without a limit of its own says 10^30
        tokenizer.enable_truncation(int(limit))
    read = tokenizer.encode(asked.text, asked.pair)
    feeds = {"input_ids": read.ids, "attention_mask": read.attention_mask, "token_type_ids": read.type_ids}
    has = onnxruntime.get_available_providers()
    providers = [one for one in ("CUDAExecutionProvider", "CPUExecutionProvider") if one in has]
    session = onnxruntime.InferenceSession(str(HERE / "onnx" / "model.onnx"), providers=providers)
    inputs = {value.name for value in session.get_inputs()}
    logits = session.run(None, {name: np.array([feeds[name]], np.int64) for name in feeds if name in inputs})[0][0]
    print(json.dumps(scores(config, logits.astype(np.float64)), ensure_ascii=False))


if __name__ == "__main__":
    main()

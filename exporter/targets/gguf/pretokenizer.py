"""llama.cpp's name of a tokenizer's pre-tokenizer, read off what it does, not off the ids that it gives.

The converter knows published tokenizers by a hash of the ids of one text. A vocabulary that was pruned, or is one's
own, has other ids, and cuts a text into words by the same rules. So where no hash fits, the rules are compared,
exactly: with what llama.cpp applies under a name they are the same, or the tokenizer stays unknown. That the ids agree
is the gate's to say, for every file (exporter.measure.tokenization).

Also a program of its own, which runs the converter with that knowledge: python -P pretokenizer.py CONVERTER.py …
"""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_Step = tuple[str, str]

# Each is what llama-vocab.cpp quotes as the "original regex from tokenizer.json" of a name.
_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _ENGLISH + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
_LLAMA3 = _ENGLISH + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
_QWEN35 = _ENGLISH + r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}" + _REST.replace(r"\p{L}", r"\p{L}\p{M}")
_GPT2_RULE, _BYTES = ("bytes", "GPT-2's rule"), ("bytes", "")
_DIGITS = ("digits", "one by one")
# By the steps, and by whether a word that is a token is taken whole (ignore_merges), which a name implies too.
_NAMES: Mapping[tuple[tuple[_Step, ...], bool], str] = {
    ((_GPT2_RULE,), False): "gpt-2",
    ((_DIGITS, _GPT2_RULE), False): "smollm",
    ((("split", _QWEN2), _BYTES), False): "qwen2",
    ((("split", _QWEN35), _BYTES), False): "qwen35",
    ((("split", _LLAMA3), _BYTES), False): "smaug-bpe",
    ((("split", _LLAMA3), _BYTES), True): "llama-bpe",
}
_WORDPIECE = "bert-bge"  # of WordPiece llama.cpp knows one, whatever the name; this is what BERT's own gets


def name_of(spec: Mapping[str, Any]) -> str | None:
    """The name for a tokenizer.json; None where llama.cpp has none that does the same."""
    model, normalizer = spec["model"], spec.get("normalizer")
    if model["type"] == "WordPiece":
        return _WORDPIECE if _is_uncased_bert(spec) else None
    if model["type"] != "BPE" or any(
        model.get(setting) for setting in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")
    ):
        return None
    # llama.cpp normalizes nothing. Qwen's and GPT-NeoX's NFC is let through, as their published tokenizers are: text
    # that is not in this form is among the hard ones, so the gate counts it.
    if normalizer is not None and normalizer["type"] != "NFC":
        return None
    outer = spec.get("pre_tokenizer") or {"type": "Sequence", "pretokenizers": []}
    steps = tuple(map(_step, outer["pretokenizers"] if outer["type"] == "Sequence" else [outer]))
    return _NAMES.get((steps, bool(model.get("ignore_merges"))))


def _step(told: Mapping[str, Any]) -> _Step:
    """One step in one spelling; of a kind that is in no name's, its kind alone."""
    kind = told["type"]
    if kind == "ByteLevel" and not told["add_prefix_space"]:
        return _GPT2_RULE if told.get("use_regex", True) else _BYTES
    if kind == "Digits" and told["individual_digits"]:
        return _DIGITS
    if kind == "Split" and told["behavior"] == "Isolated" and not told.get("invert") and "Regex" in told["pattern"]:
        return "split", told["pattern"]["Regex"]
    return "unknown", kind


def _is_uncased_bert(spec: Mapping[str, Any]) -> bool:
    """llama.cpp's WordPiece makes letters small and takes their accents off, always."""
    normalizer, words = spec.get("normalizer") or {}, spec.get("pre_tokenizer") or {}
    return (
        normalizer.get("type") == "BertNormalizer"
        and words.get("type") == "BertPreTokenizer"
        and normalizer["lowercase"]
        and normalizer["handle_chinese_chars"]
        and normalizer["strip_accents"] is not False  # None: as lowercase says
        and spec["model"]["continuing_subword_prefix"] == "##"
    )


def _convert(script: str, *arguments: str) -> None:
    """Runs the converter's script in this process, which is its own, with a name where its hashes have none."""
    folder = Path(script).parent
    sys.path[:0] = [str(folder), str(folder / "gguf-py")]
    model = importlib.import_module("conversion.base").TextModel
    by_hash = model.get_vocab_base_pre

    def named(self: Any, tokenizer: Any) -> str:
        try:
            found: str = by_hash(self, tokenizer)
        except NotImplementedError:
            # As transformers reads the folder, which is not always as tokenizer.json stands in it.
            backend = getattr(tokenizer, "backend_tokenizer", None)
            name = name_of(json.loads(backend.to_str())) if backend is not None else None
            if name is None:
                raise
            return name
        return found

    model.get_vocab_base_pre = named
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    _convert(*sys.argv[1:])

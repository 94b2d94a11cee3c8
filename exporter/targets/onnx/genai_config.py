"""genai_config.json: what onnxruntime-genai opens a decoder's folder by, read from the graph and the checkpoint.

The shapes are the graph's, which is what will be fed. The rest is read from the checkpoint's JSON: transformers would
load torch, in a process whose memory is a figure. What onnxruntime-genai knows no word for, such as layers of different
sizes, is not described: then there is no such file, and a note says why.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir

GENAI_CONFIG = "genai_config.json"
# Of the types that the runtime knows, the one of any decoder. It refuses those that it has no name for, as gpt_neox,
# and feeds what is called gpt2 otherwise than our graphs take.
_TYPE = "decoder"
_FED = ("input_ids", "attention_mask", "position_ids")
_PAST, _PRESENT = "past_key_values.%d.", "present.%d."
_CACHE = re.compile(r"(past_key_values|present)\.(\d+)\.(key|value)")
_OF_A_LAYER = [(kind, part) for kind in ("past_key_values", "present") for part in ("key", "value")]
# What configurations call the same: transformers' own name, and those of older models and of code in a model's folder.
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_LENGTH = ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len", "max_sequence_length", "n_ctx")
_UNLIMITED = 1 << 20  # tokens, where nothing limits them: the runtime wants a number, and makes a buffer of as many ids
# What generation_config.json may ask of the search, as the runtime calls it too, with transformers' defaults.
_SEARCH = {
    "diversity_penalty": 0.0,
    "do_sample": False,
    "length_penalty": 1.0,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
}


class NotDescribedError(Exception):
    """Why onnxruntime-genai cannot run a graph, in words that end a sentence."""


def genai_config(checkpoint: Path, graph: ir.Graph, model: str) -> dict[str, Any]:
    """What genai_config.json says of a decoder's graph. `model`: its file, relative to the folder.

    Raises NotDescribedError.
    """
    fed = [str(value.name) for value in graph.inputs]
    layers, heads, size = _cache_of(graph)
    config = _read(checkpoint / "config.json")
    config |= config.get("text_config") or {}
    said = _read(checkpoint / "generation_config.json") or config
    vocabulary = _vocabulary(graph)
    ends = _ends(checkpoint, said, config, vocabulary)
    starts, pads = (_token(said.get(name), config.get(name)) for name in ("bos_token_id", "pad_token_id"))
    length = _context_length(checkpoint, config)
    return {
        "model": {
            "bos_token_id": ends[0] if starts is None else starts,
            "context_length": length,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": model,
                "head_size": size,
                "hidden_size": _number(config, _HIDDEN) or heads * size,
                "inputs": {name: name for name in _FED if name in fed}
                | {"past_key_names": f"{_PAST}key", "past_value_names": f"{_PAST}value"},
                "outputs": {
                    "logits": "logits",
                    "present_key_names": f"{_PRESENT}key",
                    "present_value_names": f"{_PRESENT}value",
                },
                "num_attention_heads": _number(config, _HEADS) or heads,
                "num_hidden_layers": layers,
                "num_key_value_heads": heads,
            },
            "eos_token_id": ends,
            "pad_token_id": ends[0] if pads is None else pads,
            "type": _TYPE,
            "vocab_size": vocabulary,
        },
        # The graph hands out a cache that has grown, and masks by its length: never the buffer that it was given.
        "search": {name: default if said.get(name) is None else said[name] for name, default in _SEARCH.items()}
        | {"early_stopping": True, "max_length": length, "past_present_share_buffer": False},
    }


def _cache_of(graph: ir.Graph) -> tuple[int, int, int]:
    """Layers, heads and head size of the KV cache, which are the same in all layers."""
    shapes = {str(value.name): value.shape for value in (*graph.inputs, *graph.outputs)}
    unknown = [name for name in shapes if name not in (*_FED, "logits") and not _CACHE.fullmatch(name)]
    if unknown:
        raise NotDescribedError(f"the graph has {', '.join(unknown)}")
    if lacking := {"input_ids", "attention_mask", "logits"} - set(shapes):
        raise NotDescribedError(f"the graph has no {', '.join(sorted(lacking))}")
    found = {match.groups(): shapes[name] for name in shapes if (match := _CACHE.fullmatch(name))}
    layers = len(found) // len(_OF_A_LAYER)
    numbers = {(kind, str(layer), part) for kind, part in _OF_A_LAYER for layer in range(layers)}
    if not layers or set(found) != numbers:
        raise NotDescribedError("its layers are not all ones with a key and a value in the cache")
    sizes = {tuple(shape)[1::2] if shape is not None and len(shape) == 4 else (None, None) for shape in found.values()}
    if len(sizes) > 1:
        raise NotDescribedError("its layers' caches differ in their heads or their size")
    ((heads, size),) = sizes
    if not (isinstance(heads, int) and isinstance(size, int)):
        raise NotDescribedError("its cache's heads and their size are no numbers in the graph")
    return layers, heads, size


def _vocabulary(graph: ir.Graph) -> int:
    [shape] = [value.shape for value in graph.outputs if value.name == "logits"]
    words = shape[-1] if shape is not None else None
    if not isinstance(words, int):
        raise NotDescribedError("its vocabulary's size is no number in the graph")
    return words


def _ends(checkpoint: Path, said: Mapping[str, Any], config: Mapping[str, Any], vocabulary: int) -> list[int]:
    """The tokens that end a text: those that generation stops at by transformers, or else the tokenizer's one.

    The runtime refuses a folder for one that the vocabulary does not have.
    """
    named = said.get("eos_token_id")
    if named is None:
        named = config.get("eos_token_id")
    if named is None:
        named = _tokenizers_end(checkpoint)
    ids = named if isinstance(named, list) else [named]
    ends = [one for one in ids if isinstance(one, int) and 0 <= one < vocabulary]
    if not ends:
        raise NotDescribedError("no token of the vocabulary is named that ends a text")
    return ends


def _tokenizers_end(checkpoint: Path) -> int | None:
    from tokenizers import Tokenizer

    token = _read(checkpoint / "tokenizer_config.json").get("eos_token")
    words = checkpoint / "tokenizer.json"
    if not token or not words.is_file():
        return None
    text = token if isinstance(token, str) else token["content"]
    told: int | None = Tokenizer.from_file(str(words)).token_to_id(text)
    return told


def _token(*ids: Any) -> int | None:
    """The first that is named; of several, the first."""
    named: Iterable[Any] = (one[0] if isinstance(one, list) and one else one for one in ids)
    return next((one for one in named if isinstance(one, int)), None)


def _context_length(checkpoint: Path, config: Mapping[str, Any]) -> int:
    """The most tokens of prompt and answer together."""
    told = _number(config, _LENGTH) or _number(_read(checkpoint / "tokenizer_config.json"), ["model_max_length"])
    return min(told or _UNLIMITED, _UNLIMITED)  # a tokenizer without a limit of its own says 10^30


def _number(settings: Mapping[str, Any], names: Iterable[str]) -> int | None:
    found = (settings[name] for name in names if isinstance(settings.get(name), int | float) and settings[name] > 0)
    return int(one) if (one := next(found, None)) is not None else None


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

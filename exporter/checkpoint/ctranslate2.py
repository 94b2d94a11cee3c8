"""Whisper in CTranslate2's binary format, as faster-whisper's users have it, made a Hugging Face folder again.

The format, little-endian: the format's version, the specification's name and revision, then how many variables there
are, and of each its name, rank, shape, type and bytes; behind them aliases: names of variables that are others'. A text
is its length (uint16, its final zero counted) and its bytes; all other numbers are uint32, but a rank and a type, of a
byte each. Read here: version 6 with its weights in float32 or float16. What is quantized is refused.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import BuildError

Array = NDArray[Any]

_VERSION = 6
_TYPES = {0: "<f4", 1: "|i1", 2: "<i2", 3: "<i4", 4: "<f2"}
_FLOATS = (0, 4)
# What transformers calls the parts of a half, of a layer's attentions and of its other parts.
_HALF = {
    "embeddings/weight": "embed_tokens.weight",
    "position_encodings/encodings": "embed_positions.weight",
    "layer_norm/gamma": "layer_norm.weight",
    "layer_norm/beta": "layer_norm.bias",
    **{f"conv{number}/{part}": f"conv{number}.{part}" for number in (1, 2) for part in ("weight", "bias")},
}
_NORMS = {"self_attention": "self_attn_layer_norm", "attention": "encoder_attn_layer_norm", "ffn": "final_layer_norm"}
_PARTS = {"gamma": "weight", "beta": "bias"}
# The layers that one product of CTranslate2's computes at once.
_JOINED = {
    ("self_attention", "linear_0"): ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attention", "linear_1"): ("self_attn.out_proj",),
    ("attention", "linear_0"): ("encoder_attn.q_proj",),
    ("attention", "linear_1"): ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    ("attention", "linear_2"): ("encoder_attn.out_proj",),
    ("ffn", "linear_0"): ("fc1",),
    ("ffn", "linear_1"): ("fc2",),
}


def read_variables(file: Path) -> dict[str, Array]:
    """Every variable of a model.bin by its name, aliases left out. Raises BuildError."""
    data = file.read_bytes()
    at = 0

    def number(form: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{form}", data, at)
        at += struct.calcsize(form)
        return int(value)

    def text() -> str:
        nonlocal at
        size = number("H")
        at += size
        return data[at - size : at - 1].decode()

    try:
        version, spec, _ = number("I"), text(), number("I")
        if (version, spec) != (_VERSION, "WhisperSpec"):
            raise BuildError(f"{file} is {spec} in version {version}, and WhisperSpec in {_VERSION} is read here")
        variables = {}
        for _ in range(number("I")):
            name = text()
            shape = [number("I") for _ in range(number("B"))]
            kind, size = _TYPES[number("B")], number("I")
            variables[name] = np.frombuffer(data[at : at + size], kind).reshape(shape)
            at += size
        for _ in range(number("I")):
            text(), text()
    except (struct.error, ValueError, KeyError) as error:
        raise BuildError(f"{file} is no model of CTranslate2: {' '.join(str(error).split())}") from error
    if at != len(data):
        raise BuildError(f"{file} has {len(data) - at} bytes behind its last variable")
    return variables


def tensors_of(variables: dict[str, Array]) -> dict[str, Array]:
    """The same as transformers' WhisperForConditionalGeneration has them, in float32. Raises BuildError."""
    made: dict[str, Array] = {}
    for name, value in variables.items():
        half, _, rest = name.partition("/")
        if value.ndim == 0:  # a setting, such as the number of heads
            continue
        if value.dtype.kind != "f":
            raise BuildError(f"{name} is quantized ({value.dtype}): give a model in float16 or float32")
        for place, part in _renamed(rest, value):
            made[f"model.{half}.{place}"] = part.astype(np.float32)
    for name in [name for name in made if name.endswith("k_proj.bias")]:
        if made.pop(name).any():
            raise BuildError(f"{name} is not zero, and Whisper's keys have no bias")
    return made


def _renamed(rest: str, value: Array) -> Iterator[tuple[str, Array]]:
    if rest in _HALF:
        yield _HALF[rest], value
        return
    match rest.split("/"):
        case [layer, block, "layer_norm", part] if layer.startswith("layer_"):
            yield f"layers.{layer.removeprefix('layer_')}.{_NORMS[block]}.{_PARTS[part]}", value
        case [layer, block, linear, part] if (block, linear) in _JOINED:
            places = _JOINED[block, linear]
            for place, one in zip(places, np.split(value, len(places)), strict=True):
                yield f"layers.{layer.removeprefix('layer_')}.{place}.{part}", one
        case _:
            raise BuildError(f"{rest} is a variable that Whisper's specification does not have")


def write_whisper(source: Path, destination: Path) -> None:
    """Writes the float32 checkpoint of a folder with model.bin, config.json and tokenizer.json into an empty folder."""
    from safetensors.numpy import save_file
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor

    variables = read_variables(source / "model.bin")
    tensors = tensors_of(variables)
    told = json.loads((source / "config.json").read_text(encoding="utf-8"))
    tokens = _tokens(json.loads((source / "tokenizer.json").read_text(encoding="utf-8")))
    start, end, plain = (tokens[f"<|{name}|>"] for name in ("startoftranscript", "endoftext", "notimestamps"))
    vocabulary, width = tensors["model.decoder.embed_tokens.weight"].shape
    mel = tensors["model.encoder.conv1.weight"].shape[1]
    sizes: dict[str, Any] = {
        f"{half}_{name}": value
        for half in ("encoder", "decoder")
        for name, value in (
            ("layers", sum(key.startswith(f"model.{half}.layers.") and key.endswith(".fc1.bias") for key in tensors)),
            ("attention_heads", int(variables[f"{half}/num_heads"])),
            ("ffn_dim", len(tensors[f"model.{half}.layers.0.fc1.bias"])),
        )
    }
    special: dict[str, Any] = {
        "bos_token_id": start, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start,
        "begin_suppress_tokens": told["suppress_ids_begin"],
    }  # fmt: skip
    config = WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        num_mel_bins=mel,
        max_source_positions=len(tensors["model.encoder.embed_positions.weight"]),
        max_target_positions=len(tensors["model.decoder.embed_positions.weight"]),
        architectures=["WhisperForConditionalGeneration"],
        dtype="float32",
        **special,
        **sizes,
    )
    config.save_pretrained(destination)
    generation: Any = GenerationConfig  # which transformers leaves untyped, as the extractor
    extractor: Any = WhisperFeatureExtractor
    generation(
        **special,
        suppress_tokens=told["suppress_ids"],
        max_length=config.max_target_positions,
        alignment_heads=told["alignment_heads"],
        forced_decoder_ids=[[1, plain]],
        is_multilingual=False,
        no_timestamps_token_id=plain,
        prev_sot_token_id=tokens["<|startofprev|>"],
        return_timestamps=False,
    ).save_pretrained(destination)
    extractor(feature_size=mel, processor_class="WhisperProcessor").save_pretrained(destination)
    copyfile(source / "tokenizer.json", destination / "tokenizer.json")
    named = {f"{name}_token": "<|endoftext|>" for name in ("bos", "eos", "unk", "pad")}
    about = {
        "tokenizer_class": "WhisperTokenizer", "processor_class": "WhisperProcessor", **named,
        "additional_special_tokens": [name for name in tokens if name.startswith("<|")],
        "add_prefix_space": False, "model_max_length": config.max_target_positions,
    }  # fmt: skip
    (destination / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, destination / "model.safetensors", {"format": "pt"})


def _tokens(tokenizer: dict[str, Any]) -> dict[str, int]:
    """The special tokens of a tokenizer.json, by their names. Raises BuildError of one of several languages."""
    known = {one["content"]: int(one["id"]) for one in tokenizer["added_tokens"]}
    if known["<|endoftext|>"] != 50256:
        raise BuildError("a model of several languages is not read here: its prompt has more than one form")
    return known

"""A checkpoint to a float32 .tflite file by litert-torch: a signature for each length, over one copy of the weights.

Encoders have encode_64 and so on: input_ids, attention_mask and where the tokenizer has them token_type_ids, int32
[1, N] each. Text generation has prefill_128 and so on, and decode of one token, named as LiteRT-LM calls them: tokens
int32 [1, N], input_pos int32 [N], mask float32 [1, 1, N, C] (0, or masks.HIDDEN), and of each layer kv_cache_k_0 and
kv_cache_v_0, float32 [1, heads, C, size], which come back with the new tokens' rows written at input_pos[0].
Models of pictures have serving_default, which an interpreter runs unless another is asked for: pixel_values float32
[1, C, H, W], as the checkpoint's processor makes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import BuildError
from exporter.form import FORMS, PIXELS
from exporter.targets.litert.flatbuffer import LIMIT
from exporter.targets.litert.options import PREFILLED, USUAL_LENGTH, LitertOptions, encoded
from exporter.targets.litert.traps import alone, keep_biases, weights_as_they_are
from exporter.targets.traced_model.attention import GROUPED, LATE
from exporter.targets.traced_model.longest import longest
from exporter.targets.traced_model.outer_cache import outer_cache
from exporter.targets.traced_model.pictures import wrap_pictures
from exporter.targets.traced_model.wrapped import wrap_decoder, wrap_encoder
from exporter.tasks.known import TASKS
from exporter.types import GENERATION, Checkpoint

if TYPE_CHECKING:
    import torch

DECODE, PREFILL, ENCODE, SEE = "decode", "prefill_", "encode_", "serving_default"
TOKENS, POSITIONS, MASK, KEYS, VALUES = "tokens", "input_pos", "mask", "kv_cache_k_", "kv_cache_v_"
_MISSING = re.compile(r"Lowering not found: ([\w.:]+)")
_REST = re.compile(r"While executing %|Original traceback:|The error occurred while tracing")


@dataclass(frozen=True)
class Wrapped:
    """What a converter takes: a module, and of each signature the inputs that it is traced with.

    `model` is the torch model inside of it, for its weights. `limited`: why it takes no longer texts.
    """

    module: torch.nn.Module
    given: Mapping[str, Mapping[str, torch.Tensor]]
    model: Any
    limited: str


def convert(checkpoint: Checkpoint, options: LitertOptions, file: Path) -> Wrapped:
    """Writes the float32 program of a checkpoint. Raises BuildError."""
    wrapped = wrap(checkpoint, options)
    # Of a model that a stage gave its shape nothing was known before.
    if (why := too_large(sum(one.numel() for one in wrapped.model.parameters()))) is not None:
        raise BuildError(why)
    keep_biases(wrapped.model)
    _write(wrapped.module, wrapped.given, wrapped.model, file)
    return wrapped


def wrap(checkpoint: Checkpoint, options: LitertOptions) -> Wrapped:
    """A checkpoint's model with its signatures. Raises BuildError for lengths that it does not take."""
    if FORMS[checkpoint.task].inputs == "pixels":
        return _pictures(checkpoint)
    decoder = checkpoint.task == GENERATION
    asked = options.max_length if decoder else max(options.asked() or (0,)) or None
    flag = "--litert-max-length" if decoder else "--litert-lengths"
    length, limited = longest(checkpoint, asked, USUAL_LENGTH, flag)
    if decoder:
        return _decoder(checkpoint, _lengths(options, PREFILLED, length), length, limited)
    return _encoder(checkpoint, _lengths(options, encoded(TASKS[checkpoint.task].window), length), limited)


def too_large(parameters: int) -> str | None:
    """Why no file holds a model of so many numbers; None: one does. All precisions are made of the float32 one."""
    size = 4 * parameters
    if size <= LIMIT:
        return None
    return (
        f"its float32 weights are {size:,} bytes, and the .tflite file that all precisions are made from has {LIMIT:,} "
        "at most; try gguf or onnx"
    )


def _lengths(options: LitertOptions, usual: tuple[int, ...], longest_text: int) -> tuple[int, ...]:
    """Those that were asked for; else the usual ones that the model takes, or its own length where that is less."""
    asked = options.asked()
    if asked is None:
        return tuple(one for one in usual if one <= longest_text) or (longest_text,)
    if asked[-1] > longest_text:
        raise BuildError(f"--litert-lengths {options.lengths}: its cache holds {longest_text} tokens")
    return asked


def _pictures(checkpoint: Checkpoint) -> Wrapped:
    import torch

    wrapped = wrap_pictures(checkpoint, LATE)

    class See(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = wrapped.module

        def forward(self, **given: Any) -> dict[str, Any]:
            return {wrapped.output: self.inner(given[PIXELS])}

    return Wrapped(See().eval(), {SEE: {PIXELS: torch.zeros(1, *wrapped.shape)}}, wrapped.model, "")


def _encoder(checkpoint: Checkpoint, lengths: tuple[int, ...], limited: str) -> Wrapped:
    import torch

    wrapped = wrap_encoder(checkpoint, lengths[-1], GROUPED)

    class Encode(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = wrapped.module

        def forward(self, **given: Any) -> dict[str, Any]:
            return {wrapped.output: self.inner(*(given[name] for name in wrapped.inputs))}

    given = {
        f"{ENCODE}{length}": {name: torch.ones(1, length, dtype=torch.int32) for name in wrapped.inputs}
        for length in lengths
    }
    return Wrapped(Encode().eval(), given, wrapped.model, limited)


def _decoder(checkpoint: Checkpoint, lengths: tuple[int, ...], size: int, limited: str) -> Wrapped:
    import torch

    wrapped = wrap_decoder(checkpoint, size, GROUPED)
    layers = range(len(wrapped.layers))

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrapped = wrapped.model

        def forward(self, tokens: Any, input_pos: Any, mask: Any, **caches: Any) -> dict[str, Any]:
            cache = outer_cache([(caches[f"{KEYS}{i}"], caches[f"{VALUES}{i}"]) for i in layers], input_pos[0])
            masks = wrapped.masks_of_one(mask, input_pos)
            logits = wrapped.logits(self.wrapped, tokens, input_pos[None], masks, cache)
            written: dict[str, Any] = {}
            for i, layer in enumerate(cache.layers):
                written |= {f"{KEYS}{i}": layer.keys, f"{VALUES}{i}": layer.values}
            return {"logits": logits, **written}

    caches = {}
    for i, ((key_heads, key_size), (value_heads, value_size)) in enumerate(wrapped.layers):
        caches[f"{KEYS}{i}"] = torch.zeros(1, key_heads, size, key_size)
        caches[f"{VALUES}{i}"] = torch.zeros(1, value_heads, size, value_size)
    names = {f"{PREFILL}{length}": length for length in lengths} | {DECODE: 1}
    given = {
        name: {
            TOKENS: torch.ones(1, length, dtype=torch.int32),
            POSITIONS: torch.arange(length, dtype=torch.int32),
            MASK: torch.zeros(1, 1, length, size),
            **caches,
        }
        for name, length in names.items()
    }
    return Wrapped(Step().eval(), given, wrapped.model, limited)


def _write(module: torch.nn.Module, given: Mapping[str, Mapping[str, torch.Tensor]], model: Any, file: Path) -> None:
    import torch

    with alone(), weights_as_they_are(), torch.no_grad():
        from litert_torch import Converter

        converter = Converter()
        for signature, tensors in given.items():
            converter.add_signature(signature, module, sample_kwargs=dict(tensors))
        try:
            converter.convert(lightweight_conversion=True).export(str(file))
        except Exception as error:  # whatever its passes run into
            raise BuildError(f"litert-torch cannot convert {type(model).__name__}: {_why(error)}") from error


def _why(error: Exception) -> str:
    """In one line, without the places in its code; the operators that it has not, by their names in torch."""
    text = " ".join(str(error).split())
    if missing := sorted(set(_MISSING.findall(text))):
        return f"LiteRT has nothing for its operator {', '.join(missing)}"
    return f"{type(error).__name__}: {_REST.split(text)[0][:300]}"

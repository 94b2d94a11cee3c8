"""A checkpoint's model, traced with everything that is awkward inside a graph given from outside, or looked up.

Masks come ready (masks.py), positions too; rotary embeddings are tables (rotary.py); the KV cache is two buffers that
are written in place (cache.py). So a trace at one length is right at every other, which the tests and each artifact's
gates hold it to.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from exporter.errors import BuildError
from exporter.form import FORMS, PIXELS
from exporter.targets.traced_model.attention import FUSED, LATE, PLAIN
from exporter.targets.traced_model.cache import StateShape, buffered_cache, state_shape
from exporter.targets.traced_model.pictures import wrap_pictures
from exporter.targets.traced_model.wrapped import wrap_decoder, wrap_encoder
from exporter.types import Checkpoint

if TYPE_CHECKING:
    import torch

BATCH, NEW, TOTAL = (
    "batch_size",
    "sequence_length",
    "total_sequence_length",
)  # sizes that vary, as ONNX graphs call them
# Sizes at the trace: above 1, which tracers take for a constant, and all different from one another.
SAMPLE = {BATCH: 2, NEW: 3, TOTAL: 8}
KEYS, VALUES = "key_cache", "value_cache"
Dimensions = tuple[str | int, ...]  # a name for a size that varies, or a number


@dataclass(frozen=True)
class Traced:
    """A TorchScript program. `integers`, `masks` and `pixels` are its inputs by name, in their order: int32, float, and
    always float32.

    `states` are its buffers that are written. `model` is the model inside, as it was traced, for its weights: its
    modules have the program's parameter names behind `wrapped.`. `window`: of the sliding mask.
    """

    program: torch.jit.ScriptModule
    model: Any
    integers: Mapping[str, Dimensions]
    masks: Mapping[str, Dimensions]
    output: str
    answer: Dimensions
    states: Mapping[str, StateShape]
    window: int | None = None
    pixels: Mapping[str, Dimensions] = field(default_factory=dict)


def trace_decoder(checkpoint: Checkpoint, length: int, stateful: bool, fused: bool) -> Traced:
    """A causal LM with batch 1 and up to `length` tokens, with logits for all of the new ones.

    input_ids and position_ids [1, T]; masks [1, 1, T, S] of T new tokens behind S - T others (stateless: [1, 1, T, T]);
    out logits [1, T, V]. `fused`: attention as one operator. Raises BuildError where the model cannot be traced so.
    """
    import torch

    wrapped = wrap_decoder(checkpoint, length, FUSED if fused else PLAIN)
    model, names = wrapped.model, wrapped.masks
    state = state_shape(wrapped.name, wrapped.layers, length) if stateful else None
    total = TOTAL if stateful else NEW

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrapped = model
            if state is not None:
                self.register_buffer(KEYS, torch.zeros(state.dimensions))
                self.register_buffer(VALUES, torch.zeros(state.dimensions))

        def forward(self, input_ids: Any, position_ids: Any, *masks: Any) -> Any:
            cache = None
            if state is not None:
                keys, values = self.get_buffer(KEYS), self.get_buffer(VALUES)
                cache = buffered_cache(keys, values, masks[0].shape[-1] - input_ids.shape[-1])
            given = dict(zip(names, masks, strict=True))
            return wrapped.logits(self.wrapped, input_ids, position_ids, given, cache)

    sizes = {**SAMPLE, NEW: min(SAMPLE[NEW], length), TOTAL: min(SAMPLE[TOTAL], length)}
    integers: dict[str, Dimensions] = {"input_ids": (1, NEW), "position_ids": (1, NEW)}
    masks: dict[str, Dimensions] = dict.fromkeys(names, (1, 1, NEW, total))
    given = {
        "input_ids": torch.arange(1, sizes[NEW] + 1, dtype=torch.int32)[None],
        "position_ids": torch.arange(sizes[total] - sizes[NEW], sizes[total], dtype=torch.int32)[None],
    } | {name: torch.zeros(1, 1, sizes[NEW], sizes[total]) for name in names}
    program = _traced(Decoder(), model, given)
    states = {} if state is None else {KEYS: state, VALUES: state}
    answer: Dimensions = (1, NEW, wrapped.vocabulary)
    return Traced(program, model, integers, masks, "logits", answer, states, wrapped.window)


def trace_encoder(checkpoint: Checkpoint, length: int, fused: bool) -> Traced:
    """A model that reads whole texts: input_ids, attention_mask and, where its tokenizer has them, token_type_ids, all
    [B, T]; out last_hidden_state or logits [B, T, H], or logits [B, C]. The mask of the attention's scores is made
    inside. Raises BuildError as above.
    """
    import torch

    wrapped = wrap_encoder(checkpoint, length, FUSED if fused else PLAIN)
    shape = (SAMPLE[BATCH], SAMPLE[NEW])
    given = {
        "input_ids": torch.full(shape, 5, dtype=torch.int32),
        "attention_mask": torch.ones(shape, dtype=torch.int32),
    } | {name: torch.zeros(shape, dtype=torch.int32) for name in wrapped.inputs[2:]}
    answer: Dimensions = (BATCH, NEW, wrapped.width) if FORMS[checkpoint.task].per_token else (BATCH, wrapped.width)
    program = _traced(wrapped.module, wrapped.model, given)
    return Traced(program, wrapped.model, dict.fromkeys(wrapped.inputs, (BATCH, NEW)), {}, wrapped.output, answer, {})


def trace_pictures(checkpoint: Checkpoint, fused: bool) -> Traced:
    """A model of pictures: pixel_values [1, C, H, W]; out logits [1, C] or last_hidden_state [1, P, H], or
    [1, H, height, width]. Raises BuildError as above.
    """
    import torch

    wrapped = wrap_pictures(checkpoint, FUSED if fused else LATE)
    shape = (1, *wrapped.shape)
    program = _traced(wrapped.module, wrapped.model, {PIXELS: torch.zeros(shape)})
    return Traced(program, wrapped.model, {}, {}, wrapped.output, (1, *wrapped.answer), {}, pixels={PIXELS: shape})


def _traced(wrapper: torch.nn.Module, model: Any, given: Mapping[str, torch.Tensor]) -> torch.jit.ScriptModule:
    """The wrapper's trace on a sample; what was written to its buffers meanwhile is wiped."""
    import torch
    from torch.jit._trace import TracerWarning

    with warnings.catch_warnings(), torch.no_grad():
        # A dozen for each model, about Python values that the trace keeps. Whether one of them mattered is measured: at
        # other sizes in the tests, and on every artifact by its gates.
        warnings.simplefilter("ignore", TracerWarning)
        # TorchScript looks at every attribute of a module, transformers' deprecated ones too.
        warnings.filterwarnings("ignore", r".* is deprecated and will be removed in v6", FutureWarning)
        # torch deprecates TorchScript as a whole; coremltools takes it best.
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is (deprecated|not supported)", DeprecationWarning)
        try:
            trace: Any = torch.jit.trace  # which torch leaves untyped
            program: torch.jit.ScriptModule = trace(wrapper.eval(), tuple(given.values()), check_trace=False)
        except Exception as error:  # whatever the model's code runs into
            told = (str(error).splitlines() or [""])[0]
            name = type(model).__name__
            raise BuildError(f"{name} cannot be traced ({type(error).__name__}: {told[:300]})") from error
        for name, buffer in wrapper.named_buffers():
            if name in (KEYS, VALUES):
                buffer.zero_()
    return program

"""A checkpoint's model, loaded so that it can be traced, with its masks given from outside.

A decoder is asked for logits with masks and a cache that its caller makes; an encoder makes the mask of its attention's
scores of the tokenizer's.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.model import load_model
from exporter.form import FORMS
from exporter.targets.traced_model.attention import use_attention
from exporter.targets.traced_model.cache import Shapes, answer_shapes
from exporter.targets.traced_model.masks import CAUSAL, HIDDEN, SLIDING, as_argument, masks_of
from exporter.targets.traced_model.rotary import use_tables
from exporter.types import Checkpoint

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Decoder:
    """A causal LM. `masks`: names of those it needs; `window`: of the sliding one; `layers` as answer_shapes says."""

    model: Any
    vocabulary: int
    layers: Shapes
    masks: tuple[str, ...]
    window: int | None

    @property
    def name(self) -> str:
        return type(self.model).__name__

    def masks_of_one(self, mask: Any, positions: Any) -> dict[str, Any]:
        """All the masks that it needs of the causal one [1, 1, T, C], of a cache of C rows, and positions [T]."""
        import torch

        if SLIDING not in self.masks:
            return {CAUSAL: mask}
        seen = torch.arange(mask.shape[-1], dtype=torch.int32)[None]
        hidden = (seen <= positions[:, None] - self.window).to(torch.float32) * HIDDEN
        return {CAUSAL: mask, SLIDING: mask + hidden[None, None]}

    def logits(self, model: Any, input_ids: Any, position_ids: Any, masks: Mapping[str, Any], cache: Any) -> Any:
        """[1, T, V] of `model`, which is the decoder's own inside whatever is traced; ids and positions [1, T]."""
        return model(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=as_argument({name: masks[name] for name in self.masks}),
            past_key_values=cache,
            use_cache=cache is not None,
            return_dict=True,
        ).logits


def refused_encoder(config: Mapping[str, Any]) -> str | None:
    """Why an encoder with this config.json is not wrapped; None where it is."""
    sliding = "sliding_attention" in (config.get("layer_types") or ())
    return "sliding windows of encoders are not traced yet; try onnx" if sliding else None


def wrap_decoder(checkpoint: Checkpoint, length: int, way: str) -> Decoder:
    """A causal LM for up to `length` tokens that attends in a `way` of attention.py. Raises BuildError."""
    model = load_for_trace(checkpoint, way)
    vocabulary, layers = answer_shapes(model)
    names, window = masks_of(model)
    use_tables(model, length)
    return Decoder(model, vocabulary, layers, names, window)


@dataclass(frozen=True)
class Encoder:
    """A model that reads whole texts. `module` takes `inputs` by position, int32 [B, T] each.

    It returns the `output`: last_hidden_state or logits [B, T, width], or logits [B, width]. Several logits of its
    task's form, such as those of an answer's begin and end, are one, with an axis for them at the end.
    """

    module: torch.nn.Module
    model: Any
    inputs: tuple[str, ...]
    output: str
    width: int


def wrap_encoder(checkpoint: Checkpoint, length: int, way: str) -> Encoder:
    """As wrap_decoder; input_ids, attention_mask and, where its tokenizer has them, token_type_ids."""
    import torch

    model = load_for_trace(checkpoint, way)
    config = model.config
    use_tables(model, length)
    form, causal = FORMS[checkpoint.task], _looks_back_only(model)
    names = encoder_inputs(checkpoint.path, model)

    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrapped = model

        def forward(self, input_ids: Any, attention_mask: Any, *others: Any) -> Any:
            hidden = (1 - attention_mask)[:, None, None, :]
            if causal:
                at = torch.ones_like(attention_mask).cumsum(-1)
                hidden = torch.maximum(hidden, (at[:, None, None, :] > at[:, None, :, None]).to(torch.int32))
            given = dict(zip(names[2:], others, strict=True))
            answer = self.wrapped(
                input_ids=input_ids, attention_mask=hidden.to(torch.float32) * HIDDEN, return_dict=True, **given
            )
            found = [getattr(answer, name) for name in form.outputs]
            return found[0] if len(found) == 1 else torch.stack(found, -1)

    output = form.outputs[0] if len(form.outputs) == 1 else "logits"
    return Encoder(Wrapper().eval(), model, tuple(names), output, form.width(config))


def _looks_back_only(model: Any) -> bool:
    """Whether a model's first states do not depend on what follows: an embedding model that was made of a decoder."""
    import torch

    with torch.no_grad():
        first, other = (
            model(input_ids=torch.tensor([[5, 6, last]]), output_hidden_states=True).hidden_states[-1][0, 0]
            for last in (7, 8)
        )
    return bool(torch.equal(first, other))


def encoder_inputs(checkpoint: Path, model: Any) -> list[str]:
    """What a tokenizer feeds the model; without a tokenizer, segments only where the model has several kinds."""
    taken = inspect.signature(model.forward).parameters
    names = ["input_ids", "attention_mask", "token_type_ids"]
    settings = checkpoint / "tokenizer_config.json"
    said = json.loads(settings.read_text(encoding="utf-8")).get("model_input_names") if settings.is_file() else None
    if said is None:
        said = names if getattr(model.config, "type_vocab_size", 0) > 1 else names[:2]
    return [name for name in names if name in taken and name in said]


def load_for_trace(checkpoint: Checkpoint, way: str) -> Any:
    """A checkpoint's float32 model that attends in a `way` of attention.py."""
    model = load_model(checkpoint.path, checkpoint.task, "float32", checkpoint.trust_remote_code).eval()
    model.set_experts_implementation("batched_mm")  # the others count tokens or loop over them, which a trace freezes
    use_attention(model, way)
    return model

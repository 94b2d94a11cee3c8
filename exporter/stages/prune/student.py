"""A smaller model made of a larger one, to be taught by it: --distill-student layers:6,hidden:256,intermediate:1024.

Layers are taken evenly, the last one among them (DistilBERT, Sanh et al. 2019, arXiv:1910.01108, takes every second):
of narrower weights the first rows and columns, the same channels everywhere. That is a place to begin learning from,
and no more: narrow students answer badly before they are taught. --prune width and depth choose what matters least.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from exporter.errors import JobError, unknown
from exporter.stages.prune.depth import renumbered, shrink, stack_of
from exporter.stages.prune.rebuilt import parameters_of, rebuild, validate

_FUSED = re.compile(r"c_attn|qkv|query_key_value|w_pack", re.IGNORECASE)  # query, key and value in one weight


@dataclass(frozen=True)
class Shape:
    """What a student has of each; None: as its teacher."""

    layers: int | None = None
    hidden: int | None = None
    intermediate: int | None = None

    def __str__(self) -> str:
        return ",".join(f"{name}:{value}" for name, value in asdict(self).items() if value is not None)


def parse_shape(text: str) -> Shape:
    """layers:6,hidden:256,intermediate:1024, one of them or several. Raises JobError."""
    found: dict[str, int] = {}
    for piece in text.split(","):
        name, _, value = piece.strip().partition(":")
        if name not in Shape.__dataclass_fields__:
            choices = unknown("part", name, Shape.__dataclass_fields__)
            raise JobError(f"--distill-student {text}: {choices}; for example: layers:6,hidden:256")
        if not (value.isascii() and value.isdigit() and int(value)):
            raise JobError(f"--distill-student {text}: {name} needs a number, 1 or more; for example: {name}:6")
        if name in found:
            raise JobError(f"--distill-student {text}: {name} is there twice")
        found[name] = int(value)
    return Shape(**found)


def cut_student(model: Any, shape: Shape) -> dict[str, Any]:
    """Makes a float32 model smaller in place. Its modules are new ones afterwards.

    Returns plain data: method, amount, layers (the teacher's that stayed), parameters_before and _after, history (a
    line). Raises JobError for a shape that is not smaller, or that its heads do not divide, BuildError for a model that
    cannot be built so.
    """
    config = model.config.get_text_config()
    before, had = parameters_of(model), config.num_hidden_layers
    kept = list(range(had))
    weights = dict(model.state_dict())
    if shape.layers is not None:
        _check_smaller("layers", shape.layers, had)
        kept = [round((place + 1) * had / shape.layers) - 1 for place in range(shape.layers)]
        stack, _ = stack_of(model)
        weights = renumbered(weights, stack, kept)
        shrink(config, kept, had)
    if shape.hidden is not None:
        _narrow(config, shape.hidden, list(weights))
    if shape.intermediate is not None:
        _check_smaller("intermediate", shape.intermediate, config.intermediate_size)
        config.intermediate_size = shape.intermediate
    shapes = _shapes(model)
    rebuild(model, {name: _first(weight, shapes.get(name, weight.shape)) for name, weight in weights.items()})
    after = parameters_of(model)
    layers = f" of layers {', '.join(map(str, kept))}" if shape.layers is not None else ""
    line = f"made a student{layers}, {shape}: {after:,} of {before:,} parameters"
    return {
        "method": "student",
        "amount": str(shape),
        "layers": kept,
        "parameters_before": before,
        "parameters_after": after,
        "history": [line],
    }


def _check_smaller(what: str, asked: int, had: int) -> None:
    if not asked < had:
        raise JobError(f"--distill-student {what}:{asked}: the teacher has {had}, and a student has fewer")


def _narrow(config: Any, hidden: int, names: list[str]) -> None:
    _check_smaller("hidden", hidden, config.hidden_size)
    if fused := next((name for name in names if _FUSED.search(name)), None):
        raise JobError(
            f"--distill-student hidden:{hidden}: {fused} holds query, key and value in one, of which the first "
            "channels are the query's alone; take layers:N, or --prune width and heads"
        )
    if getattr(config, "head_dim", None) is None:  # it follows from both: heads keep their size, some of them go
        size = config.hidden_size // config.num_attention_heads
        if hidden % size:
            raise JobError(
                f"--distill-student hidden:{hidden}: a head has {size} channels, so take a multiple, such as "
                f"{max(1, round(hidden / size)) * size}"
            )
        config.num_attention_heads = hidden // size
    config.hidden_size = hidden


def _shapes(model: Any) -> dict[str, Any]:
    """The shapes of all weights of a model as its configuration now is, without making them. Raises JobError."""
    import torch

    try:
        validate(model.config)
        with torch.device("meta"):
            return {name: weight.shape for name, weight in type(model)(model.config).state_dict().items()}
    except ValueError as error:
        said = " ".join(str(error).split())[:300]
        raise JobError(f"--distill-student: {type(model).__name__} has no such shape: {said}") from error


def _first(weight: Any, shape: Any) -> Any:
    """The first entries of a weight along each axis, as many as `shape` has."""
    for axis, size in enumerate(shape):
        weight = weight.narrow(axis, 0, min(size, weight.shape[axis]))
    return weight.clone().contiguous()

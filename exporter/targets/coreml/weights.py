"""Which constant of a program holds which layer's weight, and what each of them becomes.

Layers are found by their numbers, not by names: coremltools renames what it rounds, turns or folds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exporter.checkpoint.linear import shared_weights, weight_of, weighted_layers
from exporter.errors import BuildError
from exporter.scheme import Scheme
from exporter.targets.coreml.options import BLOCKS as GROUPED

if TYPE_CHECKING:
    from coremltools.converters.mil import Program

SMALL = 2048  # numbers: coremltools' own limit, below which a table costs more than it saves


@dataclass(frozen=True)
class Place:
    """A layer's constant. `turned`: it is stored as [K, N]; `head`: it makes a language model's logits.

    `zeros`: how many of its numbers are 0, as they are stored. `convolution`: it is stored as [N, C, height, width].
    """

    constant: str
    turned: bool
    rows: int  # N
    inputs: int  # K
    head: bool
    zeros: int = 0
    convolution: bool = False


CHANNELS = Scheme(weight="int8", group=None)
BLOCKS = Scheme(weight="int4", group=32)
PALETTES = {"palettize6": Scheme(weight="palette6", group=None), "palettize4": Scheme(weight="palette4", group=None)}


def find_places(program: Program, model: Any) -> dict[str, Place]:
    """Each layer's place, by its module's name; one that is tied to an embedding has none, and none that the
    program does without, such as an encoder's pooler.
    """
    constants: dict[tuple[Any, ...], list[tuple[str, NDArray[Any]]]] = {}
    for op in program.functions["main"].operations:
        value = op.outputs[0].val if op.op_type == "const" else None
        if isinstance(value, np.ndarray) and value.ndim in (2, 4) and value.dtype.kind == "f":
            constants.setdefault(_key(value), []).append((op.outputs[0].name, value))
    shared, head = shared_weights(model), model.get_output_embeddings()
    places = {}
    for name, layer in weighted_layers(model).items():
        if name in shared:
            continue
        weight, convolution = weight_of(layer).detach().numpy(), layer.weight.dim() == 4
        stored = layer.weight.detach().numpy() if convolution else weight
        if (found := _find(stored, constants)) is not None:
            constant, turned, zeros = found
            rows, inputs = weight.shape
            places[name] = Place(constant, turned, rows, inputs, layer is head, zeros, convolution)
    return places


def _key(value: NDArray[Any]) -> tuple[Any, ...]:
    return (value.shape, value[0].astype(np.float16).tobytes())


def _find(weight: NDArray[Any], constants: Mapping[tuple[Any, ...], list[Any]]) -> tuple[str, bool, int] | None:
    for turned in (False, True)[: 1 + (weight.ndim == 2)]:
        stored = weight.T if turned else weight
        for name, value in constants.get(_key(stored), []):
            if np.array_equal(value, stored.astype(value.dtype)):
                return name, turned, int(value.size - np.count_nonzero(value))
    return None


def dump(places: Mapping[str, Place]) -> dict[str, Any]:
    """For JSON."""
    return {name: asdict(place) for name, place in places.items()}


def load(values: Mapping[str, Any]) -> dict[str, Place]:
    """What `dump` made."""
    return {name: Place(**place) for name, place in values.items()}


def forms_of(
    precision: str, places: Mapping[str, Place], policy: Mapping[str, Scheme | None] | None, system: int
) -> dict[str, Scheme]:
    """What each layer gets, by its module's name; what has no entry stays in float.

    Without a policy every layer that is not small gets the precision's own. Raises BuildError where a policy's scheme
    does not fit its layer, or the system (18: of iOS18).
    """
    found: dict[str, Scheme] = {}
    for name, place in places.items():
        if place.rows * place.inputs < SMALL:
            continue
        form = usual(precision, place) if policy is None else policy.get(name)
        if form is None:
            continue
        group = form.group
        if place.convolution and (group is not None or form.weight != "int8"):
            raise BuildError(f"the policy: {name} is a convolution, which is no {form}: int8 per channel, or float")
        if group is not None and system < GROUPED:
            raise BuildError(
                f"the policy: {name} is in groups of {group}, which iOS{system} has not; give it per channel"
            )
        if group is not None and place.inputs % group:
            wrong = f"{place.inputs} inputs, no multiple of the group {group}"
            raise BuildError(f"the policy: {name} has {wrong}; give it another group, or float")
        found[name] = form
    return found


def usual(precision: str, place: Place) -> Scheme:
    """A precision's own form for a layer; a scale per channel for a head, a convolution, and where blocks do not divide
    a layer."""
    if place.head or place.convolution:
        return CHANNELS
    if precision in PALETTES:
        return PALETTES[precision]
    if precision == "int4" and place.inputs % (BLOCKS.group or 1) == 0:
        return BLOCKS
    return CHANNELS

"""What each linear layer may get, and the rounded weights that go with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.quantization.cost import Shape
from exporter.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Layer:
    """A linear layer: its weight's shape [N, K], and what it may get, cheapest first; None: float."""

    shape: Shape
    choices: tuple[Scheme | None, ...]

    @property
    def size(self) -> int:
        """Its multiplications for each token."""
        return self.shape[0] * self.shape[1]

    def at(self, rung: int) -> Scheme | None:
        """What it gets at a rung; the last of its choices beyond them."""
        return self.choices[min(rung, len(self.choices) - 1)]


def own_weights(
    weights: Mapping[str, Tensor], layers: Mapping[str, Layer], schemes: Mapping[str, Scheme | None]
) -> Mapping[str, Tensor]:
    """The rounded weights of the layers that are at their lowest rung: they are on that scheme's grid."""
    return _Some(weights, {name for name, scheme in schemes.items() if scheme == layers[name].choices[0]})


@dataclass(frozen=True)
class _Some(Mapping[str, "Tensor"]):
    """Those of the weights that are named: each is fetched, as from a file, when it is asked for."""

    weights: Mapping[str, Tensor]
    names: Set[str]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self:
            raise KeyError(name)
        return self.weights[name]

    def __contains__(self, name: object) -> bool:
        return name in self.names and name in self.weights

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.weights if name in self.names)

    def __len__(self) -> int:
        return sum(1 for _ in self)

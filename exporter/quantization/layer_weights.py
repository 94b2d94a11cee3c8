"""A model's parameters in a file, and its linear layers' weights read from there when they are asked for.

What is put back, or taken by a few layers at a time, memory need not hold beside the model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.linear import weighted_layers
from exporter.progress import Counted, nobody

if TYPE_CHECKING:
    from torch import Tensor


def save_parameters(model: Any, folder: Path, names: Collection[str], progress: Counted = nobody) -> None:
    """Writes these of the parameters of a float32 model into a folder that is empty, or made; tied ones once."""
    _write(folder, model, {name: one.detach for name, one in model.named_parameters() if name in names}, progress)


def load_parameters(model: Any, folder: Path) -> None:
    """Puts the parameters that save_parameters wrote into a model of the same architecture."""
    from exporter.checkpoint.blocks import Tensors

    tensors = Tensors(folder)
    parameters = dict(model.named_parameters())
    for name in tensors.entries:
        parameters[name].data.copy_(tensors.read(name))


def names_of_weights(model: Any) -> set[str]:
    """The parameters that are weights of the layers."""
    return set(_stored_names(model).values())


def save_weights(
    model: Any, folder: Path, weights: Mapping[str, Callable[[], Tensor]], progress: Counted = nobody
) -> None:
    """Writes weights [N, K] of linear layers, by name, into such a folder; each is made when its turn has come."""
    stored, turned = _stored_names(model), _turned(model)
    made = {stored[name]: partial(_turn, make) if name in turned else make for name, make in weights.items()}
    _write(folder, model, made, progress)


class LayerWeights(Mapping[str, "Tensor"]):
    """Weights [N, K] of a model's linear layers by name: those that folders of the functions above hold.

    Each is read from the first folder that has it.
    """

    def __init__(self, model: Any, *folders: Path) -> None:
        from exporter.checkpoint.blocks import Tensors

        self._turned = _turned(model)
        read = {name: tensors.read for tensors in map(Tensors, reversed(folders)) for name in tensors.entries}
        stored = _stored_names(model)
        self._stored = {name: partial(read[kept], kept) for name, kept in stored.items() if kept in read}

    def __getitem__(self, name: str) -> Tensor:
        weight = self._stored[name]()
        return weight.T if name in self._turned else weight.flatten(1)

    def __contains__(self, name: object) -> bool:  # Mapping's would read the weight
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def _stored_names(model: Any) -> dict[str, str]:
    """Each linear layer's weight as named_parameters calls it: a tied one has the name of the other."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {name: names[id(layer.weight)] for name, layer in weighted_layers(model).items()}


def _turned(model: Any) -> set[str]:
    """The layers that store their weight as [K, N]: GPT-2's Conv1D."""
    from transformers.pytorch_utils import Conv1D

    return {name for name, layer in weighted_layers(model).items() if isinstance(layer, Conv1D)}


def _turn(make: Callable[[], Tensor]) -> Tensor:
    return make().T


def _write(folder: Path, model: Any, tensors: Mapping[str, Callable[[], Tensor]], progress: Counted) -> None:
    """Writes values of these parameters, each made when its turn has come."""
    from exporter.checkpoint.blocks import Planned, write

    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}

    def planned(name: str, make: Callable[[], Tensor], before: int) -> Planned:
        def rows() -> Iterator[Tensor]:
            progress(before, len(tensors))
            yield make()

        return Planned("F32", shapes[name], rows)

    folder.mkdir(exist_ok=True)
    files = {
        "model.safetensors": {name: planned(name, make, before) for before, (name, make) in enumerate(tensors.items())}
    }
    write(folder, files, nobody)
    progress(len(tensors), len(tensors))

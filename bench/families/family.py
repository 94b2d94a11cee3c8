"""What a family is: an architecture of transformers, and what is asked of a small random model of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exporter.types import CLASSIFICATION, FEATURES, GENERATION

ASKED = ("onnx:fp32", "onnx:int8")  # the columns of what is exported and asked
# And of the targets that are asked whether they take its config.json.
CHECKED = ("torch", "gguf", "tensorrt", "coreml", "litert")


@dataclass(frozen=True)
class Family:
    """`config`: of the architecture's own configuration class, by keyword.

    `lengths`: of the texts that are asked, on both sides of each length at which the model begins to compute otherwise.
    `cached`: (n, m): a text of m tokens whose first n are read at once into the cache, and the others one by one.
    `hub`: its config.json is spelled as transformers 4 wrote it, as nearly all on the hub are: {} changes no more than
    the spelling, a mapping more keys.
    """

    architecture: str
    config: Mapping[str, Any]
    lengths: tuple[int, ...]
    cached: tuple[tuple[int, int], ...] = ()
    hub: Mapping[str, Any] | None = None

    @property
    def decoder(self) -> bool:
        """Whether it is a causal language model, with a cache."""
        return bool(self.cached)

    @property
    def task(self) -> str:
        """The task that it is for; a head that exporter has no task for is looked at as an encoder."""
        return GENERATION if self.decoder else CLASSIFICATION if "Sequence" in self.architecture else FEATURES

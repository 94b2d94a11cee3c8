"""CLIP's three graphs opened in ONNX Runtime on the CPU, as one runner."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from exporter.runner import Floats, Ids, Sample
from exporter.targets.onnx_graph.session import OnnxRunner
from exporter.targets.onnx_graph.two_towers import JOINT, TEXT, VISION


class OnnxTowers(OnnxRunner):
    """The joint graph answers; a tower is opened when its vectors are asked for: all three hold the same weights."""

    def __init__(self, joint: Path, threads: int) -> None:
        super().__init__(joint, threads)
        self._folder = joint.parent
        self._answers = ["logits_per_image"]
        self._matched: dict[str, Any] = {}

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        for name in ("_text", "_vision"):
            self.__dict__.pop(name, None)

    def match(self, ids: Ids, mask: Ids) -> None:
        self._matched = {"input_ids": ids, "attention_mask": mask}

    def texts(self, ids: Ids, mask: Ids) -> Floats:
        return self._text.batch(ids, mask)

    def pictures(self, pixels: Sample) -> Floats:
        return self._vision.batch(pixels, np.ones(pixels.shape[:2], np.int64))

    def _feeds(self, ids: Sample, mask: Ids, segments: Ids | None = None) -> dict[str, Any]:
        return super()._feeds(ids, mask, segments) | self._matched

    @cached_property
    def _text(self) -> OnnxRunner:
        return self._opened(TEXT)

    @cached_property
    def _vision(self) -> OnnxRunner:
        return self._opened(VISION)

    def _opened(self, name: str) -> OnnxRunner:
        return OnnxRunner(self._folder / name, self._threads)


def open_towers(folder: Path, threads: int) -> OnnxTowers:
    """The graphs in a folder, by the names that clients know them by."""
    return OnnxTowers(folder / JOINT, threads)

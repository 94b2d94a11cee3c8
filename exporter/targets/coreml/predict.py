"""A package run by Core ML itself, by coremltools' predict: macOS alone has that. Not run yet (CONTRIBUTING.md)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import numpy as np

from exporter.errors import JobError, unknown
from exporter.form import FORMS, PIXELS
from exporter.runner import Floats, Ids, Sample, rows_of_states
from exporter.targets.coreml.convert import LENGTH, WINDOW
from exporter.targets.coreml.feeds import decoder_feeds, encoder_feeds
from exporter.types import GENERATION

UNITS = "EXPORTER_COREML_UNITS"  # of the environment: what macos.yml measures one after the other
COMPUTE_UNITS = {"all": "ALL", "cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "ane": "CPU_AND_NE"}


class CoremlEncoder:
    """A package without masks, and what a decoder's has in common with it."""

    def __init__(self, package: Path) -> None:
        import coremltools as ct

        asked = os.environ.get(UNITS, "all")
        if asked not in COMPUTE_UNITS:
            raise JobError(f"{UNITS}: {unknown('compute unit', asked, COMPUTE_UNITS)}")
        self._model: Any = ct.models.MLModel(str(package), compute_units=getattr(ct.ComputeUnit, COMPUTE_UNITS[asked]))
        description = self._model.get_spec().description
        self._inputs = [one.name for one in description.input]
        self._output = description.output[0].name
        facts = description.metadata.userDefined
        self._window = int(facts[WINDOW]) if WINDOW in facts else None
        if LENGTH in facts:  # a picture has none
            self.max_length = int(facts[LENGTH])
        self.engine = f"Core ML by coremltools {ct.__version__}, compute units {COMPUTE_UNITS[asked]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        del self._model

    def logits(self, ids: Ids) -> Floats:
        answer = self.batch(ids[None], np.ones_like(ids)[None])
        return answer[0] if answer.ndim == 3 else answer

    def batch(self, ids: Ids, mask: Ids) -> Floats:
        return self._ask(encoder_feeds(self._inputs, ids, mask))

    def segmented(self, ids: Ids, segments: Ids) -> Floats:
        answer = self._ask(encoder_feeds(self._inputs, ids[None], np.ones_like(ids)[None], segments[None]))
        return answer[0] if answer.ndim == 3 else answer

    def _ask(self, feeds: dict[str, Any], *state: Any) -> Floats:
        answer: Floats = np.asarray(self._model.predict(feeds, *state)[self._output], np.float32)
        return answer


class CoremlPictures(CoremlEncoder):
    """A package that looks at pictures, one at a time."""

    def logits(self, ids: Sample) -> Floats:
        return rows_of_states(self._ask({PIXELS: np.ascontiguousarray(ids[None], np.float32)}))

    def batch(self, ids: Sample, mask: Ids) -> Floats:
        return np.concatenate([self.logits(picture) for picture in ids])


class CoremlStateless:
    """A decoder that reads the whole text at each call."""

    def __init__(self, package: Path) -> None:
        self._package = CoremlEncoder(package)
        self.engine, self.max_length = self._package.engine, self._package.max_length

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._package.__exit__(*exc)

    def logits(self, ids: Ids) -> Floats:
        return self._read(ids, 0)

    def _read(self, ids: Ids, past: int, *state: Any) -> Floats:
        package = self._package
        answer: Floats = package._ask(decoder_feeds(package._inputs, ids, past, package._window), *state)[0]
        return answer


class CoremlDecoder(CoremlStateless):
    """A decoder whose cache Core ML keeps."""

    def __init__(self, package: Path) -> None:
        super().__init__(package)
        self._state: Any = None
        self._length = 0

    def logits(self, ids: Ids) -> Floats:
        return self._read(ids, 0, self._package._model.make_state())

    def prefill(self, ids: Ids) -> Floats:
        self._state, self._length = self._package._model.make_state(), 0
        return self._extend(ids)

    def step(self, token: int) -> Floats:
        return self._extend(np.array([token], np.int64))

    def _extend(self, ids: Ids) -> Floats:
        last: Floats = self._read(ids, self._length, self._state)[-1]
        self._length += len(ids)
        return last


def open_predict(package: Path, task: str) -> CoremlEncoder | CoremlStateless:
    """A package's runner on macOS."""
    import coremltools as ct

    if FORMS[task].inputs == "pixels":
        return CoremlPictures(package)
    if task != GENERATION:
        return CoremlEncoder(package)
    spec = ct.utils.load_spec(str(package))
    return CoremlDecoder(package) if len(spec.description.state) else CoremlStateless(package)

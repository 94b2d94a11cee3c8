"""CLIP: both towers' float32 graphs, the precision's pass over each, and the joint graph of what comes out.

optimum and transformers.js look for onnx/model.onnx, onnx/text_model.onnx and onnx/vision_model.onnx.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import BuildError
from exporter.form import FORMS
from exporter.targets.onnx.bf16 import ENGINE, UNTIMED, need_packages
from exporter.targets.onnx.half import overflowing
from exporter.targets.onnx.parts import Needs, Told, at_precision, needs_of_all
from exporter.targets.onnx.quantize import SCHEMES
from exporter.targets.onnx_graph import held
from exporter.targets.onnx_graph.file import load_graph, made_once
from exporter.targets.onnx_graph.float_proof import prove
from exporter.targets.onnx_graph.rounding import proof_of
from exporter.targets.onnx_graph.session import OnnxRunner
from exporter.targets.onnx_graph.two_towers import DATA, JOINT, TEXT, VISION, join, save_tower, scale_of, trace_towers
from exporter.targets.onnx_graph.two_towers_session import OnnxTowers, open_towers
from exporter.targets.onnx_graph.zeros import zero_counts
from exporter.types import ExportRequest, Weight

FOLDER = "onnx"
TOWERS = tuple(f"{FOLDER}/{name}" for name in (TEXT, VISION))
FILES = (f"{FOLDER}/{JOINT}", *TOWERS, *(f"{FOLDER}/{name}" for name in DATA.values()))
EXTERNAL = {Path(JOINT).stem: len(DATA)}  # in the words of transformers.js
_WINDOWS = {TEXT: "texts.npy", VISION: "windows.npy"}  # of a calibration


def refused(task: str, precision: str) -> str | None:
    """Why a precision is not made of both towers, or None."""
    if FORMS[task].matches and precision == "int8-static":
        return (
            "ranges of static int8 are found by running a model on one input, and this one reads texts and pictures; "
            "int8-dynamic finds them at run time"
        )
    return None


def write_towers(request: ExportRequest, told: Told) -> tuple[list[str], dict[str, Any]]:
    """Writes the graphs into the artifact's folder; returns notes, and what a runtime must have.

    The float graphs are made once for all the precisions of a run.
    """
    checkpoint, place = request.checkpoint, request.folder / FOLDER
    floats = made_once(request.scratch, partial(_write_floats, request)).parent
    if request.precision in SCHEMES:
        prove(floats, request)
    place.mkdir()
    notes: list[str] = []
    needs: list[Needs] = []
    for name in (TEXT, VISION):
        model, said, least = at_precision(
            load_graph(floats / name),
            request,
            partial(_overflowing, request, floats, name),
            told,
            decoder=False,
            pictures=name == VISION,
        )
        save_tower(model, place / name)
        notes += said
        needs.append(least)
    join(place, scale_of(floats))
    if request.precision == "int4-weight":
        notes.append(f"by the precision's rule: policies are not made of models for {checkpoint.task} yet")
    return list(dict.fromkeys(notes)), needs_of_all(needs)


def _write_floats(request: ExportRequest, model_onnx: Path) -> None:
    checkpoint = request.checkpoint
    trace_towers(checkpoint.path, model_onnx.parent, trust_remote_code=checkpoint.trust_remote_code)


def _overflowing(request: ExportRequest, floats: Path, name: str) -> Mapping[str, float]:
    """What float16 cannot hold of a tower, on the calibration's pictures or texts."""
    file = request.calibration / _WINDOWS[name] if request.calibration else None
    windows = np.load(file) if file is not None else None
    return overflowing(load_graph(floats / name), windows, request.scratch, request.threads)


def open_onnx_towers(folder: Path, threads: int, variant: str, gpu: int | None) -> OnnxTowers:
    """The runner of an artifact's folder. Raises BuildError on a GPU."""
    if gpu is not None:
        raise BuildError("the towers of texts and pictures are run on the CPU alone here yet: give --device cpu")
    if variant != "onnx:bf16":
        return open_towers(folder / FOLDER, threads)
    need_packages()
    return TowersStandIn(folder, threads)


class TowersStandIn(OnnxTowers):
    """The bfloat16 graphs' answers where no GPU runs them."""

    untimed = UNTIMED

    def __init__(self, folder: Path, threads: int) -> None:
        self._artifact = folder
        with proof_of(folder / FOLDER / JOINT, folder) as proof:
            super().__init__(proof, threads)
        self.engine = ENGINE

    def _opened(self, name: str) -> OnnxRunner:
        with proof_of(self._artifact / FOLDER / name, self._artifact) as proof:
            return OnnxRunner(proof, self._threads)


def weights_of_towers(folder: Path) -> list[Weight]:
    """The weight matrices of both towers, which are the joint graph's too."""
    return [one for name in TOWERS for one in held.weights_of(folder / name)]


def zero_counts_of_towers(folder: Path) -> dict[str, int]:
    """The zeros of both towers, by the same names."""
    return {weight: count for name in TOWERS for weight, count in zero_counts(folder / name).items()}

"""The float graph held against its checkpoint, before anything is quantized of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from exporter.errors import one_line
from exporter.form import FORMS
from exporter.measure.probe import compare_probe
from exporter.runner import Runner
from exporter.targets.folder.proven import FLOAT32, disagrees, drifted, expected, prove_once
from exporter.targets.onnx_graph.encoder_decoder_session import open_pair
from exporter.targets.onnx_graph.session import OnnxDecoder, OnnxRunner
from exporter.targets.onnx_graph.two_towers_session import open_towers
from exporter.types import GENERATION, ExportRequest

_WHAT = "float graph"
_CACHE_KL = 1e-6


def prove(float_graph: Path, request: ExportRequest, runnable: Callable[[Path, Path], None] | None = None) -> None:
    """Raises BuildError where the graph does not answer as the request's checkpoint does, also beyond its boundaries.

    Compared once for a graph: what came out stands beside it, in the run's scratch folder. Where the checkpoint is not
    the reference (its weights are rounded already), it is run itself, by torch. Without a reference there is no probe.
    `runnable` writes the graph (first path) as ONNX Runtime runs it (second), where that is another. Of an
    encoder-decoder and of two towers `float_graph` is the folder of all.
    """

    def wrong(reference: Path) -> str | None:
        if runnable is None:
            return _wrong(float_graph, request, reference)
        with TemporaryDirectory(dir=float_graph.parent) as beside:
            run = Path(beside) / float_graph.name
            runnable(float_graph, run)
            return _wrong(run, request, reference)

    beside = float_graph / "proof.json" if float_graph.is_dir() else float_graph.with_name("proof.json")
    prove_once(beside, request, _WHAT, wrong)


def _opened(float_graph: Path, task: str, threads: int) -> Runner:
    if FORMS[task].encodes:
        return open_pair(float_graph, threads)
    if FORMS[task].matches:
        return open_towers(float_graph, threads)
    return (OnnxDecoder if task == GENERATION else OnnxRunner)(float_graph, threads)


def _wrong(float_graph: Path, request: ExportRequest, folder: Path) -> str | None:
    task = request.checkpoint.task
    reference, probe, lengths = expected(request, folder)
    graph: Callable[[], Runner] = partial(_opened, float_graph, task, request.threads)
    source, longest = reference.passages.longest()
    try:
        with graph() as runner:
            figures = compare_probe(runner, probe, task, longest, source)
        drift = drifted(graph, lengths, task)
    except Exception as error:  # whatever the engine raises of a graph that it does not take
        raise disagrees(_WHAT, one_line(error)) from error
    answers = probe.answers[np.isfinite(probe.answers)]
    worst = figures["logit_error"].value or 0.0
    if worst > FLOAT32.error * max(1.0, float(np.abs(answers).max(initial=0.0))):
        return f"logit error {worst:.2g} on the probe"
    if "cache_kl" in figures and (figures["cache_kl"].value or 0.0) > _CACHE_KL:
        return f"with its cache KL {figures['cache_kl'].value:.2g} from itself without"
    return drift

"""The child's side: reads requests from stdin, does them, and answers on stdout, a JSON line each.

`python -m exporter.pipeline.worker` is what exporter.process starts. OPS lists what can be asked for. When the parent
is gone, so is this process and whatever it started.
"""

from __future__ import annotations

import json
import os
import queue
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

from exporter import store
from exporter.errors import BuildError, ExporterError
from exporter.measure import latency, quality
from exporter.measure.tokenization import TOKENIZED, TokenizedTexts, compare_tokenizer
from exporter.runner import BoundedRunner, DeviceRunner, Runner, StandInRunner, TokenizingRunner
from exporter.targets import known
from exporter.types import Checkpoint, ExportRequest, Variant


class Session:
    """One worker's state: where replies go, and the runner that a speed measurement keeps open."""

    def __init__(self, replies: TextIO) -> None:
        self._replies = replies
        self._runner: Runner | None = None

    def reply(self, message: dict[str, Any]) -> None:
        self._replies.write(json.dumps(message, default=str) + "\n")
        self._replies.flush()

    def progress(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self.reply({"progress": [what, done, total]})

    def megabytes(self, what: str) -> Callable[[int, int], None]:
        """Progress in bytes, told in MB."""
        tell = self.progress(f"{what}, MB")
        return lambda done, total: tell(done // 10**6, total // 10**6)

    def prepare(self, recipe: str) -> str:
        from exporter.checkpoint.load import prepare
        from exporter.checkpoint.recipes import RECIPES

        return str(prepare(RECIPES[recipe]))

    def inspect(self, model: str, path: str, **asked: Any) -> dict[str, Any]:
        from exporter.checkpoint.inspection import inspect

        return inspect(model, Path(path), **asked)

    def dequantize(self, source: str, folder: str, key: str, simulated: str | None, dtype: str) -> list[str]:
        from exporter.stages.dequantize.dequantize import dequantize, simulate

        destination, progress = Path(folder), self.megabytes("dequantizing")
        manifest = store.reusable(destination, key)
        if manifest is None:
            store.sweep(destination.parent)
            with store.publish(destination) as building:
                if simulated is None:
                    history = dequantize(Path(source), building, dtype, progress)
                else:
                    history = simulate(Path(source), building, simulated, progress, dtype=dtype)
                weights = [path.name for path in building.glob("*.safetensors")]
                manifest = store.write_manifest(building, key, weights, {"history": history})
        lines: list[str] = manifest["history"]
        return lines

    def merge(
        self,
        checkpoint: dict[str, Any],
        adapters: list[tuple[str, float | None]],
        folder: str,
        key: str,
        way: str,
        labels: int | None,
        **how: Any,
    ) -> dict[str, Any]:
        from exporter.checkpoint.model import load_model
        from exporter.stages.merge.adapter import read_adapter
        from exporter.stages.merge.merge import How, merge
        from exporter.stages.merge.streaming import merge_streaming

        source, destination = _checkpoint(checkpoint), Path(folder)
        manifest = store.reusable(destination, key)
        if manifest is None:
            store.sweep(destination.parent)
            options = {} if labels is None else {"num_labels": labels}
            load = partial(load_model, task=source.task, dtype="float32", trust_remote_code=source.trust_remote_code)
            told = [read_adapter(Path(path), weight) for path, weight in adapters]
            asked = How(**how | {name: how[name] and Path(how[name]) for name in ("probe", "other")})
            with store.publish(destination) as building:
                if way == "streaming":
                    progress = self.megabytes("merging")
                    made = merge_streaming(partial(load, **options), source.path, told, building, asked, progress)
                else:
                    made = merge(partial(load, **options), source.path, told, building, asked, source.task)
                known = made.pop("hashes", {})
                weights = [path.name for path in building.glob("*.safetensors")]
                manifest = store.write_manifest(building, key, weights, made | {"peak_rss_bytes": peak_rss()}, known)
        return {name: manifest.get(name) for name in ("history", "proof", "source_sha256", "peak_rss_bytes")}

    def reference(self, checkpoint: dict[str, Any], folder: str, key: str, threads: int, **how: Any) -> dict[str, Any]:
        from exporter.pipeline.reference import measure_reference

        return measure_reference(_checkpoint(checkpoint), Path(folder), key, threads, self.progress("reference"), **how)

    def calibrate(self, checkpoint: dict[str, Any], folder: str, key: str, threads: int, **how: Any) -> dict[str, Any]:
        from exporter.quantization.calibrate import calibrate

        return calibrate(_checkpoint(checkpoint), Path(folder), key, threads, self.progress("calibrating"), **how)

    def train(
        self, checkpoint: dict[str, Any], folder: str, states: str, key: str, threads: int, **how: Any
    ) -> dict[str, Any]:
        from exporter.pipeline.training import train_checkpoint

        source = _checkpoint(checkpoint)
        made = train_checkpoint(source, Path(folder), Path(states), key, threads, self.progress, **how)
        return {name: made[name] for name in ("history", "record", "policy")}

    def check_calibration(self, path: str, trust: bool, text: dict[str, Any]) -> None:
        from exporter.quantization.preparing import windows_of

        windows_of(Path(path), trust, text)

    def quantize_prepare(
        self, checkpoint: dict[str, Any], threads: int, how: dict[str, Any], text: dict[str, Any], folder: str
    ) -> None:
        from exporter.quantization.preparing import How, prepare

        prepare(_checkpoint(checkpoint), How.load(how), threads, self.progress, Path(folder), **text)

    def quantize(
        self, checkpoint: dict[str, Any], threads: int, how: dict[str, Any], prepared: str, budget: float, folder: str
    ) -> dict[str, Any]:
        from exporter.quantization.preparing import How
        from exporter.quantization.quantizing import Quantizer

        quantizer = Quantizer(_checkpoint(checkpoint), How.load(how), threads, self.progress, Path(prepared))
        return quantizer.write(quantizer.choose(budget), budget, Path(folder))

    def export(self, target: str, checkpoint: dict[str, Any], threads: int, **places: Any) -> dict[str, Any]:
        from exporter.scheme import Scheme

        start = perf_counter()
        folder, scratch, cache = Path(places["folder"]), Path(places["scratch"]), Path(places["cache"])
        statistics = Path(places["calibration"]) if places["calibration"] else None
        dumped: dict[str, Any] | None = places["policy"]
        policy = dumped and {name: one and Scheme.model_validate(one) for name, one in dumped.items()}
        model = known.get(target).options
        request = ExportRequest(
            _checkpoint(checkpoint), places["precision"], folder, scratch, threads,
            model and model.model_validate(places["options"]), cache,
            statistics, policy, lambda what, done, total: self.reply({"progress": [what, done, total]}),
        )  # fmt: skip
        exported = known.get(target).export(request)
        return asdict(exported) | {"export_s": perf_counter() - start, "export_peak_rss_bytes": peak_rss()}

    def quality(self, variant: list[str], checkpoint: dict[str, Any], folder: str, reference: str, threads: int) -> Any:
        told = quality.Reference.load(Path(reference))
        with _open(Variant(*variant), checkpoint, folder, threads) as runner:
            figures: dict[str, Any] = quality.compare(runner, told, self.progress(f"quality {Variant(*variant)}"))
            figures |= quality.compare_probe(runner, told.probe, told.passages.task)
            if isinstance(runner, TokenizingRunner):
                figures |= compare_tokenizer(runner, TokenizedTexts.load(Path(reference).with_name(TOKENIZED)))
            if isinstance(runner, StandInRunner):
                figures["untimed"] = runner.untimed
            if isinstance(runner, DeviceRunner):
                figures["device_memory_bytes"] = runner.device_memory_bytes
            return {"engine": runner.engine, **figures}

    def speed_open(self, variant: list[str], checkpoint: dict[str, Any], folder: str, threads: int, **text: Any) -> Any:
        self._ids = quality.Reference.load(Path(text["reference"])).passages.ids
        self._max_length = int(text["max_length"])
        self._runner = _open(Variant(*variant), checkpoint, folder, threads).__enter__()
        if isinstance(self._runner, BoundedRunner):
            self._max_length = min(self._max_length, self._runner.max_length)
        latency.warm_up(self._runner, self._ids, self._max_length)
        return {"engine": self._runner.engine}

    def speed_round(self) -> dict[str, Any]:
        assert self._runner is not None
        return {"times": latency.measure_round(self._runner, self._ids, self._max_length), "peak": peak_rss()}


OPS = (
    "prepare", "inspect", "dequantize", "merge", "reference", "calibrate", "check_calibration", "train",
    "quantize_prepare", "quantize", "export", "quality", "speed_open", "speed_round",
)  # fmt: skip


def peak_rss() -> int:
    """Peak resident bytes of this process, or of the largest one that it started."""
    unit = 1 if sys.platform == "darwin" else 1024
    own, started = (
        resource.getrusage(who).ru_maxrss * unit for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    status = Path("/proc/self/status")
    if status.is_file():
        # Linux hands ru_maxrss on through fork and exec: a large parent's memory would be taken for this process's.
        [line] = [line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:")]
        own = int(line.split()[1]) * 1024
    return max(own, started)


def _open(variant: Variant, checkpoint: dict[str, Any], folder: str, threads: int) -> Runner:
    if variant == known.REFERENCE:
        from exporter.targets.torch.target import open_checkpoint

        source = _checkpoint(checkpoint)
        return open_checkpoint(source.path, source.task, threads, trust=source.trust_remote_code)
    return known.get(variant.target).open(Path(folder), threads)


def _checkpoint(values: dict[str, Any]) -> Checkpoint:
    return Checkpoint(**values | {"path": Path(values["path"]), "history": tuple(values["history"])})


def _answer(session: Session, request: dict[str, Any]) -> dict[str, Any]:
    assert request["op"] in OPS
    try:
        return {"result": getattr(session, request["op"])(**request["args"])}
    except ExporterError as error:
        build = error.build if isinstance(error, BuildError) else None
        return {"error": str(error), "status": error.exit_status, "build": build}
    except Exception as error:  # noqa: BLE001  # the parent is told: it shows the traceback
        if store.disk_full(error):
            message = f"the disk is full ({error}); free some space and run again"
            return {"error": message, "status": BuildError.exit_status}
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        return {"bug": f"{type(error).__name__}: {first}", "trace": traceback.format_exc()}


def main() -> None:
    # Libraries print to file descriptor 1: give them the log, and keep the pipe for replies.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    requests: queue.Queue[str | None] = queue.Queue()
    busy = threading.Event()

    def listen() -> None:
        for line in sys.stdin:
            busy.set()  # here, not where it is taken: the parent can be gone before that
            requests.put(line)
        if busy.is_set():  # the parent died or gave up in the middle of a request
            os.killpg(os.getpgrp(), signal.SIGKILL)
        requests.put(None)

    threading.Thread(target=listen, daemon=True).start()
    session = Session(replies)
    while (line := requests.get()) is not None:
        answer = _answer(session, json.loads(line))
        busy.clear()
        session.reply(answer)


if __name__ == "__main__":
    main()

"""Measures a run's results in place: quality, then speed, each in processes of its own."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from exporter import machine
from exporter.errors import BuildError, ExporterError
from exporter.forkserver import Start, fresh, shared
from exporter.measure import latency, quality
from exporter.measure.latency import Budget, Round, summarize
from exporter.measure.lengths import FIGURE, LENGTHS, PROVEN, Lengths, compare_lengths
from exporter.measure.load import OtherLoad
from exporter.measure.tokenization import TOKENIZED, TokenizedTexts, compare_tokenizer
from exporter.pipeline.comparing import compare
from exporter.pipeline.figures import Figures, Measured
from exporter.process import Progress, Session, Steps, Worker, WorkerFailed
from exporter.report.result import Result
from exporter.runner import (
    BoundedRunner,
    DeviceRunner,
    Ids,
    Runner,
    StandInRunner,
    TokenizingRunner,
    TracingRunner,
)
from exporter.store import MANIFEST, disk_full, read_manifest, write_text
from exporter.targets import known
from exporter.types import Checkpoint, Variant

Failed = Callable[[Variant, ExporterError], None]  # told of each artifact that fails, when it does


def nobody(variant: Variant, error: ExporterError) -> None:
    """Told of failures, and says nothing: they are in the report."""


class Bench:
    """A failure of one artifact makes its row a failed one; the others go on, and the report is written."""

    def __init__(
        self,
        output: Path,
        checkpoint: Checkpoint,
        max_length: int | None,
        threads: int,
        progress: Progress,
        failed: Failed,
        figures: Figures | None = None,
        start: Start = shared,
    ) -> None:
        """`figures`: those that are stored; None: all is measured, and nothing is stored.

        `start`: of what measures quality; speed is measured in processes whose memory is the artifact's alone.
        """
        self._output, self._checkpoint, self._threads = output, checkpoint, threads
        self._figures, self._start = figures, start
        self._max_length = max_length or 1 << 20
        self._progress, self._failed = progress, failed

    def attempt(self, row: Result, do: Callable[[], None]) -> None:
        """Does something for a row that is still ok; whatever it raises makes it a failed one.

        A full disk alone ends the run: no row after this one could be written, nor the report.
        """
        if row.status != "ok":
            return
        try:
            do()
        except ExporterError as error:
            self._fail(row, error)
        except Exception as error:  # of a target's own code too: it is told with its traceback
            if disk_full(error):
                raise
            self._fail(row, WorkerFailed.of(error))

    def _fail(self, row: Result, error: ExporterError) -> None:
        row.status, row.reason = "failed", str(error)
        if isinstance(error, BuildError):
            row.build["engine"] = error.build or row.build["engine"]
        if isinstance(error, WorkerFailed) and error.killed_by == signal.SIGILL:
            mends = known.get(row.target).mends_crash
            row.reason += f"; its build does not fit this processor, mend it with: {mends()}" if mends else ""
        self._failed(row.variant, error)

    def quality(self, rows: Sequence[Result], steps: Steps) -> None:
        """Apart from the speed measurement: the arithmetic of the comparison is not the engine's peak memory."""
        for row in rows:
            measured = row.artifact["engine"] is not None  # to choose its policy
            if row.status == "ok" and row.variant != known.REFERENCE and not measured:
                steps(f"quality {row.variant}")
                self.attempt(row, partial(self.measure, row, self._output / row.variant.folder))
            if row.variant != known.REFERENCE:
                self.attempt(row, partial(self._claim, row))

    def _claim(self, row: Result) -> None:
        """Says in the row and in the artifact's own manifest how far it is proven: it claims no more than that."""
        proven, told = row.artifact[PROVEN], row.quality[FIGURE].detail
        row.reason = "; ".join(filter(None, (row.reason, told))) or None
        folder = self._output / row.variant.folder
        if proven is not None and (manifest := read_manifest(folder)) is not None:
            claimed = manifest | {PROVEN: proven, "proven": told or f"proven up to {proven:,} tokens"}
            if claimed != manifest:
                write_text(folder / MANIFEST, json.dumps(claimed, indent=2, default=str) + "\n")

    def measure(self, row: Result, folder: Path) -> None:
        """The quality of a row's artifact, wherever its folder is: as it was measured before, or measured now."""
        self._progress(f"quality {row.variant}", 0, 0)
        told = self._what(row) | {"folder": folder}
        measured = self._stored("quality", row, told)
        if measured is None:
            start = self._start if known.get(row.target).with_torch else fresh
            with self._worker(row, "quality", start) as worker:
                measured = worker(measure_quality, **told)
            self._keep("quality", row, told, measured)
        row.samples = measured["samples"]
        row.add(measured["groups"])

    def _stored(self, kind: str, row: Result, told: dict[str, Any]) -> Measured | None:
        """What an earlier run measured, where all is what it was; where not, the row says why it is measured again."""
        if self._figures is None:
            return None
        parts = self._figures.depends_on(kind, row.variant, told)
        measured, why = self._figures.find(kind, row.variant, parts)
        if why is not None:
            row.reason = "; ".join(filter(None, (row.reason, f"{kind} measured again: {why}")))
        return measured

    def _keep(self, kind: str, row: Result, told: dict[str, Any], measured: Measured) -> None:
        if self._figures is not None:
            self._figures.keep(kind, row.variant, self._figures.depends_on(kind, row.variant, told), measured)

    def speed(self, rows: Sequence[Result], rounds: int, budget: float) -> None:
        """Rounds interleaved between all variants, so that a drift of the machine hits all alike.

        Their processes stay open together where that fits into memory; else one is measured after the other. `budget`:
        seconds for all of it, see Budget. What an earlier run measured in as many rounds is not measured again.
        """
        import psutil

        timed = [row for row in rows if row.status == "ok" and row.speed["untimed"] is None]
        measured = [row for row in timed if not self._timed_before(row, rounds, budget)]
        # An engine can hold an artifact's weights three times: as read, as constants, and packed for its kernels.
        together = sum(3 * (row.artifact["bytes"] or 0) for row in measured) < psutil.virtual_memory().available
        groups = [measured] if together else [[row] for row in measured]
        end, at = perf_counter() + budget, datetime.now(UTC).isoformat()
        for done, group in enumerate(groups):
            # What one group leaves of its share is the next ones'.
            mine = (end - perf_counter()) / (len(groups) - done)
            self._speed(group, rounds, Budget(mine), {"measured": at, "budget_s": budget})

    def _timed_before(self, row: Result, rounds: int, budget: float) -> bool:
        """Takes over the speed that was measured in enough rounds, or in as many as no smaller budget had room for."""
        groups = self._stored("speed", row, self._timing(row))
        if groups is None:
            return False
        before = groups["speed"]
        if before["rounds"] < rounds and not (before["rounds_asked"] >= rounds and before["budget_s"] >= budget):
            return False
        row.add(groups)
        return True

    def _speed(self, rows: Sequence[Result], rounds: int, budget: Budget, about: dict[str, Any]) -> None:
        times: list[list[Round]] = [[] for _ in rows]
        with ExitStack() as stack:
            workers = [stack.enter_context(self._worker(row, "speed", fresh)) for row in rows]
            jobs = list(zip(rows, workers, times, strict=True))
            for done, (row, worker, _) in enumerate(jobs):
                self._progress("opening for speed", done, len(rows))
                self.attempt(row, partial(self._open, row, worker))
            load, number = OtherLoad(), 0
            while number < rounds and budget.another(number):
                # Backwards every other time: none is always the one that comes after the heaviest.
                for row, worker, mine in jobs[:: 1 if number % 2 == 0 else -1]:
                    self._progress("speed", sum(map(len, times)), rounds * len(rows))
                    self.attempt(row, partial(_round, row, worker, mine))
                number += 1
            about |= {"rounds_asked": rounds, "other_cores": load.cores()}
        for row, mine in zip(rows, times, strict=True):
            self.attempt(row, partial(self._summed_up, row, mine, about))

    def _summed_up(self, row: Result, times: list[Round], about: dict[str, Any]) -> None:
        row.speed |= summarize(times) | about
        engine, peak = row.artifact["engine"], row.memory["peak_rss_bytes"]
        speed = {name: value for name, value in row.speed.items() if name != "untimed"}
        groups = {"artifact": {"engine": engine}, "speed": speed, "memory": {"peak_rss_bytes": peak}}
        self._keep("speed", row, self._timing(row), groups)

    def _timing(self, row: Result) -> dict[str, Any]:
        return self._what(row) | {"max_length": self._max_length}

    def _open(self, row: Result, worker: Worker) -> None:
        row.artifact |= worker(open_for_speed, **self._timing(row))

    def _worker(self, row: Result, what: str, start: Start) -> Worker:
        log = self._output / "logs" / f"{row.variant.folder}.{what}.log"
        return Worker(log, self._threads, self._progress, start=start)

    def _what(self, row: Result) -> dict[str, Any]:
        return {
            "variant": [row.target, row.precision],
            "checkpoint": self._checkpoint,
            "folder": self._output / row.variant.folder,
            "reference": self._output / "reference" / quality.ANSWERS,
            "threads": self._threads,
        }


def _round(row: Result, worker: Worker, times: list[Round]) -> None:
    answer = worker(time_round)
    times.append(answer["times"])
    row.memory["peak_rss_bytes"] = answer["peak"]


def measure_quality(
    session: Session, variant: list[str], checkpoint: Checkpoint, folder: str, reference: str, threads: int
) -> dict[str, Any]:
    """A worker's operation: an artifact's answers beside the reference's, samples of them, and what its runner is."""
    named = Variant(*variant)
    told = quality.Reference.load(Path(reference))
    with _open(named, checkpoint, folder, threads) as runner:
        try:
            task, longest = told.passages.task, max(told.passages, key=len)[: told.passages.window]
            figures = quality.compare_probe(runner, told.probe, task, longest)  # seconds, and tells of much
            counted = session.counted(f"quality {named}")
            compared, samples = compare(runner, told, Path(reference).parent, checkpoint, counted)
            figures |= compared
        except quality.NotFinite as error:
            first = runner.first_not_finite(error.ids) if isinstance(runner, TracingRunner) else None
            raise BuildError(f"{error}; first of its graph, {first}" if first else str(error)) from error
        if isinstance(runner, TokenizingRunner):
            figures |= compare_tokenizer(runner, TokenizedTexts.load(Path(reference).with_name(TOKENIZED)))
        groups: dict[str, Any] = {"artifact": {"engine": runner.engine}, "quality": figures}
        if isinstance(runner, StandInRunner):
            groups["speed"] = {"untimed": runner.untimed}
        if isinstance(runner, DeviceRunner):
            groups["memory"] = {"device_bytes": runner.device_memory_bytes}
    if (beside := Path(reference).with_name(LENGTHS)).is_file():  # an older exporter's reference has none
        opened = partial(_open, named, checkpoint, folder, threads)
        proven, figures[FIGURE] = compare_lengths(
            opened, Lengths.load(beside), task, session.counted(f"lengths {named}")
        )
        groups["artifact"][PROVEN] = proven
    return {"groups": groups, "samples": samples}


@dataclass(frozen=True)
class _Timed:
    """A runner that stays open between the rounds of the speed measurement, and what it is timed on."""

    runner: Runner
    ids: Ids
    max_length: int


def open_for_speed(
    session: Session,
    variant: list[str],
    checkpoint: Checkpoint,
    folder: str,
    reference: str,
    threads: int,
    max_length: int,
) -> dict[str, Any]:
    """A worker's operation: opens an artifact and warms it up."""
    ids = quality.Reference.load(Path(reference)).passages.ids
    runner = _open(Variant(*variant), checkpoint, folder, threads).__enter__()
    if isinstance(runner, BoundedRunner):
        max_length = min(max_length, runner.max_length)
    session.opened = _Timed(runner, ids, max_length)
    latency.warm_up(runner, ids, max_length)
    return {"engine": runner.engine}


def time_round(session: Session) -> dict[str, Any]:
    """A worker's operation: one round of the speed measurement with the runner that is open."""
    timed: _Timed = session.opened
    return {"times": latency.measure_round(timed.runner, timed.ids, timed.max_length), "peak": machine.peak_rss()}


def _open(variant: Variant, checkpoint: Checkpoint, folder: str, threads: int) -> Runner:
    if variant == known.REFERENCE:
        from exporter.targets.torch.target import open_checkpoint

        return open_checkpoint(checkpoint.path, checkpoint.task, threads, trust=checkpoint.trust_remote_code)
    return known.get(variant.target).open(Path(folder), threads)

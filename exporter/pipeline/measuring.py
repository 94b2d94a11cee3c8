"""Measures a run's results in place: quality, then speed, each in processes of its own."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from exporter.device import AUTO
from exporter.errors import BuildError, ExporterError
from exporter.forkserver import Start, fresh, shared
from exporter.form import FORMS
from exporter.measure import generation, quality
from exporter.measure.latency import Budget, Round, summarize
from exporter.measure.lengths import FIGURE, PROVEN
from exporter.measure.load import OtherLoad
from exporter.pipeline.figures import Figures, Measured
from exporter.pipeline.generating import time_generations
from exporter.pipeline.opening import measure_quality, open_for_speed, time_round
from exporter.process import Progress, Steps, Worker, WorkerFailed
from exporter.progress import counting
from exporter.report.result import Result
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
        device: str = AUTO,
    ) -> None:
        """`figures`: those that are stored; None: all is measured, and nothing is stored.

        `start`: of what measures quality; speed is measured in processes whose memory is the artifact's alone.
        """
        self._output, self._checkpoint, self._threads = output, checkpoint, threads
        self._figures, self._start, self._device = figures, start, device
        self._max_length = max_length or 1 << 20
        self._progress, self._failed, self._generates = progress, failed, False

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
            lacks = self._lacks(row) if row.status == "ok" else None
            if lacks is not None:
                row.reason = "; ".join(filter(None, (row.reason, f"on the CPU: {lacks}")))
            measured = row.artifact["engine"] is not None  # to choose its policy
            if row.status == "ok" and row.variant != known.REFERENCE and not measured:
                steps(f"quality {row.variant}")
                self.attempt(row, partial(self.measure, row, self._output / row.variant.folder))
            if row.variant != known.REFERENCE:
                self.attempt(row, partial(self._claim, row))

    def _lacks(self, row: Result) -> str | None:
        """Why an artifact is not opened where the device says. Its engine is asked: of one that is not there not."""
        return known.placed(row.variant, self._device, self._checkpoint.task)[1]

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

    def speed(self, rows: Sequence[Result], rounds: int, budget: float, generates: bool = False) -> None:
        """Rounds interleaved between all variants, so that a drift of the machine hits all alike.

        Their processes stay open together where that fits into memory; else one is measured after the other. `budget`:
        seconds for all of it, see Budget. What an earlier run measured in as many rounds is not measured again.
        `generates`: whole generations are timed too, of a model that makes texts of texts.
        """
        import psutil

        form = FORMS[self._checkpoint.task]
        self._generates = generates and form.cached and form.inputs == "text"  # a transcript is as long as its sound
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
        if self._generates and "generation" not in groups:
            return False
        row.add(groups)
        return True

    def _speed(self, rows: Sequence[Result], rounds: int, budget: Budget, about: dict[str, Any]) -> None:
        times: list[list[Round]] = [[] for _ in rows]
        with ExitStack() as stack:
            workers = [stack.enter_context(self._worker(row, "speed", fresh)) for row in rows]
            jobs = list(zip(rows, workers, times, strict=True))
            for row, worker, _ in counting(jobs, partial(self._progress, "opening for speed")):
                self.attempt(row, partial(self._open, row, worker))
            load, number = OtherLoad(), 0
            while number < rounds and budget.another(number):
                # Backwards every other time: none is always the one that comes after the heaviest.
                for row, worker, mine in jobs[:: 1 if number % 2 == 0 else -1]:
                    self._progress("speed", sum(map(len, times)), rounds * len(rows))
                    self.attempt(row, partial(_round, row, worker, mine))
                number += 1
            self._progress("speed", rounds * len(rows), rounds * len(rows))  # fewer, where there was time for no more
            about |= {"rounds_asked": rounds, "other_cores": load.cores()}
            if self._generates:
                self._generations(list(zip(rows, workers, strict=True)), rounds, budget)
        for row, mine in zip(rows, times, strict=True):
            self.attempt(row, partial(self._summed_up, row, mine, about))

    def _generations(self, jobs: Sequence[tuple[Result, Worker]], rounds: int, budget: Budget) -> None:
        """After the rounds: they take longer, and what they take of memory is not the artifact's alone."""
        runs: list[list[dict[str, Any]]] = [[] for _ in jobs]
        number, most = 0, min(rounds, generation.RUNS)
        while number < most and budget.another(number):
            for (row, worker), mine in zip(jobs, runs, strict=True):
                self._progress("generating", sum(map(len, runs)), most * len(jobs))
                self.attempt(row, partial(_generated, worker, mine))
            number += 1
        self._progress("generating", most * len(jobs), most * len(jobs))
        for (row, _), mine in zip(jobs, runs, strict=True):
            row.generation |= generation.summarize(mine) if mine else {}

    def _summed_up(self, row: Result, times: list[Round], about: dict[str, Any]) -> None:
        row.speed |= summarize(times) | about
        opened = {name: row.artifact[name] for name in ("engine", "device")}
        peak = row.memory["peak_rss_bytes"]
        speed = {name: value for name, value in row.speed.items() if name != "untimed"}
        groups = {"artifact": opened, "speed": speed, "memory": {"peak_rss_bytes": peak}}
        if self._generates:
            groups["generation"] = {name: row.generation[name] for name in generation.TIMED}
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
            "gpu": known.placed(row.variant, self._device, self._checkpoint.task)[0],
            "checkpoint": self._checkpoint,
            "folder": self._output / row.variant.folder,
            "reference": self._output / "reference" / quality.ANSWERS,
            "threads": self._threads,
        }


def _generated(worker: Worker, runs: list[dict[str, Any]]) -> None:
    runs.append(worker(time_generations))


def _round(row: Result, worker: Worker, times: list[Round]) -> None:
    answer = worker(time_round)
    times.append(answer["times"])
    row.memory["peak_rss_bytes"] = answer["peak"]

"""Measures a run's results in place: quality, then speed, each in processes of its own."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from exporter.errors import BuildError, ExporterError
from exporter.measure.latency import Round, summarize
from exporter.process import Progress, Worker, WorkerFailed
from exporter.report.result import Result
from exporter.targets import known
from exporter.targets.known import REFERENCE
from exporter.types import Checkpoint, Variant

Failed = Callable[[Variant, ExporterError], None]  # told of each artifact that fails, when it does


class Bench:
    """A failure of one artifact makes its row a failed one; the others go on."""

    def __init__(
        self,
        output: Path,
        checkpoint: Checkpoint,
        max_length: int | None,
        threads: int,
        progress: Progress,
        failed: Failed,
    ) -> None:
        self._output, self._checkpoint, self._threads = output, checkpoint, threads
        self._max_length = max_length or 1 << 20
        self._progress, self._failed = progress, failed

    def attempt(self, row: Result, do: Callable[[], None]) -> None:
        """Does something for a row that is still ok; an ExporterError makes it a failed one."""
        if row.status != "ok":
            return
        try:
            do()
        except ExporterError as error:
            row.status, row.reason = "failed", str(error)
            if isinstance(error, BuildError):
                row.build["engine"] = error.build or row.build["engine"]
            mends = known.get(row.target).mends_crash
            if isinstance(error, WorkerFailed) and error.killed_by == signal.SIGILL and mends is not None:
                row.reason += f"; its build does not fit this processor, mend it with: {mends()}"
            self._failed(_variant(row), error)

    def quality(self, rows: Sequence[Result]) -> None:
        """Apart from the speed measurement: the arithmetic of the comparison is not the engine's peak memory."""
        for row in rows:
            if (
                _variant(row) != REFERENCE and row.artifact["engine"] is None
            ):  # else it was measured to choose its policy
                self.attempt(row, partial(self.measure, row, self._output / _variant(row).folder))

    def measure(self, row: Result, folder: Path) -> None:
        """The quality of a row's artifact, wherever its folder is."""
        self._progress(f"quality {_variant(row)}", 0, 0)
        with self._worker(row, "quality") as worker:
            row.add(worker("quality", **self._what(row) | {"folder": folder}))

    def speed(self, rows: Sequence[Result], rounds: int) -> None:
        """Rounds interleaved between all variants, so that a drift of the machine hits all alike.

        Their processes stay open together where that fits into memory; else one is measured after the other.
        """
        import psutil

        measured = [row for row in rows if row.status == "ok" and row.speed["untimed"] is None]
        # An engine can hold an artifact's weights three times: as read, as constants, and packed for its kernels.
        together = sum(3 * (row.artifact["bytes"] or 0) for row in measured) < psutil.virtual_memory().available
        for group in [measured] if together else [[row] for row in measured]:
            self._speed(group, rounds)

    def _speed(self, rows: Sequence[Result], rounds: int) -> None:
        times: list[list[Round]] = [[] for _ in rows]
        with ExitStack() as stack:
            workers = [stack.enter_context(self._worker(row, "speed")) for row in rows]
            jobs = list(zip(rows, workers, times, strict=True))
            for done, (row, worker, _) in enumerate(jobs):
                self._progress("opening for speed", done, len(rows))
                self.attempt(row, partial(self._open, row, worker))
            for number in range(rounds):
                # Backwards every other time: none is always the one that comes after the heaviest.
                for row, worker, mine in jobs[:: 1 if number % 2 == 0 else -1]:
                    self._progress("speed", sum(map(len, times)), rounds * len(rows))
                    self.attempt(row, partial(_round, row, worker, mine))
        for row, mine in zip(rows, times, strict=True):
            if row.status == "ok":
                row.speed |= summarize(mine)

    def _open(self, row: Result, worker: Worker) -> None:
        row.artifact |= worker("speed_open", **self._what(row), max_length=self._max_length)

    def _worker(self, row: Result, what: str) -> Worker:
        return Worker(self._output / "logs" / f"{_variant(row).folder}.{what}.log", self._threads, self._progress)

    def _what(self, row: Result) -> dict[str, Any]:
        return {
            "variant": [row.target, row.precision],
            "checkpoint": asdict(self._checkpoint),
            "folder": self._output / _variant(row).folder,
            "reference": self._output / "reference" / "reference.npz",
            "threads": self._threads,
        }


def _variant(row: Result) -> Variant:
    return Variant(row.target, row.precision)


def _round(row: Result, worker: Worker, times: list[Round]) -> None:
    answer = worker("speed_round")
    times.append(answer["times"])
    row.memory["peak_rss_bytes"] = answer["peak"]

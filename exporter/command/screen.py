"""What a person sees while it works, on stderr: a bar at a terminal; a line for each step, and when it takes long."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable
from time import perf_counter
from typing import Self

from rich.console import Console

from exporter.command.show import LOG_WIDTH
from exporter.errors import ExporterError
from exporter.process import WorkerFailed
from exporter.types import Variant

_SILENCE = 30.0  # seconds in which a file or a pipe is told nothing, at a step's beginning
_LONGEST = 10  # times as many, of a long step
_LOOKS = 30  # in those seconds, for whether they are over
_PIECES = 2  # that must have been measured: of a single one none knows whether it is like the others


class Phase:
    """A part of the work that is counted, and when it was told: so many pieces are done, of so many (0: not known)."""

    def __init__(self, what: str, clock: Callable[[], float] = perf_counter) -> None:
        self.what, self.done, self.total = what, 0, 0
        self._clock, self._began = clock, clock()
        self._measured = 0  # times that more was done
        self._first: tuple[int, float] | None = None  # (done, when) since how many there are is known
        self._latest = self._began

    def told(self, done: int, total: int) -> None:
        """So much is done now, and no less than before."""
        now, more = self._clock(), done > self.done
        self.done, self.total = done, total
        if total and self._first is None:
            self._first, self._latest = (done, now), now
        elif more:
            self._latest = now
        self._measured += bool(total and more)  # last of all: another thread asks for what is left

    @property
    def seconds_left(self) -> float | None:
        """What the pieces that are left may take, as those that were measured took; None where it is not known.

        It shrinks while a piece is worked on, and grows where that takes longer than the others. Never under 1 while
        work goes on.
        """
        if self._first is None or self._measured < _PIECES or self.done >= self.total:
            return None
        (first, began), now = self._first, self._clock()
        each = max((self._latest - began) / (self.done - first), (now - began) / (self.done + 1 - first))
        left = self.total - self.done
        return max(each * left - (now - self._latest), each * (left - 1), 1.0)

    @property
    def left(self) -> str:
        """The same in words; "" where it is not known."""
        seconds = self.seconds_left
        return "" if seconds is None else f"about {in_minutes(seconds)} left"

    def __str__(self) -> str:
        """For a log: what, how much of it, and the time that is left, or that it has taken."""
        counted = f" {self.done}/{self.total}" if self.total else ""
        return f"{self.what}{counted}, {self.left or f'{in_minutes(self._clock() - self._began)} so far'}"


class Screen:
    """Progress and failures on stderr, while a job runs.

    `silence`: seconds, at most, in which a file or a pipe is told nothing, at a step's beginning.
    """

    def __init__(self, verbose: bool, silence: float = _SILENCE) -> None:
        from rich import progress

        terminal = sys.stderr.isatty()
        self._verbose, self._silence = verbose, silence
        self._step, self._began = ("check", 1, 0), perf_counter()  # of how many: not known yet
        self._said = self._began  # when the last line was written
        self._console = Console(stderr=True, width=None if terminal else LOG_WIDTH)
        what = progress.TextColumn("{task.description}", markup=False)
        count, elapsed = progress.MofNCompleteColumn(), progress.TimeElapsedColumn()
        left = progress.TextColumn("{task.fields[phase].left}", markup=False)
        columns = (progress.SpinnerColumn(), what, progress.BarColumn(), count, elapsed, left)
        self._bars = progress.Progress(*columns, console=self._console, transient=True, disable=not terminal)
        self._phase = Phase("checking")
        self._task = self._bars.add_task("checking", total=None, phase=self._phase)
        self._over = threading.Event()
        self._watching = None if terminal else threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._bars.start()
        if self._watching is not None:
            self._watching.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._bars.stop()
        self._over.set()
        if self._watching is not None:
            self._watching.join()
        if kind is None:
            self._done()

    def step(self, step: str, number: int, of: int) -> None:
        """A step begins, and the one before it is done: in a file or a pipe too, that is a line with its seconds."""
        before, last, _ = self._step
        self._step = before, last, of  # how many there are is known from the second one on
        self._done()
        self._step, self._began = (step, number, of), perf_counter()
        self.progress(step, 0, 0)

    def _done(self) -> None:
        step, number, of = self._step
        if of:
            self._line(f"[{number}/{of}] {step}  {perf_counter() - self._began:.1f} s")

    def _line(self, text: str) -> None:
        self._said = perf_counter()
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def progress(self, what: str, done: int, total: int) -> None:
        """So much of a phase is done; another begins with another name, and where fewer pieces are done than before."""
        if self._verbose and what != self._phase.what:
            self._line(what)
        _, number, of = self._step
        if what != self._phase.what or done < self._phase.done:
            self._phase = Phase(what)
            self._bars.remove_task(self._task)  # one that had a total keeps it
            named = f"{number}/{of} {what}" if of else what
            self._task = self._bars.add_task(named, total=total or None, completed=done, phase=self._phase)
        self._phase.told(done, total)
        self._bars.update(self._task, total=total or None, completed=done)

    def _watch(self) -> None:
        """Tells a file or a pipe now and then what is done, so that nobody takes a long step for one that hangs."""
        while not self._over.wait(self._silence / _LOOKS):
            silence = max(self._silence, min((self._said - self._began) / 2, self._silence * _LONGEST))
            if perf_counter() - self._said >= silence:
                _, number, of = self._step
                self._line(f"[{number}/{of}] {self._phase}" if of else str(self._phase))

    def failed(self, variant: Variant, error: ExporterError) -> None:
        """A failed artifact is told at once; a bug with its traceback."""
        self._console.print(f"failed: {variant}: {error}", markup=False, highlight=False)
        if isinstance(error, WorkerFailed) and error.trace:
            self._console.print(error.trace, markup=False, highlight=False)


def in_minutes(seconds: float) -> str:
    """0:07, 12:30, 1:00:00; rounded up."""
    minutes, whole = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole:02}" if hours else f"{minutes}:{whole:02}"

"""What other processes took of the processors while something was measured.

The load average counts this program's own threads and looks back over minutes; here it is the processors' own counters
over exactly the time that was measured, less what this process and all that it started took of them.
"""

from __future__ import annotations

import os
from contextlib import suppress
from time import perf_counter

_IDLE = frozenset({"idle", "iowait", "guest", "guest_nice"})  # Linux counts a guest's time as user's too


class OtherLoad:
    """From where it is made: the mean number of cores that other processes kept busy, of those usable here."""

    def __init__(self) -> None:
        self._start, self._busy, self._own = perf_counter(), _busy_seconds(), _own_seconds()

    def cores(self) -> float:
        """Never below 0: the counters' ticks are a hundredth of a second."""
        seconds = perf_counter() - self._start
        others = (_busy_seconds() - self._busy) - (_own_seconds() - self._own)
        return max(0.0, others / seconds) if seconds > 0 else 0.0


def _busy_seconds() -> float:
    """Of the processors that this process may use: others' work elsewhere takes nothing from it. Stolen time counts."""
    import psutil

    each = psutil.cpu_times(percpu=True)
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(each))
    mine = [times for number, times in enumerate(each) if number in usable] or each
    return sum(float(value) for times in mine for name, value in times._asdict().items() if name not in _IDLE)


def _own_seconds() -> float:
    """Of this process, all that it started, and those of them that have ended."""
    import psutil

    this, total = psutil.Process(), 0.0
    for process in (this, *this.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile: its parent's times have its own
            total += sum(process.cpu_times()[:4])  # user, system, and the same of its children that were waited for
    return total

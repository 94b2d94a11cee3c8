"""What is told of work while it goes on: how many pieces of a phase are done, and of how many.

A phase is told from (0, total) to (total, total), and never goes back; total 0: not known.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

Counted = Callable[[int, int], None]  # (done, total) of one phase
Step = Callable[[str], Counted]  # a phase's name to what is told of it
_Item = TypeVar("_Item")


def nobody(done: int, total: int) -> None:
    """Told of what nobody looks at."""


def unwatched(what: str) -> Counted:
    """The phases of what nobody looks at."""
    return nobody


def counting(items: Collection[_Item], progress: Counted) -> Iterator[_Item]:
    """The items one by one; one is done when the next is asked for. Of none nothing is told."""
    for done, item in enumerate(items):
        progress(done, len(items))
        yield item
    if items:
        progress(len(items), len(items))


def halves(progress: Counted) -> tuple[Counted, Counted]:
    """For pieces that are worked on twice: what both are told is told as one, each for half of every piece."""
    done = [0, 0]

    def half(which: int) -> Counted:
        def told(now: int, total: int) -> None:
            done[which] = now
            progress(sum(done) // 2, total)

        return told

    return half(0), half(1)

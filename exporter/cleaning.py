"""Removes what the cache holds, by age or size: what is in use stays; what is not exporter's is told, and left alone.

An entry is renamed to a hidden name beside it, which the next run or cleaning sweeps away, and then deleted: killed in
between, nothing half-removed is ever found under an entry's name. No link is followed.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import time

from exporter import lock
from exporter.cache import KINDS, Kind, User, is_ours, users
from exporter.errors import JobError
from exporter.store import cache_folder, temporary, unfinished


@dataclass(frozen=True)
class Entry:
    """One entry: its bytes, the time of its last use (seconds), and who uses it now, in words; None: nobody does."""

    kind: Kind
    path: Path
    bytes: int
    used: float
    user: str | None


@dataclass(frozen=True)
class Left:
    """What a killed process left half made, or half removed, beside the entry that it was to be, or was."""

    path: Path
    entry: Path
    bytes: int


@dataclass(frozen=True)
class Held:
    """What a cache holds; `foreign` is what exporter did not put there, and a link to elsewhere."""

    root: Path
    entries: tuple[Entry, ...] = ()
    left: tuple[Left, ...] = ()
    foreign: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Asked:
    """What is to go: all, or what was not used for `older_than` seconds, and then the least recently used until the
    rest has at most `keep` bytes. Nothing, where none is given."""

    everything: bool = False
    older_than: int | None = None
    keep: int | None = None

    def removes(self) -> bool:
        return self.everything or self.older_than is not None or self.keep is not None


@dataclass(frozen=True)
class Removed:
    """What came of it: the entries that went, those that somebody began to use meanwhile, why each path that did not
    go stayed, and the bytes of what killed processes had left."""

    gone: tuple[Entry, ...]
    in_use: tuple[Entry, ...]
    failed: dict[Path, str]
    left_bytes: int


def look(kinds: Sequence[Kind] = KINDS) -> Held:
    """What the cache holds of some kinds; makes and removes nothing. Raises JobError where it cannot be read."""
    root = cache_folder().resolve()
    entries: list[Entry] = []
    left: list[Left] = []
    foreign: list[Path] = []
    try:
        if not _is_there(root):
            return Held(root)
        at_work = users(root)
        foreign += [path for path in sorted(root.iterdir()) if path.is_symlink() or not is_ours(path)]
        for place in dict.fromkeys(kind.place(root) for kind in kinds):
            if place.is_symlink() or not place.is_dir():
                continue
            here = [kind for kind in kinds if kind.place(root) == place]
            found = _left(place, here)
            left += found
            for path in sorted(place.iterdir()):
                kind = next((kind for kind in here if kind.holds(path)), None)
                if kind is not None:
                    entries.append(_entry(kind, path, at_work))
                elif place != root and not _is_known(path, root):
                    foreign.append(path)
    except OSError as error:
        raise JobError(
            f"cannot read {error.filename or root}: {error.strerror}; set EXPORTER_CACHE to the cache's folder, or "
            "clean it as its owner"
        ) from error
    return Held(root, tuple(entries), tuple(left), tuple(foreign))


def _is_there(path: Path) -> bool:
    """Whether a path exists; raises OSError where that cannot be known, which is not the same as an empty cache."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def chosen(entries: Sequence[Entry], asked: Asked, now: float) -> list[Entry]:
    """Which entries are to go, the least recently used first; none that is in use. `now`: seconds since 1970."""
    free = sorted((entry for entry in entries if entry.user is None), key=lambda entry: entry.used)
    if asked.everything:
        return free
    going = [entry for entry in free if asked.older_than is not None and entry.used < now - asked.older_than]
    rest = sum(entry.bytes for entry in entries) - sum(entry.bytes for entry in going)
    for entry in free[len(going) :]:
        if asked.keep is None or rest <= asked.keep:
            break
        going.append(entry)
        rest -= entry.bytes
    return going


def clean(held: Held, asked: Asked) -> Removed:
    """Removes what was asked for, and what killed processes left. What fails is told, and the rest goes on."""
    gone: list[Entry] = []
    in_use: list[Entry] = []
    failed: dict[Path, str] = {}
    for entry in chosen(held.entries, asked, time()):
        try:
            (gone if _remove(entry, held.root) else in_use).append(entry)
        except (OSError, JobError) as error:
            failed[entry.path] = _why(error)
    left_bytes = 0
    for left in held.left:
        try:
            with lock.abandoned(left.entry) as abandoned:
                if abandoned and left.path.exists():
                    _delete(left.path)
                    left_bytes += left.bytes
        except OSError as error:
            failed[left.path] = _why(error)
    return Removed(tuple(gone), tuple(in_use), failed, left_bytes)


def _remove(entry: Entry, root: Path) -> bool:
    """Whether an entry went: not if somebody makes it, or has used it since it was looked at."""
    path = entry.path
    if not os.access(path.parent, os.W_OK):  # first: the lock would then be made in it, and that would stamp it
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    held = lock.attempt(path)
    if held is None:
        return False
    try:
        if not entry.kind.holds(path):
            return True  # it went without us
        stamp = _last_use(entry.kind, path)
        if stamp != entry.used or _user(entry.kind, stamp, users(root)) is not None:
            return False
        if path.is_file():
            path.unlink()
            return True
        hidden = temporary(path)
        path.rename(hidden)
        if _last_use(entry.kind, hidden) != stamp:  # one who reads it without its lock was faster
            hidden.rename(path)
            return False
        _delete(hidden)
        return True
    finally:
        held.release()


def _delete(folder: Path) -> None:
    with suppress(FileNotFoundError):  # a run that begins now sweeps it too
        shutil.rmtree(folder)


def _why(error: Exception) -> str:
    cause = error if isinstance(error, OSError) else error.__cause__
    return (isinstance(cause, OSError) and cause.strerror) or str(error)


def _entry(kind: Kind, path: Path, at_work: Sequence[User]) -> Entry:
    used = _last_use(kind, path)
    with lock.abandoned(path) as free:
        user = None if free else lock.holder(path)
    return Entry(kind, path, _bytes(path), used, user or _user(kind, used, at_work))


def _user(kind: Kind, used: float, at_work: Sequence[User]) -> str | None:
    """Who uses an entry: it was used since they began, or is of a kind that all use together."""
    return next((user.who for user in at_work if kind.names or used >= user.since), None)


def _last_use(kind: Kind, path: Path) -> float:
    """The stamp of an entry; of a folder that is never stamped, what was written last in it."""
    inner = _files(path) if kind.names and path.is_dir() else ()
    return max([path.stat().st_mtime, *(found.st_mtime for found in inner)])


def _bytes(path: Path) -> int:
    return sum(found.st_size for found in _files(path)) if path.is_dir() else path.stat().st_size


def _files(folder: Path) -> list[os.stat_result]:
    """Of all files below a folder, and of links themselves: where those lead is not looked at."""
    found = []
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # of one that is in use
                found.append(os.lstat(Path(place) / name))
    return found


def _left(place: Path, kinds: Sequence[Kind]) -> list[Left]:
    """What lies half made or half removed in a folder that nobody works on now."""
    found = []
    for path, entry in unfinished(place):
        if path.is_symlink() or not path.is_dir() or not any(kind.may_be(entry.name) for kind in kinds):
            continue
        with lock.abandoned(entry) as abandoned:
            if abandoned:
                found.append(Left(path, entry, _bytes(path)))
    return found


def _is_known(path: Path, root: Path) -> bool:
    """Whether what lies in a kind's folder is an entry of any kind, or belongs to one: its lock, or a half of it."""
    kinds = [kind for kind in KINDS if kind.place(root) == path.parent]
    if any(kind.holds(path) for kind in kinds):
        return True
    hidden = path.name.startswith(".") and not path.is_symlink()
    return hidden and path.name.endswith((".lock", ".tmp"))

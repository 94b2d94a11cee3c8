"""One process at a time works on a folder: a lock of the system on a file beside it. When its holder dies it is free.

The file is `.NAME.lock` beside the folder NAME, which need not be there yet (inside it, where nothing may be written
beside it), says who holds it, and goes when it is let go. One that a killed process left is free and harmless. Held
locks do not pass to children.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from exporter.errors import JobError

PATTERN = ".{}.lock"  # beside a folder of that name
_INSIDE = ".lock"
_PAUSE = 0.1  # seconds between two looks at a lock that another holds
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class Held:
    """A lock that this process has: to be released once."""

    path: Path
    handle: int

    def sign(self) -> None:
        """Writes who holds it into its file, for those who come second."""
        about = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(self.handle, 0)
        os.write(self.handle, json.dumps(about).encode())

    def release(self) -> None:
        self.path.unlink(missing_ok=True)  # first: whoever opens the file from now on makes a new one
        os.close(self.handle)


@contextmanager
def locked(
    folder: Path, wait: bool = False, waiting: Callable[[str], None] = lambda holder: None, mend: str = ""
) -> Iterator[None]:
    """Holds a folder's lock. Where another process has it: waits (`waiting` is told who), or raises JobError.

    `mend`: what a person can do instead, to follow the reason. What had to be made above the folder goes again, where
    nothing came of it.
    """
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        held = attempt(folder)
        while held is None:
            if not wait:
                raise JobError(f"{folder} is in use by {holder(folder)}{mend}")
            waiting(holder(folder))
            time.sleep(_PAUSE)
            held = attempt(folder)
        try:
            held.sign()
            yield
        finally:
            held.release()
    finally:
        for parent in made:
            try:
                parent.rmdir()
            except OSError:
                break  # something is in it


@contextmanager
def abandoned(folder: Path) -> Iterator[bool]:
    """Whether nobody works on a folder; where so, nobody begins to until the block ends. Makes no file."""
    held = None
    if there := _beside(folder).exists():
        with suppress(JobError):  # of another user's: not ours to judge
            held = attempt(folder)
    try:
        yield held is not None or not there
    finally:
        if held is not None:
            held.release()


def attempt(folder: Path) -> Held | None:
    """A folder's lock, if nobody has it. Raises JobError where no file can be written, or locked."""
    import fcntl

    while True:
        path, handle = _open(folder)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError as error:
            os.close(handle)
            raise JobError(
                f"cannot lock {folder}: {error.strerror}; its file system has no locks, choose another one"
            ) from error
        if _is_file(path, handle):
            return Held(path, handle)
        os.close(handle)  # its last holder has removed it meanwhile: a lock on that file keeps nobody out


def holder(folder: Path) -> str:
    """Who holds a folder's lock, in words, by what stands in its file."""
    for path in (_beside(folder), folder / _INSIDE):
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        where = "" if about["host"] == platform.node() else f" on {about['host']}"
        return f"exporter's process {about['pid']}{where}, since {about['since']}"
    return "another process of exporter"


def _beside(folder: Path) -> Path:
    return folder.parent / PATTERN.format(folder.name)


def _open(folder: Path) -> tuple[Path, int]:
    """The lock's file: beside the folder, or in it where nobody may write beside it (a mounted one)."""
    beside = _beside(folder)
    try:
        return beside, _handle(beside)
    except OSError as error:
        if error.errno not in _DENIED or not folder.is_dir():
            raise JobError(f"cannot write to {beside.parent}: {error.strerror}; choose another folder") from error
    try:
        return folder / _INSIDE, _handle(folder / _INSIDE)
    except OSError as error:
        raise JobError(f"cannot write to {folder}: {error.strerror}; choose another folder") from error


def _handle(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # and the umask: others of a group may hold it next


def _is_file(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False

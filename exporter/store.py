"""Results that are either whole or not there: atomic publish, reuse by content key, verification by hash.

A folder is built beside its destination under a temporary name, synced, and renamed. Whoever builds holds the
destination's lock, or that of the folder it lies in (exporter/lock.py): what has no such lock was left behind by a
killed process, and is swept away by the next run.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from exporter import lock
from exporter.errors import BuildError, JobError

MANIFEST = "manifest.json"
_HEADROOM = 1.1  # of what a job is thought to need on the disk
_TEMPORARY = re.compile(r"^\.(.+)\.[0-9a-f]+\.tmp$")


def cache_folder() -> Path:
    """Where what a later run may use again is kept (cache.py): $EXPORTER_CACHE, or the user's cache folder."""
    base = os.environ.get("EXPORTER_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "exporter"


def content_key(value: Any) -> str:
    """The same JSON value gives the same 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_folder(folder: Path) -> str:
    """One hash over the names and contents of all files below a folder."""
    return content_key({name: sha256_file(folder / name) for name in file_names(folder)})


def file_names(folder: Path) -> list[str]:
    """The files below a folder, as sorted relative POSIX paths; the manifest is left out."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(name for path in paths if (name := path.relative_to(folder).as_posix()) != MANIFEST)


@contextmanager
def publish(destination: Path) -> Iterator[Path]:
    """Yields an empty folder that becomes `destination`, whole, when the block ends well, and vanishes otherwise."""
    with temporary_folder(destination.parent, destination.name) as building:
        yield building
        _sync(building)
        put(building, destination)


def put(folder: Path, destination: Path) -> None:
    """Renames a whole folder on the same disk to `destination`, in the place of what is there."""
    old = temporary(destination)
    if destination.exists():
        destination.rename(old)
    folder.rename(destination)
    _sync_folder(destination.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def temporary_folder(parent: Path, name: str) -> Iterator[Path]:
    """An empty folder inside `parent` that is gone when the block ends, however it ends."""
    parent.mkdir(parents=True, exist_ok=True)
    path = temporary(parent / name)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def temporary(destination: Path) -> Path:
    """A name that nothing ever had: what is swept away under it is nobody's."""
    return destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.tmp")


def sweep(folder: Path, name: str = "*") -> None:
    """Removes what killed processes left unfinished in a folder: what is still worked on has its destination's lock.

    `name`: of one destination only, where the folder is not exporter's own. A process id would not tell who lives: two
    containers that share a folder have the same ones.
    """
    for path, destination in unfinished(folder, name):
        with lock.abandoned(destination) as abandoned:
            if abandoned:
                shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(lock.PATTERN.format(name)) if folder.is_dir() else ():
        with lock.abandoned(folder / path.name.removeprefix(".").removesuffix(".lock")):
            pass  # its file goes with it


def unfinished(folder: Path, name: str = "*") -> list[tuple[Path, Path]]:
    """What lies in a folder half made or half removed, each with its destination, whose lock says if it is left so."""
    found = ((path, _TEMPORARY.match(path.name)) for path in folder.glob(f".{name}.*.tmp") if folder.is_dir())
    return [(path, folder / match[1]) for path, match in found if match]


@contextmanager
def output_lock(output: Path, wait: bool, progress: Callable[[str, int, int], None]) -> Iterator[None]:
    """Alone with an output folder. Raises JobError where another process works on it and this one is not to wait."""

    def waiting(holder: str) -> None:
        progress(f"waiting for {holder}", 0, 0)

    mend = "; wait for it with --wait, or choose another folder"
    with lock.locked(output.resolve(), wait, waiting, mend):
        yield


@contextmanager
def one_maker(folder: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """For an entry of the cache: who comes second waits (`waiting` is told for whom), and then finds it made."""
    sweep(folder.parent)
    with lock.locked(folder, wait=True, waiting=waiting):
        yield
        used(folder)


def used(folder: Path) -> None:
    """Stamps an entry of the cache that is read: its modification time is that of its last use.

    Who reads without the entry's lock calls it before the look whether it is whole: one that is being cleaned is then
    kept, or found gone.
    """
    with suppress(OSError):  # it is not there, or another user's: only who may write to it can say so
        os.utime(folder)


@contextmanager
def swept(*folders: Path) -> Iterator[None]:
    """Sweeps folders before, and when the block ends, however it ends: of what workers left there that were killed."""
    for folder in folders:
        sweep(folder)
    try:
        yield
    finally:
        for folder in folders:
            sweep(folder)


@contextmanager
def swept_beside(destination: Path) -> Iterator[None]:
    """Sweeps, before and after, what was left unfinished beside a folder that lies among others' files."""
    sweep(destination.parent, destination.name)
    try:
        yield
    finally:
        sweep(destination.parent, destination.name)


def disk_full(error: BaseException) -> bool:
    """Whether an error says that no byte more fits; some libraries keep the words only."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or "Disk quota exceeded" in str(error)


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # mkstemp's 0600 would keep others from reading the results
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_manifest(
    folder: Path,
    key: str,
    weights: Iterable[str],
    facts: Mapping[str, Any],
    known: Mapping[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Writes and returns manifest.json: the key, every file's sha256 and size, which are weights, and `facts`.

    `known`: sha256 and bytes of files that were hashed while they were written.
    """
    files = {
        name: (known or {}).get(name) or {"sha256": sha256_file(folder / name), "bytes": (folder / name).stat().st_size}
        for name in file_names(folder)
    }
    manifest = {"schema_version": 1, "key": key, "weights": sorted(weights), **facts, "files": files}
    write_text(folder / MANIFEST, json.dumps(manifest, indent=2, default=str) + "\n")
    return manifest


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a published folder, or None where there is none that can be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and "files" in manifest else None


def damage(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """What differs between a folder and its manifest, a line for each file; empty when all is as it was written."""
    lines = []
    for name, recorded in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            lines.append(f"{name} is missing")
        elif path.stat().st_size != recorded["bytes"]:
            lines.append(f"{name} has {path.stat().st_size} bytes, not {recorded['bytes']}")
        elif sha256_file(path) != recorded["sha256"]:
            lines.append(f"{name} has other contents than when it was written")
    return lines


def reusable(folder: Path, key: str) -> dict[str, Any] | None:
    """The manifest of a folder that was published under this key and is undamaged, else None."""
    manifest = read_manifest(folder)
    if manifest is None or manifest.get("key") != key or damage(folder, manifest):
        return None
    return manifest


def existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))


def writable(folder: Path, mend: str = "choose another folder with -o") -> None:
    """Proves that files can be written to a folder that may not be there yet; makes nothing. Raises JobError."""
    try:
        with tempfile.TemporaryFile(dir=existing(folder)):
            pass
    except OSError as error:
        raise JobError(f"cannot write to {folder}: {error.strerror}; {mend}") from error


def refuse_full_disk(needs: dict[Path, int]) -> None:
    """Refuses what surely will not fit: the bytes that each folder is to receive, those on one disk counted together.

    Raises BuildError.
    """
    disks: dict[int, list[Path]] = {}
    for folder in (folder for folder, bytes_needed in needs.items() if bytes_needed):
        disks.setdefault(existing(folder).stat().st_dev, []).append(folder)
    for folders in disks.values():
        need = int(_HEADROOM * sum(needs[folder] for folder in folders))
        named, free = " and ".join(map(str, folders)), shutil.disk_usage(existing(folders[0])).free
        if free < need:
            raise BuildError(
                f"the disk of {named} is too full: this job needs about {need / 1e6:,.0f} MB, and {free / 1e6:,.0f} "
                "MB are free; free some space, or choose another disk with -o (EXPORTER_CACHE for the cache)"
            )


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o644)  # safetensors' 0600 would keep others from reading the results
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

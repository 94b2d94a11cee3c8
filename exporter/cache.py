"""What the cache holds, a line for each kind: those who write it and `exporter clean` (cleaning.py) both go by KINDS.

An entry is made by whoever holds its lock, and stamped by each that reads it (store.py): the modification time of its
folder is that of its last use. A run says that it is at work (`using`); what was used since the earliest of those that
still are is in use, though nobody holds its lock.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter import lock
from exporter.store import (
    MANIFEST,
    cache_folder,
    one_maker,
    publish,
    reusable,
    sweep,
    swept,
    writable,
    write_manifest,
)

# Told what fills a new folder: the folder of an entry, and whether it was there.
Keep = Callable[[Callable[[Path], None]], tuple[Path, bool]]
_RUN = "exporter-run-"  # beside the kinds' folders, the locks of those who work with them: .exporter-run-….lock


@dataclass(frozen=True)
class Kind:
    """Entries of one sort: in a `folder` of the cache, each called `prefix` and (the first `digits` of) its key.

    `what` it is, and what makes it `again` where a run needs it, in a word or two. It is told from others' files by
    what its writer puts there: the `field` of a JSON file, the `mark`, is the key; or all that lies in it has a name
    that fits `inside`; or it is one of the `names`, which all runs have together.
    """

    name: str
    folder: str
    what: str
    again: str
    prefix: str = ""
    digits: int | None = 16
    mark: str = ""
    field: str = "key"
    inside: str = ""
    names: tuple[str, ...] = ()

    def place(self, root: Path | None = None) -> Path:
        """The folder that its entries lie in, of this cache or another."""
        return (root or cache_folder()) / self.folder

    def entry(self, key: str, root: Path | None = None) -> Path:
        """Where the entry of a key is, or is to be."""
        assert not self.names or key in self.names, key
        return self.place(root) / f"{self.prefix}{key[: self.digits]}"

    def kept(
        self, key: str, waiting: Callable[[str], None], make: Callable[[Path], Mapping[str, Any] | None]
    ) -> tuple[Path, bool]:
        """The entry of a key, and whether it was there, whole: else `make` fills an empty folder, which becomes it.

        What `make` returns stands in the entry's manifest. Of two who ask for it one makes it; the other waits,
        `waiting` being told for whom. With its first two arguments bound it is a Keep.
        """
        folder = self.entry(key)
        with one_maker(folder, waiting):
            if reusable(folder, key) is not None:
                return folder, True
            with publish(folder) as building:
                write_manifest(building, key, [], make(building) or {})
        return folder, False

    def holds(self, path: Path) -> bool:
        """Whether a path in its place is an entry that exporter wrote, by its name and what is in it. No link is."""
        if path.is_symlink():
            return False
        if self.names:
            return path.name in self.names and (path.is_file() or path.is_dir())
        if self.inside:
            fits = re.fullmatch(rf"[0-9a-f]{{{self.digits}}}", path.name) and path.is_dir()
            return bool(fits) and all(re.fullmatch(self.inside, one.name) for one in path.iterdir())
        key = _field(path / self.mark, self.field)
        return key is not None and path.name == f"{self.prefix}{key[: self.digits]}"

    def may_be(self, name: str) -> bool:
        """Whether an entry could be called so: of what lies unfinished beside it there is only the name."""
        return name in self.names if self.names else name.startswith(self.prefix)


def _field(mark: Path, field: str) -> str | None:
    """What a JSON file says under a name, where there is such a file."""
    try:
        told = json.loads(mark.read_text(encoding="utf-8")) if mark.is_file() else None
    except (OSError, ValueError):
        return None
    value = told.get(field) if isinstance(told, dict) else None
    return value if isinstance(value, str) else None


def _checkpoint(name: str, what: str, again: str) -> Kind:
    return Kind(name, "checkpoints", what, again, prefix=f"{name}-", mark=MANIFEST)


MERGED = _checkpoint("merged", "models with adapters merged in", "a merge")
DEQUANTIZED = _checkpoint("dequantized", "quantized models, made float", "a merge")
PRUNED = _checkpoint("pruned", "models that were pruned", "a pruning")
TRAINED = _checkpoint("trained", "models that --qat trained", "a training")
DISTILLED = _checkpoint("distilled", "students that were taught", "a training")
RECIPES = Kind(
    "recipes", "checkpoints", "recipes' files as checkpoints", "a conversion", "", None, MANIFEST,
    "recipe",
)  # fmt: skip
STATES = Kind(
    "states", "training", "trainings cut short", "nothing",
    inside=r"(step|checkpoint)-\d+|\..+\.tmp",
)  # fmt: skip
CALIBRATIONS = Kind(
    "calibrations", "calibrations", "a model's statistics on a text", "a calibration", digits=None,
    mark=MANIFEST,
)  # fmt: skip
PREPARATIONS = Kind(
    "preparations", "preparations", "what policies are chosen from", "a calibration", digits=None,
    mark=MANIFEST,
)  # fmt: skip
RANKINGS = Kind(
    "rankings", "rankings", "what each layer's rounding loses", "its measurement", digits=None, mark=MANIFEST,
)  # fmt: skip
TIMES = Kind("times", "times", "how long layers take here", "seconds for each shape", mark=MANIFEST)
CONVERTER = Kind(
    "converter", "llama.cpp", "llama.cpp's converter", "exporter fetch gguf", "converter-", None,
    "source.json", "version",
)  # fmt: skip
COMPILED = Kind("compiled", "", "what torch compiles", "torch", digits=None, names=("torchinductor",))
LOGS = Kind(
    "logs", "logs", "what libraries printed", "nothing", digits=None,
    names=("merge.log", "compress.log", "calibrate.log"),
)  # fmt: skip
KINDS = (
    MERGED, DEQUANTIZED, PRUNED, TRAINED, DISTILLED, RECIPES, STATES, CALIBRATIONS, PREPARATIONS, RANKINGS, TIMES,
    CONVERTER, COMPILED, LOGS,
)  # fmt: skip


def working_folders() -> tuple[Path, ...]:
    """The cache's folders in which something can be left unfinished."""
    return tuple(dict.fromkeys(kind.place() for kind in KINDS if not kind.names))


@contextmanager
def using() -> Iterator[None]:
    """At work with the cache: what is used until the block ends is not cleaned. Sweeps it before and after.

    Raises JobError where it cannot be written to.
    """
    root = cache_folder()
    writable(root, "set EXPORTER_CACHE to another folder")
    sweep(root, f"{_RUN}*")  # of those that were killed
    # It waits for whoever looks just now whether this lock is held.
    with lock.locked(root / f"{_RUN}{secrets.token_hex(8)}", wait=True), swept(*working_folders()):
        yield


@dataclass(frozen=True)
class User:
    """A process that is `using` the cache: since when (seconds, by the file system's clock), and who, in words."""

    since: float
    who: str


def users(root: Path) -> list[User]:
    """Who works with a cache now, the earliest first."""
    found = []
    for path in root.glob(lock.PATTERN.format(f"{_RUN}*")):
        run = root / path.name.removeprefix(".").removesuffix(".lock")
        try:
            since = path.stat().st_mtime
        except FileNotFoundError:
            continue  # it has ended meanwhile
        with lock.abandoned(run) as ended:
            if not ended:
                found.append(User(since, lock.holder(run)))
    return sorted(found, key=lambda user: user.since)


def is_ours(path: Path) -> bool:
    """Whether what lies in the cache itself is exporter's: a kind's folder, or what the folder's own entries need."""
    if path.name in {kind.folder for kind in KINDS if kind.folder}:
        return path.is_dir()
    beside = [name for kind in KINDS if not kind.folder for name in kind.names]
    hidden = (rf"\.{_RUN}.+\.lock", *(rf"{name}|\.{name}\..*(lock|tmp)" for name in beside))
    return any(re.fullmatch(one, path.name) for one in hidden)

"""Joins the parts of a pack, checks them, and installs what is in it, with Python's own library alone: it travels.

    python3 join.py PARTS DEST
    python3 join.py PARTS DEST --what-is-there       the rows that came whole; again, for those that came since

PARTS holds manifest.json and the parts; DEST must not be there yet, or lack rows. A part that is missing or damaged is
one line, and exit status 1, and nothing is made. DEST/venv sees what the Python that runs this has (torch, CUDA's
libraries) and holds the wheels that it lacks: an onnxruntime of the machine is left as it is, behind the one that is
imported.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

MANIFEST, PACK, WHEELS, VENV, JOINED = "manifest.json", "pack.json", "wheels", "venv", "joined.json"
PARTLY = "--what-is-there"
_BLOCK = 1 << 20
EXIT_WRONG = 1


class Broken(Exception):
    """What cannot be joined or installed, in one line."""


class Joined(io.RawIOBase):
    """The parts one after the other, read as one file."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._left, self._file = list(files), io.BytesIO(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not (data := self._file.read(len(buffer))) and self._left:
            self._file.close()
            self._file = self._left.pop(0).open("rb")  # type: ignore[assignment]  # both read bytes
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def missing(parts: Path) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The manifest, and of each volume that is not whole in `parts` the names of those that it lacks.

    A volume is an archive of its own: the first holds what every row needs, each other one what a row alone does.
    """
    try:
        manifest = json.loads((parts / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Broken(f"{parts / MANIFEST} cannot be read: {error}") from error
    lacking = {
        volume["name"]: [part["name"] for part in volume["parts"] if not (parts / part["name"]).is_file()]
        for volume in manifest["volumes"]
    }
    return manifest, {name: files for name, files in lacking.items() if files}


def checked(parts: Path, volume: dict[str, Any]) -> list[Path]:
    """The files of a volume's parts, in order. Raises Broken for one that is not what the manifest says."""
    files = [parts / part["name"] for part in volume["parts"]]
    for file, part in zip(files, volume["parts"], strict=True):
        if file.stat().st_size != part["bytes"] or _sha256(file) != part["sha256"]:
            raise Broken(f"{file} is damaged: it is not what {MANIFEST} says; copy it again")
    return files


def _sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def unpack(volume: dict[str, Any], files: Sequence[Path], destination: Path) -> None:
    """Lays a volume's files out in `destination`, beside what is there. Raises Broken where there is no room."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(destination.parent).free
    if free < volume["unpacked_bytes"]:
        raise Broken(f"{destination.parent} has {free:,} bytes free, and {volume['unpacked_bytes']:,} are to come")
    making = destination.with_name(f".{destination.name}.joining")
    shutil.rmtree(making, ignore_errors=True)
    try:
        with (
            io.BufferedReader(Joined(files), _BLOCK) as whole,
            gzip.open(whole) as plain,
            tarfile.open(fileobj=plain, mode="r|") as archive,
        ):
            archive.extractall(making, filter="data")
        if not destination.exists():
            making.rename(destination)
            return
        for file in _files(making):
            place = destination / file.relative_to(making)
            place.parent.mkdir(parents=True, exist_ok=True)
            file.rename(place)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _files(folder: Path) -> Iterator[Path]:
    yield from (file for file in sorted(folder.rglob("*")) if file.is_file())


def install(destination: Path) -> None:
    """A virtual environment over the machine's own, with what the pack brings and this machine lacks.

    `venv --system-site-packages` is over the Python below: where this Python is of a virtual environment itself, what
    that has is shown to the new one by a file of paths, as Python's `site` reads it.
    """
    needs = json.loads((destination / PACK).read_text(encoding="utf-8"))["needs"]
    has_pip = (
        subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0
    )
    venv = destination / VENV
    _call([sys.executable, "-m", "venv", "--system-site-packages", *(["--without-pip"] if has_pip else []), venv])
    python = venv / "bin" / "python"
    if sys.prefix != sys.base_prefix:
        own = sysconfig.get_path("purelib", "venv", vars={"base": str(venv), "platbase": str(venv)})
        seen = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
        lines = [f"import site; site.addsitedir({folder!r})\n" for folder in sorted(seen)]
        Path(own, "machine.pth").write_text("".join(lines), encoding="utf-8")
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python] if has_pip else [python, "-m", "pip"]
    offline: list[str | Path] = [
        *pip,
        "--disable-pip-version-check",
        "install",
        "-q",
        "--no-index",
        "--find-links",
        destination / WHEELS,
    ]
    _call([*offline, *needs["with_dependencies"]])
    # exporter asks for newer torch and transformers than such a machine may have, which measuring does not need.
    _call([*offline, "--no-deps", *needs["lacking"]])
    # Another exporter that the machine has is not what was packed.
    _call([*offline, "--no-deps", "--ignore-installed", *needs["alone"]])


def _call(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise Broken(f"{' '.join(map(str, command))} failed: {said[-1] if said else f'status {done.returncode}'}")


def bring(parts: Path, destination: Path, partly: bool) -> tuple[list[str], list[str]]:
    """Joins the volumes that `destination` lacks: their names, and with `partly` those that did not come whole."""
    manifest, lacking = missing(parts)
    first, *_ = manifest["volumes"]
    told = destination / JOINED
    there = json.loads(told.read_text(encoding="utf-8")) if told.is_file() else {"of": manifest["key"], "volumes": []}
    lost = [name for name in lacking if name not in there["volumes"]]
    new = [volume for volume in manifest["volumes"] if volume["name"] not in {*lost, *there["volumes"]}]
    if (destination.exists() and not told.is_file()) or there["of"] != manifest["key"] or not (new or lost):
        raise Broken(f"{destination} is there already: name a folder that is not")
    if lost and (not partly or first["name"] in lost):
        files = [file for name in lost for file in lacking[name]]
        several = f" and {len(files) - 3} more" if len(files) > 3 else ""
        raise Broken(f"{len(files)} parts are missing in {parts}: {', '.join(files[:3])}{several}")
    whole = {volume["name"]: checked(parts, volume) for volume in new}
    for volume in new:
        unpack(volume, whole[volume["name"]], destination)
        if volume is first:
            install(destination)
        there["volumes"].append(volume["name"])
        told.write_text(json.dumps(there), encoding="utf-8")
    return [volume["name"] for volume in new], lost


def main() -> None:
    words = [word for word in sys.argv[1:] if word != PARTLY]
    if len(words) != 2:
        print(f"error: python3 {sys.argv[0]} PARTS DEST [{PARTLY}]", file=sys.stderr)
        sys.exit(EXIT_WRONG)
    parts, destination = (Path(word).resolve() for word in words)
    try:
        joined, lost = bring(parts, destination, PARTLY in sys.argv)
    except (Broken, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_WRONG)
    print(f"joined {', '.join(joined) or 'nothing new'}")
    if lost:
        print(f"not here yet: {', '.join(lost)}")
    print(f"next:\n  cd {destination}/source && ../venv/bin/python -m bench.gpu --run ..")


if __name__ == "__main__":
    main()

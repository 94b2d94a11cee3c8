"""make families: every family through the whole program, and what came out beside transformers.

    python -m bench.families                         those whose row is not of this code and these packages
    python -m bench.families --only gemma2 phi3      these, in any case
    python -m bench.families --again --jobs 2        all of them
    python -m bench.families --refused               of the rows that are there, what their configurations alone tell

Each row is written when it is there: what is stopped goes on where it was. Folders of families that are not right stay
in out/bench/families. With --strict the exit status is 3 where one is wrong or failed, which no page can excuse.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from bench import record
from bench.families.decoders import DECODERS
from bench.families.encoders import ENCODERS
from bench.families.family import ASKED
from bench.families.known import FAMILIES
from bench.families.outcome import FAILED, RIGHT, WRONG
from bench.jobs import OUT
from exporter import forkserver, machine, store
from exporter.errors import EXIT_GATE, EXIT_JOB, unknown
from exporter.process import lasting_server, worker_environment

_LIMIT_S = 600  # of one family: an engine that hangs takes no other's place
_FILE = record.RESULTS / "families.json"


def code_key() -> str:
    """What a row is of: the program, these programs, and the packages."""
    files = [file for part in ("exporter", "bench/families") for file in sorted((record.ROOT / part).rglob("*.py"))]
    return store.content_key([[store.sha256_file(file) for file in files], machine.versions()])


def rows_there(file: Path = _FILE) -> dict[str, dict[str, Any]]:
    """The rows of families that there still are, by name."""
    if not file.is_file():
        return {}
    rows = json.loads(file.read_text(encoding="utf-8"))["figures"]["families"]
    return {row["name"]: row for row in rows if row["name"] in FAMILIES}


@contextmanager
def warm_workers(environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The environment of many runs in a row: their workers are forks of one process that has imported torch."""
    if not forkserver.FORKS:
        yield dict(environment)
        return
    with tempfile.TemporaryDirectory() as folder:
        server = lasting_server(Path(folder), 1, environment)
        try:
            yield {**environment, forkserver.SHARED: folder}
        finally:
            if server.stdin is not None:
                server.stdin.close()
            server.wait()


def examine(name: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """A family's row, from a process of its own."""
    folder = OUT / "families" / name
    log = folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "bench.families.examined", name, str(folder)]
    with log.open("w", encoding="utf-8") as errors:
        try:
            done = subprocess.run(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                timeout=_LIMIT_S,
                check=False,
            )
            said, status = done.stdout, f"its process ended with status {done.returncode}"
        except subprocess.TimeoutExpired:
            said, status = "", f"not done after {_LIMIT_S} s"
    try:
        row: dict[str, Any] = json.loads(said.splitlines()[-1])
    except (IndexError, ValueError):
        last = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()][-1:]
        outcome = {"outcome": FAILED, "what": "; ".join([status, *last])[:300]}
        row = {"name": name, "architecture": FAMILIES[name].architecture} | dict.fromkeys(ASKED, outcome)
        row["refused"] = {}
    if all(row[column]["outcome"] == RIGHT for column in ASKED):
        shutil.rmtree(folder, ignore_errors=True)
        log.unlink()
    return row


def told(row: Mapping[str, Any]) -> str:
    """A row in a line, for who waits."""
    cells = []
    for column in ASKED:
        found = row[column]
        worst = f" {found['worst']:.1e}" if "worst" in found else ""
        cells.append(f"{column} {found['outcome']}{worst}" + (f" ({found['what']})" if "what" in found else ""))
    return f"{row['name']}: {'; '.join(dict.fromkeys(cells))}"


def examine_all(names: Sequence[str], jobs: int) -> dict[str, dict[str, Any]]:
    """Examines families, writes each row as it comes, and returns all rows."""
    about, rows, key = record.begin("families", jobs), rows_there(), code_key()
    begun = perf_counter()
    environment = {**os.environ, **worker_environment(1)}
    with warm_workers(environment) as given, ThreadPoolExecutor(jobs) as pool:
        doing = [pool.submit(examine, name, given) for name in names]
        try:
            for number, done in enumerate(as_completed(doing), 1):
                row = done.result() | {"key": key}
                rows[row["name"]] = row
                spent = perf_counter() - begun
                print(f"[{number}/{len(names)}, {spent:.0f} s] {told(row)}", file=sys.stderr, flush=True)
                ordered = [rows[name] for name in FAMILIES if name in rows]
                counts = {"decoders": len(DECODERS), "encoders": len(ENCODERS), "key": key}
                record.write(about, [], {"families": ordered, **counts})
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C: those that have not begun
    return rows


def ask_again() -> None:
    """Writes into the rows that there are which targets refuse the configuration: nothing is exported for that."""
    from bench.families.examined import refused
    from bench.families.models import save_model
    from exporter.checkpoint.load import read_config

    result = json.loads(_FILE.read_text(encoding="utf-8"))
    for row in result["figures"]["families"]:
        with tempfile.TemporaryDirectory() as folder:
            save_model(FAMILIES[row["name"]], Path(folder))
            row["refused"] = refused(read_config(Path(folder)), FAMILIES[row["name"]].task)
    record.write(result, result["reports"], result["figures"])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.families", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[])
    parser.add_argument("--again", action="store_true", help="all, also those whose row is of this code")
    parser.add_argument("--refused", action="store_true", help="examine none; ask all targets of their config.json")
    parser.add_argument("--jobs", type=int, default=machine.usable_cores(), help="at a time; default: the usable cores")
    parser.add_argument("--strict", action="store_true", help="exit status 3 where one is wrong or failed")
    arguments = parser.parse_args()
    for name in arguments.only:
        if name not in FAMILIES:
            print(f"error: {unknown('family', name, FAMILIES)}", file=sys.stderr)
            sys.exit(EXIT_JOB)
    if arguments.refused:
        ask_again()
        return
    rows, key = rows_there(), code_key()
    wanted = arguments.only or [name for name in FAMILIES if arguments.again or rows.get(name, {}).get("key") != key]
    if wanted:
        rows = examine_all(wanted, max(1, arguments.jobs))
    bad = [name for name, row in rows.items() if any(row[column]["outcome"] in (WRONG, FAILED) for column in ASKED)]
    if bad:
        print(f"wrong or failed: {', '.join(bad)}", file=sys.stderr)
    sys.exit(EXIT_GATE if bad and arguments.strict else 0)


if __name__ == "__main__":
    main()

"""make bench: the programs that are named, or all, one after the other; after each the pages are rendered again.

    python -m bench --text wiki.test.raw             all of them, some hours on an idle machine
    python -m bench --text wiki.test.raw gguf merge  two of them

The text is WikiText-2's test split, raw (CC BY-SA 4.0); it is not shipped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from exporter.errors import EXIT_BUILD, EXIT_JOB, unknown

PROGRAMS = {  # each name, and whether it reads the text
    "quality": True,
    "policy": True,
    "tensorrt": True,
    "gguf": True,
    "coreml": True,
    "litert": True,
    "prune": True,
    "shapes": True,
    "merge": False,
    "calibration": False,
    "growth": False,
    "families": False,
}


def refuse(line: str) -> None:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(EXIT_JOB)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="*", help=f"of {', '.join(PROGRAMS)}")
    parser.add_argument("--text", type=Path)
    arguments = parser.parse_args()
    for name in arguments.name:
        if name not in PROGRAMS:
            refuse(f"{unknown('bench', name, PROGRAMS)} (make bench ONLY=gguf)")
    wanted = arguments.name or list(PROGRAMS)
    reads = any(PROGRAMS[name] for name in wanted)
    if reads and (arguments.text is None or not arguments.text.is_file()):
        refuse(f"no text at {arguments.text}; give WikiText-2's wiki.test.raw: make bench BENCH_TEXT=FILE")
    failed = []
    for name in wanted:  # hours of work: what fails takes nothing from the others
        given = ["--text", str(arguments.text)] if PROGRAMS[name] else []
        for command in ([f"bench.{name}", *given], ["bench.render"]):
            if subprocess.run([sys.executable, "-m", *command], check=False).returncode:
                failed.append(name)
                break
    if failed:
        print(f"error: not measured: {', '.join(failed)}", file=sys.stderr)
        sys.exit(EXIT_BUILD)


if __name__ == "__main__":
    main()

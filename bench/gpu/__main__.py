"""Packs here and measures there: bench/gpu/__init__.py says how it goes.

    python -m bench.gpu --pack DIR --text wiki.test.raw --part-size 55M
    python -m bench.gpu --run DIR --seconds 780
    python -m bench.gpu --run DIR --rehearse         all of it on the CPU, into DIR/rehearsal alone

A row is written when it is there: what is stopped goes on where it was. Exit status 2 where there is no GPU, 3 where a
row is not what it is on the CPU, 4 where one failed or was not reached.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.jobs import TOKENS
from exporter.byte_size import parse_bytes
from exporter.errors import ExporterError


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--pack", type=Path, metavar="DIR", help="make DIR/parts, which travels")
    what.add_argument("--run", type=Path, metavar="DIR", help="measure what join.py laid out in DIR")
    parser.add_argument("--part-size", type=parse_bytes, default="55M", help="bytes of a part, at most")
    parser.add_argument(
        "--of", type=Path, metavar="OUT", help="pack what 'exporter run' wrote, as it is, and make nothing"
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", nargs="+", metavar="TARGET:PRECISION", help="the most valuable first")
    parser.add_argument("--text", type=Path, help="to measure on; a recipe has one of its own")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of the text, that quality is measured on")
    parser.add_argument(
        "--no-speed", dest="speed", action="store_false", help="of the CPU's rows, which are packed too"
    )
    parser.add_argument("--wheels", type=Path, help="a folder of wheels for the box; else pip fetches them")
    parser.add_argument("--python", default="3.12", help="the box's, for the wheels that are fetched")
    parser.add_argument("--seconds", type=float, default=780, help="of the whole run: no row is begun after them")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU: what is tested of a run without a GPU")
    arguments = parser.parse_args()
    try:
        if arguments.pack:
            from bench.gpu.pack import ROWS, Rows, pack

            names = arguments.rows or ROWS
            rows = Rows(arguments.model, names, arguments.text, arguments.tokens, arguments.speed)
            told = pack(arguments.pack, arguments.part_size, arguments.of or rows, arguments.wheels, arguments.python)
            print(f"{arguments.pack}/parts: {told['bytes'] / 1e6:,.0f} MB")
            for volume in told["volumes"]:
                ends = [volume["parts"][number]["name"] for number in (0, -1)]
                size = sum(part["bytes"] for part in volume["parts"])
                print(f"  {' to '.join(dict.fromkeys(ends))}: {volume['name']}, {size / 1e6:,.0f} MB")
            return
        from bench.gpu.measure import measure

        sys.exit(measure(arguments.run.resolve(), arguments.rows, arguments.seconds, arguments.rehearse))
    except ExporterError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()

"""`exporter clean`: what the cache holds, and what of it is to go."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from time import localtime, strftime, time
from typing import Any

import click

from exporter import cleaning
from exporter.cache import KINDS, Kind
from exporter.command.flags import FORMAT
from exporter.errors import BuildError

_AGE = re.compile(r"^([1-9][0-9]*)([hdw])$")
_SECONDS = {"h": 3600, "d": 86400, "w": 7 * 86400}
_SHOWN = 5  # of the names that are told; JSON has all


def _age(context: click.Context, option: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    if not (found := _AGE.match(value)):
        raise click.BadParameter("give hours, days or weeks, such as 12h, 30d or 8w")
    return int(found[1]) * _SECONDS[found[2]]


def _size(context: click.Context, option: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    from exporter.byte_size import parse_bytes

    try:
        return parse_bytes(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@click.option("--older-than", metavar="AGE", callback=_age, help="Remove what was not used for so long: 12h, 30d, 8w.")
@click.option(
    "--keep", metavar="BYTES", callback=_size, help="Remove the least recently used until the rest fits: 500M, 20G."
)
@click.option("--all", "everything", is_flag=True, help="Remove all that nobody uses now.")
@click.option(
    "--kind", "names", type=click.Choice([kind.name for kind in KINDS]), multiple=True,
    help="Look at these alone; give it again for more. Default: every kind.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
@FORMAT
def clean(
    older_than: int | None, keep: int | None, everything: bool, names: tuple[str, ...], dry_run: bool, form: str
) -> None:
    """Say what the cache holds, and remove it by age or size. Alone it removes nothing.

    \b
    exporter clean                               what is there, and when it was last used
    exporter clean --older-than 30d              what was not used for 30 days
    exporter clean --keep 20G --dry-run          what would go until 20 GB are left
    exporter clean --kind merged --all           one kind, whatever its age

    What a run makes or uses now is never removed, and what exporter did not write is told and left alone. A run that
    needs what is gone makes it again.
    """
    if everything and (older_than is not None or keep is not None):
        raise click.UsageError("--all removes whatever its age and size: leave it out, or --older-than and --keep")
    kinds = tuple(kind for kind in KINDS if not names or kind.name in names)
    asked = cleaning.Asked(everything, older_than, keep)
    held = cleaning.look(kinds)
    removed = None
    if asked.removes() and not dry_run:
        removed = cleaning.clean(held, asked)
        going: Sequence[cleaning.Entry] = removed.gone
    else:
        going = cleaning.chosen(held.entries, asked, time())
    record = _record(kinds, held, going, removed, keep)
    if form == "json":
        print(json.dumps(record))
    else:
        _print(record, asked, removed is not None)
    if removed is not None:
        _refuse(removed, record, keep)


def _record(
    kinds: Sequence[Kind],
    held: cleaning.Held,
    going: Sequence[cleaning.Entry],
    removed: cleaning.Removed | None,
    keep: int | None,
) -> dict[str, Any]:
    """What JSON has, all of it known: times are seconds since 1970, bytes are the files' sizes."""
    began = {entry.path for entry in (removed.in_use if removed else ())}
    gone = {entry.path for entry in going}
    rows = []
    for kind in kinds:
        those = [entry for entry in held.entries if entry.kind == kind]
        uses = [entry.used for entry in those]
        rows.append({
            "kind": kind.name, "what": kind.what, "again": kind.again, "entries": len(those),
            "bytes": sum(entry.bytes for entry in those), "oldest_use": min(uses, default=None),
            "newest_use": max(uses, default=None),
        })  # fmt: skip
    entries = [
        {
            "kind": entry.kind.name, "path": str(entry.path), "bytes": entry.bytes, "last_use": entry.used,
            "in_use": entry.user or ("a run that began just now" if entry.path in began else None),
            "goes": entry.path in gone,
        }
        for entry in held.entries
    ]  # fmt: skip
    sizes = {name: sum(one.bytes for one in held.entries if (one.path in gone) is name) for name in (True, False)}
    return {
        "cache": str(held.root),
        "kinds": rows,
        "entries": entries,
        "left_behind": [{"path": str(left.path), "bytes": left.bytes} for left in held.left],
        "foreign": [str(path) for path in held.foreign],
        "failed": {str(path): why for path, why in (removed.failed if removed else {}).items()},
        "removed": removed is not None,
        "bytes_going": sizes[True],
        "bytes_left": sizes[False],
        "fits": None if keep is None else sizes[False] <= keep,
    }


def _refuse(removed: cleaning.Removed, record: dict[str, Any], keep: int | None) -> None:
    """Raises BuildError where what was asked for is not so now."""
    if removed.failed:
        path, why = next(iter(removed.failed.items()))
        more = len(removed.failed) - 1
        raise BuildError(
            f"cannot remove {path}: {why}{f' (and {more} more)' * bool(more)}; clean the cache as its owner"
        )
    if keep is not None and not record["fits"]:
        raise BuildError(
            f"{_mb(record['bytes_left'])} are left, and --keep says {_mb(keep)}: the rest is in use; "
            "clean again when those runs have ended"
        )


def _print(record: dict[str, Any], asked: cleaning.Asked, removed: bool) -> None:
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    from exporter.command.show import stdout

    console = stdout()
    columns = "kind", "what it is", "made again by", "entries", "MB", "oldest use", "newest use"
    table = Table(*columns, box=SIMPLE, padding=(0, 2, 0, 0))
    for row in record["kinds"]:
        counts = f"{row['entries']:,}", f"{row['bytes'] / 1e6:,.1f}"
        table.add_row(
            row["kind"], row["what"], row["again"], *counts, *(_day(row[use]) for use in ("oldest_use", "newest_use"))
        )
    table.columns[3].justify = table.columns[4].justify = "right"

    def say(line: str) -> None:
        console.print(Text(line), soft_wrap=True)

    say(f"cache: {record['cache']}")
    console.print(table)
    done = "removed" if removed else "would go"
    for entry in record["entries"]:
        if entry["goes"]:
            say(f"{done}: {entry['path']}, {_mb(entry['bytes'])}, last used {_time(entry['last_use'])}")
    busy = [entry for entry in record["entries"] if entry["in_use"]]
    if busy:
        whose = ", ".join(dict.fromkeys(entry["in_use"] for entry in busy))
        say(f"in use, and never removed: {len(busy)}, {_mb(sum(entry['bytes'] for entry in busy))} ({whose})")
    if left := record["left_behind"]:
        fate = ("removed, but what failed" if record["failed"] else "removed") if removed else "the next run removes it"
        say(f"left by what was killed: {len(left)}, {_mb(sum(one['bytes'] for one in left))}: {fate}")
    if foreign := record["foreign"]:
        more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
        say(f"not exporter's, left alone: {', '.join(foreign[:_SHOWN])}{more}")
    count = sum(entry["goes"] for entry in record["entries"])
    if not asked.removes():
        say("nothing is removed: --older-than 30d, --keep 20G or --all says what is to go")
    else:
        say(f"{done}: {count}, {_mb(record['bytes_going'])}; left: {_mb(record['bytes_left'])}")


def _day(seconds: float | None) -> str:
    return "" if seconds is None else _time(seconds).partition(" ")[0]


def _time(seconds: float) -> str:
    return strftime("%Y-%m-%d %H:%M", localtime(seconds))


def _mb(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"

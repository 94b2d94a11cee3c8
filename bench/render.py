"""Writes what bench/results/*.json say into the pages: README.md and docs/, between the marks of each result.

    python -m bench.render            writes
    python -m bench.render --check    says whether the pages say what the files say, and exits 3 where they do not

A page takes a result's text by two lines, with anything or nothing between them:

    <!-- bench/results/gguf.json: begin -->
    <!-- bench/results/gguf.json: end -->

or a part of it, by the name of a model: `quality.json smollm2-135m`. All of a result stands on some page, once.
Nothing is measured here and nothing looked up: the same files give the same text on any machine.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bench.sections import BY_MODEL, SECTIONS, UNMEASURED

ROOT = Path(__file__).resolve().parent.parent
EXIT_WRONG, EXIT_DIFFERS = 2, 3
_BEGIN = re.compile(r"^<!-- bench/results/(\S+)\.json(?: (\S+))?: begin -->\n", re.M)


class Unfit(Exception):
    """A page or a result that cannot be rendered, in one line."""


def pages(root: Path) -> list[Path]:
    return [*sorted(root.glob("*.md")), *sorted((root / "docs").rglob("*.md"))]


class Mark(NamedTuple):
    """What a page shows: the text of a result, or what that says of one model ("": of all)."""

    name: str
    model: str


def marked(page: str) -> Iterator[tuple[Mark, int, int]]:
    """Each mark of a page, and where its text begins and ends."""
    for begin in _BEGIN.finditer(page):
        end = page.find(begin[0].strip().replace(": begin -->", ": end -->"), begin.end())
        following = _BEGIN.search(page, begin.end())
        if end < 0 or (following and following.start() < end):
            raise Unfit(f"the mark '{begin[0].strip()}' has no end before the next")
        yield Mark(begin[1], begin[2] or ""), begin.end(), end


def text_of(mark: Mark, root: Path) -> str:
    """The text of a result, as it stands between its marks."""
    name, model = mark
    if name not in SECTIONS:
        raise Unfit(f"a mark names {name}.json; there are: {', '.join(SECTIONS)}")
    file = root / "bench" / "results" / f"{name}.json"
    if name in UNMEASURED and not file.is_file():
        return UNMEASURED[name] + "\n"
    try:
        result: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Unfit(f"{file.relative_to(root)} cannot be read ({error}); make bench ONLY={name} writes it") from error
    return SECTIONS[name](_of(model, name, result) if model else result) + "\n"


def _of(model: str, name: str, result: Mapping[str, Any]) -> Mapping[str, Any]:
    """A result with the reports of one model alone."""
    if name not in BY_MODEL:
        raise Unfit(f"a mark names {model}, and {name}.json is shown as a whole; by model: {', '.join(BY_MODEL)}")
    names = list(dict.fromkeys(report["name"] for report in result["reports"]))
    if model not in names:
        raise Unfit(f"a mark names {model}, and {name}.json has: {', '.join(names)}")
    return {**result, "reports": [report for report in result["reports"] if report["name"] == model]}


def rendered(page: str, root: Path) -> tuple[str, list[str]]:
    """The page as it must be, and the names of the results whose text in it was another."""
    parts: list[str] = []
    changed, done = [], 0
    for mark, begin, end in marked(page):
        text = text_of(mark, root)
        if page[begin:end] != text:
            changed.append(mark.name)
        parts += [page[done:begin], text]
        done = end
    return "".join([*parts, page[done:]]), changed


def render(root: Path, check: bool) -> int:
    """The exit status. Every page is made before the first is written."""
    made = []
    for path in pages(root):
        page = path.read_text(encoding="utf-8")
        try:
            text, changed = rendered(page, root)
        except Unfit as error:
            print(f"error: {path.relative_to(root)}: {error}", file=sys.stderr)
            return EXIT_WRONG
        if changed:
            made.append((path, text, changed))
    for path, text, changed in made:
        if not check:
            path.write_text(text, encoding="utf-8")
        print(f"{path.relative_to(root)}: {'differs from' if check else 'written from'} {', '.join(changed)}")
    if check and made:
        print("python -m bench.render writes them", file=sys.stderr)
        return EXIT_DIFFERS
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 3 where a page differs")
    sys.exit(render(ROOT, parser.parse_args().check))


if __name__ == "__main__":
    main()

"""What is measured on where a model reads pictures: a folder of them, or some that a seeded program draws.

A list of pictures is a text, so that all that is done with a text (its name, its place in a cache's key, its way to a
worker) is done with it: a line for each, `SHA256 FILE`, or one line `drawn COUNT SEED`.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from exporter.errors import JobError, MissingPackage
from exporter.store import sha256_file

if TYPE_CHECKING:
    from PIL.Image import Image

Rgb = NDArray[np.uint8]  # [height, width, 3]
FEWEST = 8  # each is one answer: of fewer no error of a mean is known
KINDS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_DRAWN = "drawn"


def drawn(count: int, seed: int) -> str:
    """The list of `count` pictures that are drawn."""
    return f"{_DRAWN} {count} {seed}"


def listed(folder: Path, flag: str) -> str:
    """The list of a folder's pictures, those of its subfolders included. Raises JobError; `flag` named the folder."""
    folder = folder.expanduser()
    if not folder.is_dir():
        raise JobError(f"no such folder of pictures: {folder} ({flag})")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix.lower() in KINDS]
    lines = dict(reversed([(sha256_file(path), path.absolute()) for path in files]))  # a copy counts once
    if len(lines) < FEWEST:
        raise JobError(
            f"{folder} holds {len(lines)} different pictures ({', '.join(KINDS)}), and at least {FEWEST} are needed "
            f"to measure anything: give another with {flag}"
        )
    check_pillow()
    for path in lines.values():
        _check(path)
    return "\n".join(f"{digest} {path}" for digest, path in reversed(lines.items()))


def shared(one: str, other: str) -> str | None:
    """The name of a picture that two lists have in common; None: there is none. Drawn ones differ by their seed."""
    if one.startswith(_DRAWN) or other.startswith(_DRAWN):
        return "the drawn pictures" if one == other else None
    known = {line.partition(" ")[0] for line in one.splitlines()}
    return next((Path(name).name for digest, name in _lines(other) if digest in known), None)


def names(pictures: str) -> list[str]:
    """What each picture of a list is called."""
    if pictures.startswith(_DRAWN):
        return [f"drawn picture {number + 1}" for number in range(int(pictures.split()[1]))]
    return [Path(name).name for _, name in _lines(pictures)]


def read(pictures: str) -> Iterator[Rgb]:
    """The pictures of a list, in red, green and blue. Raises JobError for a file that is none."""
    if pictures.startswith(_DRAWN):
        _, count, seed = pictures.split()
        yield from (draw(np.random.default_rng([int(seed), number])) for number in range(int(count)))
        return
    check_pillow()
    for _, name in _lines(pictures):
        yield _opened(Path(name))


def check_pillow() -> None:
    """Raises MissingPackage where Pillow is not installed: no processor works without it."""
    if find_spec("PIL") is None:
        raise MissingPackage("a model that reads pictures", ["pillow"], "vision")


def image(picture: Rgb) -> Image:
    """As the processors take it."""
    from PIL.Image import fromarray

    return fromarray(picture)


def _lines(pictures: str) -> list[tuple[str, str]]:
    return [(digest, name) for digest, _, name in (line.partition(" ") for line in pictures.splitlines())]


def _check(file: Path) -> None:
    """Raises JobError for what has no picture's header."""
    import PIL.Image

    try:
        PIL.Image.open(file).close()
    except (OSError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> JobError:
    return JobError(f"{file} cannot be read as a picture ({' '.join(str(error).split())})")


def _opened(file: Path) -> Rgb:
    import PIL.Image
    from PIL.ImageOps import exif_transpose

    try:
        with PIL.Image.open(file) as opened:
            upright: Any = exif_transpose(opened)
            made: Rgb = np.array(upright.convert("RGB"), np.uint8)
            return made
    except (OSError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise _unreadable(file, error) from error


def draw(rng: np.random.Generator) -> Rgb:
    """A picture of its own size: a gradient, some discs and rectangles before it, stripes, and grain."""
    height, width = (int(size) for size in rng.integers(160, 400, 2))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / max(height, width)
    slope = rng.normal(size=(2, 3))
    canvas = rng.uniform(40, 215, 3) + 90 * (y[..., None] * slope[0] + x[..., None] * slope[1])
    for _ in range(int(rng.integers(3, 9))):
        middle, size, colour = rng.uniform(0, 1, 2), rng.uniform(0.05, 0.3, 2), rng.uniform(0, 255, 3)
        away = np.abs((y - middle[0]) / size[0]), np.abs((x - middle[1]) / size[1])
        inside = np.hypot(*away) < 1 if rng.random() < 0.5 else np.maximum(*away) < 1
        canvas[inside] = colour
    turned = y * np.cos(angle := rng.uniform(0, np.pi)) + x * np.sin(angle)
    canvas += rng.uniform(0, 40) * np.sin(turned * rng.uniform(10, 90))[..., None]
    canvas += rng.normal(0, rng.uniform(1, 12), canvas.shape)
    made: Rgb = canvas.clip(0, 255, out=canvas).astype(np.uint8)
    return made

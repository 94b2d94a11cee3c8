"""What --prune can be asked, METHOD[:AMOUNT]: the methods in one table, and how one is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from exporter.errors import JobError, unknown

TWO_OF_FOUR = "2:4"  # of each four neighbours along the inputs at most two are not zero: what sparse tensor cores take


@dataclass(frozen=True)
class Method:
    """One method. `kind`: whether it writes zeros, changes shapes or renumbers tokens; `calibrated`: whether it needs
    windows of text.

    `amount`: what a number behind its name means. `default` None: it has to be given.
    """

    summary: str
    kind: Literal["zeros", "shape", "tokens"]
    calibrated: bool
    amount: Literal["share", "layers", "file"]
    default: str | None
    example: str
    two_of_four: bool = False


METHODS = {
    "magnitude": Method(
        "the smallest weights of all layers together become 0", "zeros", False, "share", "0.2", "0.2", True
    ),
    "magnitude-layer": Method(
        "the smallest weights of each layer become 0", "zeros", False, "share", "0.2", "0.2", True
    ),
    "wanda": Method(
        "in each row of a layer the smallest of weight times input become 0", "zeros", True, "share", "0.5", "2:4", True
    ),
    "sparsegpt": Method(
        "as wanda, and the weights that stay make good the error", "zeros", True, "share", "0.5", "2:4", True
    ),
    "width": Method("the MLP's least important neurons go", "shape", True, "share", "0.2", "0.2"),
    "heads": Method("the least important attention heads or KV groups go", "shape", True, "share", "0.25", "0.25"),
    "depth": Method("the layers that change the hidden state least go", "shape", True, "layers", "1", "3"),
    "vocabulary": Method("tokens that a text never uses go", "tokens", False, "file", None, "corpus.txt"),
}


@dataclass(frozen=True)
class Pruning:
    """One --prune, read and checked. `amount` is in one spelling: "0.5" of .5 and 0.50; it is what a cache keys by."""

    method: str
    amount: str

    @property
    def how(self) -> Method:
        return METHODS[self.method]

    @property
    def two_of_four(self) -> bool:
        return self.how.two_of_four and self.amount == TWO_OF_FOUR

    @property
    def share(self) -> float | None:
        """What goes, 0 < share < 1; None for 2:4 and where the amount is no share."""
        return None if self.how.amount != "share" or self.two_of_four else float(self.amount)

    @property
    def layers(self) -> int | None:
        """How many layers go; None where the amount is something else."""
        return int(self.amount) if self.how.amount == "layers" else None

    @property
    def file(self) -> Path | None:
        """The text whose tokens stay; None where the amount is something else. Nobody has looked whether it exists."""
        return Path(self.amount) if self.how.amount == "file" else None

    def __str__(self) -> str:
        return f"{self.method}:{self.amount}"


def parse(text: str) -> Pruning:
    """METHOD[:AMOUNT], such as wanda:2:4. Raises JobError: the problem, the choices, an example."""
    method, colon, amount = text.partition(":")
    if method not in METHODS:
        raise JobError(f"--prune: {unknown('method', method, METHODS)}; for example: --prune sparsegpt:0.5")
    how = METHODS[method]
    if not colon:
        if how.default is None:
            raise JobError(f"--prune {method}: it needs {_choices(how)}; for example: --prune {method}:{how.example}")
        return Pruning(method, how.default)
    if how.two_of_four and amount == TWO_OF_FOUR:
        return Pruning(method, amount)
    if (read := _read(how, amount)) is None:
        raise JobError(
            f"--prune {method}: {amount!r} is not {_choices(how)}; for example: --prune {method}:{how.example}"
        )
    return Pruning(method, read)


def _read(how: Method, amount: str) -> str | None:
    """An amount in its one spelling; None where it is not one."""
    if how.amount == "file":
        return amount or None
    if how.amount == "layers":
        return str(int(amount)) if amount.isascii() and amount.isdigit() and int(amount) > 0 else None
    try:
        share = float(amount)
    except ValueError:
        return None
    return repr(share) if 0 < share < 1 else None


def _choices(how: Method) -> str:
    if how.amount == "file":
        return "a text file, whose tokens are kept"
    if how.amount == "layers":
        return "a number of layers, 1 or more"
    return "a share between 0 and 1" + (" or 2:4" if how.two_of_four else "")

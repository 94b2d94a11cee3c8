"""Which stages can follow one another in one job, and what is of which model: all the rules in one table.

They are looked at before any work. The table of docs/pruning.md is the same (tests/test_combinations.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from exporter.errors import JobError
from exporter.scheme import Scheme
from exporter.stages.distill.options import DistillOptions
from exporter.stages.prune.options import Pruning


@dataclass(frozen=True)
class Asked:
    """What a job asks for, as far as the rules look at it.

    `command`: run, compress or calibrate. `hows`: how each variant is quantized (exporter.pipeline.plan.Wanted).
    `zeros`: whether the model's folder came with zeros that a pruning wrote.
    """

    command: str
    prunings: Sequence[Pruning] = ()
    distill: DistillOptions | None = None
    policy: str | Path = "auto"
    hows: Sequence[Mapping[str, Any] | None] = ()
    zeros: bool = False

    def of_kind(self, kind: str) -> Pruning | None:
        """The first pruning that writes zeros, changes shapes or renumbers tokens."""
        return next((one for one in self.prunings if one.how.kind == kind), None)

    def smaller(self) -> list[str]:
        """The flags that make the model smaller."""
        return [f"--prune {one}" for one in self.prunings] + ["--distill-…"] * bool(self.distill)

    def compressed_first(self) -> str:
        """The two commands that do the same one after the other."""
        return f"exporter compress {' '.join(self.smaller())} -o smaller, and then: exporter {self.command} -m smaller"


Broken = tuple[str, str] | None  # what was asked, and what can be done instead


@dataclass(frozen=True)
class Rule:
    """`found`: how a job breaks it, or None."""

    not_so: str
    why: str
    found: Callable[[Asked], Broken]


def check(asked: Asked) -> None:
    """Raises JobError for the first rule that a job breaks: what, why, and what can be done instead."""
    for rule in RULES:
        if (broken := rule.found(asked)) is not None:
            what, instead = broken
            raise JobError(f"{what}: {rule.why}; {instead}")


def _twice(asked: Asked) -> Broken:
    for first, second in combinations(asked.prunings, 2):
        if first.method == second.method:
            instead = f"give one --prune {first.method} with the amount of both"
            return f"--prune {first} and --prune {second}", instead
    return None


def _following(first: str, second: str | None) -> Callable[[Asked], Broken]:
    """One kind before another, where it has to be the other way round; None: before any."""

    def found(asked: Asked) -> Broken:
        for one, other in combinations(asked.prunings, 2):
            if one.how.kind == first and other.how.kind == (second or other.how.kind):
                instead = f"give them the other way round: --prune {other} --prune {one}"
                return f"--prune {one} before --prune {other}", instead
        return None

    return found


def _both_zeros(asked: Asked) -> Broken:
    zeros = [one for one in asked.prunings if one.how.kind == "zeros"]
    if len(zeros) < 2:
        return None
    return f"--prune {zeros[0]} and --prune {zeros[1]}", "give one of them, with the amount that you want in the end"


def _other_numbers(asked: Asked) -> Broken:
    tokens = asked.of_kind("tokens")
    if tokens is None or asked.command == "compress":
        return None
    return f"--prune {tokens}", f"do it first, {asked.compressed_first()}"


def _other_models_policy(asked: Asked) -> Broken:
    words = asked.smaller()
    if not words or not (isinstance(asked.policy, Path) or asked.command == "calibrate"):
        return None
    words += [f"--policy {asked.policy}"] if isinstance(asked.policy, Path) else ["and exporter calibrate"]
    return " ".join(words), f"first {asked.compressed_first()}"


def _palettes(asked: Asked) -> Broken:
    zeros = asked.of_kind("zeros")
    if zeros is None and not asked.zeros:
        return None
    schemes = [Scheme.model_validate(one) for how in asked.hows if how is not None for one in how["schemes"]]
    if not any(one.palette for one in schemes):
        return None
    whose = "the zeros of a model that was pruned before" if zeros is None else f"--prune {zeros}"
    return f"{whose} and a palette", "take int4 or int8"


def _own_teacher(asked: Asked) -> Broken:
    distill = asked.distill
    if distill is None or asked.prunings or distill.student is not None or distill.teacher is not None:
        return None
    instead = (
        "make a student of it with --prune or --distill-student (such as layers:6), or name another teacher with "
        "--distill-teacher DIR"
    )
    return "--distill", instead


def _two_shapes(asked: Asked) -> Broken:
    if asked.distill is None or asked.distill.student is None or not asked.prunings:
        return None
    instead = (
        "give one of them; zeros of what was distilled are a second step: exporter compress … -o taught, and then: "
        "exporter run -m taught --prune …"
    )
    return f"--distill-student and --prune {asked.prunings[0]}", instead


def _other_tokens(asked: Asked) -> Broken:
    tokens = asked.of_kind("tokens")
    if tokens is None or asked.distill is None:
        return None
    instead = (
        "distill first: exporter compress --distill-steps … -o taught, and then: exporter compress -m taught "
        f"--prune {tokens.method}:…"
    )
    return f"--prune {tokens.method} and --distill", instead


RULES = (
    Rule("a method twice", "a method works once, for its second time would rank what its first has changed", _twice),
    Rule(
        "the vocabulary, then anything",
        "texts are read by the tokens' numbers, which the first changes",
        _following("tokens", None),
    ),
    Rule(
        "zeros, then shapes",
        "what changes shapes would take chosen zeros along, and break 2:4",
        _following("zeros", "shape"),
    ),
    Rule("two methods of zeros", "both write zeros, and the second would choose the first one's again", _both_zeros),
    Rule(
        "`--prune vocabulary`, and distillation",
        "the teacher's answers are about the tokens as they were",
        _other_tokens,
    ),
    Rule(
        "`--prune vocabulary` in `exporter run`",
        "it gives tokens other ids, and a run compares answers to the same ones",
        _other_numbers,
    ),
    Rule("distillation alone", "there is nothing to learn, for the model is its own teacher", _own_teacher),
    Rule("`--prune`, and `--distill-student`", "both say what goes", _two_shapes),
    Rule(
        "a smaller model, and `--policy FILE` or `exporter calibrate`",
        "a policy is of one model's weights, here the smaller one's",
        _other_models_policy,
    ),
    Rule("zeros, and a palette", "a palette need not have a 0, and the zeros would go", _palettes),
)

"""Which stages can follow one another: each rule refuses, says why and what else, and stands on the page."""

from pathlib import Path

import pytest
from conftest import ROOT

from exporter.errors import JobError
from exporter.pipeline.combinations import RULES, Asked, check
from exporter.scheme import Scheme
from exporter.stages.distill.options import DistillOptions
from exporter.stages.prune.options import parse

pytestmark = pytest.mark.quick
PAGE = (ROOT / "docs" / "pruning.md").read_text(encoding="utf-8")
FOUR = {"schemes": [Scheme(weight="int4", group=32).model_dump()]}
PALETTE = {"schemes": [Scheme(weight="palette4").model_dump()]}


def asked(*prunings, command="run", **more):
    return Asked(command, tuple(map(parse, prunings)), **more)


BROKEN = [
    (
        asked("wanda", "depth:2"),
        "--prune wanda:0.5 before --prune depth:2: what changes shapes would take chosen zeros",
    ),
    (asked("wanda", "depth:2"), "give them the other way round: --prune depth:2 --prune wanda:0.5"),
    (asked("magnitude", "wanda"), "--prune magnitude:0.2 and --prune wanda:0.5: both write zeros"),
    (asked("depth:1", "width", "depth:2"), "--prune depth:1 and --prune depth:2: a method works once"),
    (asked("wanda:0.2", "wanda:0.5"), "give one --prune wanda with the amount of both"),
    (asked("vocabulary:a", "depth:2", command="compress"), "texts are read by the tokens' numbers"),
    (
        asked("vocabulary:a"),
        "do it first, exporter compress --prune vocabulary:a -o smaller, and then: exporter run",
    ),
    (
        asked("vocabulary:a", command="compress", distill=DistillOptions()),
        "the tokens as they were; distill first",
    ),
    (asked(distill=DistillOptions()), "--distill: there is nothing to learn"),
    (asked("wanda", distill=DistillOptions(student="layers:2")), "both say what goes; give one of them"),
    (asked("width", policy=Path("p.yaml")), "--prune width:0.2 --policy p.yaml: a policy is of one model's weights"),
    (
        asked(command="calibrate", distill=DistillOptions(student="layers:2")),
        "--distill-… and exporter calibrate: a",
    ),
    (asked("wanda", hows=[PALETTE]), "a palette need not have a 0"),
    (asked(zeros=True, hows=[PALETTE]), "the zeros of a model that was pruned before and a palette"),
]


@pytest.mark.parametrize(("job", "line"), BROKEN)
def test_what_makes_no_sense(job, line):
    with pytest.raises(JobError) as error:
        check(job)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "job",
    [
        asked(),
        asked("wanda"),
        asked("depth", "width", "heads", "sparsegpt:2:4"),
        asked("depth", "width", "heads", "sparsegpt:2:4", "vocabulary:a", command="compress"),
        asked("width", "depth", distill=DistillOptions()),
        asked("wanda:2:4", distill=DistillOptions(), hows=[None, FOUR]),
        asked(distill=DistillOptions(student="layers:2")),
        asked(distill=DistillOptions(teacher=Path("larger"))),
        asked(policy=Path("p.yaml"), hows=[FOUR, PALETTE]),
    ],
)
def test_what_makes_sense(job):
    check(job)


def test_each_rule_is_broken_above_and_stands_on_the_page():
    broken = [{rule.not_so for rule in RULES if rule.found(job) is not None} for job, _ in BROKEN]
    assert set().union(*broken) == {rule.not_so for rule in RULES}
    table = [f"| {rule.not_so} | {rule.why} |" for rule in RULES]
    lines = PAGE[PAGE.index("| Not so | For |") :].splitlines()[2:]
    assert lines[: len(table)] == table
    assert lines[len(table)] == ""

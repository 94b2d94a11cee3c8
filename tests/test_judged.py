"""No row passes that no gate judged: over every task, target and precision, a third party's too."""

from __future__ import annotations

from dataclasses import fields

import pytest

from exporter.measure.gates import judge, unjudged
from exporter.report.result import Figure, Result
from exporter.targets import known
from exporter.types import CLASSIFICATION, FEATURES, GENERATION, Gates, Variant

pytestmark = pytest.mark.quick

# What is measured of each task, and of each kind of classifier.
MEASURED = {
    "generation": (GENERATION, ("ppl", "ppl_ratio", "kl", "top1", "cache_kl")),
    "embeddings": (FEATURES, ("cosine",)),
    "one or several labels": (CLASSIFICATION, ("kl", "top1")),
    "a number": (CLASSIFICATION, ("regression_error", "pearson", "spearman")),
}
TAKEN = [
    (kind, name, precision)
    for kind, (task, _) in MEASURED.items()
    for name, target in known.BUILTIN.items()
    for precision in target.precisions
    if Variant(name, precision) != known.REFERENCE and target.check({}, task, precision) is None
]


@pytest.mark.parametrize(("kind", "name", "precision"), TAKEN)
def test_every_precision_has_a_gate_for_every_task_that_it_takes(kind, name, precision):
    task, figures = MEASURED[kind]
    limits = known.get(name).precisions[precision].limits(task)
    # As wrong as can be: no logit_error, which is of a few short texts alone.
    wrong = {one: Figure(-1.0 if one in ("top1", "cosine", "pearson", "spearman") else 99.0, 0.0) for one in figures}
    row = Result(name, precision, quality=wrong)
    gates = judge(limits, row, frozenset(), 200)
    assert unjudged(gates, row) is None
    assert not all(gate.passed for gate in gates)
    if kind == "generation":
        assert limits.max_kl is not None


@pytest.mark.parametrize("kind", MEASURED)
def test_without_a_gate_a_row_fails_and_says_what_to_give(kind):
    _, figures = MEASURED[kind]
    row = Result("npz", "fp16", quality={one: Figure(0.0, 0.0) for one in figures}, artifact={"size_ratio": 0.5})
    beside = Gates(max_size_ratio=1.0, max_cache_kl=1.0, max_tokenizer_errors=0)  # not of the answers
    row.gates = judge(beside, row, frozenset(), 200)
    gate = unjudged(row.gates, row)
    assert gate is not None
    flag = gate.detail.removeprefix("no quality gate judged it; give one: --").removesuffix(" X").replace("-", "_")
    assert flag in {one.name for one in fields(Gates)}
    asked = judge(Gates(**{flag: 0.0}), row, frozenset(), 200)
    assert unjudged(asked, row) is None
    row.gates.append(gate)
    assert not row.passed


def test_agreement_with_a_constant_judges_nothing():
    row = Result("npz", "fp16", quality={"kl": Figure(0.0, 0.0), "top1": Figure(1.0, 0.0, "all alike")})
    assert unjudged(judge(Gates(min_top1=0.9), row, frozenset(), 200), row) is not None
    assert unjudged(judge(Gates(min_top1=0.9, max_kl=0.1), row, frozenset(), 200), row) is None

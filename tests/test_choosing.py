"""How much stricter the next mix is, where an artifact failed a gate."""

import pytest

from exporter.pipeline.choosing import stricter
from exporter.report.result import Figure, Result
from exporter.types import Gates

pytestmark = pytest.mark.quick


def test_budgets_shrink_by_what_was_too_much():
    gates, row = Gates(max_kl=0.01), Result("onnx", "int4-weight", quality={"kl": Figure(0.02, 0.0)})
    assert stricter(gates, row, [{"loss": 0.004}]) == pytest.approx(0.9 * 0.002)
    assert stricter(gates, row, [{"loss": 0.004}, {"loss": 0.004}]) is None  # the same mix again
    assert stricter(gates, row, [{"loss": 0.0}]) is None  # nothing is left to give


@pytest.mark.parametrize(
    ("limit", "figure", "times"),
    [
        ({"max_kl": 0.01}, {"kl": Figure(0.018, 0.001)}, 2),  # two standard errors count
        ({"max_ppl_ratio": 1.01}, {"ppl_ratio": Figure(1.01**3, 0.0)}, 3),
        ({"min_cosine": 0.99}, {"cosine": Figure(0.98, 0.0)}, 2),
        ({"min_spearman": 0.9}, {"spearman": Figure(0.8, 0.0)}, 2),
        ({"min_top1": 0.9}, {"top1": Figure(0.8, 0.0)}, 4),  # of decisions, that change with the error's size
        ({"max_accuracy_drop": 0.02}, {"accuracy_drop": Figure(0.04, 0.0)}, 4),
        ({"max_f1_drop": 0.02}, {"f1_drop": Figure(-0.01, 0.0)}, 1),  # better than the reference
    ],
)
def test_every_quality_gate_makes_a_mix_stricter(limit, figure, times):
    row = Result("onnx", "int4-weight", quality=figure)
    assert stricter(Gates(**limit), row, [{"loss": 0.004}]) == pytest.approx(0.9 * 0.004 / times)

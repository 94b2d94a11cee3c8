"""The record of a variant's policy in words: what each layer got, what was predicted, and what came out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_NAMED = 40  # layers; more of them are counted
_WORST = 6  # groups of layers


def quantization_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """What `quantization` of a row's build says."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in record["schemes"].items())
    yield f"linear layers: {kinds}{' (the policy that was given)' if record['given'] else ''}"
    others = [f"{name} ({scheme})" for name, scheme in record["others"].items()]
    if others:
        more = f" and {len(others) - _NAMED} more; policy.yaml has them all" if len(others) > _NAMED else ""
        yield f"kept from the most common scheme: {', '.join(others[:_NAMED])}{more}"
    unit = record["unit"]
    within = f"{record['loss']:.3g} {unit} on {record['tokens']} tokens of the calibration text"
    if not record["given"]:
        within += f"; the budget is {record['budget']:.2g}"
    yield f"simulated loss: {within}"
    if record.get("cost_unit") == "bytes":
        yield f"the linear layers' weights take {record['cost'] / 1e6:,.3g} MB under these schemes (--policy-cost size)"
    elif "cost" in record:
        took = f"{record['cost']:.3g} {record['cost_unit']}"
        yield f"the linear layers take {took} by their times on this machine (--policy-cost latency)"
    for attempt in record["attempts"]:
        got = ", ".join(f"{name} {attempt[name]:.4g}" for name in _FIGURES if attempt.get(name) is not None)
        passed = "passed its gates" if attempt["passed"] else "failed a gate"
        yield f"at a simulated loss of {attempt['loss']:.3g} the artifact had {got}: it {passed}"
    ranked = record.get("ranked") or {}
    if ranked.get("how") == "estimated":
        told = ranked["rank_correlation"]
        order = "" if told is None else f", whose order agrees by {told:.2f} (Spearman)"
        yield (
            f"what layers lose was estimated from gradients, times {ranked['scale']:.2g} by the simulation of the "
            f"{ranked['simulated']} worst{order}"
        )
    worst = [f"{_common(names)} {loss:.2g}" for names, loss in record["sensitivity"][:_WORST]]
    if worst:
        yield f"most sensitive for their size, alone at the lowest scheme ({unit}): {', '.join(worst)}"
    elif not record["given"] and record["loss"] <= record["budget"]:
        yield "all layers fit at the lowest scheme together: none was looked at alone"
    yield from record["history"]
    yield from record.get("reused", ())
    yield f"calibrating, choosing and rounding took {record['seconds']:,.0f} s"


_FIGURES = ("ppl_ratio", "kl", "top1", "cosine", "regression_error")


def _common(names: list[str]) -> str:
    """A group's layers in a word: model.layers.1.mlp.gate_proj, up_proj."""
    first, *others = names
    return ", ".join([first, *(name.rpartition(".")[2] for name in others)])

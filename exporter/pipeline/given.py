"""The policy that a job gives, which variants are made under one, and whether their layers can be timed."""

from __future__ import annotations

from pathlib import Path

from exporter.errors import JobError
from exporter.form import FORMS
from exporter.job import Job
from exporter.pipeline.source import Source, merged_sha256
from exporter.quantization.policy import Policy, read_policy
from exporter.targets import known
from exporter.types import Precision, Variant


def quantizes(job: Job, precision: Precision, task: str) -> bool:
    """Whether a variant is exported from a checkpoint that was quantized in float, under a policy."""
    form = FORMS[task]
    # A window of a text is a source with its target; no half of one is a sound, and none is a text and a picture.
    schemes = () if (form.encodes and form.inputs != "text") or form.matches else precision.schemes
    if not schemes or isinstance(job.policy, Path):
        return bool(schemes)
    # Ranges must be found, and at 4 bits the layers differ most; targets round 8-bit weights well by their own rules.
    return schemes[0].input == "static" or (schemes[0].bits == 4 and job.policy == "auto")


def check_cost(job: Job, variant: Variant, task: str) -> None:
    """Refuses --policy-cost latency where a variant's layers cannot be timed by themselves. Raises JobError."""
    if job.policy_cost != "latency":
        return
    form = FORMS[task]
    if variant.target not in known.LAYER_RUNS:
        why = f"the layers of {variant.target} cannot be timed alone, those of {' and '.join(known.LAYER_RUNS)} can"
    elif form.inputs != "text":
        why = f"products of tokens are timed, and a model for {task} has convolutions"
    elif known.placed(variant, job.device, task)[0] is not None:
        why = f"layers are timed on the CPU, and {variant} is measured on a GPU: --device cpu"
    else:
        return
    raise JobError(f"--policy-cost latency: {why}; or --policy-cost size")


def given_policy(job: Job, variants: list[Variant], source: Source) -> tuple[Policy | None, list[str]]:
    """The policy that a job gives, after a look at what it was made for, at its names and at what the targets can do;
    and notes on it. Raises JobError."""
    if not isinstance(job.policy, Path):
        return None, []
    policy = read_policy(job.policy)
    notes = _of_another(job, policy, merged_sha256(job, source))
    resolved = policy.resolved(source.linear_layers)
    targets, task = {variant: known.get(variant.target) for variant in variants}, source.checkpoint.task
    taken = {one: target for one, target in targets.items() if quantizes(job, target.precisions[one.precision], task)}
    if not taken:
        named = ", ".join(map(str, variants)) or "no target"
        named += f" of a model for {task}" * (FORMS[task].encodes or FORMS[task].matches)
        raise JobError(f"--policy {job.policy}: {named} takes none; see 'exporter targets'")
    for variant, target in taken.items():
        left = set() if target.experts else {one for one in source.experts if resolved[one] is not None}
        if left:
            notes.append(
                f"The policy gives {len(left)} matrices of experts a scheme: {variant} cannot, and keeps them in float."
            )
        for module, scheme in resolved.items():
            reason = scheme and module not in left and target.schemes(variant.precision, scheme)
            if reason:
                raise JobError(f"--policy {job.policy}: {variant} cannot make {module} {scheme}: {reason}")
    return policy, notes


def _of_another(job: Job, policy: Policy, sha256: str) -> list[str]:
    """A note on a policy that was made for another checkpoint and is used all the same. Raises JobError."""
    if policy.sha256 in (None, sha256):
        return []
    what = f"was made for another checkpoint, {policy.source or 'which it does not name'} ({policy.sha256:.12}…)"
    if not job.force_policy:
        raise JobError(
            f"--policy {job.policy} {what}, and this is {job.model} ({sha256:.12}…): its ranges are of other weights; "
            "make one for this: exporter calibrate, or take it all the same with --force-policy"
        )
    return [f"The policy {job.policy} {what}, and was used all the same (--force-policy)."]

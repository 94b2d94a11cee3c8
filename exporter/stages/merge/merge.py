"""Merge adapters into a checkpoint, with PEFT: Checkpoint in, Checkpoint out, proven or refused.

The merge is done in float32 and compared with base + adapter. What is saved keeps each tensor's own dtype, unless
another is asked for; the folder that was written is loaded again and compared once more.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.checkpoint.configuration import correct_ties, keep_configuration
from exporter.checkpoint.floats import TORCH_DTYPES
from exporter.checkpoint.folder import carry
from exporter.checkpoint.model import Load
from exporter.checkpoint.tokenizer import fitting, name_padding, rows_of
from exporter.checkpoint.weights import Stored, stored_tensors
from exporter.errors import BuildError, JobError
from exporter.runner import Ids
from exporter.stages.merge.adapter import Adapter
from exporter.stages.merge.attach import (
    MISFIT,
    NAME,
    attach,
    own_layers,
    quiet,
    resize,
    tie_again,
    ties_of,
    untie_adapted,
)
from exporter.stages.merge.base_check import check_copies, refuse_absent, stored_name
from exporter.stages.merge.misfit import few, misfit
from exporter.stages.merge.proof import Agreement, answers, check_probe, compare, probe_ids, refuse_unproven
from exporter.types import FEATURES

KEEP = "keep"  # --merge-dtype: each tensor's own
COMBINED = "combined"
_SEED = 0  # of dare's random choice


@dataclass(frozen=True)
class How:
    """What a merge is told besides the model and the adapters."""

    combine: str | None = None  # a name of COMBINATIONS; None: one adapter after another
    density: float | None = None
    dtype: str = KEEP
    text: str = ""  # whose first tokens are half of the probe
    probe: Path | None = None
    svd_rank: int | None = None  # of the combination "svd": the largest rank of the adapters
    other: Path | None = None  # for an adapter trained on a quantized base: the float checkpoint not merged into
    trust: bool = False  # whether code that comes with the model, its tokenizer's too, may run
    other_is_trained: bool = False  # whether `other` is the one with the values that training saw


def merge(load: Load, base: Path, adapters: list[Adapter], folder: Path, how: How, task: str) -> dict[str, Any]:
    """Merges adapters into the model of `base` and saves it into an empty folder.

    Returns history (a line for each step) and proof (the agreements). Raises JobError for an adapter that does not fit,
    BuildError for a merge that is not proven.
    """
    stored, paths = stored_tensors(base), [adapter.path for adapter in adapters]
    model, found = load(base, output_loading_info=True)
    refuse_absent(base, found["missing_keys"], adapters)
    history = [line for adapter in adapters for line in check_copies(adapter, base, stored, model.base_model_prefix)]
    history += [line] if (line := correct_ties(model)) else []
    history += [line] if (line := resize(model, adapters)) else []
    tokenizer = fitting(base, paths, rows_of(model), how.trust)
    history += [line] if (line := name_padding(model, tokenizer)) else []
    ids = probe_ids(tokenizer, how.text, rows_of(model))
    steps: list[dict[str, Any]] = []
    truth = None
    for group in [adapters] if how.combine else [[adapter] for adapter in adapters]:
        ties = ties_of(model)
        attached = attach_group(model, group, how)
        truth = answers(attached, ids)
        untie_adapted(attached)
        try:
            with quiet():
                model = attached.merge_and_unload(safe_merge=True)
        except MISFIT as error:
            raise JobError(f"merging {names_of(group)} gives NaN or Inf, or fails: {error}") from error
        repeated = [line for adapter in group if (line := own_layers(model, adapter, ties))]
        line = tie_again(model, ties)
        agreement = compare(truth, answers(model, ids), "float32", distribution=task != FEATURES)
        refuse_unproven(agreement, f"the model merged with {names_of(group)}")
        steps.append(agreement.record() | {"adapter": names_of(group)})
        history += [
            f"merged {names_of(group)}{_combined(how)} (float32, PEFT, in memory)",
            *repeated,
            *([line] if line else []),
        ]
    assert truth is not None
    dtypes = _save(model, stored, how.dtype, folder)
    line = keep_configuration(base, folder, model.config, max(dtypes, key=roundoff))
    history += [line] if line else []
    carry(base, paths, folder)
    del model
    saved, kl = _reload(load, folder, ids, truth, max(dtypes, key=roundoff), task, how.probe)
    proof = {"way": "memory", "on": "probe tokens", "steps": steps, "saved": saved.record(), "probe_kl": kl}
    proof["other_base"] = None if how.other is None else _compare_other(load, adapters, how, ids, truth, task)
    return {"history": history, "proof": proof}


def _compare_other(load: Load, adapters: list[Adapter], how: How, ids: Ids, truth: Any, task: str) -> dict[str, Any]:
    """What the choice of the base changes: KL(trained || original + adapter), and the largest difference."""
    assert how.other is not None
    model = load(how.other)
    resize(model, adapters)
    found = truth
    for group in [adapters] if how.combine else [[adapter] for adapter in adapters]:
        attached = attach_group(model, group, how)
        found = answers(attached, ids)
        untie_adapted(attached)
        with quiet():
            model = attached.merge_and_unload()
    trained, original = (found, truth) if how.other_is_trained else (truth, found)
    agreement = compare(trained, original, "float32", distribution=task != FEATURES)
    return {"kl": agreement.kl, "max_error": agreement.max_error, "largest": agreement.largest}


def attach_group(model: Any, group: list[Adapter], how: How) -> Any:
    """A PeftModel with one adapter, or with several combined into one. Raises JobError."""
    if how.combine is None:
        (adapter,) = group
        return attach(model, adapter)
    attached = model
    for number, adapter in enumerate(group):
        attached = attach(attached, adapter, f"{NAME}{number}")
    combine(attached, group, how)
    return attached.eval()


def combine(attached: Any, group: list[Adapter], how: How) -> None:
    """Adds and activates the weighted combination of what is attached as adapter0, adapter1, … Raises JobError."""
    import torch
    from peft.tuners.lora import LoraLayer

    torch.manual_seed(_SEED)
    for number in range(len(group)):
        name = f"{NAME}{number}"
        config = attached.peft_config[name]
        # PEFT makes the combination with the first one's configuration: what it says of its own modules, layers and
        # scaling must not hold for the others', which were scaled when they were attached.
        modules = attached.get_base_model().named_modules()
        config.target_modules = {path for path, module in modules if isinstance(module, LoraLayer) and name in module.r}
        config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
        config.use_rslora = False
    options: dict[str, Any] = {} if how.density is None else {"density": how.density}
    if how.combine == "svd":
        options["svd_rank"] = how.svd_rank
    names = [f"{NAME}{number}" for number in range(len(group))]
    weights = [1.0 if adapter.weight is None else adapter.weight for adapter in group]
    try:
        with quiet():
            attached.add_weighted_adapter(names, weights, COMBINED, combination_type=how.combine, **options)
    except MISFIT as error:
        raise JobError(misfit(group[-1], attached, error)) from error
    attached.set_adapter(COMBINED)


def names_of(group: list[Adapter]) -> str:
    weights = ("" if adapter.weight is None else f"{adapter.weight:g} of " for adapter in group)
    return " + ".join(f"{w}{a.kind} {a.path.name}" for w, a in zip(weights, group, strict=True))


def _combined(how: How) -> str:
    return f" ({how.combine}{'' if how.density is None else f', density {how.density:g}'})" if how.combine else ""


def kept_dtype(name: str, stored: dict[str, Stored], dtype: str) -> str:
    """torch's name of the dtype that a tensor is saved in. New tensors get the one that most of the model has."""
    if dtype != KEEP:
        return dtype
    if name in stored and stored[name].dtype in TORCH_DTYPES:
        return TORCH_DTYPES[stored[name].dtype]
    sizes: dict[str, int] = {}
    for tensor in stored.values():
        if tensor.dtype in TORCH_DTYPES:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.end - tensor.begin
    return TORCH_DTYPES[max(sizes, key=lambda key: sizes[key])]


def _save(model: Any, stored: dict[str, Stored], dtype: str, folder: Path) -> set[str]:
    """Saves a merged float32 model, rounding each tensor once; returns the dtypes. Raises BuildError on overflow."""
    import torch

    dtypes = set()
    tensors = list(model.named_parameters()) + [
        (name, buffer) for name, buffer in model.named_buffers() if buffer.is_floating_point()
    ]
    for name, tensor in tensors:
        wanted = kept_dtype(stored_name(name, stored, model.base_model_prefix) or name, stored, dtype)
        if isinstance(tensor, torch.nn.Parameter):
            dtypes.add(wanted)
            tensor.data = tensor.data.to(getattr(torch, wanted))
            if not torch.isfinite(tensor).all():
                raise BuildError(
                    f"{name} does not fit into {wanted} after the merge: take --merge-dtype bfloat16 or float32"
                )
    model.config.dtype = getattr(torch, max(dtypes, key=roundoff))
    with quiet():
        model.save_pretrained(folder)
    return dtypes


def roundoff(dtype: str) -> float:
    import torch

    return float(torch.finfo(getattr(torch, dtype)).eps)


def _reload(
    load: Load, folder: Path, ids: Ids, truth: Any, dtype: str, task: str, probe: Path | None
) -> tuple[Agreement, float | None]:
    """Loads what was written, strictly, and compares it with base + adapter. Raises BuildError."""
    model, found = load(folder, output_loading_info=True)
    wrong = sorted({*found["missing_keys"], *found["unexpected_keys"], *(key[0] for key in found["mismatched_keys"])})
    if task == FEATURES:
        wrong = [name for name in wrong if not name.startswith("pooler.")]
    if wrong:
        raise BuildError(f"the merged checkpoint does not load as it was saved: {few(wrong)}; please report it")
    dtype = "float32" if dtype == "float64" else dtype
    agreement = compare(truth, answers(model, ids), dtype, distribution=task != FEATURES)
    refuse_unproven(agreement, f"the merged checkpoint, saved in {dtype},")
    return agreement, None if probe is None else check_probe(model, probe)

"""Why an adapter does not fit the model that it is given: named from its tensors, its configuration, and the model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from exporter.checkpoint.renamed import renaming, without
from exporter.errors import JobError
from exporter.form import TASK_OF_ADAPTER
from exporter.stages.merge.adapter import PREFIX, Adapter
from exporter.types import GENERATION

_TEXT_PART, _WITH_IMAGES = "language_model.", "image-to-text"
_BEFORE, _SINCE = "language_model.model.", "model.language_model."  # 4.52 of transformers moved it
_SIZES = re.compile(r"size mismatch for (\S+): .*?shape torch\.Size\((\[.*?\])\).*?torch\.Size\((\[.*?\])\)")
_TARGETS = re.compile(r"Target modules? (.*?) not found in the base model")


def refuse(adapter: Adapter, model: Any, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Raises JobError naming the first few keys and the likely cause, when any is missing or unexpected."""
    missing, unexpected = sorted(missing), sorted(unexpected)
    _refuse_another_task(adapter, model, bool(missing or unexpected))
    if missing or unexpected:
        _refuse_renamed(adapter, model)
    if missing:
        raise JobError(
            f"the adapter {adapter.path} is for another model: it has no tensor for {few(missing)}"
            f"{_cause(adapter, model)}"
        )
    if unexpected:
        raise JobError(
            f"the adapter {adapter.path} is for another model: it holds tensors that this model lacks: "
            f"{few(unexpected)}{_cause(adapter, model)}"
        )


def _refuse_another_task(adapter: Adapter, model: Any, misfits: bool) -> None:
    """An adapter of another head or class: its own configuration says for which task it was trained."""
    task = TASK_OF_ADAPTER.get(str(adapter.config.get("task_type")))
    kind = type(_plain(model))
    # PEFT knows no task of models with images: their text is generated, and so their adapters are for that.
    alike = {task, _WITH_IMAGES} if task == GENERATION else {task}
    if misfits and task is not None and _task_of(kind) not in alike:
        raise JobError(
            f"the adapter {adapter.path} was trained for {task} (its task_type is {adapter.config['task_type']}), and "
            f"this model is a {kind.__name__}: its tensors have other names, or another head; take --task {task}"
        )


def _plain(model: Any) -> Any:
    """The transformers model inside a PeftModel."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _task_of(kind: Any) -> str | None:
    from optimum.exporters.tasks import TasksManager

    try:
        return str(TasksManager.infer_task_from_model(kind))
    except ValueError:
        return None


def _refuse_renamed(adapter: Adapter, model: Any) -> None:
    """An adapter of a model with images, on its text part alone, or on its modules before transformers renamed them."""
    modules = {name for name, _ in _plain(model).named_modules()}
    owners = {name.removeprefix(PREFIX).partition(".lora_")[0] for name in adapter.tensors if ".lora_" in name}
    if owners and not owners <= modules and {without(name, _TEXT_PART) for name in owners} <= modules:
        raise JobError(
            f"the adapter {adapter.path} was trained on a model with images ({_TEXT_PART!r} in its tensors' names), "
            f"and this is its text part alone; give the whole model with -m, or write them with the text part's names: "
            f"{renaming(adapter.path, _TEXT_PART)}"
        )
    if owners and not owners <= modules and {name.replace(_BEFORE, _SINCE, 1) for name in owners} <= modules:
        raise JobError(
            f"the adapter {adapter.path} was trained with transformers before 4.52, which had this model's text part "
            f"in {_BEFORE!r} and not in {_SINCE!r}; write it with the names of now: "
            f"{renaming(adapter.path, _BEFORE, _SINCE)}"
        )


def refuse_lost_bias(adapter: Adapter, attached: Any) -> None:
    """Refuses an adapter with biases (lora_bias) on layers that have none: no checkpoint of this model has a place for
    them. Raises JobError."""
    if not adapter.config.get("lora_bias"):
        return
    for name, module in attached.get_base_model().named_modules():
        if any(getattr(module, "lora_bias", {}).values()) and getattr(module.get_base_layer(), "bias", None) is None:
            raise JobError(
                f"the adapter {adapter.path} trains a bias (lora_bias) of {name}, which has none in a "
                f"{type(attached.get_base_model()).__name__}: no checkpoint of it can hold it merged; keep base and "
                "adapter apart, or train without lora_bias"
            )


def few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def misfit(adapter: Adapter, model: Any, error: Exception) -> str:
    """What PEFT or PyTorch say of an adapter that does not fit, in our words, with the likely cause."""
    _refuse_another_task(adapter, model, misfits=True)
    _refuse_renamed(adapter, model)
    said, cause = " ".join(str(error).split()), _cause(adapter, model)
    if isinstance(error, KeyError):
        return f"the adapter {adapter.path} is for another model: it has no tensor for {said}{cause}"
    if found := _SIZES.search(said):
        name, held, wanted = found.groups()
        said = f"its {name} is {held}, and this model needs {wanted}"
    elif found := _TARGETS.search(said):
        said = f"this model has no modules {found[1]}"
    else:
        said = f"PEFT cannot put it there ({said[:200] or type(error).__name__})"
    return f"the adapter {adapter.path} does not fit this model: {said}{cause}"


def _cause(adapter: Adapter, model: Any) -> str:
    """The likeliest reason of a misfit, from the layers' numbers and the modules' names."""
    theirs = [int(found[1]) + 1 for key in adapter.tensors if (found := re.search(r"\.(\d+)\.", key))]
    modules = {name.removeprefix(PREFIX) for name, _ in model.named_modules()}
    ours = [int(found[1]) + 1 for name in modules if (found := re.search(r"\.(\d+)(?:\.|$)", name))]
    base = adapter.base
    if theirs and ours and max(theirs) != max(ours):
        return f" (it was trained on {max(theirs)} layers, and this model has {max(ours)}){base}"
    parents = {key.removeprefix(PREFIX).split(".lora_")[0] for key in adapter.tensors if ".lora_" in key}
    lacking = sorted(parents - modules)
    if lacking:
        return f" (this model has no module {lacking[0]}: another architecture, or modules renamed since){base}"
    return base

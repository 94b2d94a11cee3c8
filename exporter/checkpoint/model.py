"""The float model of a checkpoint: what the reference runs, and everything that computes in torch begins from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from exporter.checkpoint.load import code_beside, read_config, refuse_adapter_beside
from exporter.form import SPEECH_CTC

Load = Callable[..., Any]  # (folder, **options of from_pretrained) -> a float32 model of the task's class


def load_model(path: Path, task: str, dtype: str, trust_remote_code: bool = False, **options: Any) -> Any:
    """A checkpoint as a transformers model of the task's class; `dtype` is torch's name for it, or "auto"."""
    import torch
    from transformers import AutoConfig

    refuse_adapter_beside(path)
    trust_remote_code = trust_code(path, trust_remote_code)
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    return class_of(task, config.model_type).from_pretrained(
        path,
        dtype=dtype if dtype == "auto" else getattr(torch, dtype),
        trust_remote_code=trust_remote_code,
        **options,
    )


def class_of(task: str, model_type: str | None = None) -> Any:
    """The class of transformers' that loads a model for a task."""
    from optimum.exporters.tasks import TasksManager

    if task == SPEECH_CTC:
        from transformers import AutoModelForCTC

        return AutoModelForCTC
    return TasksManager.get_model_class_for_task(task, model_type=model_type)


def is_native(config: Mapping[str, Any]) -> bool:
    """Whether transformers has classes of its own for a config.json's model."""
    from transformers import CONFIG_MAPPING

    return config.get("model_type") in CONFIG_MAPPING


def trust_code(folder: Path, trust: bool) -> bool:
    """Whether code of a model is to be run: not where its config.json still names some that is not beside it, of a
    model that transformers has of its own since."""
    config = read_config(folder)
    return trust and (bool(code_beside(folder, config)) or not is_native(config))

"""The float model of a checkpoint: what the reference runs, and everything that computes in torch begins from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from exporter.checkpoint.load import refuse_adapter_beside

Load = Callable[..., Any]  # (folder, **options of from_pretrained) -> a float32 model of the task's class


def load_model(path: Path, task: str, dtype: str, trust_remote_code: bool = False, **options: Any) -> Any:
    """A checkpoint as a transformers model of the task's class; `dtype` is torch's name for it, or "auto"."""
    import torch
    from optimum.exporters.tasks import TasksManager
    from transformers import AutoConfig

    refuse_adapter_beside(path)
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    model_class = TasksManager.get_model_class_for_task(task, model_type=config.model_type)
    return model_class.from_pretrained(
        path,
        dtype=dtype if dtype == "auto" else getattr(torch, dtype),
        trust_remote_code=trust_remote_code,
        **options,
    )

"""A target for exporter, whole: the weights as float16 in NumPy's .npz, run by transformers' own code."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, Field

from exporter.types import (
    GENERATION,
    TOKENIZER_FILES,
    Exported,
    ExportRequest,
    Floats,
    Gates,
    Ids,
    Precision,
    Target,
)

FILE = "model.npz"


class NpzOptions(BaseModel):
    """--npz-compress, `npz: {compress: true}` in the job file."""

    compress: bool = Field(False, description="Compress the file: smaller, and slower to write and to open.")


def check(config: Mapping[str, Any], task: str, precision: str) -> str | None:
    return None if task == GENERATION else f"npz runs {GENERATION} only, not {task}"


def export(request: ExportRequest) -> Exported:
    from transformers import AutoModelForCausalLM

    source = request.checkpoint.path
    model = AutoModelForCausalLM.from_pretrained(source, dtype="float32")
    weights = {name: weight.detach().numpy().astype(np.float16) for name, weight in model.named_parameters()}
    save = np.savez_compressed if request.options.compress else np.savez
    save(request.folder / FILE, **weights)
    for name in ("config.json", "generation_config.json", *TOKENIZER_FILES):
        if (source / name).is_file():
            shutil.copyfile(source / name, request.folder / name)
    return Exported(weights=(FILE,))


class NpzRunner:
    """transformers' model with the file's weights, computed in float32, with its KV cache."""

    def __init__(self, folder: Path, threads: int) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.set_num_threads(threads)
        self.engine = f"numpy {np.__version__} weights, torch {torch.__version__}"
        self._torch = torch
        self._model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32).eval()
        with np.load(folder / FILE) as file, torch.no_grad():
            for name, parameter in self._model.named_parameters():
                parameter.copy_(torch.from_numpy(file[name]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        del self._model

    def logits(self, ids: Ids) -> Floats:
        return self._run(ids, use_cache=False)

    def prefill(self, ids: Ids) -> Floats:
        self._cache = None
        return self._run(ids, use_cache=True)[-1]

    def step(self, token: int) -> Floats:
        return self._run(np.array([token]), use_cache=True, past_key_values=self._cache)[-1]

    def _run(self, ids: Ids, **how: Any) -> Floats:
        with self._torch.inference_mode():
            out = self._model(input_ids=self._torch.tensor(ids)[None], **how)
        self._cache = out.past_key_values
        return out.logits[0].numpy()


NPZ = Target(
    name="npz",
    summary="NumPy's .npz, an example of a third party's target",
    precisions={
        "fp16": Precision("float16 weights, float32 arithmetic", Gates(max_ppl_ratio=1.005, max_cache_kl=1e-4)),
    },
    default="fp16",
    requires=("torch", "transformers"),
    extra="",
    check=check,
    export=export,
    open=NpzRunner,
    options=NpzOptions,
    run="python -m zipfile --list {folder}/model.npz",
)

"""PyTorch through transformers: the float32 reference, bfloat16, and torchao's int8, dynamic and static.

float32 is the checkpoint itself: it is the reference that everything is compared with, and is not written to disk
again. int8-dynamic quantizes the linear layers: int8 weights per output channel, int8 activations per token at run
time (torchao's Int8DynamicActivationInt8WeightConfig); the embedding stays in float. int8-static is in torch_static.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any, Self

import numpy as np

from exporter.checkpoint.model import load_model
from exporter.checkpoint.tokenizer import rows_of
from exporter.errors import BuildError, JobError
from exporter.runner import Floats, Ids
from exporter.scheme import Scheme
from exporter.targets.torch.static import cannot_express, export_static, load_static
from exporter.types import CLASSIFICATION, GENERATION, Exported, ExportRequest, Gates, Precision, Target


class TorchRunner:
    """A transformers model in eval mode on the CPU."""

    def __init__(self, model: Any, task: str) -> None:
        import torch

        self.engine = f"torch {torch.__version__} {str(model.dtype).removeprefix('torch.')}"
        self._torch = torch
        self._model = model.eval()
        self._task = task
        self._cache: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        del self._model, self._cache

    def logits(self, ids: Ids) -> Floats:
        out = self.batch(ids[None], np.ones_like(ids)[None])
        return out if self._task == CLASSIFICATION else out[0]

    def segmented(self, ids: Ids, segments: Ids) -> Floats:
        known = "token_type_ids" in signature(self._model.forward).parameters
        extra = {"token_type_ids": self._torch.from_numpy(segments[None])} if known else {}
        out = self._floats(self._forward(ids[None], attention_mask=self._torch.ones((1, len(ids))), **extra))
        return out if self._task == CLASSIFICATION else out[0]

    def batch(self, ids: Ids, mask: Ids) -> Floats:
        extra = {"use_cache": False} if self._task == GENERATION else {}
        return self._floats(self._forward(ids, attention_mask=self._torch.from_numpy(mask), **extra))

    def parameters(self) -> int:
        """How many numbers were trained; a tied weight counts once."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    def rows(self) -> int:
        return rows_of(self._model)

    def _forward(self, ids: Ids, **inputs: Any) -> Any:
        with self._torch.inference_mode():
            return self._model(input_ids=self._torch.from_numpy(np.ascontiguousarray(ids)), **inputs)

    def _floats(self, out: Any) -> Floats:
        tensor = out.logits if "logits" in out else out.last_hidden_state
        result: Floats = tensor.float().numpy()
        return result


class TorchDecoder(TorchRunner):
    """A text-generation model, with transformers' own KV cache."""

    def prefill(self, ids: Ids) -> Floats:
        out = self._forward(ids[None], use_cache=True)
        self._cache = out.past_key_values
        last: Floats = self._floats(out)[0, -1]
        return last

    def step(self, token: int) -> Floats:
        out = self._forward(np.array([[token]]), use_cache=True, past_key_values=self._cache)
        last: Floats = self._floats(out)[0, -1]
        return last


def open_checkpoint(path: Path, task: str, threads: int, dtype: str = "float32", trust: bool = False) -> TorchRunner:
    """A checkpoint's folder as a runner: how the reference is opened."""
    import torch

    torch.set_num_threads(threads)
    kind = TorchDecoder if task == GENERATION else TorchRunner
    return kind(load_model(path, task, dtype, trust), task)


def open_torch(folder: Path, threads: int) -> TorchRunner:
    """An artifact's folder; its task is in the manifest, and its dtype in its own config.json."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if manifest["variant"] == "torch:int8-static":
        return open_static(folder, manifest["task"], threads)
    return open_checkpoint(folder, manifest["task"], threads, "auto")


def open_static(folder: Path, task: str, threads: int) -> TorchRunner:
    """An int8-static folder as a runner. Raises BuildError with one line for a folder that is damaged."""
    import torch
    from optimum.exporters.tasks import TasksManager
    from safetensors import SafetensorError
    from transformers import AutoConfig
    from transformers.initialization import no_init_weights

    torch.set_num_threads(threads)
    try:
        config = AutoConfig.from_pretrained(folder)
        model_class = TasksManager.get_model_class_for_task(task, model_type=config.model_type)
        with no_init_weights():
            model = model_class.from_config(config, dtype=torch.float32)
        model.tie_weights()
        layers = load_static(model, folder)
    except (JobError, OSError, RuntimeError, SafetensorError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BuildError(f"{folder} cannot be opened ({reason}); remove it and export it again") from error
    runner = (TorchDecoder if task == GENERATION else TorchRunner)(model, task)
    runner.engine = f"torch {torch.__version__} onednn int8 in {layers} layers"
    return runner


def export(request: ExportRequest) -> Exported:
    from transformers import AutoTokenizer

    checkpoint = request.checkpoint
    if request.precision == "fp32":  # the reference: measured from the checkpoint itself
        return Exported(())
    if request.precision == "int8-static":
        AutoTokenizer.from_pretrained(checkpoint.path).save_pretrained(request.folder)
        return export_static(load_model(checkpoint.path, checkpoint.task, "float32"), request.policy, request.folder)
    if request.precision == "bf16":
        model = load_model(checkpoint.path, checkpoint.task, "bfloat16")
    else:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig
        from transformers import TorchAoConfig

        scheme = TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
        model = load_model(checkpoint.path, checkpoint.task, "float32", quantization_config=scheme)
    model.save_pretrained(request.folder)
    AutoTokenizer.from_pretrained(checkpoint.path).save_pretrained(request.folder)
    return Exported(tuple(sorted(path.name for path in request.folder.glob("*.safetensors*"))))


def check(config: Mapping[str, Any], task: str, precision: str) -> str | None:
    if config.get("auto_map") and precision != "fp32":
        return "torch artifacts of a model that brings its own code are not written: opening one would run that code"
    return None


TORCH = Target(
    name="torch",
    summary="PyTorch: the float32 reference, bfloat16, torchao int8",
    precisions={
        "fp32": Precision("the reference itself", Gates()),
        "bf16": Precision(
            "bfloat16 weights and arithmetic", Gates(max_ppl_ratio=1.01, min_cosine=0.999, max_cache_kl=0.01)
        ),
        "int8-dynamic": Precision(
            "torchao: int8 weights per channel, int8 activations per token",
            Gates(max_ppl_ratio=1.05, min_cosine=0.98, max_cache_kl=0.05),
            requires=("torchao",),
        ),
        "int8-static": Precision(
            "torchao's PT2E for x86: int8 weights per channel, uint8 activations in the policy's ranges",
            Gates(max_ppl_ratio=1.05, min_cosine=0.98, max_cache_kl=0.01),
            requires=("torchao",),
            schemes=(Scheme(weight="int8", group=None, input="static"),),
        ),
    },
    default="fp32",
    requires=("torch", "transformers"),
    extra="torch",
    check=check,
    export=export,
    open=open_torch,
    schemes=cannot_express,
)

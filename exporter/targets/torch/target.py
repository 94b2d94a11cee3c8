"""PyTorch through transformers: the float32 reference, bfloat16, float16, and torchao's int8, dynamic and static.

float32 is the checkpoint itself: it is the reference that everything is compared with, and is not written to disk
again. int8-dynamic quantizes the linear layers: int8 weights per output channel, int8 activations per token at run
time (torchao's Int8DynamicActivationInt8WeightConfig); the embedding stays in float. int8-static is in torch_static.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.checkpoint.configuration import correct_ties, keep_configuration
from exporter.checkpoint.folder import carry
from exporter.checkpoint.model import class_of, load_model
from exporter.checkpoint.opened import TorchRunner, runner_of
from exporter.checkpoint.opened import open_checkpoint as open_checkpoint
from exporter.errors import BuildError, JobError
from exporter.form import FORMS
from exporter.scheme import Scheme
from exporter.targets.folder.kit import kit, programs
from exporter.targets.folder.limits import bfloat16, float16, of_convolutions
from exporter.targets.torch.held import weights_of
from exporter.targets.torch.static import WEIGHTS, cannot_express, export_static, load_static
from exporter.targets.torch.zeros import zeros_of
from exporter.types import Exported, ExportRequest, Gates, Precision, Preparation, Target, agreement

_DOTTED = ("t5", "mt5", "umt5", "whisper")  # encoder-decoders without a tensor of the whole model's own
# Of a model that matches pictures with texts.
_REFUSED = {
    "int8-dynamic": "torchao cannot read its own file again where a tensor's name has no dot, as CLIP's logit_scale",
    "int8-static": "static ranges are found by running a model on one input, and this one reads texts and pictures",
}
_HALVES = {"bf16": "bfloat16", "fp16": "float16"}


def open_torch(folder: Path, threads: int, gpu: int | None = None) -> TorchRunner:
    """An artifact's folder; its task is in the manifest, and its dtype in its own config.json."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if manifest["variant"] == "torch:int8-static":
        return open_static(folder, manifest["task"], threads)
    return open_checkpoint(folder, manifest["task"], threads, "auto", gpu=gpu)


def lacks_cuda(precision: str, task: str) -> str | None:
    """Why a precision does not run on a GPU with the torch that is installed, or None."""
    if precision == "int8-static":
        return "torchao's PT2E graph for x86 runs on the CPU alone"
    import torch

    if torch.cuda.is_available():
        return None
    return (
        f"torch {torch.__version__} has no CUDA here: install a build for this GPU's driver, as "
        "https://pytorch.org/get-started says"
    )


def open_static(folder: Path, task: str, threads: int) -> TorchRunner:
    """An int8-static folder as a runner. Raises BuildError with one line for a folder that is damaged."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig
    from transformers.initialization import no_init_weights

    torch.set_num_threads(threads)
    try:
        config = AutoConfig.from_pretrained(folder)
        model_class = class_of(task, config.model_type)
        with no_init_weights():
            model = model_class.from_config(config, dtype=torch.float32)
        model.tie_weights()
        layers = load_static(model, folder)
    except (JobError, OSError, RuntimeError, SafetensorError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BuildError(f"{folder} cannot be opened ({reason}); remove it and export it again") from error
    runner = runner_of(model, task, None)
    runner.engine = f"torch {torch.__version__} onednn int8 in {layers} layers"
    return runner


def export(request: ExportRequest) -> Exported:
    checkpoint, folder = request.checkpoint, request.folder
    path, task, trust = checkpoint.path, checkpoint.task, checkpoint.trust_remote_code
    if request.precision == "fp32":  # the reference: measured from the checkpoint itself
        return Exported(())
    if request.precision == "int8-static":
        model = load_model(path, task, "float32", trust)
        exported = export_static(model, request.policy, folder)
        keep_configuration(path, folder, model.config, None)
        carry(path, [], folder)
        return exported
    if request.precision in _HALVES:
        dtype = _HALVES[request.precision]
        model = load_model(path, task, dtype, trust)
    else:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig
        from transformers import TorchAoConfig

        scheme = TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
        model, dtype = load_model(path, task, "float32", trust, quantization_config=scheme), "float32"
    note = correct_ties(model)
    model.save_pretrained(folder)
    keep_configuration(path, folder, model.config, dtype)
    carry(path, [], folder)
    weights = tuple(sorted(file.name for file in folder.glob("*.safetensors*")))
    return Exported(weights, notes=(note,) if note else ())


def check(config: Mapping[str, Any], task: str, precision: str) -> str | None:
    if config.get("auto_map") and precision != "fp32":
        return "torch artifacts of a model that brings its own code are not written: opening one would run that code"
    if FORMS[task].inputs == "waveform" and precision == "int8-dynamic":
        return "transformers loads torchao's int8 into models with input embeddings alone, and one that hears has none"
    if FORMS[task].matches:
        return _REFUSED.get(precision)
    if not FORMS[task].encodes:
        return None
    if precision == "int8-static" and FORMS[task].inputs != "text":
        return "static ranges are found on windows of a text, and this model reads sounds; try int8-dynamic"
    if precision == "int8-dynamic" and config.get("model_type") not in _DOTTED:
        return "torchao cannot read its own file again where a tensor's name has no dot, as BART's final_logits_bias"
    return None


def prepare(wanted: Preparation) -> str | None:
    """Refuses what would round too little of a model of pictures: torchao's int8 is of linear layers."""
    least = TORCH.precisions[wanted.precision].gates.min_named_share
    rounds = wanted.precision.startswith("int8") and least is not None
    return of_convolutions(wanted, least or 0.0, f"torch:{wanted.precision}") if rounds else None


def clients(folder: Path, task: str) -> dict[str, Path]:
    """The programs that run an artifact: transformers alone does not open int8-static's, and exporter does."""
    if (folder / WEIGHTS).is_file():
        return {"run.py": kit("torch") / "run_with_exporter.py"}
    return programs("torch", task)


# Measured: KL of SmolLM2-135M; then of random BERTs, on 185 lines, a number's error and three labels' agreement. fp16
# 1.5e-5 (its limits are ONNX's); bf16 0.0009, 0.032, 98%; int8-dynamic (KL not measured), 0.13, 97%; int8-static 0.013
# under its policy, no classifier yet.
TORCH = Target(
    name="torch",
    summary="PyTorch: the float32 reference, bfloat16, float16, torchao int8",
    precisions={
        "fp32": Precision("the reference itself", Gates()),
        "bf16": bfloat16("bfloat16 weights and arithmetic"),
        "fp16": float16("float16 weights and arithmetic"),
        "int8-dynamic": Precision(
            "torchao: int8 weights per channel, int8 activations per token",
            Gates(
                max_ppl_ratio=1.05,
                max_kl=0.08,
                min_cosine=0.98,
                max_regression_error=0.25,
                max_cache_kl=0.05,
                min_named_share=0.9,
            ),
            by_task=agreement(0.9),
            requires=("torchao",),
            bits=8,
        ),
        "int8-static": Precision(
            "torchao's PT2E for x86: int8 weights per channel, uint8 activations in the policy's ranges",
            Gates(
                max_ppl_ratio=1.05,
                max_kl=0.05,
                min_cosine=0.98,
                max_regression_error=0.25,
                max_cache_kl=0.01,
                min_named_share=0.5,
            ),
            by_task=agreement(0.9),
            requires=("torchao",),
            bits=8,
            schemes=(Scheme(weight="int8", group=None, input="static"),),
        ),
    },
    default="fp32",
    with_torch=True,
    requires=("torch", "transformers", "optimum"),
    extra="torch",
    check=check,
    prepare=prepare,
    export=export,
    open=open_torch,
    open_cuda=open_torch,
    lacks_cuda=lacks_cuda,
    weights=weights_of,
    zeros=zeros_of,
    run="python {folder}/run.py {example}",
    kit=kit("torch"),
    programs=clients,
    schemes=cannot_express,
)

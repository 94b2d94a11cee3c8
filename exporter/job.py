"""Job: the validated form of the command line's flags and of the YAML file. Each default is written here, once.

The CLI builds its flags from these fields, `exporter schema` prints their JSON Schema. A job only holds values: it
infers nothing, downloads nothing and looks at no file: exporter.pipeline.source and exporter.pipeline.plan do, before
any work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from exporter.errors import JobError, unknown
from exporter.machine import usable_cores
from exporter.stages.train.options import QatOptions
from exporter.types import BaseQuant, Combination, Gates, MergeDtype
from exporter.yaml_file import read_yaml

MIN_TOKENS = 64  # fewer cannot carry a standard error that means anything


class MergeJob(BaseModel):
    """Which checkpoint, with which adapters merged into it, and how that is proven: what `exporter merge` takes."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=(), title="exporter job"
    )

    model: str = Field(
        min_length=1, description="A checkpoint: a folder, a recipe's name (see 'exporter targets') or a hub id."
    )
    output: Path = Field(description="The folder that receives the results.")
    adapter: tuple[str, ...] = Field(
        (), description="A PEFT adapter's folder to merge, DIR or DIR=WEIGHT; several are merged in order, or combined."
    )
    combine: Combination | None = Field(
        None,
        description="Make one adapter of several by PEFT's method: cat, linear, svd, ties, dare_linear, dare_ties. "
        "Default: one after another; with weights: cat, their exact weighted sum.",
    )
    density: float | None = Field(None, gt=0, le=1, description="Share of values that ties and dare keep.")
    merge: Literal["memory", "streaming"] | None = Field(
        None, description="memory, or streaming: file by file. Default: streaming when the model would not fit."
    )
    merge_dtype: MergeDtype = Field(
        "keep", description="What the merged weights are rounded to; keep: each tensor's own dtype."
    )
    merge_base: Literal["dequantized", "original"] | None = Field(
        None,
        description="What an adapter that was trained on a quantized base is merged into. Default: dequantized, the "
        "weights that it was trained with.",
    )
    base_quant: BaseQuant | None = Field(
        None, description="How bitsandbytes had quantized the float base in training (QLoRA): nf4, fp4 or int8."
    )
    probe: Path | None = Field(
        None, description="Safetensors with input_ids and logits from the training: the merged model must answer so."
    )
    expect_perplexity: float | None = Field(
        None, gt=0, description="The merged model's perplexity must be this, within 1%, on the evaluation's tokens."
    )
    task: str | None = Field(None, description="The task, where the checkpoint's architecture leaves it open.")
    eval_text: Path | None = Field(
        None, description="UTF-8 text to measure on. Default: the recipe's own, or the standard library's topics."
    )
    eval_tokens: int = Field(4096, ge=MIN_TOKENS, description="How many tokens of the text to measure on.")
    window: int | None = Field(None, ge=8, description="Tokens that a model sees at once. Default: 512; encoders 128.")
    stride: int | None = Field(None, ge=1, description="Tokens that windows move by. Default: half a window.")
    threads: int = Field(
        default_factory=usable_cores, ge=1, description="Threads of every engine. Default: the usable cores."
    )
    offline: bool = Field(False, description="Forbid the network: what would be downloaded must be in the cache.")
    trust_remote_code: bool = Field(False, description="Run the Python code that comes with the model.")
    force: bool = Field(False, description="Replace other results of exporter in the output folder.")

    @field_validator("adapter", mode="before", json_schema_input_type=str | tuple[str, ...])
    @classmethod
    def _one_adapter_is_a_list_of_one(cls, value: Any) -> Any:
        values = (value,) if isinstance(value, str | Path) else value
        return tuple(str(one) for one in values) if isinstance(values, list | tuple) else values


class Job(MergeJob):
    """What to export, and how to prove it. Every key is also a flag: eval_tokens is --eval-tokens."""

    target: tuple[str, ...] = Field(
        ("onnx",),
        min_length=1,
        description="TARGET or TARGET:PRECISION, such as onnx:int8-weight; 'all' for every one.",
    )
    calib_text: Path | None = Field(
        None,
        description="UTF-8 text to calibrate on. Default: the standard library's topics, after what is measured on.",
    )
    calib_tokens: int = Field(8192, ge=MIN_TOKENS, description="How many tokens of it to calibrate on.")
    policy: Literal["auto", "off"] | Path = Field(
        "auto",
        description="How each linear layer is quantized. auto: the cheapest mix that keeps the gates, found by "
        "measuring; off: the precision's own scheme everywhere; or a policy's FILE.",
    )
    ranges: Literal["min-max", "percentile", "entropy", "mse"] = Field(
        "min-max", description="How the range of a static input is taken from its histogram."
    )
    smooth: bool = Field(True, description="SmoothQuant: move outliers of static inputs into the weights first.")
    rounding: Literal["nearest", "gptq", "awq"] = Field(
        "gptq", description="How 4-bit weights are rounded where a policy is used."
    )
    qat: str | None = Field(
        None,
        description="Train the model for the rounding, such as steps=200,scheme=int4-weight,data=FILE; the options are "
        f"{', '.join(QatOptions.model_fields)}.",
    )
    max_ppl_ratio: float | None = Field(None, gt=0, description="Gate: perplexity over the reference's.")
    max_kl: float | None = Field(None, ge=0, description="Gate: mean KL divergence from the reference, in nats.")
    min_top1: float | None = Field(None, ge=0, le=1, description="Gate: share of tokens whose most likely next agrees.")
    max_tokenizer_errors: int | None = Field(
        None, ge=0, description="Gate: texts that the artifact's own tokenizer reads otherwise than the checkpoint's."
    )
    min_cosine: float | None = Field(None, ge=-1, le=1, description="Gate: mean cosine of pooled embeddings.")
    max_size_ratio: float | None = Field(None, gt=0, description="Gate: size over the float32 weights' size.")
    max_logit_error: float | None = Field(None, ge=0, description="Gate: largest error of a logit on the probe.")
    imatrix: Literal["auto", "off"] | Path = Field(
        "auto",
        description="gguf: the importance matrix. auto (from the calibration), off, or llama.cpp's imatrix FILE.",
    )
    gguf_tensor: tuple[str, ...] = Field(
        (), description="gguf: PATTERN=TYPE, such as 'ffn_down=q6_k': the type of the tensors whose names it fits."
    )
    gguf_split_max_size: str | None = Field(
        None, description="gguf: split into files of at most this size, such as 4G; powers of 1000."
    )
    engine: bool = Field(
        True, description="tensorrt: build the engine. --no-engine: the graph, its profile and its proof alone."
    )
    trt_profile: str = Field(
        "batch=1:1:8,length=1:128:512",
        description="tensorrt: the sizes that an engine takes, min:opt:max. length: tokens of a text; with a KV cache "
        "of the prompt and its answer together.",
    )
    trt_compute_capability: str | None = Field(
        None,
        description="tensorrt-rtx: the GPUs that the engine is for, such as sm80,sm86,sm89,sm120. Default: all that "
        "TensorRT-RTX supports by itself, 8.0 and later RTX.",
    )
    trt_hardware_compatible: bool = Field(
        False, description="tensorrt: an engine for every GPU from Ampere on, not only for this machine's."
    )
    trt_version_compatible: bool = Field(
        False, description="tensorrt: an engine that other versions of TensorRT of the same major one run too."
    )
    trt_workspace: str | None = Field(
        None, description="tensorrt: memory that a layer may use on the GPU, such as 4G. Default: the GPU's."
    )
    speed: bool = Field(True, description="Measure latency and memory; --no-speed leaves them out.")
    repeats: int = Field(5, ge=1, description="Rounds of the speed measurement, interleaved between the variants.")

    @field_validator("target", "gguf_tensor", mode="before", json_schema_input_type=str | tuple[str, ...])
    @classmethod
    def _one_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | Path) else value

    @field_validator("qat")
    @classmethod
    def _qat_is_readable(cls, value: str | None) -> str | None:
        if value is not None:
            QatOptions.parse(value)
        return value

    def gates(self, default: Gates) -> Gates:
        """The precision's own gates, with this job's limits in their place where it names any."""
        limits = {name: getattr(self, name, None) for name in Gates.__dataclass_fields__}
        return Gates(**{name: getattr(default, name) if own is None else own for name, own in limits.items()})

    def options(self, names: Iterable[str]) -> dict[str, Any]:
        """The values of some fields: those that a target names."""
        return {name: getattr(self, name) for name in names}

    def identity(self) -> dict[str, Any]:
        """What makes two jobs the same: all but what only concerns how this one is run."""
        return self.model_dump(mode="json", exclude={"output", "force", "offline", "repeats", "speed", "threads"})


AnyJob = TypeVar("AnyJob", bound=MergeJob)


def load_job(kind: type[AnyJob], flags: Mapping[str, Any], config: Path | None = None) -> AnyJob:
    """The job of a YAML file and flags; flags win. Raises JobError with one line for each thing that is wrong."""
    values: dict[str, Any] = {}
    if config is not None:
        loaded = read_yaml(config, "job file")
        if not isinstance(loaded, dict):
            raise JobError(f"{config} must hold a mapping of keys such as 'model: …'; see 'exporter schema'")
        values.update(loaded)
    values.update(flags)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise JobError("; ".join(_line(detail) for detail in error.errors())) from error


def _line(detail: Any) -> str:
    """One of pydantic's complaints in a person's words."""
    name = str(detail["loc"][0]) if detail["loc"] else "job"
    if detail["type"] in ("extra_forbidden", "invalid_key"):
        return unknown("key", name, Job.model_fields)
    flag = "--" + name.replace("_", "-")
    if detail["type"] == "missing":
        return f"{name} is missing: give {flag} or the key {name!r} in the job file"
    return f"{flag} {detail['input']!r}: {detail['msg'][0].lower()}{detail['msg'][1:]}"

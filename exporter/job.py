"""Job: the validated form of the command line's flags and of the YAML file. Each default is written here, once.

The CLI builds its flags from these fields, `exporter schema` prints their JSON Schema. A job only holds values: it
infers nothing, downloads nothing and looks at no file: exporter.pipeline.source and exporter.pipeline.plan do, before
any work. What one target or stage alone can be asked is a section of its own, which exporter.pipeline.sections checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError, field_validator

from exporter.device import AUTO, PATTERN, check_device
from exporter.errors import JobError
from exporter.job_keys import complaint, flag, unknown_key
from exporter.machine import usable_cores
from exporter.types import BaseQuant, Combination, Gates, MergeDtype
from exporter.yaml_file import off_is_a_word, read_yaml

MIN_TOKENS = 64  # fewer cannot carry a standard error that means anything
MIN_TEXTS = 8  # of a classifier, whose every text is one answer


class MergeJob(BaseModel):
    """Which checkpoint, with which adapters merged into it, and how that is proven: what `exporter merge` takes."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=(), title="exporter job"
    )

    model: str = Field(min_length=1, description="A folder, a recipe's name (see 'exporter targets') or a hub id.")
    output: Path = Field(description="The folder that receives the results.")
    adapter: tuple[str, ...] = Field((), description="A PEFT adapter to merge, DIR or DIR=WEIGHT; again for more.")
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
        None,
        description="UTF-8 text to measure on. Default: the recipe's own, or pydoc's topics.",
    )
    eval_tokens: int = Field(
        4096,
        ge=MIN_TOKENS,
        description="How many tokens of the text to measure on; of a classifier's, whole lines.",
    )
    window: int | None = Field(
        None, ge=8, description="Tokens that a model sees at once. Default: 512; encoders 128, question answering 384."
    )
    stride: int | None = Field(None, ge=1, description="Tokens that windows move by. Default: half a window.")
    threads: int = Field(
        default_factory=usable_cores, ge=1, description="Threads of every engine. Default: the usable cores."
    )
    offline: bool = Field(False, description="Forbid the network: what would be downloaded must be in the cache.")
    trust_remote_code: bool = Field(False, description="Run the Python code that comes with the model.")
    force: bool = Field(False, description="Replace other results of exporter in the output folder.")
    wait: bool = Field(False, description="Wait while another process of exporter works on the output folder.")

    @field_validator("adapter", mode="before", json_schema_input_type=str | tuple[str, ...])
    @classmethod
    def _one_adapter_is_a_list_of_one(cls, value: Any) -> Any:
        values = (value,) if isinstance(value, str | Path) else value
        return tuple(str(one) for one in values) if isinstance(values, list | tuple) else values


class CompressJob(MergeJob):
    """A checkpoint made smaller, and the text that tells what matters in it: what `exporter compress` takes.

    A key that is no field is a section, a stage's or (of a Job) a target's options: distill={"steps": 200} is
    --distill-steps 200.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, dict[Any, Any] | StrictBool | None]

    prune: tuple[str, ...] = Field(
        (),
        description="METHOD[:AMOUNT]: magnitude, magnitude-layer, wanda or sparsegpt with a share or 2:4 (zeros), "
        "width, heads or depth (shapes), vocabulary:FILE (its tokens stay); again for more, one after the other.",
    )
    calib_text: Path | None = Field(
        None,
        description="UTF-8 text to calibrate on. Default: the recipe's own, or the standard library's topics, "
        "after what is measured on.",
    )
    calib_tokens: int = Field(8192, ge=MIN_TOKENS, description="How many tokens of it to calibrate on.")

    @field_validator("prune", mode="before", json_schema_input_type=str | tuple[str, ...])
    @classmethod
    def _one_pruning_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class Job(CompressJob):
    """What to export, and how to prove it. Every key is also a flag: eval_tokens is --eval-tokens."""

    target: tuple[str, ...] = Field(
        ("onnx",),
        min_length=1,
        description="TARGET[:PRECISION or :all], or all; again for more.",
    )
    eval_data: Path | None = Field(
        None,
        description="Labelled examples to measure on instead, all of them: .jsonl, .csv or .parquet. A classifier's "
        "texts, or pairs of texts with how alike they are; files of sounds with what is said in them.",
    )
    eval_images: Path | None = Field(
        None, description="A folder of pictures to measure a model of pictures on. Default: 64 that are drawn."
    )
    eval_labels: Path | None = Field(
        None, description="Texts that CLIP matches pictures with, one on each line. Default: 32 of its own."
    )
    calib_images: Path | None = Field(
        None, description="A folder of pictures to calibrate it on: others. Default: 64 others that are drawn."
    )
    eval_audio: Path | None = Field(
        None, description="A folder of sounds to measure a model of speech on. Default: 16 that are made."
    )
    calib_audio: Path | None = Field(
        None, description="A folder of sounds to calibrate it on: others. Default: 16 others that are made."
    )
    text_column: str | None = Field(None, description="Its column of texts. Default: guessed, and told.")
    pair_column: str | None = Field(None, description="Its column of second texts. Default: guessed with the text's.")
    label_column: str | None = Field(None, description="Its column of labels, names or numbers. Default: guessed.")
    sample: tuple[str, ...] = Field(
        (), description="A prompt to continue side by side in the report; again for more. Default: three of the text's."
    )
    perplexity: tuple[Literal["token", "word", "byte", "character", "sequence"], ...] = Field(
        (),
        description="Perplexity in another form too, beside the tokens': word, byte, character or sequence; again for "
        "more.",
    )
    generation: bool = Field(
        True, description="Compare greedy continuations with the reference's, and time whole generations."
    )
    policy: Literal["auto", "off"] | Path = Field(
        "auto",
        description="How each linear layer is quantized. auto: the cheapest mix that keeps the gates, found by "
        "measuring; off: the precision's own scheme everywhere; or a policy's FILE.",
    )
    force_policy: bool = Field(False, description="Take a policy's FILE that was made for another checkpoint.")
    ranges: Literal["min-max", "percentile", "entropy", "mse"] = Field(
        "min-max", description="How the range of a static input is taken from its histogram."
    )
    smooth: bool = Field(True, description="SmoothQuant: move outliers of static inputs into the weights first.")
    rounding: Literal["nearest", "gptq", "awq"] = Field(
        "gptq", description="How 4-bit weights are rounded where a policy is used."
    )
    sensitivity: Literal["estimated", "measured"] = Field(
        "estimated",
        description="What layers lose is estimated by one backward pass, or measured, a simulation for each group.",
    )
    policy_cost: Literal["size", "latency"] = Field(
        "size",
        description="What a mix is to have little of: bytes, or milliseconds, timed once for each shape (onnx, torch).",
    )
    max_ppl_ratio: float | None = Field(None, gt=0, description="Gate: perplexity over the reference's.")
    max_kl: float | None = Field(None, ge=0, description="Gate: mean KL divergence from the reference, in nats.")
    min_top1: float | None = Field(None, ge=0, le=1, description="Gate: share of tokens whose most likely next agrees.")
    max_tokenizer_errors: int | None = Field(
        None, ge=0, description="Gate: texts that the artifact's own tokenizer reads otherwise than the checkpoint's."
    )
    min_cosine: float | None = Field(None, ge=-1, le=1, description="Gate: mean cosine of pooled embeddings.")
    max_regression_error: float | None = Field(
        None, ge=0, description="Gate: mean error of a regressor's answer, over the reference's standard deviation."
    )
    min_pearson: float | None = Field(None, ge=-1, le=1, description="Gate: correlation of a regressor's answers.")
    min_spearman: float | None = Field(None, ge=-1, le=1, description="Gate: correlation of the order of its answers.")
    max_size_ratio: float | None = Field(None, gt=0, description="Gate: size over the float32 weights' size.")
    max_logit_error: float | None = Field(None, ge=0, description="Gate: largest error of a logit on the probe.")
    proven_length: int | None = Field(
        None,
        ge=8,
        description="Gate: tokens of the longest text that each artifact must be proven on. Default: past every "
        "boundary of the model's up to 4096 tokens, and no gate.",
    )
    max_accuracy_drop: float | None = Field(
        None, ge=0, le=1, description="Gate: accuracy on labelled data below the reference's; 0.01 is a point."
    )
    max_f1_drop: float | None = Field(None, ge=0, le=1, description="Gate: macro F1 on it below the reference's.")
    max_spearman_drop: float | None = Field(
        None, ge=0, le=2, description="Gate: rank correlation with its numbers below the reference's."
    )
    max_wer_rise: float | None = Field(
        None, ge=0, description="Gate: word error rate on labelled sounds above the reference's; 0.01 is a point."
    )
    min_transcripts: float | None = Field(
        None, ge=0, le=1, description="Gate: share of sounds whose transcript is the reference's, letter for letter."
    )
    min_greedy_agreement: float | None = Field(
        None, ge=0, le=1, description="Gate: share of prompts that are continued word for word as the reference does."
    )
    device: str = Field(
        AUTO,
        description="What the engines run on: auto, cpu, cuda or cuda:N. auto: a GPU, where one is and the engine can.",
        json_schema_extra={"pattern": PATTERN},
    )
    speed: bool = Field(True, description="Measure latency and memory; --no-speed leaves them out.")
    repeats: int = Field(5, ge=1, description="Rounds of the speed measurement, interleaved between the variants.")
    speed_budget: float = Field(
        300, gt=0, description="Seconds that they may take. One round is always whole; a row says how many it had."
    )
    remeasure: bool = Field(False, description="Measure again what an earlier run measured of the same artifacts.")

    _off = field_validator("policy", mode="before")(off_is_a_word)
    _device = field_validator("device")(check_device)

    @field_validator("target", "sample", "perplexity", mode="before", json_schema_input_type=str | tuple[str, ...])
    @classmethod
    def _one_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | Path) else value

    def gates(self, default: Gates) -> Gates:
        """The precision's own gates, with this job's limits in their place where it names any."""
        limits = {name: getattr(self, name, None) for name in Gates.__dataclass_fields__}
        limits["min_proven_tokens"] = self.proven_length
        return Gates(**{name: getattr(default, name) if own is None else own for name, own in limits.items()})

    def identity(self) -> dict[str, Any]:
        """What makes two jobs the same: all but what only concerns how this one is run."""
        return self.model_dump(
            mode="json",
            exclude={
                "device", "force", "generation", "offline", "output", "remeasure", "repeats", "speed", "speed_budget",
                "threads", "wait",
            },
        )  # fmt: skip


AnyJob = TypeVar("AnyJob", bound=MergeJob)


def load_job(kind: type[AnyJob], flags: Mapping[str, Any], config: Path | None = None) -> AnyJob:
    """The job of a YAML file and flags; flags win. Raises JobError with one line for each thing that is wrong."""
    values: dict[str, Any] = {}
    if config is not None:
        loaded = read_yaml(config, "job file")
        if not isinstance(loaded, dict):
            raise JobError(f"{config} must hold a mapping of keys such as 'model: …'; see 'exporter schema'")
        values.update(loaded)
    for name, value in flags.items():
        held = values.get(name)
        values[name] = {**held, **value} if isinstance(held, dict) and isinstance(value, dict) else value
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = dict.fromkeys(_line(detail, kind) for detail in error.errors())
        raise JobError("; ".join(lines)) from error


def _line(detail: Any, kind: type[MergeJob]) -> str:
    """One of pydantic's complaints of a job in a person's words."""
    name = str(detail["loc"][0]) if detail["loc"] else "job"
    if name not in kind.model_fields:
        return unknown_key(name, kind.model_fields)
    if detail["type"] == "missing":
        return f"{name} is missing: give {flag(name)} or the key {name!r} in the job file"
    return complaint(flag(name), detail)

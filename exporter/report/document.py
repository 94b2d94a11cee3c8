"""The shape of report.json, version 2: every key, what it is and its unit. `exporter schema report` prints it.

What has no value is null, and its key is there all the same. The groups of a row are open: a task or a target adds
figures of its own to them. docs/report.md says the same in prose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from exporter.types import Status

VERSION = 2

_WHOLE = ConfigDict(extra="forbid", json_schema_serialization_defaults_required=True)


@dataclass(frozen=True)
class Figure:
    """One figure of the quality: what was measured, and how sure that is."""

    __pydantic_config__: ClassVar[ConfigDict] = _WHOLE

    value: Annotated[float | None, Field(description="What was measured; null: it was not.")] = None
    se: Annotated[float | None, Field(description="Its standard error; null: it is not sampled.")] = None
    detail: Annotated[str | None, Field(description="What a number cannot say, such as the first difference.")] = None


@dataclass(frozen=True)
class Gate:
    """A limit and what came out. min_… is a lower limit, max_… an upper one, on the figure that the rest names."""

    __pydantic_config__: ClassVar[ConfigDict] = _WHOLE

    name: Annotated[str, Field(description="The limit's name, as in the job: max_ppl_ratio.")]
    limit: Annotated[float, Field(description="What the figure must keep, by two standard errors.")]
    value: Annotated[float | None, Field(description="The figure; null: it was not measured, or is no number.")]
    passed: Annotated[bool, Field(description="Whether the limit was kept.")]
    detail: Annotated[str, Field(description="Why it failed, and whether more tokens could decide it.")] = ""


class _Closed(BaseModel):
    model_config = _WHOLE


class _Group(BaseModel):
    """Open: a task or a target adds figures of its own."""

    model_config = ConfigDict(extra="allow")


class Artifact(_Group):
    """What is shipped."""

    bytes: int | None = Field(description="Bytes of weights and graph, which inference needs.")
    size_ratio: float | None = Field(description="The same over the float32 weights' bytes.")
    tokenizer_bytes: int | None = Field(description="Bytes of tokenizer and configuration.")
    engine: str | None = Field(description="What ran it: engine, version and device.")
    device: str | None = Field(description="What it ran on: cpu, or a GPU with its name, cuda:0 (NVIDIA H100).")
    placement: dict[str, Any] | None = Field(
        description="Of a graph on a GPU, one forward: nodes that ONNX Runtime ran on the CPU, by operator (`on_cpu`), "
        "nodes on the GPU (`on_device`), and tensors copied between the two (`copies`); null: it ran in one place.",
    )
    named_share: float | None = Field(
        description="Share of the linear layers' numbers that take no more bits than the precision's name says."
    )
    bits_per_weight: float | None = Field(description="Mean bits of a linear layer's number.")
    wider: str | None = Field(description="The largest weights that take more bits than the name says, and why.")
    zeros: dict[str, Any] | None = Field(
        description="Of a model that was pruned to zeros: the share found in the artifact, its bytes when they are "
        "compressed, and what its engine makes of zeros; null: it was not pruned so."
    )
    proven_tokens: int | None = Field(
        description="Tokens of the longest text up to which its answers are proven to be the reference's."
    )


class Quality(_Group):
    """Against the reference, on the same tokens or passages. A task adds figures of its own, in the same form."""

    __pydantic_extra__: dict[str, Figure] = Field(init=False)

    ppl: Figure = Field(description="Perplexity.")
    ppl_ratio: Figure = Field(description="Perplexity over the reference's; its error is of the paired differences.")
    kl: Figure = Field(description="Mean KL(reference || artifact), nats; a lower bound, see evaluation.kl.")
    top1: Figure = Field(
        description="Share of positions, or texts, whose most likely answer is the reference's, 0 to 1."
    )
    cosine: Figure = Field(description="Mean cosine of pooled embeddings with the reference's, -1 to 1.")
    regression_error: Figure = Field(
        description="Mean error of a number, over the standard deviation of the reference's over the texts."
    )
    pearson: Figure = Field(description="Correlation of the numbers with the reference's, -1 to 1.")
    spearman: Figure = Field(description="Correlation of their order with the reference's, -1 to 1.")
    logit_error: Figure = Field(description="Largest absolute error of an output on the padded probe.")
    length_drift: Figure = Field(
        description="Distance from the reference beyond a boundary of the model's (a window, a rope's switch), over "
        "the largest that the one below it explains: above 1 it is wrong; detail: what was proven, and what not."
    )
    cache_kl: Figure = Field(description="Mean KL(uncached || cached) of the artifact with itself, nats.")
    tokenizer_errors: Figure = Field(
        description="Texts that its own tokenizer reads otherwise than the checkpoint's; detail: the first of them."
    )
    processor_error: Figure = Field(
        description="Largest difference of a pixel value between its own image processor and the checkpoint's."
    )


class Generation(_Group):
    """Greedy generation as its users feel it; of models that make a text, token by token."""

    greedy_agreement: float | None = Field(
        description="Share of the prompts whose every new token is the reference's own, 0 to 1."
    )
    agreed_tokens: list[int] | None = Field(
        description="Of each prompt the new tokens that are the reference's, up to the first that differs, or its end."
    )
    agreed_tokens_mean: float | None = Field(description="Their mean; a lower bound where some never differ.")
    agreed_tokens_median: float | None = Field(description="Their median.")
    prompts: int | None = Field(description="Prompts continued, or sources answered, from all over the evaluation.")
    prompt_tokens: int | None = Field(description="Tokens of each prompt; null of sources.")
    new_tokens: int | None = Field(description="New tokens of each at most; the end of a text ends it.")
    not_compared: str | None = Field(description="Why there is no agreement.")
    end_to_end_s: float | None = Field(
        description="Seconds of a whole generation, with reading its prompt or source; the median."
    )
    end_to_end_prompt: int | None = Field(description="Tokens of its prompt, or source.")
    end_to_end_new: int | None = Field(description="Tokens that it generates.")
    end_to_end_runs: int | None = Field(description="How often it was timed.")
    tokens_per_s: dict[str, float | None] | None = Field(
        description="New tokens per second of so many sequences at once, by their number: all of theirs together."
    )
    not_timed: str | None = Field(description="Why one of these has no figure.")


class Speed(_Group):
    """On this machine, beside the other processes that `other_cores` tells of."""

    prefill_tokens_per_s: float | None = Field(description="Tokens per second of the longest prefill, at its median.")
    times_real_time: float | None = Field(description="Seconds of sound per second, at the median of four seconds.")
    pictures_per_s: float | None = Field(description="Pictures per second, one at a time, at its median.")
    decode_tokens_per_s: float | None = Field(description="Tokens per second of decoding, at its median.")
    latency_ms: dict[str, dict[str, float | None]] | None = Field(
        description="Milliseconds p50, p90 and p99 of `prefill` (512 tokens), `prefill_128`, and `decode` (one token); "
        "of pictures of `picture` (one) and `pictures_8` (a batch)."
    )
    untimed: str | None = Field(description="Why no speed was measured of an artifact whose quality was.")
    rounds: int | None = Field(description="Rounds that it was timed in.")
    rounds_asked: int | None = Field(description="Rounds that were asked for: more, where the time ran out.")
    budget_s: float | None = Field(description="Seconds that all rows' rounds might take.")
    measured: str | None = Field(
        description="When that measurement began, ISO 8601 in UTC: only rows that have the same were timed in turns, "
        "and are compared."
    )
    other_cores: float | None = Field(description="Mean number of cores that other processes kept busy meanwhile.")


class Memory(_Group):
    """While it ran."""

    peak_rss_bytes: int | None = Field(description="Peak resident bytes of the process that ran the artifact alone.")
    device_bytes: dict[str, int] | None = Field(
        description="Bytes on the GPU: of the weights or engine, and what running it takes beside them."
    )


class Build(_Group):
    """How it was made."""

    export_s: float | None = Field(description="Seconds of the export.")
    export_peak_rss_bytes: int | None = Field(description="Peak resident bytes of the export.")
    quantization: dict[str, Any] | None = Field(description="What each layer got and why, where there was a policy.")
    engine: dict[str, Any] | None = Field(
        description="Of an engine that is built ahead of time: parsed, by what, its bytes, its layers."
    )
    graph: dict[str, Any] | None = Field(
        description="Of an ONNX graph: the first ONNX Runtime that opens it and why, its IR version and opsets."
    )


GROUPS: dict[str, type[BaseModel]] = {
    "artifact": Artifact,
    "quality": Quality,
    "generation": Generation,
    "speed": Speed,
    "memory": Memory,
    "build": Build,
}


class Row(_Closed):
    """One artifact, or the reference."""

    target: str = Field(description="The target's name, such as onnx.")
    precision: str = Field(description="The precision's name, such as int8-weight.")
    status: Status = Field(description="ok, skipped, or failed: it could not be built or run, or answers no numbers.")
    reason: str | None = Field(description="Why something is null, and what else must be known.")
    path: str | None = Field(description="The artifact's folder in the output; null: it is not there.")
    artifact: Artifact
    quality: Quality
    generation: Generation
    speed: Speed
    memory: Memory
    build: Build
    gates: list[Gate] = Field(description="The limits that it was held against, in their order.")
    samples: dict[str, Any] | None = Field(
        None, description="What a person would try, beside the reference's; null: nothing was tried."
    )


class Winner(_Closed):
    """An artifact that is the first of those that passed their gates, in one thing."""

    what: Literal["smallest", "fastest decode", "fastest prefill"] = Field(description="In what.")
    variant: str = Field(description="Its target and precision, such as onnx:int8-weight.")
    folder: str = Field(description="Its folder in the output, as in its row.")
    run: str | None = Field(description="The line that runs it, for a shell; null: its target knows none.")


class Model(_Closed):
    """The checkpoint that was exported."""

    source: str = Field(description="Where it came from.")
    sha256: str = Field(description="Hash of its weights and configuration.")
    task: str = Field(description="Its task, in optimum's words.")
    parameters: int = Field(description="How many values its weights have.")
    history: list[str] = Field(description="What happened to it before the export, a line each.")
    notes: list[str] = Field(description="What is odd about it.")
    merge: dict[str, Any] | None = Field(description="The adapters' merge and its proof.")
    prune: dict[str, Any] | None = Field(description="What was pruned, and the parameters before and after.")
    distill: dict[str, Any] | None = Field(description="What was distilled by which teacher, and its loss.")
    qat: dict[str, Any] | None = Field(description="The quantization-aware training and its loss.")


class Evaluation(_Closed):
    """What was measured on."""

    text: str = Field(description="The text's name.")
    tokens_scored: int = Field(description="Tokens that have a figure; passages, for a task without perplexity.")
    tokens: int | None = Field(
        description="Tokens of the text that were read: fewer than job.eval_tokens, if it is short."
    )
    window: int = Field(description="Tokens that the model saw at once.")
    stride: int = Field(description="Tokens that windows moved by.")
    reference_ppl: float | None = Field(description="The reference's perplexity.")
    reference_ppl_se: float | None = Field(description="Its standard error.")
    reference: str = Field(description="The variant that is the reference.")
    kl: str = Field(description="What the KL is computed over.")
    max_length: int | None = Field(description="Tokens that the model can take.")
    perplexity: dict[str, Any] | None = Field(
        None,
        description="Forms of the perplexity that were asked for: how much of the text the scored tokens cover "
        "(`covered`), and the reference's `figures`; null: none was.",
    )
    pooling: str | None = Field(None, description="The model's own modules that make a text's vector; null: the mean.")
    data: dict[str, Any] | None = Field(
        None,
        description="Labelled data: its file, examples, columns, what was guessed; null: there was none.",
    )


class Machine(_Closed):
    """What it was measured on."""

    cpu: str = Field(description="The processor's name.")
    cores: int = Field(description="Processors that could be used.")
    threads: int = Field(description="Threads of every engine.")
    memory_bytes: int = Field(description="Bytes of memory.")
    load_average: list[float] = Field(description="Over 1, 5 and 15 minutes, before the run.")
    gpu: str | None = Field(description="The first GPU's name.")
    os: str = Field(description="The system's name and version.")
    python: str = Field(description="Python's version.")
    versions: dict[str, str] = Field(description="The versions of the packages that decide what an artifact is.")


class Document(_Closed):
    """A report of exporter, as `exporter run` and `exporter bench` write it."""

    schema_version: Literal[2] = Field(description="The version of this shape.")
    exporter_version: str = Field(description="The exporter that measured.")
    created: str = Field(description="When, ISO 8601 in UTC.")
    name: str = Field(description="The model, as the job names it.")
    model: Model
    evaluation: Evaluation
    machine: Machine
    job: dict[str, Any] = Field(description="The job with every default; `exporter schema` has its keys.")
    results: list[Row] = Field(description="The reference, then an artifact each.")
    winners: list[Winner] = Field(
        description="Which artifacts to take: rows that nothing tells apart have an entry each, the smallest first."
    )
    passed: bool = Field(description="Whether every artifact was built and kept its gates.")
    exit_status: int = Field(description="What the command exits with: 0, 3 a gate failed, 4 one was not built.")

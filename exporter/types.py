"""The nouns of the project: a newcomer reads this file first.

A job takes a `Checkpoint` through stages to one `Artifact` for each `Variant`; a `Target` exports an artifact and opens
it as a `Runner` (exporter/runner.py); what was measured on it is a `Result` (exporter/report/result.py), one row of the
report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from exporter.form import CLASSIFICATION as CLASSIFICATION
from exporter.form import FEATURES as FEATURES
from exporter.form import FORMS
from exporter.form import GENERATION as GENERATION
from exporter.form import TASKS as TASKS
from exporter.runner import Floats as Floats  # a third party's target imports the arrays' names from here too
from exporter.runner import Ids as Ids
from exporter.runner import Runner, Sample
from exporter.weight import Weight as Weight
from exporter.weight import Zeros as Zeros

if TYPE_CHECKING:
    from pydantic import BaseModel

    from exporter.scheme import Scheme

Status = Literal["ok", "skipped", "failed"]
Combination = Literal["cat", "linear", "svd", "ties", "dare_linear", "dare_ties"]  # PEFT's, of several adapters
MergeDtype = Literal["keep", "float32", "bfloat16", "float16"]
BaseQuant = Literal["nf4", "fp4", "int8"]  # bitsandbytes'

SINGLE_LABEL = "single_label_classification"  # a classifier's problem types, in the words of transformers
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"

# What a tokenizer and its chat template consist of, in any of transformers' ways of saving them.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
# How a picture becomes a model's input: of an image processor alone, and of one beside a tokenizer.
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face folder that from_pretrained loads, before and after every stage.

    `sha256` is the hash of its weights and configuration; `history` says, a line each, what happened to it so far.
    """

    path: Path
    task: str
    source: str
    sha256: str
    parameters: int
    history: tuple[str, ...] = ()
    trust_remote_code: bool = False

    @classmethod
    def load(cls, values: Mapping[str, Any]) -> Self:
        """One that went through JSON: a request to a worker, a manifest."""
        return cls(**{**values, "path": Path(values["path"]), "history": tuple(values["history"])})


@dataclass(frozen=True)
class Variant:
    """A target at one of its precisions, such as onnx:int8-weight."""

    target: str
    precision: str

    def __str__(self) -> str:
        return f"{self.target}:{self.precision}"

    @property
    def folder(self) -> str:
        """The name of its folder in the output."""
        return f"{self.target}-{self.precision}"


@dataclass(frozen=True)
class Gates:
    """Limits that an artifact must keep, against the float reference. None: not asked for.

    `max_logit_error` is absolute, over the probe's full logits; `max_cache_kl` compares the artifact's cached path with
    its own uncached one; `min_cosine` is the mean cosine of pooled embeddings. Of classifiers that answer a number,
    `max_regression_error` is over the standard deviation of the reference's answers.
    `min_proven_tokens` is the length of the longest text that the artifact was compared on (--proven-length).
    `max_tokenizer_errors` counts texts that an artifact's own tokenizer reads otherwise than the checkpoint's.
    `min_named_share` and `max_bits_per_weight` hold a precision to its name, by exporter.measure.held.
    Of labelled data `max_accuracy_drop` and its like are below the reference's figure, as fractions.
    """

    max_tokenizer_errors: float | None = None  # first: with other tokens no other figure means anything
    max_ppl_ratio: float | None = None
    max_kl: float | None = None
    min_top1: float | None = None
    min_cosine: float | None = None
    max_regression_error: float | None = None
    min_pearson: float | None = None
    min_spearman: float | None = None
    max_size_ratio: float | None = None
    max_logit_error: float | None = None
    max_cache_kl: float | None = None
    min_named_share: float | None = None
    max_bits_per_weight: float | None = None
    min_proven_tokens: float | None = None
    max_accuracy_drop: float | None = None
    max_f1_drop: float | None = None
    max_spearman_drop: float | None = None
    min_greedy_agreement: float | None = None
    max_wer_rise: float | None = None
    min_transcripts: float | None = None


def agreement(share: float) -> dict[str, Gates]:
    """How many of a classifier's decisions must stay. A generator's next tokens change more often: its KL judges."""
    return {task: Gates(min_top1=share) for task, form in FORMS.items() if form.answers == "classes"}


@dataclass(frozen=True)
class Precision:
    """One number format of a target: what it is, and the gates that it keeps unless the job says otherwise.

    `gates` hold for every task that has their figures; `by_task` has limits of one task alone, in the others' place.
    `requires`: import names of packages that it needs beyond its target's. `schemes`: what a policy for it chooses
    from for each layer, cheapest first; the last resort, float, is not listed. Empty: it takes no policy.
    `ranges_per_octave`: static ranges are rounded up to so many sizes between one and its double, for an engine that
    has a kernel for each size there is. `rounds_outputs`: its products of static inputs round their answers too.
    `bits`: what its name says that a linear layer's weights take at most, of which `gates` has the least share;
    `table_bits` the same of the embedding and the head. None: it says nothing.
    """

    summary: str
    gates: Gates
    requires: tuple[str, ...] = ()
    schemes: tuple[Scheme, ...] = ()
    ranges_per_octave: int | None = None
    rounds_outputs: bool = False
    by_task: Mapping[str, Gates] = field(default_factory=dict)
    bits: float | None = None
    table_bits: float | None = None

    def limits(self, task: str) -> Gates:
        """The gates of a task."""
        own = self.by_task.get(task, Gates())
        limits = {name: getattr(own, name) for name in Gates.__dataclass_fields__}
        return replace(self.gates, **{name: limit for name, limit in limits.items() if limit is not None})


@dataclass(frozen=True)
class Probe:
    """A few short padded sequences with the reference's whole answers: what every artifact is checked against.

    `ids` and `mask` are [batch, length], padded on the right, of sequences of different lengths; `answers` is float32
    [batch, length, V] (logits; for feature extraction the hidden states) or [batch, classes]. `alone` are the answers
    to each sequence without its padding, where a model answers otherwise then: ConvBERT's and MobileBERT's last tokens
    see what follows them. None: the same. `sources` and `source_mask` [batch, length]: what an encoder reads first. Of
    pictures `ids` are float32 [batch, C, H, W], and `mask` [batch, C] is 1.
    """

    ids: Sample
    mask: Ids
    answers: Floats
    alone: Floats | None = None
    sources: Ids | None = None
    source_mask: Ids | None = None


@dataclass(frozen=True)
class ExportRequest:
    """What a target needs to write one artifact into `folder` (which exists and is empty).

    `options`: the job's instance of the target's own model, None where it has none; `calibration` is the folder that
    exporter.quantization.calibrate wrote, where the target asked for it: statistics of the layers' inputs, windows of
    token ids. `policy`: each linear layer's scheme by its module's name, None where it stays in float; without one the
    precision has a rule of its own. `reference`: the folder of the reference's answers.
    """

    checkpoint: Checkpoint
    precision: str
    folder: Path
    scratch: Path  # shared by one run's exports of a target: what one leaves here the next one finds; then removed
    threads: int
    options: Any = None
    cache: Path | None = None  # the user's cache, where what `prepare` fetched is
    calibration: Path | None = None
    policy: Mapping[str, Scheme | None] | None = None
    progress: Callable[[str, int, int], None] = lambda what, done, total: None  # for an engine that builds for minutes
    reference: Path | None = None
    traces: Path | None = None  # of one run: a trace holds no weights, and serves other ones too


@dataclass(frozen=True)
class Preparation:
    """What is known before any work of a variant that was asked for; `options` as in ExportRequest.

    `window`: tokens of the longest text that the artifact will be measured on. `parameters`: of what will be exported,
    a tied weight counted once; None where a stage changes the model's shape first.
    """

    path: Path  # of the checkpoint before the stages: its tokenizer and configuration are final, its weights are not
    config: Mapping[str, Any]
    task: str
    precision: str
    options: Any
    cache: Path
    offline: bool
    window: int
    parameters: int | None


@dataclass(frozen=True)
class Exported:
    """What a target says of the artifact that it wrote.

    `weights` are the files that inference needs besides tokenizer and configuration, relative to the folder; their sum
    is the artifact's size. `notes` go into the report's reason, such as a second copy that the operators force.
    `extras` are files that inference does not need and no size counts, such as the graph that an engine was built from;
    `build` is what is known of an engine built ahead of time (`engine` of a row's build), `graph` a graph's needs.
    """

    weights: tuple[str, ...]
    notes: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    build: Mapping[str, Any] | None = None
    graph: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Target:
    """One format: how it is written and how it is run, side by side. A frozen record, in targets' BUILTIN table.

    `requires` are the import names of the packages that export and open need beyond exporter's own; `extra` is
    exporter's pip extra that brings them ("": none; a third party's package brings its own). `builds_with` are those
    that export alone needs, by the job's options; `instead`: what else mends their lack, for the end of the error.
    `default` is the precision of a bare target name; `aliases` maps a task to what the alias precision means there.
    `check` says in one line why this checkpoint cannot be exported, or returns None. It runs before any work and reads
    the config only. `options` is a pydantic model of what can be asked of this target alone, each field with a default:
    its flags have the target's name in front, the job file has a section of it. Its validators refuse what is wrong by
    itself. `prepare` is given the job's instance, with the tokenizer at hand: it refuses, by JobError, what does not
    fit them, returns why this checkpoint cannot be exported so, and fetches what no package brings.
    `calibrates` tells whether a precision wants statistics of the layers' inputs. `schemes` says why a precision cannot
    express a policy's scheme, with what it can, or returns None. `experts`: each expert of a mixture is a layer of its
    policies, as exporter.checkpoint.experts has them; else they stay in float under one. `convolutions`: those of a
    model of pictures are layers of them too, and the precision gets the calibration's pictures. `selftest` runs the
    engine on a toy, in a child of exporter's, because a bad build crashes; `mends_crash` gives the command that mends
    such a one.
    `weights` reads what the written files hold, of those that `Exported` calls weights: without it nothing is claimed
    of a precision's name.
    `zeros` counts those in them, by the names of `weights`, and says what the engine makes of them; it reads them whole
    and is asked of pruned models alone. Without it nothing is claimed of zeros.
    `open_cuda` opens it on a GPU, by its number; None: its engine has none, and `lacks_cuda` says why a precision's
    engine has none here, with the command that mends it, or None.
    `with_torch`: its first export into a scratch folder loads the float model in torch, and all that round do it there:
    they may begin where torch is.
    `inspects` tells what is in a file that ends so, such as {".npz": read}, for `exporter inspect`: a mapping with
    format, functions (of each name, inputs, outputs, states, operators), bytes (of the weights by type), metadata.
    `run` is what a person types to run an artifact, with {folder} and a task's {example}; "": none is known.
    `kit` is the folder that its README.md.jinja is in; `programs`: the clients that travel with a written artifact, by
    their names in its folder. None, and none: an artifact gets the README that all have in common, and no client.
    """

    name: str
    summary: str
    precisions: Mapping[str, Precision]
    default: str
    requires: tuple[str, ...]
    extra: str
    check: Callable[[Mapping[str, Any], str, str], str | None]  # (config.json, task, precision)
    export: Callable[[ExportRequest], Exported]
    open: Callable[[Path, int], Runner]  # (artifact's folder, threads)
    open_cuda: Callable[[Path, int, int], Runner] | None = None  # (artifact's folder, threads, the GPU's number)
    lacks_cuda: Callable[[str, str], str | None] = lambda precision, task: None  # (precision, task)
    aliases: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # {"int8": {task: precision}}
    builds_with: Callable[[Any], tuple[str, ...]] = lambda options: ()
    instead: str = ""
    available: Callable[[], str | None] = lambda: None  # why it cannot run on this machine, packages aside
    options: type[BaseModel] | None = None
    prepare: Callable[[Preparation], str | None] = lambda preparation: None
    calibrates: Callable[[str, Any], bool] = lambda precision, options: False  # (precision, options)
    schemes: Callable[[str, Scheme], str | None] = lambda precision, scheme: f"{precision} takes no policy"
    experts: bool = False
    convolutions: bool = False
    fetch: Callable[[Path, Path | None], Path] | None = None  # (cache, a file at hand): what `exporter fetch` does
    weights: Callable[[Path, Sequence[str]], Sequence[Weight]] | None = None  # (artifact's folder, its files)
    zeros: Callable[[Path, Sequence[str]], Zeros] | None = None  # (artifact's folder, its files)
    with_torch: bool = False
    inspects: Mapping[str, Callable[[Path], Mapping[str, Any]]] = field(default_factory=dict)
    run: str = ""
    kit: Path | None = None
    programs: Callable[[Path, str], Mapping[str, Path]] = lambda folder, task: {}  # (artifact's folder, task)
    selftest: Callable[[], None] | None = None
    mends_crash: Callable[[], str] | None = None

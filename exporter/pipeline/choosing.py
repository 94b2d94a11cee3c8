"""What each layer of one variant gets: found in processes that end before the artifact is exported.

What a process needed of memory is free while the artifact is exported and measured; files hold what another attempt
needs, in the cache: another target, precision or gate begins with them, in this run or a later one. `exporter
calibrate` is the same choice without an artifact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from exporter import cache, store
from exporter.checkpoint.problem import problem_of
from exporter.errors import JobError
from exporter.forkserver import ForkServer, Start
from exporter.form import FORMS
from exporter.job import Job
from exporter.pipeline.calibrating import found_key
from exporter.pipeline.merging import merge_stage
from exporter.pipeline.plan import make_plan
from exporter.pipeline.timing import layer_costs
from exporter.process import HUGE_PAGES, Operation, Progress, Session, Stepped, Steps, Worker, unheard
from exporter.quantization.preparing import How
from exporter.quantization.quantizing import POLICY
from exporter.report.result import Result
from exporter.types import REGRESSION, Checkpoint, Gates, Precision

_ATTEMPTS = 4  # mixes that are tried for one artifact, until its gates pass
_ROOM = 0.8  # of what a gate allows, for the simulated loss: the evaluation is another text and has an error of its own
_BUDGET = 0.01  # in the loss's unit, where no gate says anything of it
_TINY = 1e-9
_STEP = 0.9  # a stricter budget goes this much further than it should have to


@dataclass(frozen=True)
class Choosing:
    """The choice of one variant's policy: `how` as in Wanted, `text` as in Plan.calibration.

    `scratch`: a folder that all choices of a run have. `reused` says in words what was taken from the cache.
    """

    checkpoint: Checkpoint
    how: dict[str, Any]
    text: dict[str, Any]
    threads: int
    log: Path
    progress: Progress
    scratch: Path
    start: Start
    target: str
    reused: list[str] = field(default_factory=list, init=False)
    _ranked: list[bool] = field(default_factory=list, init=False)  # at each attempt, whether it was there

    @cached_property
    def _key(self) -> str:
        """Of what a mix is chosen from: no target is in it, and no gate."""
        prepared = How.load(self.how).preparation().dump()
        return found_key("what a policy is chosen from", self.checkpoint, self.text, prepared)

    def prepare(self) -> None:
        """Finds what a mix is chosen from, unless it was found before; once, however many are tried."""
        statistics = found_key("statistics of what is not held out", self.checkpoint, self.text)
        told = self._ask(prepare_policy, text=self.text, key=self._key, statistics=statistics)
        if told["prepared"]:
            self.reused.append("calibrated and rounded before: taken from the cache")
        elif told["collected"]:
            self.reused.append("the float model's statistics were collected before: taken from the cache")

    def choose(self, budget: float, folder: Path) -> dict[str, Any]:
        """Writes the cheapest mix within a budget and its float checkpoint into a folder; returns its record."""
        losses = {name: value for name, value in self.how.items() if name != "policy_cost"}
        ranking = store.content_key(["what layers lose", self._key, losses])
        keys = {"prepared": self._key, "ranking": ranking, "originals": self.scratch / "originals"}
        told = self._ask(choose_policy, **keys, budget=budget, folder=folder, target=self.target)
        if told["ranked"] is not None:
            if told["ranked"] and not self._ranked:
                self.reused.append("what layers lose was found before: taken from the cache")
            self._ranked.append(told["ranked"])
        record: dict[str, Any] = told["record"]
        return record

    def _ask(self, operation: Operation, **args: Any) -> Any:
        with Worker(self.log, self.threads, self.progress, HUGE_PAGES, self.start) as worker:
            return worker(operation, checkpoint=self.checkpoint, threads=self.threads, how=self.how, **args)


def prepare_policy(
    session: Session,
    checkpoint: Checkpoint,
    threads: int,
    how: dict[str, Any],
    text: dict[str, Any],
    key: str,
    statistics: str,
) -> dict[str, bool]:
    """A worker's operation: smooths, finds ranges and rounds, into the cache; whether that, or its first part, was
    there."""
    from exporter.quantization.preparing import prepare

    keep = partial(cache.CALIBRATIONS.kept, statistics, session.waiting)
    collected = []

    def make(folder: Path) -> None:
        collected.append(prepare(checkpoint, How.load(how), threads, session.counted, folder, keep, **text))

    _, prepared = cache.PREPARATIONS.kept(key, session.waiting, make)
    return {"prepared": prepared, "collected": any(collected)}


def choose_policy(
    session: Session,
    checkpoint: Checkpoint,
    threads: int,
    how: dict[str, Any],
    prepared: str,
    ranking: str,
    originals: str,
    budget: float,
    folder: str,
    target: str,
) -> dict[str, Any]:
    """A worker's operation: the cheapest mix whose simulated loss keeps the budget, and whether the layers were ranked
    before, None where they need not be."""
    from exporter.quantization.cost import SIZE
    from exporter.quantization.prepared import Prepared
    from exporter.quantization.quantizing import Quantizer

    settings, costs = How.load(how), SIZE
    keep = partial(cache.RANKINGS.kept, ranking, session.waiting)
    place = cache.PREPARATIONS.entry(prepared)
    if settings.policy_cost == "latency":
        costs = layer_costs(session, target, checkpoint.task, threads, Prepared.load(place, settings).layers)
    quantizer = Quantizer(checkpoint, settings, threads, session.counted, place, Path(originals), keep, costs)
    record = quantizer.write(quantizer.choose(budget), budget, Path(folder))
    return {"record": record, "ranked": quantizer.was_ranked}


def budget(limits: Gates, checkpoint: Checkpoint) -> float:
    """What a simulated mix may lose for a start: in the unit of exporter.quantization.distance."""
    if FORMS[checkpoint.task].answers == "states":
        return _ROOM * (1 - limits.min_cosine) if limits.min_cosine is not None else _BUDGET
    if problem_of(checkpoint.path, checkpoint.task) == REGRESSION:
        return _BUDGET if limits.max_regression_error is None else _ROOM * limits.max_regression_error
    allowed = [limits.max_kl] if limits.max_kl is not None else []
    if FORMS[checkpoint.task].answers == "vocabulary" and limits.max_ppl_ratio is not None:
        allowed.append(math.log(limits.max_ppl_ratio))
    return max(_ROOM * min(allowed), 0.0) if allowed else _BUDGET


def stricter(limits: Gates, row: Result, attempts: list[dict[str, Any]]) -> float | None:
    """A smaller budget after a gate that failed; None where a smaller one has changed nothing, or enough were tried.

    The simulated loss must shrink by as much as the artifact was over its limit, two standard errors included.
    """
    loss: float = attempts[-1]["loss"]
    if len(attempts) == _ATTEMPTS or loss <= 0 or (len(attempts) > 1 and loss >= attempts[-2]["loss"]):
        return None
    return loss / max(1.0, *_over(limits, row)) * _STEP


def _over(limits: Gates, row: Result) -> Iterator[float]:
    """By how many times the loss is too large for each gate of a quality figure: 1 at its limit.

    A divergence, an error and what a cosine or a correlation lacks are in the loss's own proportion. Answers change
    with the size of the error, and a divergence with its square: so what was decided otherwise counts squared.
    """
    for name, limit in asdict(limits).items():
        sense, figure = name.split("_", 1)
        told = row.quality.get(figure)
        if limit is None or told is None or told.value is None:
            continue
        worst = told.value + (2 if sense == "max" else -2) * (told.se or 0)
        if figure == "ppl_ratio":
            yield math.log(worst) / max(math.log(limit), _TINY)
        elif sense == "min":
            yield ((1 - worst) / max(1 - limit, _TINY)) ** (2 if figure == "top1" else 1)
        elif figure in ("kl", "regression_error"):
            yield worst / max(limit, _TINY)
        elif figure.endswith("_drop"):
            yield (max(worst, 0.0) / max(limit, _TINY)) ** 2


def keeps_name(limits: Gates, attempt: dict[str, Any]) -> bool:
    """Whether a mix still is what its precision is called: a stricter one will not be, where this is not."""
    share, least = attempt["named_share"], limits.min_named_share
    return share is None or least is None or bool(share >= least)


def unnamed(precision: Precision, limits: Gates, record: dict[str, Any], attempts: list[dict[str, Any]]) -> str:
    """Why the last mix is not what its precision is called, and what the nearest that was lacked."""
    kind = f"{precision.bits:g}-bit weights"
    if record["given"]:
        return f"the policy that was given has {kind} in {attempts[-1]['named_share']:.0%} of the numbers"
    named = [one for one in attempts if keeps_name(limits, one)]
    if named:
        nearest, and_missed = named[-1], f", and {', '.join(named[-1]['failing'])}"
        which = "the nearest"
    else:
        nearest, and_missed = attempts[0], ""
        which = f"of those that lose at most {nearest['budget']:.2g} ({record['unit']}) in simulation the nearest"
    share = f"{nearest['named_share']:.0%} of the numbers"
    return f"no mix with {kind} keeps the gates: {which} had them in {share}{and_missed}"


def make_policy(job: Job, file: Path, progress: Progress, stepped: Stepped = unheard) -> dict[str, Any]:
    """Writes the policy that `exporter run` would begin with to a file; returns its record. Raises ExporterError."""
    file = file.expanduser()
    store.writable(file.parent, "choose another file with --policy-out")
    log = cache.LOGS.entry("calibrate.log")
    with (
        TemporaryDirectory() as name,
        ForkServer() as server,
        Worker(log, job.threads, progress, start=server.start) as worker,
    ):
        folder = Path(name)
        plan = make_plan(job.model_copy(update={"output": folder}), worker, "calibrate")
        if len(plan.wanted) != 1 or plan.wanted[0].how is None:
            asked = ", ".join(str(one.variant) for one in plan.wanted) or "none"
            raise JobError(
                f"a policy is made for one target that takes policies, not {asked}; such as -t onnx:int8-static"
            )
        [wanted] = plan.wanted
        assert wanted.how is not None
        assert plan.calibration is not None
        merges = ["merge"] * bool(job.adapter)
        steps = Steps(stepped, ["check", *merges, "look at each layer", "choose"])
        for name in merges:
            steps(name)
        checkpoint, _ = merge_stage(job, plan.source, plan.text, worker, progress)
        steps("look at each layer")
        began = perf_counter()
        text, target = plan.calibration, wanted.variant.target
        choosing = Choosing(checkpoint, wanted.how, text, job.threads, log, progress, folder, server.start, target)
        choosing.prepare()
        steps("choose")
        progress(f"choosing the policy of {wanted.variant}", 0, 0)
        record = choosing.choose(budget(wanted.limits, checkpoint), folder)
        seconds = perf_counter() - began
        store.write_text(file, (folder / POLICY).read_text(encoding="utf-8"))
    return record | {"attempts": [], "seconds": seconds, "reused": choosing.reused}

"""Writes one variant's artifact: of the checkpoint as it is, or of one that was quantized in float under a policy."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from exporter import machine, store
from exporter.job import Job
from exporter.measure.gates import judge
from exporter.measure.size import sizes
from exporter.pipeline.measuring import Bench
from exporter.pipeline.plan import Plan
from exporter.process import HUGE_PAGES, Progress, Worker
from exporter.quantization.policy import Policy
from exporter.quantization.quantizing import POLICY
from exporter.scheme import Scheme
from exporter.targets import known
from exporter.types import FEATURES, Checkpoint, Gates, Result, Variant

_ATTEMPTS = 4  # mixes that are tried for one artifact, until its gates pass
_ROOM = 0.8  # of what a gate allows, for the simulated loss: the evaluation is another text and has an error of its own
_BUDGET = 0.01  # nats, where no gate says anything of the loss
_TINY = 1e-9
_STEP = 0.9  # a stricter budget goes this much further than it should have to


@dataclass(frozen=True)
class Exports:
    """What all the exports of a run have in common. `scored`: tokens or passages of the evaluation."""

    plan: Plan
    checkpoint: Checkpoint
    calibration: Path | None
    output: Path
    scratch: Path
    progress: Progress
    bench: Bench
    scored: int
    trained: Policy | None = None  # what the checkpoint was trained for

    def export(self, row: Result) -> None:
        """Publishes a row's folder, unless the same artifact is there undamaged, and fills in what is known of it."""
        variant = Variant(row.target, row.precision)
        folder, key = self.output / variant.folder, self._key(variant)
        manifest = store.reusable(folder, key)
        if manifest is None:
            self.progress(f"exporting {variant}", 0, 0)
            with store.publish(folder) as building:
                if self.plan.quantizes(variant):
                    manifest = self._under_a_policy(row, building, key)
                else:
                    manifest = self._write(variant, self.checkpoint, building, key, None)
        row.path = variant.folder
        row.bytes, row.tokenizer_bytes = sizes(manifest)
        row.size_ratio = row.bytes / (4 * self.checkpoint.parameters)
        row.export_s, row.export_peak_rss_bytes = manifest["export_s"], manifest["export_peak_rss_bytes"]
        row.quantization, row.build = manifest["quantization"], manifest.get("build")
        row.reason = "; ".join(manifest["notes"]) or None

    def _key(self, variant: Variant) -> str:
        plan = self.plan
        # A file that an option names counts by its contents, the calibration by its key.
        options = plan.sections.targets.get(variant.target) or ()
        contents = {name: store.sha256_file(it) if isinstance(it, Path) else it for name, it in options}
        made_of: list[Any] = [self.checkpoint.sha256, self.checkpoint.task, str(variant), contents]
        made_of.append(self.calibration.name if self.calibration and plan.calibrates(variant) else None)
        if plan.quantizes(variant):
            made_of += [self._how(variant), plan.calibration_text(), asdict(limits(plan.job, variant))]
        return store.content_key(["artifact", made_of, machine.versions()])

    def _how(self, variant: Variant) -> dict[str, Any]:
        """How the variant's policy is made; the one that was trained for, where the target can express it all."""
        target = known.get(variant.target)
        schemes = () if self.trained is None else self.trained.modules.values()
        if self.trained is None or any(
            isinstance(one, Scheme) and target.schemes(variant.precision, one) for one in schemes
        ):
            return self.plan.how(variant)
        # Trained weights lie on their grid: the nearest value is their own, and ranges fit the channels as they are.
        policy = self.trained.model_dump(mode="json")
        return self.plan.how(variant) | {"policy": policy, "smooth": False, "rounding": "nearest"}

    def _under_a_policy(self, row: Result, building: Path, key: str) -> dict[str, Any]:
        """Chooses a mix, writes and measures the artifact; with a stricter budget again until its gates pass."""
        plan, variant = self.plan, Variant(row.target, row.precision)
        wanted = limits(plan.job, variant)
        allowed = budget(wanted, self.checkpoint.task)
        attempts: list[dict[str, Any]] = []
        began, elsewhere = perf_counter(), 0.0  # seconds of export and measurement
        quantized, prepared = (self.scratch / f"{variant.folder}-{what}" for what in ("float", "prepared"))
        prepared.mkdir()
        log = self.output / "logs" / f"{variant.folder}.quantize.log"
        step = partial(quantize_step, self.checkpoint, self._how(variant), plan.job.threads, log, self.progress)
        step("quantize_prepare", text=plan.calibration_text(), folder=prepared)
        while True:
            self.progress(f"choosing the policy of {variant}", 0, 0)
            shutil.rmtree(quantized, ignore_errors=True)
            quantized.mkdir()
            record = step("quantize", prepared=prepared, budget=allowed, folder=quantized)
            source = replace(
                self.checkpoint,
                path=quantized,
                sha256=store.content_key([self.checkpoint.sha256, record]),
                history=(*self.checkpoint.history, *record["history"]),
            )
            for path in building.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            shutil.copyfile(quantized / POLICY, building / POLICY)
            chosen = perf_counter()
            manifest = self._write(variant, source, building, key, record)
            self.bench.measure(row, building)
            elsewhere += perf_counter() - chosen
            failing = [gate for gate in judge(wanted, row, frozenset(), self.scored) if not gate.passed]
            attempts.append({"budget": allowed, "loss": record["loss"], "passed": not failing, **_figures(row)})
            less = stricter(wanted, row, attempts)
            if not failing or record["given"] or less is None:
                break
            allowed = less
        seconds = perf_counter() - began - elsewhere
        shutil.rmtree(quantized)
        shutil.rmtree(prepared)
        facts = {name: value for name, value in manifest.items() if name not in ("key", "weights", "files")}
        facts["quantization"] = record | {"attempts": attempts, "seconds": seconds}
        return store.write_manifest(building, key, manifest["weights"], facts, known=manifest["files"])

    def _write(
        self, variant: Variant, source: Checkpoint, folder: Path, key: str, quantization: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Exports a checkpoint into an empty folder, and returns the manifest that it wrote there."""
        plan = self.plan
        mine = self.scratch / (f"{variant.folder}-scratch" if quantization else variant.target)
        if quantization:
            shutil.rmtree(mine, ignore_errors=True)  # of the mix before: another checkpoint
        mine.mkdir(exist_ok=True)
        log = self.output / "logs" / f"{variant.folder}.export.log"
        with Worker(log, plan.job.threads, self.progress) as worker:
            done = worker(
                "export",
                target=variant.target,
                precision=variant.precision,
                checkpoint=asdict(source),
                folder=folder,
                scratch=mine,
                threads=plan.job.threads,
                options=plan.sections.dumped(variant.target),
                cache=store.cache_folder(),
                calibration=self.calibration if plan.calibrates(variant) else None,
                policy=None if quantization is None else quantization["policy"],
            )
        facts = {
            "variant": str(variant),
            "task": source.task,
            "model": source.source,
            "history": source.history,
            "versions": machine.versions(),
            "job": plan.job.identity(),
            "quantization": quantization,
            **{name: done[name] for name in ("notes", "extras", "build", "export_s", "export_peak_rss_bytes")},
        }
        return store.write_manifest(folder, key, done["weights"], facts)


def quantize_step(
    checkpoint: Checkpoint, how: dict[str, Any], threads: int, log: Path, progress: Progress, op: str, **args: Any
) -> Any:
    """One of a worker's ops that make a policy, in a process that ends with it: what it needed of memory is free
    while the artifact is exported and measured, and files hold what another attempt needs."""
    with Worker(log, threads, progress, HUGE_PAGES) as worker:
        return worker(op, checkpoint=asdict(checkpoint), threads=threads, how=how, **args)


def limits(job: Job, variant: Variant) -> Gates:
    """The gates that a variant has in a job."""
    return job.gates(known.get(variant.target).precisions[variant.precision].gates)


def budget(limits: Gates, task: str) -> float:
    """What a simulated mix may lose for a start: KL in nats, or 1 - cosine."""
    if task == FEATURES:
        return _ROOM * (1 - limits.min_cosine) if limits.min_cosine is not None else _BUDGET
    allowed = [limits.max_kl] if limits.max_kl is not None else []
    allowed += [math.log(limits.max_ppl_ratio)] if limits.max_ppl_ratio is not None else []
    return max(_ROOM * min(allowed), 0.0) if allowed else _BUDGET


def stricter(limits: Gates, row: Result, attempts: list[dict[str, Any]]) -> float | None:
    """A smaller budget after a gate that failed; None where a smaller one has changed nothing, or enough were tried.

    The simulated loss must shrink by as much as the artifact was over its limit, two standard errors included.
    """
    loss: float = attempts[-1]["loss"]
    if len(attempts) == _ATTEMPTS or loss <= 0 or (len(attempts) > 1 and loss >= attempts[-2]["loss"]):
        return None
    over = [1.0]
    if limits.max_ppl_ratio is not None and row.ppl_ratio is not None:
        over.append(math.log(row.ppl_ratio + 2 * (row.ppl_ratio_se or 0)) / max(math.log(limits.max_ppl_ratio), _TINY))
    if limits.max_kl is not None and row.kl is not None:
        over.append((row.kl + 2 * (row.kl_se or 0)) / max(limits.max_kl, _TINY))
    if limits.min_cosine is not None and row.cosine is not None:
        over.append((1 - row.cosine + 2 * (row.cosine_se or 0)) / max(1 - limits.min_cosine, _TINY))
    return loss / max(over) * _STEP


def _figures(row: Result) -> dict[str, float | None]:
    return {name: getattr(row, name) for name in ("ppl_ratio", "kl", "top1", "cosine")}

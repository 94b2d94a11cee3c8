"""Writes one variant's artifact: of the checkpoint as it is, or of one that was quantized in float under a policy."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from exporter import machine, store
from exporter.forkserver import Start, fresh
from exporter.measure.embedding import module_files, modules_identity
from exporter.measure.gates import judge
from exporter.measure.held import held
from exporter.measure.size import sizes
from exporter.pipeline.choosing import Choosing, budget, keeps_name, stricter, unnamed
from exporter.pipeline.measuring import Bench
from exporter.pipeline.packing import pack, packing_identity
from exporter.pipeline.plan import Plan, Wanted
from exporter.pipeline.zeros import has_zeros, measure_zeros
from exporter.process import Progress, Session, Worker
from exporter.quantization.policy import Policy
from exporter.quantization.quantizing import POLICY
from exporter.report.result import Gate, Result
from exporter.scheme import Scheme
from exporter.targets import known
from exporter.types import Checkpoint, ExportRequest

_FACTS = ("notes", "extras", "build", "graph", "held", "export_s", "export_peak_rss_bytes")


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
    trained: Policy | None  # what the checkpoint was trained for
    start: Start

    def export(self, wanted: Wanted, row: Result) -> None:
        """Publishes a row's folder, unless the same artifact is there undamaged, and fills in what is known of it."""
        variant, how = wanted.variant, self._how(wanted)
        folder, key = self.output / variant.folder, self._key(wanted, how)
        manifest = store.reusable(folder, key)
        if manifest is None or not self._fits_gates(wanted, manifest, row, folder):
            self.progress(f"exporting {variant}", 0, 0)
            with store.publish(folder) as building:
                if how is None:
                    manifest = self._write(wanted, self.checkpoint, building, key, None)
                else:
                    manifest = self._under_a_policy(wanted, how, row, building, key)
                if self._has_zeros():
                    manifest = self._with_zeros(wanted, manifest, building)
        row.path = variant.folder
        size, others = sizes(manifest)
        row.artifact |= {"bytes": size, "size_ratio": size / (4 * self.checkpoint.parameters)}
        row.artifact |= {"tokenizer_bytes": others, "zeros": manifest.get("zeros")} | manifest["held"]
        row.build |= {name: manifest[name] for name in ("export_s", "export_peak_rss_bytes", "quantization")}
        row.build |= {"engine": manifest.get("build"), "graph": manifest.get("graph")}
        row.reason = "; ".join(manifest["notes"]) or None

    def _key(self, wanted: Wanted, how: dict[str, Any] | None) -> str:
        # A file that an option names counts by its contents, the calibration by its key.
        options = wanted.options or ()
        contents = {name: store.sha256_file(it) if isinstance(it, Path) else it for name, it in options}
        made_of: list[Any] = [self.checkpoint.sha256, self.checkpoint.task, str(wanted.variant), contents]
        made_of.append(self.calibration.name if self.calibration and wanted.calibrates else None)
        if self.plan.embedding is not None:
            made_of.append(modules_identity(self.plan.source.checkpoint.path))
        made_of.append(packing_identity(wanted.target, self.checkpoint.path))
        if how is not None:
            made_of += [how, self.plan.calibration]
        if self._has_zeros():
            made_of.append("zeros counted")
        return store.content_key(["artifact, weights held", made_of, machine.versions()])

    def _how(self, wanted: Wanted) -> dict[str, Any] | None:
        """How the variant's policy is made; the one that was trained for, where the target can express it all."""
        if wanted.how is None or self.trained is None:
            return wanted.how
        schemes = [one for one in self.trained.modules.values() if isinstance(one, Scheme)]
        if any(wanted.target.schemes(wanted.variant.precision, one) for one in schemes):
            return wanted.how
        # Trained weights lie on their grid: the nearest value is their own, and ranges fit the channels as they are.
        policy = self.trained.model_dump(mode="json")
        return wanted.how | {"policy": policy, "smooth": False, "rounding": "nearest"}

    def _fits_gates(self, wanted: Wanted, manifest: dict[str, Any], row: Result, folder: Path) -> bool:
        """Whether a folder's mix is the one that would be chosen for these gates, where they have changed since.

        It surely is where it was the first that was tried, would be the first again, and passes them. Else it is chosen
        anew: another might be smaller.
        """
        chosen, limits = manifest["quantization"], wanted.limits
        if chosen is None or chosen["given"] or manifest["limits"] == asdict(limits):
            return True
        first, *others = chosen["attempts"]
        if others or not first["passed"] or first["budget"] != budget(limits, self.checkpoint):
            return False
        self.bench.measure(row, folder)
        return all(gate.passed for gate in judge(limits, row, frozenset(), self.scored))

    def _under_a_policy(
        self, wanted: Wanted, how: dict[str, Any], row: Result, building: Path, key: str
    ) -> dict[str, Any]:
        """Chooses a mix, writes and measures the artifact; with a stricter budget again until its gates pass."""
        assert self.plan.calibration is not None
        variant, limits = wanted.variant, wanted.limits
        allowed = budget(limits, self.checkpoint)
        attempts: list[dict[str, Any]] = []
        began, elsewhere = perf_counter(), 0.0  # seconds of export and measurement
        quantized = self.scratch / f"{variant.folder}-float"
        log = self.output / "logs" / f"{variant.folder}.quantize.log"
        text, threads = self.plan.calibration, self.plan.job.threads
        choosing = Choosing(
            self.checkpoint, how, text, threads, log, self.progress, self.scratch, self.start, variant.target
        )
        choosing.prepare()
        while True:
            self.progress(f"choosing the policy of {variant}", 0, 0)
            shutil.rmtree(quantized, ignore_errors=True)
            quantized.mkdir()
            record = choosing.choose(allowed, quantized)
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
            manifest = self._write(wanted, source, building, key, record)
            self.bench.measure(row, building)
            elsewhere += perf_counter() - chosen
            failing = [gate for gate in judge(limits, row, frozenset(), self.scored) if not gate.passed]
            told = {"named_share": manifest["held"]["named_share"], "failing": [_missed(gate) for gate in failing]}
            attempts.append({"budget": allowed, "loss": record["loss"], "passed": not failing, **_figures(row), **told})
            less = stricter(limits, row, attempts)
            if not failing or record["given"] or less is None or not keeps_name(limits, attempts[-1]):
                break
            allowed = less
        seconds = perf_counter() - began - elsewhere
        shutil.rmtree(quantized)
        facts = _facts(manifest) | {
            "quantization": record | {"attempts": attempts, "seconds": seconds, "reused": choosing.reused},
            "limits": asdict(limits),
        }
        if not keeps_name(limits, attempts[-1]):
            why = unnamed(wanted.target.precisions[variant.precision], limits, record, attempts)
            facts["held"] |= {"wider": "; ".join(filter(None, (why, facts["held"]["wider"])))}
        return store.write_manifest(building, key, manifest["weights"], facts, known=manifest["files"])

    def _write(
        self, wanted: Wanted, source: Checkpoint, folder: Path, key: str, quantization: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Exports a checkpoint into an empty folder, and returns the manifest that it wrote there."""
        variant, threads = wanted.variant, self.plan.job.threads
        mine = self.scratch / (f"{variant.folder}-scratch" if quantization else variant.target)
        if quantization:
            shutil.rmtree(mine, ignore_errors=True)  # of the mix before: another checkpoint
        traces = self.scratch / "traces"  # they hold no weights
        for path in (mine, traces):
            path.mkdir(exist_ok=True)
        # Only where it imports torch itself, to load the model or to round: its peak memory is a figure.
        rounds = bool(wanted.target.precisions[variant.precision].schemes)
        start = self.start if wanted.target.with_torch and (rounds or not any(mine.iterdir())) else fresh
        log = self.output / "logs" / f"{variant.folder}.export.log"
        with Worker(log, threads, self.progress, start=start) as worker:
            done = worker(
                export_artifact,
                target=variant.target,
                precision=variant.precision,
                checkpoint=source,
                folder=folder,
                scratch=mine,
                threads=threads,
                options=None if wanted.options is None else wanted.options.model_dump(mode="json"),
                calibration=self.calibration if wanted.calibrates else None,
                policy=None if quantization is None else quantization["policy"],
                reference=self.output / "reference",
                traces=traces,
            )
        weights = [*done["weights"], *self._carry_modules(folder)]
        done["extras"] = [*done["extras"], *pack(wanted.target, self.checkpoint.path, folder, source.task)]
        facts = {
            "variant": str(variant),
            "task": source.task,
            "model": source.source,
            "model_sha256": self.checkpoint.sha256,
            "history": source.history,
            "versions": machine.versions(),
            "job": self.plan.job.identity(),
            "quantization": quantization,
            **{name: done[name] for name in _FACTS},
        }
        return store.write_manifest(folder, key, weights, facts)

    def _has_zeros(self) -> bool:
        return has_zeros(self.plan.prunings, self.plan.source.checkpoint.path)

    def _with_zeros(self, wanted: Wanted, manifest: dict[str, Any], folder: Path) -> dict[str, Any]:
        """The manifest, written again with what zeros bought: known of the artifact that is published alone."""
        log = self.output / "logs" / f"{wanted.variant.folder}.zeros.log"
        start = self.start if wanted.target.with_torch else fresh
        with Worker(log, self.plan.job.threads, self.progress, start=start) as worker:
            found = worker(measure_zeros, target=wanted.variant.target, folder=folder, files=manifest["weights"])
        facts = _facts(manifest) | {"zeros": found}
        return store.write_manifest(folder, manifest["key"], manifest["weights"], facts, known=manifest["files"])

    def _carry_modules(self, folder: Path) -> list[str]:
        """A sentence-transformers folder's modules travel with the artifact; returns those that are weights."""
        if self.plan.embedding is None:
            return []
        source = self.plan.source.checkpoint.path
        names = module_files(source)
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)
        return [name for name in names if name.endswith((".safetensors", ".bin"))]


def export_artifact(
    session: Session,
    target: str,
    precision: str,
    checkpoint: Checkpoint,
    folder: str,
    scratch: str,
    threads: int,
    options: dict[str, Any] | None,
    calibration: str | None,
    policy: dict[str, Any] | None,
    reference: str,
    traces: str,
) -> dict[str, Any]:
    """A worker's operation: what the target says of the artifact that it wrote, its seconds and its peak memory."""
    start, writer = perf_counter(), known.get(target)
    request = ExportRequest(
        checkpoint,
        precision,
        Path(folder),
        Path(scratch),
        threads,
        None if writer.options is None else writer.options.model_validate(options),
        store.cache_folder(),
        Path(calibration) if calibration else None,
        policy and {name: one and Scheme.model_validate(one) for name, one in policy.items()},
        session.progress,
        Path(reference),
        Path(traces),
    )
    exported = writer.export(request)
    cost = {"export_s": perf_counter() - start, "export_peak_rss_bytes": machine.peak_rss()}
    weights = writer.weights(Path(folder), exported.weights) if writer.weights else []
    return asdict(exported) | cost | {"held": held(writer.precisions[precision], weights)}


def _facts(manifest: dict[str, Any]) -> dict[str, Any]:
    """What a manifest says beyond its own keys, to be written again."""
    return {
        name: value for name, value in manifest.items() if name not in ("schema_version", "key", "weights", "files")
    }


def _missed(gate: Gate) -> str:
    value = "no number" if gate.value is None else f"{gate.value:.6g}"
    return f"{gate.name} {value} (limit {gate.limit:.9g})"


_FIGURES = ("ppl_ratio", "kl", "top1", "cosine", "regression_error")


def _figures(row: Result) -> dict[str, float | None]:
    return {name: row.quality[name].value for name in _FIGURES}

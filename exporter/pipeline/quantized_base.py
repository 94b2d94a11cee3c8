"""What adapters are merged into when they were trained on a quantized base: the values that training saw, in float."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter import cache, machine, store
from exporter.checkpoint.folder import carried_sha256
from exporter.checkpoint.quantization_config import scheme_of
from exporter.checkpoint.weights import FLOAT_BYTES, Weights, stored_tensors
from exporter.errors import JobError
from exporter.job import MergeJob
from exporter.process import Session, Worker
from exporter.stages.dequantize.dequantize import dequantize, refusal, simulate
from exporter.stages.merge.adapter import Adapter

_TOOLS = ("exporter", "bitsandbytes", "torch", "transformers")
# How the names of quantized checkpoints on the hub end; an adapter records its base by name, not how it was loaded.
_QUANTIZED_NAME = re.compile(r"(?i)(bnb-?[48]bit|[-_](gptq|awq|nf4|int[48]|[48]-?bit))\b")
_FLOATS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Base:
    """The float checkpoint that adapters are merged into, and what was done to get it.

    `merged_into` is dequantized or original, None where no quantized base is involved; `other` is the float checkpoint
    of the other choice, where it is here: the merge measures what the choice changes.
    """

    path: Path
    history: tuple[str, ...] = ()
    merged_into: str | None = None
    other: Path | None = None


def check_base(job: MergeJob, config: Mapping[str, Any], adapters: list[Adapter]) -> str | None:
    """The scheme of the quantized base that is involved, None where there is none. Cheap. Raises JobError."""
    scheme = scheme_of(config)
    if scheme is None:
        if job.merge_base == "dequantized" and job.base_quant is None:
            raise JobError(
                f"{job.model} is float: say how it was quantized in training (--base-quant nf4, fp4 or int8), or give "
                "the quantized checkpoint with -m"
            )
        if job.base_quant is not None and not adapters:
            raise JobError(
                "--base-quant is for an adapter that was trained on a quantized base: give it with --adapter"
            )
        return job.base_quant
    if not adapters:
        return None  # load.check_config refuses it
    if job.base_quant is not None:
        raise JobError(f"{job.model} is quantized already ({scheme}): --base-quant is for a float checkpoint")
    if job.merge_base == "original":
        raise JobError(f"{job.model} is quantized ({scheme}): give its float original with -m to merge into that")
    if reason := refusal(config):
        raise JobError(f"{job.model}: {reason}")
    return scheme


def refuse_leftover(model: str, path: Path, config: Mapping[str, Any]) -> None:
    """Refuses a float checkpoint whose config.json still says how its base was quantized: transformers would read its
    weights as packed ones. Raises JobError with the command that takes that out."""
    scheme = scheme_of(config)
    if scheme is None or any(tensor.dtype not in FLOAT_BYTES for tensor in stored_tensors(path).values()):
        return
    file = shlex.quote(str((path / "config.json").absolute()))
    code = (
        "import json, pathlib, sys; f = pathlib.Path(sys.argv[1]); c = json.loads(f.read_text()); "
        "[d.pop(k, None) for d in (c, *c.values()) if isinstance(d, dict) for k in ('quantization_config', "
        "'quantization')]; f.write_text(json.dumps(c, indent=2))"
    )
    kinds = ", ".join(sorted({tensor.dtype for tensor in stored_tensors(path).values()}))
    raise JobError(
        f"{model} is float ({kinds}), and its config.json says {scheme}, left there when it was made "
        f'float; take that out: python -c "{code}" {file}'
    )


def base_of(job: MergeJob, path: Path, config: Mapping[str, Any], weights: Weights, worker: Worker) -> Base:
    """Dequantizes a quantized checkpoint, or simulates the quantization of a float one, into the cache."""
    tools = {name: machine.version_of(name) for name in _TOOLS}
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    dtype = dtype if dtype in _FLOATS else "float32"  # what training computed in: it holds the values without loss
    made_of = [weights.sha256, config, carried_sha256(path, [])]
    key = store.content_key(["dequantize", made_of, job.base_quant, dtype, tools])
    folder = cache.DEQUANTIZED.entry(key)
    told = {"simulated": job.base_quant, "dtype": dtype, "trust": job.trust_remote_code}
    history = worker(dequantize_base, source=path, folder=folder, key=key, **told)
    if job.merge_base == "original":
        return Base(path, (), "original", folder)
    return Base(folder, tuple(history), "dequantized", path if job.base_quant else None)


def dequantize_base(
    session: Session, source: str, folder: str, key: str, simulated: str | None, dtype: str, trust: bool
) -> list[str]:
    """A worker's operation: publishes the float checkpoint, unless it is there under its key; returns its history."""
    destination, progress = Path(folder), session.megabytes("dequantizing")
    with store.one_maker(destination, session.waiting):
        if (manifest := store.reusable(destination, key)) is None:
            with store.publish(destination) as building:
                if simulated is None:
                    history = dequantize(Path(source), building, dtype, progress, trust=trust)
                else:
                    history = simulate(Path(source), building, simulated, progress, dtype=dtype, trust=trust)
                weights = [path.name for path in building.glob("*.safetensors")]
                manifest = store.write_manifest(building, key, weights, {"history": history})
    lines: list[str] = manifest["history"]
    return lines


def hints(job: MergeJob, adapters: list[Adapter], scheme: str | None) -> list[str]:
    """Notes for the report on adapters whose recorded base has a quantized checkpoint's name."""
    if scheme is not None:
        return []
    recorded = (str(adapter.config.get("base_model_name_or_path") or "") for adapter in adapters)
    return [
        f"The adapter records {name}, which by its name is quantized, and was merged into a float model: if it was "
        "trained on quantized weights, give that checkpoint with -m, or --base-quant."
        for name in recorded
        if _QUANTIZED_NAME.search(name)
    ]

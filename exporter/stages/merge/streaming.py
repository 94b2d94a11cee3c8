"""Merge adapters file by file, for models that do not fit into memory: safetensors in, safetensors out.

Each tensor is read once, in the files' order. What no adapter changes is copied; a module that one changes is merged
by PEFT's own layer in float32 (exporter.stages.merge.one_module) and proven there, then rounded once to its dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from exporter.checkpoint.configuration import correct_ties, keep_configuration
from exporter.checkpoint.floats import TORCH_DTYPES, as_tensor, is_finite, tensor, torch_dtype
from exporter.checkpoint.folder import carry
from exporter.checkpoint.model import Load
from exporter.checkpoint.shards import Digest, header, put, write_index
from exporter.checkpoint.tokenizer import fitting, name_padding, rows_of
from exporter.checkpoint.weights import FLOAT_BYTES, Stored, stored_tensors
from exporter.errors import BuildError, JobError
from exporter.stages.merge.adapter import Adapter
from exporter.stages.merge.attach import resize, ties_of
from exporter.stages.merge.base_check import check_copies, refuse_absent, stored_name
from exporter.stages.merge.layout import Change, Layout, layout
from exporter.stages.merge.merge import How, kept_dtype, names_of, roundoff
from exporter.stages.merge.misfit import few
from exporter.stages.merge.one_module import merge_module
from exporter.stages.merge.proof import Agreement, refuse_unproven

_CHUNK = 1 << 24
_STORED_NAMES = {torch_name: stored for stored, torch_name in TORCH_DTYPES.items()}
Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True)
class Output:
    """One tensor of a file to be written: a copy of `source`, or a parameter of the module `owner` as changed."""

    name: str
    dtype: str  # safetensors' name
    shape: tuple[int, ...]
    source: Stored | None
    owner: str | None = None
    parameter: str = ""

    @property
    def bytes(self) -> int:
        if self.dtype in FLOAT_BYTES:
            return int(math.prod(self.shape) * FLOAT_BYTES[self.dtype])
        assert self.source is not None
        return self.source.end - self.source.begin


@dataclass
class Work:
    """A streaming merge on its way: the plan, and what it has learned so far."""

    model: Any  # on the meta device
    stored: dict[str, Stored]
    changes: Layout
    how: How
    prefix: str
    sources: dict[str, str]  # a tied parameter that is not stored -> the stored one that it shares
    merged: dict[str, dict[str, Any]] = field(default_factory=dict)  # module -> parameters not yet written
    worst: Agreement | None = None
    proven: set[str] = field(default_factory=set)


def merge_streaming(
    load: Load, base: Path, adapters: list[Adapter], folder: Path, how: How, progress: Progress
) -> dict[str, Any]:
    """Merges adapters into the files of `base`, into an empty folder.

    Returns history, proof, the sha256 of the base's files and that of each file written. Raises JobError for what does
    not fit or cannot be streamed, BuildError for a module that is not proven.
    """
    if how.combine in ("dare_linear", "dare_ties"):
        raise JobError(
            f"--combine {how.combine} drops weights at random, in the order of the whole model: --merge memory"
        )
    stored = stored_tensors(base)
    model, loaded = load(base, device_map="meta", output_loading_info=True)
    refuse_absent(base, loaded["missing_keys"], adapters)
    ties, paths = ties_of(model), [adapter.path for adapter in adapters]
    history = [line] if (line := correct_ties(model)) else []
    history += [line for adapter in adapters for line in check_copies(adapter, base, stored, model.base_model_prefix)]
    history += [line] if (line := resize(model, adapters)) else []
    history += [line] if (line := name_padding(model, fitting(base, paths, rows_of(model), how.trust))) else []
    found, untied = layout(model, adapters, ties)
    if untied and getattr(model.config, "is_encoder_decoder", False):
        raise JobError("the adapters untie embeddings of an encoder-decoder, whose scale depends on it: --merge memory")
    if how.combine:  # each module's changes are of all adapters, in their order
        for path, changes in found.items():
            by = {change.adapter.path: change for change in changes}
            found[path] = [by.get(adapter.path) or Change(adapter) for adapter in adapters]
    work = Work(model, stored, found, how, model.base_model_prefix, {})
    for group in untied:
        first = next(stored_name(name, stored, work.prefix) for name in group)
        work.sources |= {name: str(first) for name in group if stored_name(name, stored, work.prefix) is None}
        history.append(f"untied {' and '.join(group)}: the adapter changes one of them")
    files = _outputs(work, set(loaded["missing_keys"]))
    source, hashes = _write(work, files, folder, progress)
    history += _write_configuration(work, base, files, folder)
    carry(base, paths, folder)
    _check_reload(load, base, folder)
    groups = [adapters] if how.combine else [[adapter] for adapter in adapters]
    history += [f"merged {names_of(group)} (float32, PEFT's layers, streaming)" for group in groups]
    return {"history": history, "proof": _proof(work), "source_sha256": source, "hashes": hashes}


def _proof(work: Work) -> dict[str, Any]:
    """Every merged module was compared; the whole model was not run: it does not fit."""
    steps = [] if work.worst is None else [work.worst.record() | {"modules": len(work.proven)}]
    on = f"each of the {len(work.proven)} merged modules, on random inputs; the whole model was not run"
    return {"way": "streaming", "on": on, "steps": steps, "saved": None, "probe_kl": None, "other_base": None}


def _outputs(work: Work, absent: set[str]) -> dict[str, list[Output]]:
    """The tensors of each file, in the order of the base's; new ones (untied, added by training) end the last file.

    `absent`: the parameters that the base's files lack.
    """
    parameters = dict(work.model.named_parameters(remove_duplicate=False))
    names = {name: stored_name(name, work.stored, work.prefix) for name in parameters}
    owners = {kept: name for name, kept in names.items() if kept is not None}
    buffers = {stored_name(name, work.stored, work.prefix) for name, _ in work.model.named_buffers()}
    files: dict[str, list[Output]] = {stored.path.name: [] for stored in work.stored.values()}
    for kept, stored in work.stored.items():
        name = owners.get(kept, "")
        owner, _, parameter = name.rpartition(".")
        floats = stored.dtype in TORCH_DTYPES
        kind = stored.dtype
        if floats and kept not in buffers:
            kind = _STORED_NAMES[kept_dtype(kept, work.stored, work.how.dtype)]
        if owner not in work.changes:
            output = Output(kept, kind, stored.shape, stored)
        elif floats:
            output = Output(kept, kind, tuple(parameters[name].shape), stored, owner, parameter)
        else:
            raise JobError(
                f"{kept} is stored as {stored.dtype}: it is quantized; give the float checkpoint it was made of"
            )
        files[stored.path.name].append(output)
    last = list(files)[-1]
    for name in _new(work, names, absent):
        kind = _STORED_NAMES[kept_dtype(name, work.stored, work.how.dtype)]
        owner, _, parameter = name.rpartition(".")
        files[last].append(Output(name, kind, tuple(parameters[name].shape), None, owner, parameter))
    return files


def _new(work: Work, names: dict[str, str | None], absent: set[str]) -> list[str]:
    """The parameters to be written that the base's files lack: untied ones, and what training added."""
    tied = {name: group for group in ties_of(work.model).groups for name in group}
    new = []
    for name in (name for name, kept in names.items() if kept is None):
        owner, _, parameter = name.rpartition(".")
        changes = work.changes.get(owner, ())
        if name in work.sources:
            new.append(name)
        elif any(names[other] for other in tied.get(name, ())):
            continue  # what it shares is written under the other name
        elif name in absent:
            new += [name] if any(parameter in change.replaced for change in changes) else []
        elif any(change.factors or change.rows or parameter in change.replaced for change in changes):
            raise JobError(
                f"transformers makes {name} from tensors with other names when it loads this checkpoint: it cannot be "
                "merged file by file; merge it with --merge memory"
            )
    return new


def _write(
    work: Work, files: dict[str, list[Output]], folder: Path, progress: Progress
) -> tuple[str, dict[str, dict[str, Any]]]:
    """Writes the files; returns the sha256 of the base's, one after the other, and sha256 and size of each written."""
    total, done = sum(output.bytes for outputs in files.values() for output in outputs), 0
    source, written = Digest(), {}
    for name, outputs in files.items():
        digest = Digest()
        with (folder / name).open("wb", buffering=0) as file:
            put(file, header((output.name, output.dtype, output.shape, output.bytes) for output in outputs), digest)
            first = next((output.source for output in outputs if output.source is not None), None)
            if first is not None:
                source.add_whole(first.path, first.begin)  # the base's own header
            for output, upcoming in zip(outputs, (*outputs[1:], None), strict=True):
                if upcoming is not None and upcoming.source is not None:
                    upcoming.source.prefetch()
                for block in _blocks(work, output, source):
                    put(file, block, digest)
                    done += len(block)
                    progress(done, total)
                    del block  # before the next one is made: it can be as large as the largest tensor
        written[name] = {"sha256": digest.hexdigest(), "bytes": (folder / name).stat().st_size}
    return source.hexdigest(), written


def _blocks(work: Work, output: Output, source: Digest) -> Iterator[Any]:
    """The bytes of an output, in pieces; what is read of the base is checked to be finite, and hashed."""
    if output.owner is None:
        yield from _copied(output, source)
        return
    read: list[Any] = []
    if output.source is not None:
        data = output.source.read()
        with source.adding(data):
            value = as_tensor(data, output.source.dtype)
            _refuse_not_finite(value, output.name, output.source.path)
            read.append(value.to(torch_dtype("float32")).reshape(output.source.shape))
        del data, value
    yield _bytes_of(_parameter(work, output, read), output)


def _copied(output: Output, source: Digest) -> Iterator[Any]:
    """A tensor that no adapter changes, in its own dtype or another."""
    stored = output.source
    assert stored is not None
    buffer = np.empty(min(_CHUNK, stored.end - stored.begin), np.uint8)
    for offset in range(stored.begin, stored.end, _CHUNK):
        block = replace(stored, begin=offset, end=min(offset + _CHUNK, stored.end)).read(buffer)
        with source.adding(block):
            if stored.dtype in TORCH_DTYPES:
                _refuse_not_finite(as_tensor(block, stored.dtype), output.name, stored.path)
            if output.dtype == stored.dtype:
                yield block.data
            else:
                yield _bytes_of(as_tensor(block, stored.dtype), output)


def _refuse_not_finite(value: Any, name: str, path: Path) -> None:
    if not is_finite(value):
        raise JobError(f"{path}: the tensor {name} holds NaN or Inf; the training diverged: give an earlier checkpoint")


def _bytes_of(value: Any, output: Output) -> Any:
    value = value.to(torch_dtype(TORCH_DTYPES[output.dtype])).contiguous()
    if not is_finite(value):
        raise BuildError(f"{output.name} does not fit into {output.dtype} after the merge: take --merge-dtype bfloat16")
    return memoryview(value.reshape(-1).view(torch_dtype("uint8")).numpy())


def _parameter(work: Work, output: Output, read: list[Any]) -> Any:
    """A parameter after its module's changes, float32. The module is merged when its first parameter is asked for.

    `read` holds what the base has of it, where that was read already; it is emptied, so that nothing else keeps it.
    """
    owner, name = str(output.owner), output.parameter
    if owner not in work.changes:  # it was tied before
        return tensor(_stored_of(work, f"{owner}.{name}"))
    if name not in work.merged.get(owner, {}):
        module = work.model.get_submodule(owner)
        values = {name: read.pop()} if read else {}
        for parameter, _ in module.named_parameters(recurse=False):
            whole = f"{owner}.{parameter}"
            known = whole in work.sources or stored_name(whole, work.stored, work.prefix) is not None
            if known and parameter not in values:
                values[parameter] = tensor(_stored_of(work, whole))
        agreements = merge_module(owner, module, values, work.changes[owner], work.how)
        for agreement in agreements:
            refuse_unproven(agreement, f"the module {owner}")
            work.proven.add(owner)
            work.worst = max(work.worst or agreement, agreement, key=lambda found: found.max_error / found.largest)
        work.merged[owner] = values
    merged = work.merged[owner].pop(name)
    if not work.merged[owner]:
        del work.merged[owner]
    return merged


def _stored_of(work: Work, name: str) -> Stored:
    kept = work.sources.get(name) or stored_name(name, work.stored, work.prefix)
    assert kept is not None
    return work.stored[kept]


def _write_configuration(work: Work, base: Path, files: dict[str, list[Output]], folder: Path) -> list[str]:
    """Writes config.json, and the index where a loader needs one; returns the lines of history."""
    config = work.model.config
    config.architectures = [type(work.model).__name__]
    kinds = {TORCH_DTYPES[o.dtype] for outputs in files.values() for o in outputs if o.dtype in TORCH_DTYPES}
    config.dtype = torch_dtype(dtype := max(kinds, key=roundoff))
    config.save_pretrained(folder)
    write_index(folder, {name: {output.name: output.bytes for output in outputs} for name, outputs in files.items()})
    return [line] if (line := keep_configuration(base, folder, config, dtype)) else []


def _check_reload(load: Load, base: Path, folder: Path) -> None:
    """What was written loads as strictly as the base did: its names and shapes. Raises BuildError."""

    def wrong(path: Path) -> set[str]:
        _, found = load(path, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True)
        return {*found["missing_keys"], *found["unexpected_keys"], *(key[0] for key in found["mismatched_keys"])}

    stored_tensors(folder)  # the headers are whole
    if new := sorted(wrong(folder) - wrong(base)):
        raise BuildError(f"the merged checkpoint does not load as it was saved: {few(new)}; please report it")

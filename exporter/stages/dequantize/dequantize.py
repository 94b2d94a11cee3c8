"""Quantized checkpoints made float, tensor by tensor: what an adapter that was trained on one has to be merged into.

An adapter learns to mend what its base computes. For QLoRA that is the quantized base, whose weights differ from the
original's by a few percent: so the merge is into the values that training saw. `dequantize` reads them from a quantized
checkpoint; `simulate` makes them from a float one that was quantized while it was loaded (load_in_4bit, load_in_8bit).
Both write an ordinary float checkpoint, and everything else works on that.

What no weight can tell: bitsandbytes' 8 bits also round the activations, in evaluation and on a GPU.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from exporter.checkpoint.blocks import Planned, Step, Tensors, torch_dtype, write
from exporter.checkpoint.configuration import set_dtype
from exporter.checkpoint.floats import TORCH_DTYPES
from exporter.checkpoint.folder import carry
from exporter.checkpoint.quantization_config import quantization_of, scheme_of
from exporter.checkpoint.skeleton import Skeleton
from exporter.checkpoint.weights import again
from exporter.errors import JobError, MissingPackage, unknown
from exporter.stages.dequantize import packed, unpack
from exporter.types import BaseQuant

if TYPE_CHECKING:
    import torch

SIMULATED = get_args(BaseQuant)
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_FLOATS = tuple(TORCH_DTYPES)
Files = dict[str, dict[str, Planned]]


def nobody(done: int, total: int) -> None:
    """The progress of nobody who looks."""


def refusal(config: Mapping[str, Any]) -> str | None:
    """Why a quantized checkpoint cannot be made float here, from its config.json alone; None where it can, or is."""
    scheme, how = scheme_of(config), quantization_of(config) or {}
    if scheme is None:
        return None
    bits = how.get("bits", how.get("w_bit"))
    why = None
    if scheme not in packed.SCHEMES:
        why = f"its weights are quantized by {scheme}, which cannot be read here"
    elif scheme == "gptq" and unpack.gptq_format(how) not in ("gptq", "gptq_v2"):
        why = f"its GPTQ weights are in the format {unpack.gptq_format(how)}, not gptq or gptq_v2"
    elif scheme == "gptq" and bits not in unpack.BITS:
        why = f"its GPTQ weights have {bits} bits, not {', '.join(map(str, unpack.BITS))}"
    elif scheme == "gptq" and how.get("pack_dtype", "int32") != "int32":
        why = f"its GPTQ weights are packed into {how['pack_dtype']}, not int32"
    elif scheme == "awq" and unpack.awq_format(how) != "gemm":
        why = f"its AWQ weights are in the layout {unpack.awq_format(how)}, not gemm"
    elif scheme == "awq" and bits != 4:
        why = f"its AWQ weights have {bits} bits, not 4"
    if why:
        origin = config.get("_name_or_path")
        return f"{why}; give the float checkpoint that it was made from{f', {origin},' if origin else ''} with -m"
    return None


def dequantize(
    source: Path, folder: Path, dtype: str = "float32", progress: Step = nobody, *, trust: bool = False
) -> list[str]:
    """Writes a quantized checkpoint as a float one into an empty folder, in the source's shards; returns its history.

    A value is what the method's own code multiplies with: rounded to the dtype that the quantized model had, and then
    held in `dtype`. `progress(bytes written, bytes in all)`. Memory: one weight, packed. No package of the method's is
    needed. Raises JobError.
    """
    config, target = _config(source), _named_dtype(dtype)
    scheme, reason = scheme_of(config), refusal(config)
    if scheme is None:
        raise JobError(f"{source} is not quantized: give it as it is")
    if reason:
        raise JobError(f"{source}: {reason}")
    stored, how, skeleton = Tensors(source), quantization_of(config) or {}, Skeleton(source, trust)
    weights = packed.find(stored, scheme, how)
    if not weights:
        raise JobError(f"{source} holds no {scheme} weight, whatever its config.json says; {again(source)}")
    plain = stored.entries.keys() - {part for weight in weights.values() for part in weight.parts.values()}
    dropped = _zero_biases(stored, skeleton, plain)
    files: Files = {path.name: {} for path in stored.files}
    for name, entry in stored.entries.items():
        if name in plain and name not in dropped:
            kind = target if entry.dtype in _FLOATS else entry.dtype
            files[entry.path.name][name] = Planned(kind, entry.shape, partial(stored.rows, name))
    for name, weight in weights.items():
        turned, shape = skeleton.is_conv1d(name), weight.shape(stored)
        planned = Planned(target, shape[::-1] if turned else shape, partial(weight.rows, stored, turned))
        files[stored.entries[weight.main].path.name][name] = planned
    skeleton.check({name: each.shape for tensors in files.values() for name, each in tensors.items()}, weights)
    _write(source, folder, files, config, dtype, progress)
    detail = {"gptq": f" ({unpack.gptq_format(how)}, {how.get('bits')} bits)", "awq": " (gemm, 4 bits)"}.get(scheme, "")
    history = [f"dequantized {len(weights)} {scheme} weights{detail} of {source.name} to {dtype}"]
    if dropped:
        history.append(f"left out {len(dropped)} biases that are zeros and have no place in the model: {dropped[0]}")
    return history


def simulate(
    source: Path,
    folder: Path,
    scheme: str,
    progress: Step = nobody,
    *,
    loaded: str | None = None,
    double_quant: bool = True,
    dtype: str = "float32",
    trust: bool = False,
) -> list[str]:
    """Writes the values that training saw of a float checkpoint with BitsAndBytesConfig(load_in_4bit or load_in_8bit).

    `loaded`: the dtype that the model was loaded in for training, which is rounded to before the quantization: None for
    the checkpoint's own, as from_pretrained does. `double_quant` is for 4 bits, and on as in the QLoRA paper and most
    trainers; transformers' own default is off. Blocks have 64 values. `dtype` is the result's: float32 holds all.
    Otherwise as `dequantize`, and MissingPackage.
    """
    if scheme not in SIMULATED:
        raise JobError(unknown("quantization of a base", scheme, SIMULATED))
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingPackage(f"a base as it is in {scheme}", ["bitsandbytes"], "qlora")
    config, target = _config(source), _named_dtype(dtype)
    if scheme_of(config) is not None:
        raise JobError(f"{source} is quantized already ({scheme_of(config)}): its own values are what training saw")
    stored, skeleton = Tensors(source), Skeleton(source, trust)
    first = torch_dtype(_named_dtype(loaded) if loaded else _own_dtype(config, stored))
    weights = skeleton.quantized(stored.entries, eight=scheme == "int8")
    files: Files = {path.name: {} for path in stored.files}
    for name, entry in stored.entries.items():
        kind, rows = entry.dtype, partial(stored.rows, name)
        if kind in _FLOATS:
            seen = skeleton.loaded_in(name, first)
            kind, rows = target, partial(_rounded, stored, name, seen)
            if name in weights:
                rows = partial(_through, stored, name, seen, scheme, double_quant, skeleton.is_conv1d(name))
        files[entry.path.name][name] = Planned(kind, entry.shape, rows)
    _write(source, folder, files, config, dtype, progress)
    double = "" if scheme == "int8" else f", {'with' if double_quant else 'without'} double quantization"
    saw = f"{len(weights)} weights of {source.name} as training in {scheme} saw them"
    history = [f"{saw} (bitsandbytes, loaded in {str(first).removeprefix('torch.')}{double}), in {dtype}"]
    joined = skeleton.joined(stored.entries)
    if joined:
        history.append(
            f"{len(joined)} weights that transformers 5 joins, such as {joined[0]}, stay float as they do there; "
            "transformers 4 quantized the experts of a mixture"
        )
    return history


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def _named_dtype(name: str) -> str:
    if name not in _DTYPES:
        raise JobError(unknown("dtype", name, _DTYPES))
    return _DTYPES[name]


def _own_dtype(config: Mapping[str, Any], stored: Tensors) -> str:
    """What from_pretrained loads in when nobody says: config.json's dtype, else the first float tensor's."""
    written = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    kinds = (entry.dtype for entry in stored.entries.values() if entry.dtype in _FLOATS)
    return _DTYPES.get(written) or next(kinds, "F32")


def _zero_biases(stored: Tensors, skeleton: Skeleton, names: Iterable[str]) -> list[str]:
    """The biases of zeros that AutoGPTQ stores for layers which have none."""
    extra = sorted(name for name in names if name.endswith(".bias") and skeleton.place(name) is None)
    return [name for name in extra if not bool(stored.read(name).any())]


def _rounded(stored: Tensors, name: str, seen: torch.dtype) -> Iterator[torch.Tensor]:
    """A tensor that is not quantized, as the loaded model has it."""
    return (rows.to(seen) for rows in stored.rows(name))


def _through(
    stored: Tensors, name: str, seen: torch.dtype, scheme: str, double: bool, turned: bool
) -> Iterator[torch.Tensor]:
    """A weight after its quantization and back. A Conv1D's is `turned` before: blocks and rows are the output's."""
    import torch

    blocks = _rounded(stored, name, seen)
    if turned:
        blocks = iter([stored.read(name).to(seen).t().contiguous()])
    rows = unpack.through_int8(blocks) if scheme == "int8" else unpack.through_bnb4(blocks, scheme, double)
    if not turned:
        return rows
    return iter([torch.cat([block.reshape(-1) for block in rows]).view(stored.entries[name].shape[::-1]).t()])


def _write(source: Path, folder: Path, files: Files, config: Mapping[str, Any], dtype: str, progress: Step) -> None:
    """The weights, config.json as a float model's, and what else a checkpoint needs."""
    write(folder, {name: tensors for name, tensors in files.items() if tensors}, progress)
    carry(source, [], folder)
    text = json.dumps(_as_float(config, dtype), indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def _as_float(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """A configuration, and those inside it, without quantization and with another dtype."""
    result = {
        key: _as_float(value, dtype) if isinstance(value, dict) and "model_type" in value else value
        for key, value in config.items()
        if key not in ("quantization_config", "quantization")
    }
    set_dtype(result, dtype)
    return result if {"dtype", "torch_dtype"} & result.keys() else result | {"dtype": dtype}

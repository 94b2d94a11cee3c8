"""A program's constants in fewer bits: each becomes an operator that Core ML computes once, when it loads the model.

The operators are coremltools' own, put in as its optimize.coreml passes do; the numbers are exporter's, so that what a
policy's simulation rounded is what is shipped, and weights that lie on their grid already stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.quantization.grid import input_grid, levels, quantized
from exporter.quantization.palette import palettes
from exporter.runner import Floats
from exporter.scheme import Scheme
from exporter.targets.coreml.options import STATES as IOS18
from exporter.targets.coreml.sparse import fewer_bytes, sparse_codes
from exporter.targets.coreml.weights import Place

_SMALLEST = float(np.finfo(np.float16).smallest_normal)  # a smaller scale would lose digits
Weights = Callable[[str], Floats]  # a module's name to its float32 weight [N, K]


def compress(
    package: Path,
    to: Path,
    places: Mapping[str, Place],
    forms: Mapping[str, Scheme],
    weight: Weights,
    importance: Mapping[str, Floats],
    system: int,
) -> None:
    """Writes a package whose constants have these forms; `importance` [K] of layers' inputs counts for palettes.

    Codes of a pruned layer are sparse too, where the system has that and it is fewer bytes.
    """
    import coremltools as ct
    from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
    from coremltools.models.utils import _apply_graph_pass

    wanted = {places[name].constant: name for name in forms}

    class Compression(AbstractGraphPass):  # type: ignore[misc]  # coremltools ships no types
        def apply(self, program: Any) -> None:
            for function in program.functions.values():
                with function:
                    static = {}
                    for op in list(function.operations):
                        name = wanted.get(op.outputs[0].name) if op.op_type == "const" else None
                        if name is not None:
                            form = forms[name]
                            made = _made(op, form, places[name], weight(name), importance.get(name), system)
                            function.replace_uses_of_var_after_op(
                                anchor_op=op, old_var=op.outputs[0], new_var=made, no_check_var_types=True
                            )
                            function.remove_ops([op])
                            if form.input == "static":
                                static[made] = form
                    round_inputs(function, static)

    model = ct.models.MLModel(str(package), skip_model_load=True)
    _apply_graph_pass(model, Compression(), skip_model_load=True).save(str(to))


def _made(op: Any, form: Scheme, place: Place, weight: Floats, importance: Floats | None, system: int) -> Any:
    if form.palette:
        return _palettized(op, form, place, weight, importance)
    return _scaled(op, form, place, weight, system)


def _scaled(op: Any, scheme: Scheme, place: Place, weight: Floats, system: int) -> Any:
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813  # what all of its own code calls it
    from coremltools.converters.mil.mil import types

    kind = op.outputs[0].val.dtype
    codes, scales = _codes(weight, scheme)
    if place.turned:
        codes, scales = codes.T, scales.T
    if place.convolution:
        codes, scales = codes.reshape(op.outputs[0].val.shape), scales.reshape(-1, 1, 1, 1)
    name = f"{op.name}_quantized"
    if system < IOS18:
        axis = 1 if place.turned else 0
        scale = scales.astype(kind).reshape(-1)
        return mb.constexpr_affine_dequantize(
            quantized_data=np.ascontiguousarray(codes), zero_point=np.int8(0), scale=scale, axis=np.int32(axis),
            before_op=op, name=name,
        )  # fmt: skip
    stored = np.ascontiguousarray(codes).astype(types.nptype_from_builtin(types.string_to_builtin(scheme.weight)))
    scale = np.ascontiguousarray(scales).astype(kind)
    # Rounding makes zeros of its own: those of a model that nobody pruned are not looked for.
    zeros = int(codes.size - np.count_nonzero(codes))
    if fewer_bytes(place.zeros, codes.size, 8 * kind.itemsize) and fewer_bytes(zeros, codes.size, scheme.bits):
        return sparse_codes(op, stored, scale)
    return mb.constexpr_blockwise_shift_scale(data=stored, scale=scale, before_op=op, name=name)


def round_inputs(function: Any, schemes: Mapping[Any, Scheme]) -> None:
    """Rounds what is multiplied with these weights to int8, in fixed ranges about 0; of one input and range once."""
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813

    rounded: dict[tuple[Any, float], Any] = {}
    for op in list(function.operations):
        place = {"linear": "weight", "conv": "weight", "matmul": "y"}.get(op.op_type)
        scheme = schemes.get(op.inputs[place]) if place else None
        if scheme is None:
            continue
        x = op.inputs["x"]
        step = np.float16(max(input_grid(scheme)[0], _SMALLEST))
        if (x, float(step)) not in rounded:
            codes = mb.quantize(input=x, scale=step, output_dtype="int8", before_op=op, name=f"{op.name}_input_codes")
            rounded[x, float(step)] = mb.dequantize(input=codes, scale=step, before_op=op, name=f"{op.name}_input")
        kept = {name: value for name, value in op.inputs.items() if value is not None}
        made = getattr(mb, op.op_type)(**{**kept, "x": rounded[x, float(step)]}, before_op=op, name=f"{op.name}_static")
        function.replace_uses_of_var_after_op(anchor_op=op, old_var=op.outputs[0], new_var=made)
        name = op.outputs[0].name
        function.remove_ops([op])
        made.name = name


def _codes(weight: Floats, scheme: Scheme) -> tuple[NDArray[np.int8], Floats]:
    """Codes [N, K], and scales [N, groups] that float16 holds with all their digits."""
    import torch

    found = quantized(torch.from_numpy(np.require(weight, requirements=["C", "W"])), scheme)
    scales = found.scales.numpy().clip(_SMALLEST, None).astype(np.float16).astype(np.float32)
    lowest, highest = levels(scheme)
    ratios = weight.reshape(*scales.shape, -1) / scales[..., None]
    return np.rint(ratios).clip(lowest, highest).astype(np.int8).reshape(weight.shape), scales


def _palettized(op: Any, form: Scheme, place: Place, weight: Floats, importance: Floats | None) -> Any:
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
    from coremltools.converters.mil.mil import types

    tables, indices = palettes(weight, form, importance)
    tables = tables[:, None, :, None] if not place.turned else tables[None, :, :, None]
    indices = np.ascontiguousarray(indices.T if place.turned else indices)
    stored = indices.astype(types.nptype_from_builtin(types.string_to_builtin(f"uint{form.bits}")))
    lut = np.ascontiguousarray(tables).astype(op.outputs[0].val.dtype)
    return mb.constexpr_lut_to_dense(indices=stored, lut=lut, before_op=op, name=f"{op.name}_palettized")


def mean_squares(calibration: Path, modules: Iterable[str]) -> dict[str, Floats]:
    """The mean square of each input channel [K] of these layers, of what calibration fed."""
    from exporter.quantization.statistics import load_statistics

    statistics = load_statistics(calibration)
    return {name: statistics[name].mean_squares for name in modules if name in statistics}

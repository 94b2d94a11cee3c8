"""Weights with zeros in them as a mask and the numbers that are not 0, where that is fewer bytes.

iOS 16 has the operator for floats and for int8 alone; weights that are quantized and sparse at once are iOS 18's.
https://apple.github.io/coremltools/docs-guides/source/opt-pruning-overview.html
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.targets.coreml.options import STATES as IOS18
from exporter.targets.coreml.weights import SMALL, Place

SPARSE, SPARSE_CODES = "constexpr_sparse_to_dense", "constexpr_sparse_blockwise_shift_scale"
_RECORDS = 256  # bytes at most of the mask's own record in the weight file, and of what fills it up to 64


def fewer_bytes(zeros: int, numbers: int, bits: int) -> bool:
    """Whether a mask of a bit a number, and what is not 0 in `bits` each, take less than all the numbers."""
    return zeros * bits > numbers + 8 * _RECORDS


def pruned(places: Mapping[str, Place], bits: int) -> list[str]:
    """The layers whose float weights are worth a mask, by their modules' names."""
    sizes = {name: place.rows * place.inputs for name, place in places.items()}
    return [
        name for name, place in places.items() if sizes[name] >= SMALL and fewer_bytes(place.zeros, sizes[name], bits)
    ]


def sparsify(package: Path, to: Path, constants: set[str], system: int) -> None:
    """Writes a float package in which these constants are sparse; what they decode to is what they were."""
    import coremltools as ct
    from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
    from coremltools.models.utils import _apply_graph_pass

    class Sparsity(AbstractGraphPass):  # type: ignore[misc]  # coremltools ships no types
        def apply(self, program: Any) -> None:
            for function in program.functions.values():
                with function:
                    for op in list(function.operations):
                        if op.op_type == "const" and op.outputs[0].name in constants:
                            made = sparse(op, op.outputs[0].val, system)
                            function.replace_uses_of_var_after_op(
                                anchor_op=op, old_var=op.outputs[0], new_var=made, no_check_var_types=True
                            )
                            function.remove_ops([op])

    model = ct.models.MLModel(str(package), skip_model_load=True)
    _apply_graph_pass(model, Sparsity(), skip_model_load=True).save(str(to))


def sparse(op: Any, dense: NDArray[Any], system: int) -> Any:
    """A constant's numbers as a mask and those that are not 0, put before it; system: 18 of iOS18."""
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813  # what all of its own code calls it

    used, name = dense != 0, f"{op.name}_sparse"
    numbers = np.ascontiguousarray(dense[used])
    if system >= IOS18:
        return mb.constexpr_sparse_to_dense(nonzero_data=numbers, mask=_bits(used), before_op=op, name=name)
    mask, shape = np.packbits(used.reshape(-1), bitorder="little"), np.array(dense.shape, np.uint32)
    return mb.constexpr_sparse_to_dense(nonzero_data=numbers, mask=mask, shape=shape, before_op=op, name=name)


def sparse_codes(op: Any, codes: NDArray[Any], scale: NDArray[Any]) -> Any:
    """Codes of iOS 18, where 0 means 0, as a mask and those that are not, scaled and then put in their places."""
    from coremltools.converters.mil.mil import Builder as mb  # noqa: N813

    used, name = codes != 0, f"{op.name}_sparse"
    mask, numbers = mb.constexpr_sparse_blockwise_shift_scale(
        data_mask=_bits(used), nonzero_data=np.ascontiguousarray(codes[used]), scale=scale, before_op=op,
        name=f"{op.name}_quantized",
    )  # fmt: skip
    return mb.constexpr_sparse_to_dense(nonzero_data=numbers, mask=mask, before_op=op, name=name)


def _bits(used: NDArray[np.bool_]) -> NDArray[Any]:
    from coremltools.converters.mil.mil import types

    return used.astype(types.nptype_from_builtin(types.string_to_builtin("uint1")))

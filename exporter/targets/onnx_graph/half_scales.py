"""The scales of weights in groups as float16 in the file: a twelfth of a 4-bit artifact, an eighteenth of an 8-bit one.

A scale for each group of 32 takes a bit of each number as float32, half of one as float16. ONNX Runtime's operators
want the activations' type, so that a Cast follows, which every runtime folds when it loads the model: what is computed,
its memory and its speed are the same. exporter's own grids (exporter.quantization.grid) have such scales.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporter.quantization.grid import in_half
from exporter.targets.onnx_graph.nodes import add, as_float32

if TYPE_CHECKING:
    import onnx_ir as ir

_IN_GROUPS, _SCALE = ("MatMulNBits", "GatherBlockQuantized"), 2  # the scales are their third input


def halve_scales(model: ir.Model) -> None:
    """Stores as float16 what are such numbers already; where float16 does not hold one, its matrix's all stay."""
    import torch

    scales = dict.fromkeys(node.inputs[_SCALE] for node in model.graph if node.op_type in _IN_GROUPS)
    for scale in scales:
        if scale is None or scale.const_value is None or not scale.is_initializer():
            continue
        numbers = torch.from_numpy(scale.const_value.numpy())
        half = in_half(numbers) if numbers.dtype == torch.float32 else None
        if half is None:
            continue
        scale.replace_all_uses_with(as_float32(model, add(model, f"{scale.name}_half", half.numpy())))
        model.graph.initializers.pop(str(scale.name))

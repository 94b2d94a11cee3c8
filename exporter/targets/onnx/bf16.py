"""bfloat16, for a GPU: ONNX Runtime has no kernels of it for the CPU, where the same graph is proven instead.

The graph is of ONNX's own operators alone, whose types can be followed (onnx_graph/half_types.py), and so is what runs
on the CPU: the float32 graph that rounds wherever this one's types do (onnx_graph/rounding.py). Inputs and outputs, the
KV cache's too, are float32, as the float16 graph's are.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.errors import MissingPackage
from exporter.targets.onnx_graph.half_types import lower, prepare
from exporter.targets.onnx_graph.rounding import proof_of
from exporter.targets.onnx_graph.session import OnnxDecoder, OnnxRunner

if TYPE_CHECKING:
    import onnx_ir as ir

UNTIMED = "bfloat16 runs on a GPU (--device cuda): ONNX Runtime has no kernels of it for the CPU"
ENGINE = "onnxruntime-cpu (the bfloat16 graph, rounded as its types say)"


def bfloat16_graph(model: ir.Model) -> ir.Model:
    """A float32 graph of ONNX's own operators in bfloat16, with float32 inputs and outputs."""
    prepare(model)
    lower(model, "BFLOAT16", float_inputs=True)
    return model


class EncoderStandIn(OnnxRunner):
    """The graph's answers where no GPU runs it."""

    untimed = UNTIMED

    def __init__(self, model: Path, threads: int) -> None:
        super().__init__(model, threads)
        self.engine = ENGINE


class DecoderStandIn(EncoderStandIn, OnnxDecoder):
    """The same with a KV cache."""


def open_stand_in(model: Path, folder: Path, threads: int, decoder: bool) -> OnnxRunner:
    """The runner of a bfloat16 graph, in an artifact's folder, on the CPU.

    Raises MissingPackage where there is what opens graphs and not what rewrites them: on a machine that only measures.
    """
    need_packages()
    with proof_of(model, folder) as proof:
        return (DecoderStandIn if decoder else EncoderStandIn)(proof, threads)


def need_packages() -> None:
    """Raises MissingPackage where there is what opens graphs and not what rewrites them."""
    if absent := [name for name in ("onnx", "onnx_ir") if find_spec(name) is None]:
        raise MissingPackage("onnx:bf16 on the CPU", [name.replace("_", "-") for name in absent], "onnx")

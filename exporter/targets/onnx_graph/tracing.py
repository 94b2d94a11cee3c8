"""The two exporters of torch.onnx, brought to one result: onnx_ir's model with the weights still in torch's memory."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.targets.onnx_graph.frozen import nothing_frozen, unnarrowed

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    import torch

OPSET = 18
Shapes = dict[str, tuple[str | int, ...]]  # of each input or output: a name for a size that varies, or a number


def by_torchscript(
    module: torch.nn.Module, sample: Mapping[str, torch.Tensor], inputs: Shapes, outputs: Shapes
) -> onnx.ModelProto:
    """Runs `module` once on `sample` and writes down what it did: fast, and the graph keeps the modules' names.

    The weights stay out of the trace, as further inputs that have the parameters' names, for with_weights. Raises what
    torch.onnx raises, onnx's InferenceError for a graph whose types do not hold together, and Frozen for one that is
    right at the sample's sizes alone.
    """
    import onnx
    import torch

    file: Any = io.BytesIO()  # torch.onnx takes a stream here, which its annotation leaves out
    axes = {
        name: {axis: size for axis, size in enumerate(shape) if isinstance(size, str)}
        for name, shape in (inputs | outputs).items()
    }
    with _torchscript_warnings(), _no_inference(), nothing_frozen(), _silent_stdout(), torch.no_grad():
        torch.onnx.export(
            module,
            tuple(sample.values()),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=axes,
            export_params=False,
            do_constant_folding=False,  # it would fold weights too, and lose what it made of them
        )
    proto = onnx.shape_inference.infer_shapes(onnx.load_from_string(file.getvalue()))
    onnx.checker.check_model(proto, full_check=True)
    return proto


def with_weights(trace: onnx.ModelProto, module: torch.nn.Module, inputs: Shapes) -> ir.Model:
    """by_torchscript's graph with a module's weights, uncopied, as initializers."""
    import onnx_ir as ir
    from onnx_ir.passes import common

    model = ir.from_proto(trace)
    common.LiftConstantsToInitializersPass(size_limit=16)(model)
    common.DeduplicateHashedInitializersPass(size_limit=1 << 40)(model)  # tables that every layer has a copy of
    weights = module.state_dict(keep_vars=True)
    for value in [value for value in model.graph.inputs if value.name not in inputs]:
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor_adapters.TorchTensor(weights[str(value.name)].detach(), name=value.name)
        model.graph.initializers.add(value)
    return model


def by_torch_export(
    module: torch.nn.Module,
    sample: Mapping[str, torch.Tensor],
    inputs: Shapes,
    outputs: Shapes,
    positions: int | None = None,
) -> ir.Model:
    """Through torch.export (`dynamo=True`): ten times slower, and takes some models that TorchScript does not.

    Raises what torch.onnx raises, and Frozen for a graph that is right at some sizes alone.
    """
    import torch
    from onnx_ir.passes import common

    dynamic = tuple(
        {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(shape) if isinstance(size, str)}
        for shape in inputs.values()
    )
    with warnings.catch_warnings(), torch.no_grad():
        # torch.export copies its own tree specs by a way that torch deprecates.
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        program = torch.onnx.export(
            module,
            tuple(sample.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=(dynamic,),
            optimize=False,  # it would fold the transposed weights, the second copy of a tied one included
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    unnarrowed(program.exported_program, positions)
    common.ClearMetadataAndDocStringPass()(program.model)  # Python stack traces, half of the graph's size
    return program.model


@contextmanager
def _no_inference() -> Iterator[None]:
    """Leaves shapes to onnx, which needs no weights for them: torch makes a copy of all of them for it."""
    from torch.onnx._internal.torchscript_exporter._globals import GLOBALS

    before = GLOBALS.onnx_shape_inference
    GLOBALS.onnx_shape_inference = False
    try:
        yield
    finally:
        GLOBALS.onnx_shape_inference = before


@contextmanager
def _torchscript_warnings() -> Iterator[None]:
    """Silences what a TorchScript export always says, and nothing else."""
    with warnings.catch_warnings():
        # Deprecated for torch.export, which is the other way here: both are tested against each other's model.
        warnings.filterwarnings("ignore", "You are using the legacy TorchScript-based ONNX export", DeprecationWarning)
        warnings.filterwarnings("ignore", "The feature will be removed", DeprecationWarning, module=r"torch\.onnx")
        # Of indexing with negative numbers: the masks are indexed with an arange.
        warnings.filterwarnings("ignore", "Exporting aten::index operator of advanced indexing", UserWarning)
        # Of torch.tensor(a size), which is a tensor while a trace runs. Whether that froze it, frozen.py asks.
        warnings.filterwarnings("ignore", "To copy construct from a tensor", UserWarning)
        yield


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """Keeps torch from writing the whole graph to stdout when it fails; its logging is C++ and cannot be turned off.

    torch 2.13 tests a function instead of its result in setup_onnx_logging, so that the log is always on.
    """
    sys.stdout.flush()
    saved = os.dup(1)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)

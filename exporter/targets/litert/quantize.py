"""Number formats for a float program, by ai-edge-quantizer's recipes: which product gets which, a policy says.

The quantizer finds the operators, inserts what they need and keeps signatures together; the numbers are rounded by
exporter.quantization.grid, as they were when the policy was chosen. https://github.com/google-ai-edge/ai-edge-quantizer
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import BuildError
from exporter.quantization.grid import coded, input_grid, quantized
from exporter.scheme import Scheme
from exporter.targets.litert.flatbuffer import operator, read_model, signatures, write_model
from exporter.targets.litert.places import ROTARY, module_of

HALF = "fp16"  # in a scheme's place: float16
Forms = Mapping[str, Scheme | str | None]  # by the name of a constant, as places.name_tensors gave it; None: float
Range = tuple[float, float]
Ranges = Mapping[str, Range]  # of a module's outputs
_TABLE = Scheme(weight="int8", group=None)
_ROUNDED = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "EMBEDDING_LOOKUP")


def quantize(named: Path, to: Path, forms: Forms, half: bool, ranges: Ranges) -> None:
    """Writes the program with its constants in these forms, and the tables that are looked up with 8 bits, or `half`.

    A table whose numbers are a product's too has that product's form: of several signatures there is one constant.
    Raises BuildError where the quantizer refuses.
    """
    from ai_edge_quantizer.quantizer import Quantizer

    program = read_model(named)
    recipe, wanted = _recipe(program, forms, half)
    observed = _observed(program, forms, ranges)
    try:
        with _own_rounding(wanted), warnings.catch_warnings():
            # It opens the file to see that each range is there, and its interpreter warns of what that keeps in memory.
            warnings.filterwarnings("ignore", "Warning: Enabling `experimental_preserve_all_tensors`", UserWarning)
            quantizer = Quantizer(str(named), recipe)
            done = quantizer.quantize(observed or None, enable_progress_bar=False, enable_progress_report=False)
            to.write_bytes(done.quantized_model)
    except Exception as error:  # whatever its passes run into
        told = " ".join(str(error).split())[:300]
        raise BuildError(f"ai-edge-quantizer refuses ({type(error).__name__}: {told})") from error
    # Written once more: what signatures have in common is one table then, and not one for each.
    whole = read_model(to)
    write_model(whole, to.with_suffix(".shared"))
    del whole
    to.with_suffix(".shared").replace(to)


def products(program: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Each product, convolution and lookup of a constant: its operator, its subgraph, and the constant's tensor."""
    for _, _, graph in signatures(program):
        for op in graph.operators:
            if operator(program, op) in _ROUNDED:
                tensor = graph.tensors[op.inputs[1]]
                if program.buffers[tensor.buffer].data is not None:
                    yield op, graph, tensor


def _recipe(program: Any, forms: Forms, half: bool) -> tuple[list[Any], dict[str, Scheme]]:
    """The quantizer's recipe, and of each constant that it rounds the scheme, by the constant's name."""
    from ai_edge_quantizer.qtyping import TFLOperationName as Name
    from ai_edge_quantizer.recipe_manager import RecipeManager

    shared = {
        tensor.buffer: forms[tensor.name.decode()]
        for _, _, tensor in products(program)
        if tensor.name.decode() in forms
    }
    scopes: dict[tuple[str, Scheme | str], list[str]] = {}
    wanted: dict[str, Scheme] = {}
    for op, graph, tensor in products(program):
        kind, name = operator(program, op), tensor.name.decode()
        lookup = kind == "EMBEDDING_LOOKUP"
        usual: Scheme | str | None = None if not lookup or ROTARY in name else HALF if half else _TABLE
        form = shared.get(tensor.buffer, usual)
        if form is None:
            continue
        if lookup and isinstance(form, Scheme):
            form = _TABLE
        output = graph.tensors[op.outputs[0]].name.decode()
        scopes.setdefault((kind, form), []).append(output)
        if isinstance(form, Scheme):
            wanted[name] = form
    recipes = RecipeManager()
    for (kind, form), outputs in scopes.items():
        scope = f"^(?:{'|'.join(map(re.escape, outputs))});?$"
        _add(recipes, scope, Name(kind), form)
    return recipes.get_quantization_recipe(), wanted


def _add(recipes: Any, scope: str, kind: Any, form: Scheme | str) -> None:
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import QuantGranularity

    if isinstance(form, str):
        recipes.add_weight_only_config(scope, kind, 16, algorithm_key=AlgorithmName.FLOAT_CASTING)
    elif form.input == "static":
        recipes.add_static_config(scope, kind, 8, 8)
    else:
        channels = QuantGranularity.CHANNELWISE
        granularity = channels if form.group is None else QuantGranularity[f"BLOCKWISE_{form.group}"]
        # A table is looked up as it is stored: nothing is made float before.
        dynamic = form.input == "dynamic" or kind.value == "EMBEDDING_LOOKUP"
        add = recipes.add_dynamic_config if dynamic else recipes.add_weight_only_config
        add(scope, kind, form.bits, granularity)


def _observed(program: Any, forms: Forms, ranges: Ranges) -> dict[str, dict[str, Any]]:
    """The range of each tensor that a static product reads or writes, in the words of the quantizer's calibration."""
    read: dict[str, Range] = {}
    made: dict[str, Range] = {}
    for op, graph, tensor in products(program):
        form = forms.get(tensor.name.decode())
        if not isinstance(form, Scheme) or form.input != "static":
            continue
        assert form.range is not None
        module = module_of(tensor.name.decode())
        source, result = (graph.tensors[index].name.decode() for index in (op.inputs[0], op.outputs[0]))
        if read.setdefault(source, form.range) != form.range:
            raise BuildError(f"the policy: {module} reads what other layers read, with another range; give them one")
        made[result] = ranges[module]
    # Where a layer reads what another one made, the reader's range is that of both.
    return {
        name: {"min": np.array([[low]], np.float32), "max": np.array([[high]], np.float32)}
        for name, (low, high) in (made | read).items()
    }


@contextmanager
def _own_rounding(wanted: Mapping[str, Scheme]) -> Iterator[None]:
    """Lets the quantizer's registry take this project's rounding of weights and ranges, and gives it its own back."""
    from ai_edge_quantizer import algorithm_manager as manager
    from ai_edge_quantizer.algorithms.uniform_quantize import common_quantize, naive_min_max_quantize
    from ai_edge_quantizer.qtyping import TFLOperationName as Name

    materialize = {
        Name.FULLY_CONNECTED: common_quantize.materialize_fc_conv,
        Name.CONV_2D: common_quantize.materialize_fc_conv,
        Name.DEPTHWISE_CONV_2D: common_quantize.materialize_fc_conv,
        Name.EMBEDDING_LOOKUP: common_quantize.materialize_embedding_lookup,
    }

    def register(rounding: Any) -> None:
        for name, function in materialize.items():
            manager.register_quantized_op(
                manager.AlgorithmName.MIN_MAX_UNIFORM_QUANT,
                name,
                naive_min_max_quantize.init_qsvs,
                calibration_func=naive_min_max_quantize.min_max_calibrate,
                materialize_func=partial(function, rounding),
            )

    register(_rounding)
    try:
        yield
    finally:
        register(naive_min_max_quantize.get_tensor_quant_params)


def _rounding(op_info: Any, config: Any, content: Any = None, observed: Any = None) -> Any:
    """A tensor's parameters, as the quantizer asks for them: of a weight with its codes, else of a range."""
    from ai_edge_quantizer.algorithms.uniform_quantize import uniform_quantize_tensor
    from ai_edge_quantizer.algorithms.utils.common_utils import get_weight_quantized_dim
    from ai_edge_quantizer.qtyping import UniformQuantParams

    if content is None:
        low, high = float(observed["min"].item()), float(observed["max"].item())
        step, zero, lowest, _ = input_grid(Scheme(weight="int8", group=None, input="static", range=(low, high)))
        # Codes are int8 in this format: those of an asymmetric range, uint8 elsewhere, all lie 128 lower.
        zero -= 0 if lowest < 0 else 128
        return UniformQuantParams(
            8, None, np.array([step], np.float32), np.array([zero], np.int64), symmetric=lowest < 0
        )
    import torch

    axis = get_weight_quantized_dim(op_info, content, config.granularity)
    group = uniform_quantize_tensor.extract_block_size_from_granularity(config.granularity) or None
    scheme = Scheme(weight="int8" if config.num_bits == 8 else "int4", group=group)
    outputs = 0 if group else axis  # of a product [N, K]; of a convolution by channel it is the last
    turned = np.moveaxis(np.asarray(content, np.float32), outputs, 0)
    weight = torch.from_numpy(turned.reshape(len(turned), -1).copy())
    codes = quantized(weight, scheme)
    if group is not None:
        # XNNPACK's scales of blocks are bfloat16: the codes are found for what is stored.
        scales = codes.scales.bfloat16().float()
        codes = coded(weight.reshape(len(weight), -1, group), scales, codes.zeros.float(), scheme)
    sizes = [1] * content.ndim
    sizes[outputs] = -1
    scale = codes.scales.numpy() if group else codes.scales.numpy().reshape(sizes)
    stored = np.moveaxis(codes.codes.numpy().reshape(turned.shape), 0, outputs)
    return UniformQuantParams(
        config.num_bits,
        axis,
        scale.astype(np.float32),
        np.zeros(scale.shape, np.int64),
        quantized_data=np.ascontiguousarray(stored).astype(np.int8),
        block_size=group or 0,
    )

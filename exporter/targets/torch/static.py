"""PyTorch's own static int8: torchao's PT2E with the x86 quantizer, one linear layer at a time, by the policy's ranges.

    export   torch.export of the layer -> prepare_pt2e(X86InductorQuantizer) -> convert_pt2e -> its codes and scales
    open     the model's own code, with oneDNN's integer linear operator in the place of those layers

Layer by layer, because of what torchao 0.18 does with a whole model: the quantizer raises IndexError on BERT's graph,
and the lowering to x86 finds its patterns at inputs [rows, K] only: with [batch, T, K] every layer stays in float,
and nothing is said. It fixes the batch and the length, too. What it makes of a layer with [rows, K] is one call of
onednn.qlinear_pointwise; that call is made here, in transformers' own code: with its KV cache, at any batch and length,
and without a compiler, so that opening takes seconds.

The artifact is config.json, the tokenizer, policy.yaml and int8-static.safetensors, which has the layers' int8 weights
and scales and everything else in float32. A .pt2 archive is no choice: torch.export.load unpickles parts of it.
transformers alone cannot open the folder, and says so: it looks for model.safetensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from exporter.checkpoint.linear import linear_layers, weight_of
from exporter.errors import BuildError, JobError, unknown
from exporter.quantization.grid import input_codes, input_grid, quantized
from exporter.quantization.policy import FLOAT, Policy, read_policy
from exporter.scheme import Scheme
from exporter.types import Exported

WEIGHTS, POLICY = "int8-static.safetensors", "policy.yaml"
_NAMED = 8  # layers in float that a note names; of more it says how many


def _convolves(module: Any) -> bool:
    import torch

    return isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d)


def export_static(model: Any, policy: Mapping[str, Scheme | None] | None, folder: Path) -> Exported:
    """Quantizes a float32 model's layers in place and writes it. Raises JobError for a scheme that cannot be had."""
    from safetensors.torch import save_model

    layers = linear_layers(model)
    static = _static(policy, layers)
    check_kernels()
    sizes = {name: layer.weight.numel() for name, layer in layers.items()}
    for name, scheme in static.items():
        model.set_submodule(name, static_linear(layers[name], scheme))
    save_model(model, str(folder / WEIGHTS))
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    modules = {name: static.get(name) or FLOAT for name in layers}
    (folder / POLICY).write_text(Policy(modules=modules).to_yaml(), encoding="utf-8")
    left = [name for name in layers if name not in static]
    share = sum(sizes[name] for name in static) / sum(sizes.values())
    notes = [f"{share:.1%} of the linear layers' multiplications in int8"]
    if left:
        more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
        notes.append(f"{len(left)} of {len(layers)} linear layers in float: {', '.join(left[:_NAMED])}{more}")
    convolved = {id(one) for module in model.modules() if _convolves(module) for one in module.parameters()}
    if stacks := [one for one in model.parameters() if one.dim() > 2 and id(one) not in convolved]:
        notes.append(f"experts in float, beside those layers: {len(stacks)} stacks of matrices")
    return Exported((WEIGHTS, POLICY), tuple(notes))


def cannot_express(precision: str, scheme: Scheme) -> str | None:
    """Why a precision cannot give a layer a scheme, with what it can; None where it can. Ranges are not looked at.

    Weights that are rounded beside a float input are kept in float: their rounded values are float32 numbers too.
    """
    if precision != "int8-static":
        return f"torch:{precision} takes no policy; torch:int8-static does"
    whole = scheme.weight == "int8" and scheme.group is None and scheme.symmetric
    if scheme.input == "float" or (scheme.input == "static" and whole):
        return None
    return (
        f"torch:int8-static cannot express {scheme}; PyTorch's x86 quantizer has int8 weights per channel, symmetric, "
        "with a static input; float"
    )


def load_static(model: Any, folder: Path) -> int:
    """Fills a model of the artifact's class, whose weights are empty; returns how many of its layers are int8.

    Raises BuildError where this machine has no integer kernels, JobError for a policy.yaml that is damaged, and what
    safetensors raises.
    """
    import torch
    from safetensors.torch import load_model

    check_kernels()
    layers = linear_layers(model)
    static = _static(read_policy(folder / POLICY).resolved(layers), layers)
    for name, scheme in static.items():
        outputs, inputs = weight_of(layers[name]).shape
        weight = torch.empty(outputs, inputs, dtype=torch.int8)
        model.set_submodule(name, int8_linear()(weight, torch.empty(outputs), layers[name].bias, scheme))
    load_model(model, folder / WEIGHTS)
    for name in static:
        model.get_submodule(name).pack()
    return len(static)


def converted(layer: Any, scheme: Scheme) -> Any:
    """What PT2E makes of a layer alone: the graph module input [2, K] -> q -> dq -> linear of the dequantized weight.

    Its observers are the policy's range and the grid's scales, and its weight is on the grid before: the codes that
    were simulated are the codes that come out.
    """
    import torch

    with warnings.catch_warnings():
        # Of torch itself, when inductor is imported: a module of TorchScript's, which torch deprecates.
        warnings.filterwarnings("ignore", r"`torch\.jit\.script_method` is deprecated", DeprecationWarning)
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import DerivedQuantizationSpec, FixedQParamsQuantizationSpec
        from torchao.quantization.pt2e.quantizer.utils import QuantizationConfig
        from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import X86InductorQuantizer

    codes = quantized(weight_of(layer).detach(), scheme)
    outputs, inputs = weight_of(layer).shape
    linear = torch.nn.Linear(inputs, outputs, bias=layer.bias is not None).eval().requires_grad_(False)
    linear.weight.copy_(codes.floats())
    if layer.bias is not None:
        linear.bias.copy_(layer.bias.detach())
    step, zero, low, high = unsigned_grid(scheme)
    scales = codes.scales[:, 0].contiguous()
    activation = FixedQParamsQuantizationSpec(torch.uint8, step, zero, low, high, torch.per_tensor_affine)
    weight = DerivedQuantizationSpec(
        [], lambda _: (scales, torch.zeros(outputs, dtype=torch.int64)), torch.int8, -127, 127,
        torch.per_channel_symmetric, ch_axis=0,
    )  # fmt: skip
    quantizer = X86InductorQuantizer().set_global(QuantizationConfig(activation, None, weight, None))
    program = torch.export.export(linear, (torch.zeros(2, inputs),))
    return convert_pt2e(prepare_pt2e(program.module(), quantizer))


def static_linear(layer: Any, scheme: Scheme) -> Any:
    """The int8 module that takes a layer's place, before it is packed to run."""
    return int8_linear()(*_codes(converted(layer, scheme)), layer.bias, scheme)


def unsigned_grid(scheme: Scheme) -> tuple[float, int, int, int]:
    """grid.input_grid in uint8, which is what the x86 kernels multiply: a symmetric one is shifted by 128."""
    step, zero, low, high = input_grid(scheme)
    shift = 128 if scheme.symmetric_input else 0
    return step, zero + shift, low + shift, high + shift


@cache
def check_kernels() -> None:
    """Raises BuildError where this machine cannot multiply int8 exactly.

    x86 without VNNI adds two products in 16 bits, which overflow; torchao halves the inputs' range there, and then the
    numbers would not be the policy's.
    """
    import torch

    weight = torch.full((16, 64), 127, dtype=torch.int8)
    full = Scheme(weight="int8", group=None, input="static", range=(0.0, 255.0))
    try:
        layer = int8_linear()(weight, torch.ones(16), None, full)
        layer.pack()
        exact = bool((layer(torch.full((2, 64), 255.0)) == 255 * 127 * 64).all())
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        [first, *_] = str(error).splitlines()
        raise BuildError(
            f"torch:int8-static needs oneDNN's int8 operators, and this PyTorch has none: {first}"
        ) from error
    if not exact:
        raise BuildError(
            "torch:int8-static needs a CPU with VNNI: this one's int8 sums overflow; use torch:int8-dynamic"
        )


@cache
def int8_linear() -> Any:
    """The module's class that stands in a linear layer's place: made here, because torch is imported here."""
    import torch

    class Int8Linear(torch.nn.Module):
        """`weight` int8 [N, K] and `scales` float32 [N]; in float32 [..., K], out float32 [..., N]. First `pack()`."""

        def __init__(self, weight: torch.Tensor, scales: torch.Tensor, bias: Any, scheme: Scheme) -> None:
            super().__init__()
            self.register_buffer("weight", weight)
            self.register_buffer("scales", scales)
            self.bias = bias
            self._grid = unsigned_grid(scheme)

        def pack(self) -> None:
            """Brings the weight into the order that the kernel reads; there is no second copy of it afterwards."""
            weight = self.get_buffer("weight")
            self.outputs, self.inputs = weight.shape
            self.packed = torch.ops.onednn.qlinear_prepack(weight, None)
            self.zeros = torch.zeros(len(weight), dtype=torch.int64)
            self.weight = None

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            step, zero, *_ = self._grid
            codes = input_codes(inputs.reshape(-1, self.inputs), *self._grid).to(torch.uint8)
            # The output in float32 (scale 1, zero point 0), and no activation function fused.
            sums: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
                codes,
                step,
                zero,
                self.packed,
                self.scales,
                self.zeros,
                self.bias,
                1.0,
                0,
                torch.float32,
                "none",
                [],
                "",
            )
            return sums.reshape(*inputs.shape[:-1], self.outputs)

    return Int8Linear


def _static(policy: Mapping[str, Scheme | None] | None, layers: Iterable[str]) -> dict[str, Scheme]:
    """The layers that are multiplied in int8. Raises JobError for a policy that cannot be had."""
    if policy is None:
        raise JobError("torch:int8-static needs the ranges of the layers' inputs: give --policy FILE")
    for name in policy:
        if name not in layers:
            raise JobError(f"torch:int8-static: the policy: {unknown('module', name, layers)}")
    chosen = {name: scheme for name, scheme in policy.items() if scheme is not None and scheme.input == "static"}
    if not chosen:
        raise JobError("torch:int8-static: no layer has 'input: static' in the policy; add some, or use torch:bf16")
    for name, scheme in chosen.items():
        if scheme.range is None:
            raise JobError(f"torch:int8-static: {name} has a static input without a range; add range: [low, high]")
        if (reason := cannot_express("int8-static", scheme)) is not None:
            raise JobError(f"the policy: {name}: {reason}")
    return chosen


def _codes(graph: Any) -> tuple[Any, Any]:
    """The int8 weight [N, K] and the scales [N] in a converted graph."""
    import torch

    wanted = torch.ops.quantized_decomposed.dequantize_per_channel.default
    [node] = [node for node in graph.graph.nodes if node.target == wanted]
    weight, scales = (getattr(graph, argument.target) for argument in node.args[:2])
    return weight, scales

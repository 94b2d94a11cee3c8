"""A model that reads pictures, loaded so that it can be traced: what scales a layer's outputs is in its weights.

A batch normalization behind a convolution and ConvNeXt's layer scale are multiplied into the weights before them: each
converter would do it in its own way, or leave a product of constants to each call, and no constant would be a layer's
weight any more. A scale of an output channel moves no code of a weight that is rounded per channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.processor import picture_shape, read_processor
from exporter.errors import BuildError
from exporter.form import FORMS, PIXELS
from exporter.targets.traced_model.wrapped import load_for_trace
from exporter.types import Checkpoint

if TYPE_CHECKING:
    import torch

_ROUNDING = 1e-4  # of the largest answer: float32's, of another order of products


@dataclass(frozen=True)
class Pictures:
    """A model of pictures. `module` takes pixel_values float32 [B, *shape] alone.

    It returns the `output`, logits or last_hidden_state, [B, *answer]: classes, or [P, H], or [H, height, width].
    """

    module: torch.nn.Module
    model: Any
    shape: tuple[int, int, int]
    output: str
    answer: tuple[int, ...]


def wrap_pictures(checkpoint: Checkpoint, way: str) -> Pictures:
    """A checkpoint's model of pictures that attends in a `way` of attention.py. Raises BuildError."""
    import torch

    form = FORMS[checkpoint.task]
    [output] = form.outputs
    shape = picture_shape(read_processor(checkpoint.path, checkpoint.trust_remote_code))
    model = load_for_trace(checkpoint, way)

    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrapped = model

        def forward(self, pixel_values: Any) -> Any:
            return getattr(self.wrapped(**{PIXELS: pixel_values}, return_dict=True), output)

    module = Wrapper().eval()
    sample = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = module(sample)
        fold_scales(model, sample)
        got = module(sample)
    if not float((got - expected).abs().max()) <= _ROUNDING * max(1.0, float(expected.abs().max())):
        raise BuildError(f"{type(model).__name__} cannot be exported: its normalizations do not go into its weights")
    return Pictures(module, model, shape, output, tuple(got.shape[1:]))


def fold_scales(model: Any, sample: torch.Tensor) -> None:
    """Multiplies what scales the outputs of layers into their weights; what it finds on a sample is in order."""
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    made: dict[int, tuple[Any, torch.Tensor]] = {}  # by the tensor, which is kept: another would get its number
    pairs: dict[str, Any] = {}

    def convolved(module: Any, _: Any, output: torch.Tensor) -> None:
        made[id(output)] = (module, output)

    def normalized(name: str) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            if id(inputs[0]) in made:
                pairs[name] = made[id(inputs[0])][0]

        return hook

    hooks = [one.register_forward_hook(convolved) for one in model.modules() if isinstance(one, torch.nn.Conv2d)]
    hooks += [
        one.register_forward_pre_hook(normalized(name))
        for name, one in model.named_modules()
        if isinstance(one, torch.nn.BatchNorm2d) and one.track_running_stats
    ]
    model(**{PIXELS: sample})
    for one in hooks:
        one.remove()
    for name, layer in pairs.items():
        norm = model.get_submodule(name)
        held = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        layer.weight, layer.bias = fuse_conv_bn_weights(layer.weight, layer.bias, *held)
        model.set_submodule(name, torch.nn.Identity())
    for module in model.modules():
        scale = getattr(module, "layer_scale_parameter", None)
        if scale is not None and hasattr(module, "pwconv2"):
            module.pwconv2.weight *= scale[:, None]
            module.pwconv2.bias *= scale
            scale.fill_(1.0)

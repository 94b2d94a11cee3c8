"""What rounding each layer would cost, estimated from gradients instead of a simulation of each.

The loss is a divergence of the model from itself: it and its gradient are 0 where nothing is rounded, and its second
derivative is the Fisher information. Of a layer whose output z_t changes by d_t at token t,

    loss = 1/2 mean over answers of E (g_t . d_t)^2,    g_t = gradient of log p(y) by z_t,    y drawn from the model,

summed over tokens where each token is answered; of a text that is answered once, its tokens' g . d are added before the
square. d_t is what the layer makes of its own input with rounded weights, and a rounded input where its scheme rounds
one. Martens (arXiv:1412.1193) on the Fisher; HAWQ-V2 (arXiv:1911.03852) ranks by the trace of the weights' Hessian,
which is blind to rounded inputs and to how an error lies.

Of 1 - cosine, y is a random direction. An error of a number is of first order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from exporter.progress import Counted, counting
from exporter.types import FEATURES, MULTI_LABEL, REGRESSION

if TYPE_CHECKING:
    from torch import Tensor

_DRAWS = 64  # in all, of texts that are answered as wholes; of each token that is answered there is one
_SEED = 0
Loss = tuple[float, dict[str, float]]  # of a group of layers, and of each of its layers alone


def estimated(
    answers: Sequence[Callable[[], Tensor]],
    groups: Sequence[Sequence[str]],
    modules: Mapping[str, Any],
    rounding: Callable[[Sequence[str]], AbstractContextManager[None]],
    draw: Callable[[Tensor, Any], Tensor],
    each: bool,
    progress: Counted,
    backwards: Counted,
) -> list[Loss]:
    """The losses of groups of layers that read one input.

    `answers` run a model on a window each, as exporter.quantization.distance is given it; within `rounding` of some
    layers these compute as their schemes say; `draw` is the log p of an answer that is drawn. `each`: tokens are told
    apart. Their errors are taken for independent then, and one draw of each is enough: of a decoder, whose tokens are
    answered from what stands before them, that is near. Where all tokens see all, errors that are alike add up.
    `progress` is told groups, `backwards` answers whose gradients are known.
    """
    import torch

    with torch.no_grad():
        fed = [_fed(modules, answer) for answer in answers]
        changes: dict[str, list[list[Tensor]]] = {}
        for names in counting(groups, progress):
            before = {name: _answered(modules[name], name, fed) for name in names}
            with rounding(names):
                after = {name: _answered(modules[name], name, fed) for name in names}
            for name in names:
                pairs = zip(before[name], after[name], strict=True)
                changes[name] = [[b - a for a, b in zip(*both, strict=True)] for both in pairs]
        del fed
    total: dict[tuple[int, str], float] = {}
    generator, count = torch.Generator().manual_seed(_SEED), 0
    draws = 1 if each else max(_DRAWS // len(answers), 1)
    for piece, answer in enumerate(counting(answers, backwards)):
        with torch.enable_grad(), _leaves(modules) as leaves:
            out = answer()
        count += len(out)
        flat = [leaf for several in leaves.values() for leaf in several]
        for number in range(draws):
            told = draw(out, generator)
            found = iter(torch.autograd.grad(told, flat, retain_graph=number + 1 < draws, allow_unused=True))
            gradients = {name: [next(found) for _ in several] for name, several in leaves.items()}
            for at, names in enumerate(groups):
                rows = {name: _projected(changes[name][piece], gradients.get(name, []), each) for name in names}
                for name, some in (*rows.items(), ("", _together(list(rows.values())))):
                    square = sum(float(one.double().square().sum()) for one in some) / 2
                    total[at, name] = total.get((at, name), 0.0) + square / draws
    return [
        (total[at, ""] / count, {name: total[at, name] / count for name in names}) for at, names in enumerate(groups)
    ]


def drawing(kind: str, scale: Tensor | None) -> Callable[[Tensor, Any], Tensor]:
    """`draw` of a kind of distance; `scale`: what the error of a number is divided by."""
    import torch

    def draw(out: Tensor, generator: Any) -> Tensor:
        if kind == FEATURES:
            unit = torch.nn.functional.normalize(out, dim=-1)
            return (unit * torch.randn(unit.shape, generator=generator)).sum()
        if kind == REGRESSION:
            assert scale is not None
            number: Tensor = (out / scale * torch.randn(out.shape, generator=generator)).sum() / out.shape[-1] ** 0.5
            return number
        if kind == MULTI_LABEL:  # whose loss is the mean over the labels
            yes = torch.bernoulli(out.detach().sigmoid(), generator=generator)
            likely: Tensor = torch.nn.functional.logsigmoid(torch.where(yes > 0, out, -out))
            several: Tensor = likely.sum() / out.shape[-1] ** 0.5
            return several
        drawn = torch.multinomial(out.detach().softmax(-1), 1, generator=generator)
        told: Tensor = out.log_softmax(-1).gather(-1, drawn).sum()
        return told

    return draw


def _answered(module: Any, name: str, fed: Sequence[Mapping[str, list[Tensor]]]) -> list[list[Tensor]]:
    """What a layer makes of what it was fed, of each piece and each time that it ran."""
    return [[module(one) for one in piece.get(name, [])] for piece in fed]


def _projected(changes: Sequence[Tensor], gradients: Sequence[Tensor | None], each: bool) -> list[Tensor]:
    """g . d of each row, or of all rows together."""
    products = [one * other for one, other in zip(changes, gradients, strict=True) if other is not None]
    if each:
        return [one.flatten(0, -2).sum(-1) for one in products]
    return [sum((one.sum() for one in products[1:]), products[0].sum())[None]] if products else []


def _together(layers: Sequence[list[Tensor]]) -> list[Tensor]:
    """Of layers that are fed the same rows: the sums; of experts, each of which is fed its own, all of them."""
    flat = [one for layer in layers for one in layer]
    if len({len(one) for one in flat}) == 1 and len({len(layer) for layer in layers}) == 1:
        return [sum(some[1:], some[0]) for some in zip(*layers, strict=True)]
    return flat


def _fed(modules: Mapping[str, Any], answer: Callable[[], Tensor]) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = {}

    def seen(name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        return lambda module, inputs: found.setdefault(name, []).append(inputs[0])

    hooks = [module.register_forward_pre_hook(seen(name)) for name, module in modules.items()]
    try:
        answer()
    finally:
        for hook in hooks:
            hook.remove()
    return found


@contextmanager
def _leaves(modules: Mapping[str, Any]) -> Iterator[dict[str, list[Any]]]:
    """Within the block zeros are added to what each layer answers: their gradients are its answers'."""
    import torch

    leaves: dict[str, list[Any]] = {}

    def added(name: str) -> Callable[[Any, tuple[Any, ...], Any], Any]:
        def hook(module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
            leaves.setdefault(name, []).append(torch.zeros_like(output, requires_grad=True))
            return output + leaves[name][-1]

        return hook

    hooks = [module.register_forward_hook(added(name)) for name, module in modules.items()]
    try:
        yield leaves
    finally:
        for hook in hooks:
            hook.remove()

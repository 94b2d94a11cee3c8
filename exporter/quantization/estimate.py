"""What rounding each layer would cost, estimated from gradients instead of a simulation of each.

The loss is a divergence of the model from itself: it and its gradient are 0 where nothing is rounded, and its second
derivative is the Fisher information. Of a layer whose output z_t changes by d_t at token t,

    loss = 1/2 mean over answers of E (g_t . d_t)^2,    g_t = gradient of log p(y) by z_t,    y drawn from the model,

summed over tokens where each token is answered; of a text that is answered once, its tokens' g . d are added before the
square. d_t is what the layer makes of its own input with rounded weights, and a rounded input where its scheme rounds
one. Martens (arXiv:1412.1193) on the Fisher; HAWQ-V2 (arXiv:1911.03852) ranks by the trace of the weights' Hessian,
which is blind to rounded inputs and to how an error lies.

Of 1 - cosine, y is a random direction; the error of a number is of first order, and is not drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from exporter.scheme import Scheme
from exporter.types import FEATURES, MULTI_LABEL, REGRESSION

if TYPE_CHECKING:
    from torch import Tensor

_DRAWS = 64  # in all: of a model that answers a text once, several for each
_SEED = 0


class Gradients:
    """Of some windows: what each layer was fed, and the gradients of draws by what it answered.

    `kind` as in exporter.quantization.distance; `scale`: what the error of a number is divided by, [1] or [C].
    """

    def __init__(self, kind: str, modules: Mapping[str, Any], scale: Tensor | None = None) -> None:
        self._kind, self._modules, self._scale = kind, modules, scale
        self._pieces: list[_Piece] = []

    def take(self, answers: Sequence[Callable[[], Tensor]], tokens: int) -> None:
        """A forward pass for each of `answers`, which runs a window of so many tokens as Distance is given it."""
        import torch

        generator = torch.Generator().manual_seed(_SEED)
        for answer in answers:
            with torch.enable_grad(), _watched(self._modules) as (fed, leaves):
                out = answer()
            each = len(out) == tokens and self._kind not in (FEATURES, REGRESSION)
            draws = 1 if each or self._kind == REGRESSION else max(_DRAWS // len(answers), 1)
            flat = [leaf for several in leaves.values() for leaf in several]
            drawn = []
            for number in range(draws):
                told = self._draw(out, generator)
                found = torch.autograd.grad(told, flat, retain_graph=number + 1 < draws, allow_unused=True)
                drawn.append(iter(found))
            by_name = {name: [[next(one) for one in drawn] for _ in several] for name, several in leaves.items()}
            self._pieces.append(_Piece(fed, by_name, len(out), each))

    def _draw(self, out: Tensor, generator: Any) -> Tensor:
        """log p of answers that are drawn from the model's own, or what takes its place."""
        import torch

        if self._kind == FEATURES:
            unit = torch.nn.functional.normalize(out, dim=-1)
            return (unit * torch.randn(unit.shape, generator=generator)).sum()
        if self._kind == REGRESSION:
            return (out / self._scale).sum()
        if self._kind == MULTI_LABEL:
            yes = torch.bernoulli(out.detach().sigmoid(), generator=generator)
            return torch.nn.functional.logsigmoid(torch.where(yes > 0, out, -out)).sum()
        drawn = torch.multinomial(out.detach().softmax(-1), 1, generator=generator)
        return out.log_softmax(-1).gather(-1, drawn).sum()

    def losses(
        self,
        groups: Sequence[Sequence[str]],
        schemes: Mapping[str, Scheme | None],
        weights: Mapping[str, Tensor],
        simulated: Callable[..., AbstractContextManager[None]],
        progress: Callable[[int, int], None],
    ) -> list[tuple[float, dict[str, float]]]:
        """Of each group, whose layers read one input: its loss, and that of each of its layers alone.

        `simulated` is exporter.quantization.simulation's of the model, which is given schemes and `weights`.
        """
        import torch

        found = []
        for done, names in enumerate(groups):
            with torch.no_grad():
                before = {name: self._answers(name) for name in names}
                with simulated(schemes={name: schemes[name] for name in names}, weights=weights):
                    after = {name: self._answers(name) for name in names}
            told = {
                name: [
                    piece.projected(name, [one - other for one, other in zip(new, old, strict=True)])
                    for piece, new, old in zip(self._pieces, after[name], before[name], strict=True)
                ]
                for name in names
            }
            found.append((self._loss(list(told.values())), {name: self._loss([one]) for name, one in told.items()}))
            progress(done + 1, len(groups))
        return found

    def _answers(self, name: str) -> list[list[Tensor]]:
        """What a layer makes of what it was fed, of each piece."""
        return [[self._modules[name](fed) for fed in piece.fed.get(name, [])] for piece in self._pieces]

    def _loss(self, layers: Sequence[list[list[Tensor]]]) -> float:
        total, answers = 0.0, 0
        for number, piece in enumerate(self._pieces):
            answers += piece.answers
            told = [layer[number] for layer in layers]
            total += piece.answers * piece.loss(told, self._kind == REGRESSION)
        return total / answers


class _Piece:
    """One window's: inputs of each layer, a list where it runs several times, and as many gradients of each draw."""

    def __init__(self, fed: Any, drawn: Mapping[str, list[list[Any]]], answers: int, each: bool) -> None:
        self.fed, self._drawn, self.answers, self._each = fed, drawn, answers, each

    def projected(self, name: str, changes: Sequence[Tensor]) -> list[Tensor]:
        import torch

        if not changes:
            return []
        found = []
        for draw in range(len(self._drawn[name][0])):
            rows = []
            for change, gradients in zip(changes, self._drawn[name], strict=True):
                gradient = gradients[draw]
                product = torch.zeros_like(change) if gradient is None else change * gradient
                rows.append(product.flatten(0, -2).sum(-1) if self._each else product.sum()[None])
            found.append(torch.cat(rows) if self._each else torch.stack(rows).sum(0))
        return found

    def loss(self, layers: Sequence[list[Tensor]], first_order: bool) -> float:
        """The mean over its answers; rows that agree in number are one token's, and their changes are added."""
        told = [layer for layer in layers if layer]
        if not told:
            return 0.0
        draws = []
        for of_draw in zip(*told, strict=True):
            alike = len({len(one) for one in of_draw}) == 1
            parts = [sum(of_draw)] if alike else list(of_draw)
            draws.append(sum(float((one.abs() if first_order else one.double().square() / 2).sum()) for one in parts))
        return sum(draws) / len(draws) / self.answers


@contextmanager
def _watched(modules: Mapping[str, Any]) -> Iterator[tuple[dict[str, list[Any]], dict[str, list[Any]]]]:
    """Within the block: what each layer is fed, and zeros that are added to what it answers, whose gradients count."""
    import torch

    fed: dict[str, list[Any]] = {}
    leaves: dict[str, list[Any]] = {}

    def hook(name: str) -> Callable[[Any, tuple[Any, ...], Any], Any]:
        def seen(module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
            fed.setdefault(name, []).append(inputs[0].detach())
            leaf = torch.zeros_like(output, requires_grad=True)
            leaves.setdefault(name, []).append(leaf)
            return output + leaf

        return seen

    hooks = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield fed, leaves
    finally:
        for one in hooks:
            one.remove()

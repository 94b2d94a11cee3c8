"""What a policy would cost, measured: a float model against itself with some layers quantized in simulation.

The loss is what exporter.quantization.distance measures: the mean KL(float || quantized) over calibration tokens in
nats, and what takes its place for other tasks. None needs labels, and all see harm that perplexity on few tokens does
not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.experts import expert_layers
from exporter.checkpoint.linear import are_tokens, asked, shared_weights, weighted_layers
from exporter.form import FORMS
from exporter.progress import Counted, Step, counting, unwatched
from exporter.quantization.distance import Distance, kind_of, unit
from exporter.quantization.simulation import simulated
from exporter.quantization.statistics import watched
from exporter.scheme import Scheme
from exporter.types import REGRESSION

if TYPE_CHECKING:
    from torch import Tensor

_ANSWERS = 1 << 28  # bytes of float answers that are kept
_ESTIMATED_ON = 128  # tokens of a window: what a backward pass keeps of a billion parameters is then 0.5 GB
_SHORT = 64  # tokens of a piece that a classifier answers once: of whole windows there would be four answers


class LossMeter:
    """Measures schemes on a few windows. The model's blocks before the first quantized layer are not run again.

    `model`: float32, in eval mode, on `windows` int64 [windows, window] or pictures [n, C, H, W]. It answers as it did
    when the meter was made, unless weights are given: then it is a copy of the layers' weights that counts.
    `originals`: the layers' weights [N, K], which it then takes from there after each measurement instead of keeping
    them in memory beside the rounded. `rounds_outputs` as in simulation.simulated. `step` is told of all but single
    groups' losses, which are too many.
    """

    def __init__(
        self,
        model: Any,
        task: str,
        windows: Tensor,
        originals: Mapping[str, Tensor] | None = None,
        rounds_outputs: bool = False,
        step: Step = unwatched,
    ) -> None:
        self._model, self._task, self._originals, self._rounds_outputs = model, task, originals, rounds_outputs
        self.step, self._mixes = step, 0
        whole = FORMS[task].per_token or windows.ndim > 2  # a window, or a picture, is one piece
        self._pieces = 1 if whole else max(windows.shape[1] // _SHORT, 1)
        if self._pieces > 1:
            length = windows.shape[1] // self._pieces
            windows = windows[:, : self._pieces * length].reshape(-1, length)
        self._windows = windows[: max(_ANSWERS // (4 * windows.shape[1] * _width(model, task)), 1)]
        self._blocks = _blocks(model)
        self._kept: list[list[Any]] = []  # for each window, each block's output
        self.groups = input_groups(model, task, windows[0])
        self.stacked = frozenset(expert_layers(model))  # whose groups are not of one input, and stay together
        kind = kind_of(model.config, task)
        self.unit = unit(kind)
        told = counting(list(self._windows), step("answers in float"))
        self._distance = Distance(kind, [self._record(window) for window in told])
        self.tokens = self._windows.numel() if are_tokens(windows) else len(self._windows)
        if FORMS[task].encodes:  # half of them are sources
            self.tokens //= 2
        self._first = self._blocks_before()

    def loss(
        self,
        schemes: Mapping[str, Scheme | None],
        weights: Mapping[str, Tensor] | None = None,
        windows: int | None = None,
    ) -> float:
        """The loss of a model whose layers have these schemes; a layer that is not named stays in float.

        `weights`: rounded weights [N, K] in the place of the nearest ones, by name. `windows`: on so many alone.
        """
        import torch

        quantized = {name for name, scheme in schemes.items() if scheme is not None}
        if not quantized:
            return 0.0
        first = min(self._first[name] for name in quantized)
        total = 0.0
        measured = list(zip(self._windows, self._kept, strict=True))[: windows and windows * self._pieces]
        self._mixes += windows is None
        step = self.step if windows is None else unwatched
        rounding, simulating = (step(f"{what} mix {self._mixes}") for what in ("rounding", "simulating"))
        made = simulated(self._model, schemes, weights or {}, self._originals, self._rounds_outputs, rounding)
        with torch.inference_mode(), made:
            for number, (window, kept) in enumerate(counting(measured, simulating)):
                with _skipping(self._blocks[:first], kept):
                    total += self._distance(number, _outputs(self._model, self._task, window))
        return total / len(measured)

    def estimates(
        self,
        groups: Sequence[Sequence[str]],
        schemes: Mapping[str, Scheme | None],
        weights: Mapping[str, Tensor],
        progress: Counted,
    ) -> list[tuple[float, dict[str, float]]]:
        """Of each group the loss that its gradients foretell, and that of each of its layers alone."""
        from exporter.quantization.estimate import drawing, estimated

        def rounding(names: Sequence[str]) -> AbstractContextManager[None]:
            some = {name: schemes[name] for name in names}
            return simulated(self._model, some, weights, self._originals, self._rounds_outputs)

        form, kind = FORMS[self._task], kind_of(self._model.config, self._task)
        modules = {name: module for name, module in weighted_layers(self._model).items() if name in schemes}
        windows = self._windows[:, :_ESTIMATED_ON] if are_tokens(self._windows) else self._windows
        answers = [partial(_outputs, self._model, self._task, window) for window in windows]
        each = form.cached and not form.encodes
        with _no_gradients_of_weights(self._model):
            draw = drawing(kind, self._distance.scale)
            found = estimated(answers, groups, modules, rounding, draw, each, progress, self.step("gradients"))
        if kind != REGRESSION:
            return found
        return [((2 * loss) ** 0.5, {name: (2 * one) ** 0.5 for name, one in alone.items()}) for loss, alone in found]

    def _blocks_before(self) -> dict[str, int]:
        """How many blocks come before each layer: those need not run again when it is quantized."""
        names = {id(module): name for name, module in weighted_layers(self._model).items()}
        inside = {names[id(m)]: at for at, block in enumerate(self._blocks) for m in block.modules() if id(m) in names}
        shared = shared_weights(self._model)
        before: dict[str, int] = {}
        done = 0  # the head comes after all the blocks; a projection of the embeddings before them
        for name in (name for group in self.groups for name in group):
            before[name] = 0 if name in shared else inside.get(name, done)
            done = max(done, inside.get(name, -1) + 1)
        return before

    def _record(self, window: Tensor) -> Tensor:
        """The float model's answer; remembers what the blocks returned."""
        import torch

        outputs: list[Any] = []
        hooks = [block.register_forward_hook(lambda m, i, out: outputs.append(out)) for block in self._blocks]
        try:
            with torch.inference_mode():
                answer = _outputs(self._model, self._task, window)
        finally:
            for hook in hooks:
                hook.remove()
        self._kept.append(outputs)
        return answer


def input_groups(model: Any, task: str, window: Tensor) -> list[tuple[str, ...]]:
    """The linear layers that a window [tokens] feeds, in their order of execution; what reads one tensor together.

    The experts of a stack are one group, whether a token of the window chose them or not: there are hundreds, each is
    used by few tokens, and a checkpoint has them as one.
    """
    import torch

    inputs: list[Any] = []
    names: list[str] = []
    stacks = expert_layers(model)

    def arrived(name: str, tensor: Tensor) -> None:
        inputs.append(stacks.get(name, tensor))  # kept: a freed tensor's place could be another's
        names.append(name)

    with torch.inference_mode(), watched(weighted_layers(model), arrived):
        _outputs(model, task, window)
    return list(_sharing(names, inputs))


def _sharing(names: Sequence[str], inputs: Sequence[Any]) -> Iterator[tuple[str, ...]]:
    """The layers in their order of execution, those that read the same tensor together."""
    groups: dict[int, list[str]] = {}
    for name, tensor in zip(names, inputs, strict=True):
        members = groups.setdefault(id(tensor), [])
        if name not in members:  # a layer that runs twice, such as a shared one
            members.append(name)
    seen: set[str] = set()
    for members in groups.values():
        fresh = tuple(name for name in members if name not in seen)
        seen.update(fresh)
        if fresh:
            yield fresh


def _blocks(model: Any) -> list[Any]:
    """A transformer's layers: the list of like modules that holds most of the parameters; [] where there is none."""
    import torch

    lists = [
        one for one in model.modules() if isinstance(one, torch.nn.ModuleList) and len({type(x) for x in one}) == 1
    ]
    return list(max(lists, key=lambda one: sum(p.numel() for p in one.parameters()), default=[]))


@contextmanager
def _skipping(blocks: Sequence[Any], outputs: Sequence[Any]) -> Iterator[None]:
    """Within the block these modules return what they returned before, without computing."""
    try:
        for block, output in zip(blocks, outputs, strict=False):
            block.forward = lambda *arguments, _output=output, **options: _output
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


@contextmanager
def _no_gradients_of_weights(model: Any) -> Iterator[None]:
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


def _width(model: Any, task: str) -> int:
    return FORMS[task].width(model.config) if FORMS[task].answers == "vocabulary" else 1


def _outputs(model: Any, task: str, window: Tensor) -> Tensor:
    """Logits [T, V] or [T, C], or [1, C]; of an answer's two ends [2, T]; the mean hidden state [1, H]."""
    import torch

    form = FORMS[task]
    extra = {"use_cache": False} if form.cached else {}
    out = asked(model, window[None], **extra)
    found: list[Tensor] = [out[name] for name in form.outputs]
    if form.answers == "states":
        return found[0].mean(1) if found[0].dim() == 3 else found[0].mean((2, 3))
    if len(found) > 1:
        return torch.cat(found)
    return found[0].flatten(0, 1) if form.per_token else found[0]  # of all the pairs in a window

"""Which channels of a float model can be scaled without changing what the model computes.

Between some layers a channel may be divided by any positive factor where it is made and multiplied by the same factor
where it is read: a norm and the linear layers that read it, a gated feed-forward's up projection and its down
projection, the values of attention and its output projection (with grouped queries one factor for all the heads that
share a value channel), a feed-forward's first and second layer where ReLU lies between. SmoothQuant and AWQ choose the
factors; this file finds the places.

Nothing is taken from names of classes. Candidates come from one pass over a short window: which norm's output a linear
layer reads, which linear layers ran before one whose inputs they may be. Each is then proven with factors of 1/4 to 4:
every linear layer of the model must see what it saw before, and the model answer what it answered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.experts import expert_layers
from exporter.checkpoint.linear import are_tokens, asked, linear_layers, weight_of

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-4  # of the largest number of a layer's input, or of the model's answer
_TOKENS = 48  # of the window that proves: enough for every channel to differ from its neighbours
_BEFORE = 4  # linear layers ahead of one that are tried as the makers of its input: q, k, v and one more


@dataclass(frozen=True, eq=False)
class Fold:
    """Channels that `source` makes and `layers` read.

    `source` is a norm or a linear layer; its outputs from `first` on are the channels that have factors. `index`
    int64 [inputs]: which factor each input channel of the layers takes. `plus_one`: the norm multiplies by 1 + weight
    (Gemma's).
    """

    source: str
    layers: tuple[str, ...]
    index: Tensor
    first: int = 0
    plus_one: bool = False

    @property
    def channels(self) -> int:
        """How many factors it takes."""
        return int(self.index.max()) + 1

    def per_channel(self, inputs: Tensor) -> Tensor:
        """[inputs] numbers >= 0 of the layers' input channels to [channels]: the largest that share a factor."""
        return inputs.new_zeros(self.channels).scatter_reduce(0, self.index, inputs, "amax")


@dataclass
class Found:
    """The folds that are proven, in the order of execution, and why the other linear layers have none."""

    folds: list[Fold] = field(default_factory=list)
    without: dict[str, str] = field(default_factory=dict)


@dataclass
class _Pass:
    """What one forward pass showed: by name, in the order of execution."""

    inputs: dict[str, Tensor] = field(default_factory=dict)  # of linear layers
    norms: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # (input, output)
    answers: list[Tensor] = field(default_factory=list)


def fold(model: Any, one: Fold, factors: Tensor) -> None:
    """Divides what the source makes by `factors` [channels], float32 > 0, and multiplies where it is read, in place."""
    import torch

    source = model.get_submodule(one.source)
    linear = linear_layers(model)
    with torch.no_grad():
        if one.source in linear:
            rows = slice(one.first, one.first + one.channels)
            weight_of(source)[rows] /= factors[:, None]
            if source.bias is not None:
                source.bias[rows] /= factors
        else:
            _scale_norm(source, factors, one.plus_one)
        for name in one.layers:
            weight_of(linear[name]).mul_(factors[one.index])


def find_folds(model: Any, ids: Tensor) -> Found:
    """Finds and proves the folds of a float32 model in eval mode, on the first tokens of `ids` [windows, window].

    The model is as it was afterwards. Layers of the same names but for their numbers are proven together, and one by
    one only where that fails.
    """
    ids = ids[:1, :_TOKENS] if are_tokens(ids) else ids[:1]
    before = _observe(model, ids)
    found = Found()
    for candidates in _alike(_of_norms(model, before)):
        found.folds += _proven(model, ids, before, candidates)
    reached = {name for one in found.folds for name in one.layers}
    for candidates in _alike(_of_linear_layers(model, before, reached)):
        open_ones = [one for one in candidates if not reached.intersection(one.layers)]
        proven = _proven(model, ids, before, open_ones)
        found.folds += proven
        reached |= {name for one in proven for name in one.layers}
    order = {name: place for place, name in enumerate(before.inputs)}
    found.folds.sort(key=lambda one: order[one.layers[0]])
    for name in linear_layers(model):
        if name not in before.inputs:
            found.without[name] = "it did not run"
        elif name not in reached:
            found.without[name] = "its input cannot be scaled: no layer before it takes the factors"
    return found


def _observe(model: Any, ids: Tensor) -> _Pass:
    """Runs the model on ids, and keeps the inputs of its linear layers and norms, and its answer."""
    import torch

    seen, hooks = _Pass(), []
    linear = linear_layers(model)

    def keep_input(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[Any, ...]) -> None:
            if inputs[0].numel():  # an expert that no token chose did not run
                seen.inputs[name] = inputs[0]

        return hook

    def keep_norm(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
            seen.norms[name] = (inputs[0], output)

        return hook

    for name, module in model.named_modules():
        if name in linear:
            hooks.append(module.register_forward_pre_hook(keep_input(name)))
        elif _is_norm(module):
            hooks.append(module.register_forward_hook(keep_norm(name)))
    try:
        with torch.no_grad():
            answer = asked(model, ids)
    finally:
        for hook in hooks:
            hook.remove()
    # An encoder's states are what a pair of artifacts hands from one to the other, and what its users may take.
    states = getattr(answer, "encoder_last_hidden_state", None)
    seen.answers = [answer[0], *([] if states is None else [states])]
    return seen


def _is_norm(module: Any) -> bool:
    """Whether a module could be a norm: it holds one number for each channel and at most a bias beside it."""
    parameters = dict(module.named_parameters(recurse=False))
    vectors = all(parameter.dim() == 1 for parameter in parameters.values())
    return "weight" in parameters and parameters.keys() <= {"weight", "bias"} and vectors and not any(module.children())


def _scale_norm(norm: Any, factors: Tensor, plus_one: bool) -> None:
    norm.weight.copy_((1 + norm.weight) / factors - 1 if plus_one else norm.weight / factors)
    if getattr(norm, "bias", None) is not None:
        norm.bias /= factors


def _of_norms(model: Any, before: _Pass) -> list[Fold]:
    """Norms whose output linear layers read: the same memory, whatever views lie between."""
    import torch

    readers: dict[tuple[int, int], list[str]] = {}
    for name, inputs in before.inputs.items():
        readers.setdefault((inputs.data_ptr(), inputs.numel()), []).append(name)
    made = []
    for name, (inputs, output) in before.norms.items():
        layers = readers.get((output.data_ptr(), output.numel()))
        if layers is None:
            continue
        norm = model.get_submodule(name)
        index = torch.arange(output.shape[-1])
        made += [Fold(name, tuple(layers), index, plus_one=it) for it in (False, True) if _divides(norm, inputs, it)]
    return made


def _divides(norm: Any, inputs: Tensor, plus_one: bool) -> bool:
    """Whether a norm's output is divided when its weight is: which of the two ways of writing a norm it is."""
    import torch

    factors = _test_factors(norm.weight.shape[0])
    kept = [parameter.clone() for parameter in norm.parameters()]
    with torch.no_grad():
        expected = norm(inputs) / factors
        _scale_norm(norm, factors, plus_one)
        same = _same(norm(inputs), expected)
        for parameter, value in zip(norm.parameters(), kept, strict=True):
            parameter.copy_(value)
    return same


def _of_linear_layers(model: Any, before: _Pass, reached: set[str]) -> list[Fold]:
    """For each linear layer that no norm reaches: the last linear layers before it that could make its input."""
    import torch

    linear, experts = linear_layers(model), _experts(model)
    names = list(before.inputs)
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 1
    groups = getattr(config, "num_key_value_heads", None) or heads
    made = []
    for place, name in enumerate(names):
        if name in reached:
            continue
        inputs = weight_of(linear[name]).shape[1]
        indices = [torch.arange(inputs)]
        if groups < heads and inputs % heads == 0:
            indices.append(_shared(inputs, heads, groups))
        for source in reversed(names[max(place - _BEFORE, 0) : place]):
            if experts.get(source) != experts.get(name):
                continue
            outputs = len(weight_of(linear[source]))
            # A fused layer (q, k and v; gate and up) makes the values, or the gated half, last.
            offsets = [(index, outputs - int(index.max()) - 1) for index in indices]
            made += [Fold(source, (name,), index, first) for index, first in offsets if first >= 0]
    return made


def _experts(model: Any) -> dict[str, tuple[str, str]]:
    """The layers of experts, and which expert each is of: one never makes another's input."""
    layers = expert_layers(model).items()
    return {name: (stack.rpartition(".")[0], name.rpartition(".")[2]) for name, stack in layers}


def _shared(inputs: int, heads: int, groups: int) -> Tensor:
    """The value channel that each of the output projection's inputs takes when query heads share key-value heads."""
    import torch

    size = inputs // heads
    return torch.arange(groups * size).reshape(groups, 1, size).expand(-1, heads // groups, -1).reshape(-1)


def _alike(candidates: Iterable[Fold]) -> list[list[Fold]]:
    """Candidates of the same names but for their numbers, together."""
    kinds: dict[tuple[object, ...], list[Fold]] = {}
    for one in candidates:
        names = tuple(re.sub(r"\d+", "*", name) for name in (one.source, *one.layers))
        kinds.setdefault((*names, one.first, one.channels, one.plus_one), []).append(one)
    return list(kinds.values())


def _proven(model: Any, ids: Tensor, before: _Pass, candidates: Sequence[Fold]) -> list[Fold]:
    if not candidates or _holds(model, ids, before, candidates):
        return list(candidates)
    if len(candidates) == 1 or candidates[0].layers[0] in expert_layers(model):
        return []  # experts are all alike: of hundreds not one will hold where they do not hold together
    return [one for one in candidates if _holds(model, ids, before, [one])]


def _holds(model: Any, ids: Tensor, before: _Pass, folds: Sequence[Fold]) -> bool:
    """Whether the model computes what it did with these folds in it; they are undone again, to the last bit."""
    import torch

    scaled: dict[str, Tensor] = {}
    kept = []
    for one in folds:
        factors = _test_factors(one.channels)
        kept.append([parameter.detach().clone() for parameter in model.get_submodule(one.source).parameters()])
        fold(model, one, factors)
        scaled |= dict.fromkeys(one.layers, factors[one.index])
    after = _observe(model, ids)
    for one, values in reversed(list(zip(folds, kept, strict=True))):  # one's source may be another's reader
        fold(model, one, 1 / _test_factors(one.channels))  # powers of two: multiplied back exactly
        with torch.no_grad():
            for parameter, value in zip(model.get_submodule(one.source).parameters(), values, strict=True):
                parameter.copy_(value)
    return all(map(_same, after.answers, before.answers)) and all(
        name in after.inputs and _same(after.inputs[name] * scaled.get(name, 1.0), inputs)
        for name, inputs in before.inputs.items()
    )


def _test_factors(channels: int) -> Tensor:
    """1/4, 1/2, 2 or 4 for each channel, the same in every call; powers of two, which arithmetic undoes exactly."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.tensor([0.25, 0.5, 2.0, 4.0])[torch.randint(0, 4, (channels,), generator=generator)]


def _same(value: Tensor, expected: Tensor) -> bool:
    if value.shape != expected.shape:  # another number of tokens chose an expert
        return False
    return bool((value - expected).abs().max() <= TOLERANCE * expected.abs().max())

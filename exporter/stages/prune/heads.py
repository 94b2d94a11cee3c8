"""Fewer attention heads: whole groups go, a key-value head with the query heads that read it.

A group is worth the mean square of what it adds to the hidden state through its columns of the output projection, over
a text: what "Are Sixteen Heads Really Better than One?" (Michel et al. 2019, arXiv:1905.10650) asks of a head by
masking it, taken from the activations in one pass as Minitron does (Muralidharan et al. 2024, arXiv:2407.14679). A
head's own size stays, so a configuration must be able to say it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.linear import linear_layers, weight_of
from exporter.checkpoint.tokenizer import check_ids, rows_of
from exporter.errors import BuildError, JobError
from exporter.quantization.statistics import watched
from exporter.stages.prune.rebuilt import (
    PROVEN,
    answer,
    check_same,
    check_share,
    cut,
    parameters_of,
    ranked,
    rebuild,
    silenced,
    validate,
)

if TYPE_CHECKING:
    from torch import Tensor

_SEPARATE, _FUSED = ("q_proj", "k_proj", "v_proj"), ("qkv_proj",)
_OUTPUTS = ("o_proj", "dense", "out_proj")
_NORMS = ("q_norm", "k_norm", "q_layernorm", "k_layernorm")
_INSTEAD = "prune the width of its MLPs (--prune width:0.2) or its layers (--prune depth:N) instead"


@dataclass(frozen=True)
class _Heads:
    """`queries` query heads over `groups` key-value heads of `size` channels."""

    queries: int
    groups: int
    size: int

    def less(self, groups: int) -> _Heads:
        return _Heads(self.queries // self.groups * groups, groups, self.size)

    @property
    def rows(self) -> tuple[int, int, int]:
        """Channels of q, k and v."""
        return self.queries * self.size, self.groups * self.size, self.groups * self.size


@dataclass(frozen=True)
class _Attention:
    """An attention by the names of its layers: q, k and v, or the one that makes all three; and the output's."""

    makers: tuple[str, ...]
    output: str


def prune_heads(model: Any, share: float, windows: Tensor) -> dict[str, Any]:
    """Drops a share of the KV groups of each layer, least important first; changes the model and its config in place.

    `model`: float32, in eval mode; its modules are new ones afterwards. `windows` int64 [windows, window]: the text
    that shows what matters. Where the family's configuration takes only some numbers of heads (Llama: those that
    divide the hidden size), the next larger one stays.

    Returns plain data: before, after (groups a layer), heads_before, heads_after, head_dim, layers, dropped (of each
    layer, the groups' numbers), importance_dropped (likewise, the share of all importance), difference (from the old
    model with those heads silenced), parameters_before and _after, history (a line). Raises JobError for a share that
    drops none, BuildError for a family that cannot say a head's size or is not known.
    """
    check_share(share, "heads")
    heads, attentions = _attentions(model)
    after = heads.less(_kept(model, heads, share, attentions))
    check_ids(rows_of(model), windows, "the calibration text")
    layers = linear_layers(model)
    scores = _importance(model, {one.output: layers[one.output] for one in attentions}, heads, windows)
    kept, silent, dropped, lost = {}, {}, [], []
    for one in attentions:
        kept[one.output], gone, share_lost = ranked(scores[one.output], after.groups)
        silent[one.output] = _channels(gone, heads.queries // heads.groups * heads.size)
        dropped.append(gone.tolist())
        lost.append(share_lost)
    ids = windows[:1, :PROVEN]
    with silenced(layers, silent):
        expected = answer(model, ids)
    parameters = parameters_of(model)
    weights = _cut(model, heads, attentions, kept)
    _say(model.config.get_text_config(), after)
    rebuild(model, weights)
    what = f"{after.groups} of {heads.groups} groups of heads"
    difference = check_same(model, ids, expected, what)
    line = (
        f"kept {what} ({after.queries} of {heads.queries} query heads of {heads.size}) in each of {len(attentions)} "
        "layers, those that add most on the calibration text (arXiv:1905.10650, arXiv:2407.14679)"
    )
    return {
        "method": "heads",
        "before": heads.groups,
        "after": after.groups,
        "heads_before": heads.queries,
        "heads_after": after.queries,
        "head_dim": heads.size,
        "layers": len(attentions),
        "dropped": dropped,
        "importance_dropped": lost,
        "difference": difference,
        "parameters_before": parameters,
        "parameters_after": parameters_of(model),
        "history": [line],
    }


def _attentions(model: Any) -> tuple[_Heads, list[_Attention]]:
    """The shape of the heads, and the model's attentions in order. Raises BuildError."""
    kind, config = type(model).__name__, model.config.get_text_config()
    layers, found = linear_layers(model), []
    for name, _ in model.named_modules():
        makers = next((these for these in (_SEPARATE, _FUSED) if all(f"{name}.{one}" in layers for one in these)), None)
        output = next((f"{name}.{one}" for one in _OUTPUTS if f"{name}.{one}" in layers), None)
        if makers and output:
            found.append(_Attention(tuple(f"{name}.{one}" for one in makers), output))
    queries = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // queries
    heads = _Heads(queries, getattr(config, "num_key_value_heads", None) or queries, size)
    if not found and not hasattr(config, "head_dim"):
        raise _derived(kind, heads)
    if not found:
        raise BuildError(
            f"{kind}: pruning heads knows attention of q_proj, k_proj, v_proj (or qkv_proj) and o_proj, as Llama, "
            f"Qwen, Gemma, Mistral and Phi-3 have it, and finds none here; {_INSTEAD}"
        )
    for one in found:
        rows = tuple(len(weight_of(layers[name])) for name in one.makers)
        wanted = heads.rows if len(rows) == len(_SEPARATE) else (sum(heads.rows),)
        if rows != wanted or weight_of(layers[one.output]).shape[1] != heads.rows[0]:
            raise BuildError(
                f"{kind}: {one.makers[0]} has {rows[0]} outputs where its heads need {wanted[0]}; {_INSTEAD}"
            )
        parent = model.get_submodule(one.output.rpartition(".")[0])
        for norm in _NORMS:
            weight = getattr(getattr(parent, norm, None), "weight", None)
            if weight is not None and weight.numel() != size:
                raise BuildError(
                    f"{kind}: {norm} takes the mean over all heads, so what stays would change with those that go; "
                    f"{_INSTEAD}"
                )
    return heads, found


def _derived(kind: str, heads: _Heads) -> BuildError:
    return BuildError(
        f"{kind} takes the size of a head as hidden_size / num_attention_heads and has no head_dim in its "
        f"configuration: fewer heads than {heads.queries} would be loaded as wider ones; {_INSTEAD}"
    )


def _kept(model: Any, heads: _Heads, share: float, attentions: Sequence[_Attention]) -> int:
    """How many groups stay: at least the share's number, the first that the family takes. Raises an error for none."""
    wanted = max(1, round(heads.groups * (1 - share)))
    if heads.groups == 1:
        raise BuildError(f"{type(model).__name__} has one key-value head for all its queries: none can go; {_INSTEAD}")
    if wanted == heads.groups:
        raise JobError(
            f"--prune heads:{share:g} of {heads.groups} groups of heads drops none; give "
            f"heads:{1 / heads.groups:.2g} or more"
        )
    takes = [groups for groups in range(1, heads.groups) if _takes(model, heads.less(groups), attentions)]
    for groups in takes:
        if groups >= wanted:
            return groups
    if takes:
        raise BuildError(
            f"--prune heads:{share:g} would leave {wanted} of {heads.groups} groups of heads, and the configuration of "
            f"{type(model).__name__} takes {', '.join(map(str, takes))}: give heads:{1 - takes[-1] / heads.groups:.2g}"
        )
    raise _derived(type(model).__name__, heads)


def _takes(model: Any, heads: _Heads, attentions: Sequence[_Attention]) -> bool:
    """Whether the model's class makes heads of the size that stays, when its configuration says so."""
    import torch
    from transformers.initialization import no_init_weights

    config = copy.deepcopy(model.config)
    try:
        _say(config.get_text_config(), heads)
        validate(config)
        with torch.device("meta"), no_init_weights():
            probe = linear_layers(type(model)(config))
    except (ValueError, TypeError, RuntimeError):
        return False
    return all(weight_of(probe[one.output]).shape[1] == heads.rows[0] for one in attentions)


def _say(config: Any, heads: _Heads) -> None:
    config.head_dim = heads.size
    config.num_attention_heads = heads.queries
    if hasattr(config, "num_key_value_heads"):
        config.num_key_value_heads = heads.groups


def _channels(groups: Tensor, size: int) -> Tensor:
    """The channels of groups of `size` each, in order, int64 [n]."""
    import torch

    return (groups[:, None] * size + torch.arange(size)).reshape(-1)


def _importance(model: Any, outputs: Mapping[str, Any], heads: _Heads, windows: Tensor) -> dict[str, Tensor]:
    """Of each output projection the mean square of what each group of heads adds, float64 [groups]."""
    import torch

    sums = {name: torch.zeros(heads.groups, dtype=torch.float64) for name in outputs}

    def see(name: str, inputs: Tensor) -> None:
        weight = weight_of(outputs[name])
        weight = weight.reshape(len(weight), heads.groups, -1)
        fed = inputs.reshape(-1, heads.groups, weight.shape[2])
        for group in range(heads.groups):
            added = fed[:, group] @ weight[:, group].T
            sums[name][group] += added.square().sum(dtype=torch.float64)

    with torch.inference_mode(), watched(outputs, see):
        for window in windows:
            model(input_ids=window[None])
    return {name: total / windows.numel() for name, total in sums.items()}


def _cut(model: Any, heads: _Heads, attentions: Sequence[_Attention], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with the kept groups alone."""
    import torch

    weights = dict(model.state_dict())
    for one in attentions:
        pairs = _channels(kept[one.output], heads.size)
        queries = _channels(kept[one.output], heads.queries // heads.groups * heads.size)
        rows = [queries, pairs, pairs]
        if len(one.makers) == 1:
            starts = (0, heads.rows[0], heads.rows[0] + heads.rows[1])
            rows = [torch.cat([part + start for part, start in zip(rows, starts, strict=True)])]
        for name, stays in zip(one.makers, rows, strict=True):
            cut(weights, f"{name}.weight", stays, 0)
            cut(weights, f"{name}.bias", stays, 0)
        cut(weights, f"{one.output}.weight", queries, 1)
    return weights

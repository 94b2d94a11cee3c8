"""A model of another shape: built anew by its own class from its changed configuration, with given weights.

To cut modules where they stand would leave behind what a constructor works out of the configuration: the number of
heads, a layer's index, a kind of layer. So nothing is patched: what comes out is what from_pretrained will make. That
it computes what was meant is then proven against the old model with the same parts silenced.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from exporter.errors import BuildError, JobError

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-4  # of the largest number of the model's answer: float32 sums in another order
PROVEN = 64  # tokens of the first window that the proof is made on


def rebuild(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Makes `model` what its class makes of `model.config` as it is now, with these weights, in place.

    `weights`: a whole state dict by the names of the new model. The modules are new ones: hooks on the old ones are
    gone, and references to them are to the old model. Raises BuildError where class, configuration and weights do not
    fit one another; the model is then as it was, but its configuration is the changed one.
    """
    from transformers.initialization import no_init_weights

    kind = type(model)
    try:
        validate(model.config)
        with no_init_weights():
            fresh = kind(model.config)
        fresh.load_state_dict(dict(weights), strict=True, assign=True)
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
        said = " ".join(str(error).split())[:300]
        raise BuildError(f"{kind.__name__} cannot be built in the pruned shape: {said}") from error
    fresh.tie_weights()  # what was assigned to two names is one parameter again
    fresh.train(model.training)
    if hasattr(model, "generation_config"):  # one that generates has it, and it is no part of the configuration
        fresh.generation_config = model.generation_config
    # What from_pretrained alone has set stays, such as the names that a checkpoint's weights are saved under.
    model.__dict__.update(fresh.__dict__)


def validate(config: Any) -> None:
    """Raises ValueError where a configuration's own class refuses it, as it would when it is read from a file."""
    from huggingface_hub.errors import StrictDataclassError

    for one in configs(config):
        try:
            if hasattr(one, "validate"):
                one.validate()
        except StrictDataclassError as error:
            raise ValueError(str(error)) from error


def configs(config: Any) -> list[Any]:
    """A configuration and, where that is another, the one of its text part."""
    return list({id(one): one for one in (config, config.get_text_config())}.values())


def answer(model: Any, ids: Tensor) -> Tensor:
    """What a model says of int64 [B, T]: float32 logits [B, T, V] or [B, labels]; without a head hidden states."""
    import torch

    with torch.inference_mode():
        said = model(input_ids=ids)
    answered: Tensor = said[0]
    return answered.float()


def difference_of(said: Tensor, expected: Tensor) -> float:
    """The largest difference of two answers, over the largest number of the expected one."""
    return float((said - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def check_same(model: Any, ids: Tensor, expected: Tensor, what: str) -> float:
    """The largest difference of a model's answer on `ids` from the expected one, over the largest number of that.

    `what`: what was done, for the error. Raises BuildError beyond TOLERANCE.
    """
    difference = difference_of(answer(model, ids), expected)
    if not difference <= TOLERANCE:
        raise BuildError(
            f"{type(model).__name__} with {what} does not compute what it did with the same parts silenced (it differs "
            f"by {difference:.2g} of its largest output): something in this family depends on what was dropped in a "
            "way that its config.json cannot say; another --prune method may serve it"
        )
    return difference


def ranked(score: Tensor, count: int) -> tuple[Tensor, Tensor, float]:
    """(kept, dropped, lost) of float64 scores [n]: the numbers of the `count` highest and of the others, each in order;
    and the share of all scores that goes. Of equal ones the first stays.
    """
    import torch

    order = torch.sort(score, descending=True, stable=True).indices
    kept, dropped = order[:count].sort().values, order[count:].sort().values
    return kept, dropped, float(score[dropped].sum() / score.sum().clamp(min=1e-300))


@contextmanager
def silenced(layers: Mapping[str, Any], dropped: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block the named linear layers see zero in their `dropped` input channels, int64 [n] by layer."""

    def hook(channels: Tensor) -> Any:
        return lambda module, inputs: (inputs[0].index_fill(-1, channels, 0.0), *inputs[1:])

    hooks = [layers[name].register_forward_pre_hook(hook(channels)) for name, channels in dropped.items()]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


def check_share(share: float, what: str) -> None:
    """Raises JobError for a share that is none."""
    if not 0 < share < 1:
        raise JobError(f"--prune {what}:{share:g}: the share to drop lies between 0 and 1, such as {what}:0.2")


def parameters_of(model: Any) -> int:
    """How many numbers a model holds; weights with two names count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def cut(weights: dict[str, Tensor], name: str, kept: Tensor, axis: int) -> None:
    """Keeps of a weight, where there is one of that name, the entries `kept` int64 [n] along an axis."""
    if name in weights:
        weights[name] = weights[name].index_select(axis, kept).contiguous()

"""The linear layers of a torch model: what policies, statistics and methods speak of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporter.form import PIXELS, SAMPLES

if TYPE_CHECKING:
    from torch import Tensor

# Tokens of a source and its target together. What attention answers to a long source is a mean of more values, and
# smaller: a random BART's static int8, asked of sources of 16 tokens, lost 0.013 nats with ranges of sources of 128 or
# of 64 tokens, and 0.004 with those of 32.
PAIR = 64


def linear_layers(model: Any) -> dict[str, Any]:
    """The modules that a policy speaks of, by name, in the model's own order: Linear, and GPT-2's Conv1D."""
    import torch
    from transformers.pytorch_utils import Conv1D

    return {name: one for name, one in model.named_modules() if isinstance(one, torch.nn.Linear | Conv1D)}


def convolutions(model: Any) -> dict[str, Any]:
    """The convolutions of a model that reads pictures or sounds, by name.

    Not one whose weight is computed of others, as wav2vec2's positional convolution is of its direction and length: the
    checkpoint has no place for a rounded one.
    """
    import torch

    kinds = torch.nn.Conv1d | torch.nn.Conv2d
    found = {name: one for name, one in model.named_modules() if isinstance(one, kinds)}
    return {name: one for name, one in found.items() if not hasattr(one, "parametrizations")}


def weighted_layers(model: Any) -> dict[str, Any]:
    """Linear layers and, of a model that reads pictures or sounds, convolutions, in the model's own order.

    A convolution is a linear layer of the patches that it looks at: its weight is [outputs, inputs] to all who round.
    """
    found = linear_layers(model)
    if getattr(model, "main_input_name", None) in (PIXELS, SAMPLES):
        found |= convolutions(model)
    return {name: found[name] for name, _ in model.named_modules() if name in found}


def weight_of(module: Any) -> Tensor:
    """A layer's weight as [outputs, inputs], a view of what it holds; GPT-2's Conv1D stores it the other way round."""
    import torch

    weight: Tensor = module.weight.data
    if isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d):
        return weight.flatten(1)
    return weight if isinstance(module, torch.nn.Linear) else weight.T


def channels_last(module: Any, tensor: Tensor) -> Tensor:
    """A layer's inputs or outputs with the channels on the last axis; a convolution has them on the second."""
    import torch

    return tensor.movedim(1, -1) if isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d) else tensor


def asked(model: Any, samples: Tensor, **more: Any) -> Any:
    """The outputs of a model of texts for token ids [B, T], of one of pictures for pixel values [B, C, H, W], of one
    that hears for samples [B, T], which are floats.

    To a model that makes one text of another a window is pairs of PAIR tokens, or one pair where it is shorter: of each
    the encoder reads the first half, as a source, and the decoder the second, as the text to be made of it: each token
    after those before it, what a decoder begins with in front. Its answers are [pairs, length of a target, V].
    """
    if not reads_pairs(model):
        name = PIXELS if samples.ndim == 4 else SAMPLES if samples.is_floating_point() else "input_ids"
        return model(**{name: samples}, **more)
    from exporter.checkpoint.encoder_decoder import before_each

    pairs = samples.reshape(-1, PAIR) if samples.shape[1] % PAIR == 0 else samples
    source, target = pairs[:, : pairs.shape[1] // 2], pairs[:, pairs.shape[1] // 2 :]
    return model(input_ids=source, decoder_input_ids=before_each(target, model.config.to_dict()), **more)


def reads_pairs(model: Any) -> bool:
    """Whether a window of token ids is pairs to a model: to an encoder-decoder that answers with the vocabulary."""
    both = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return bool(both) and bool(model.can_generate())


def are_tokens(samples: Tensor) -> bool:
    """Whether what is calibrated on are token ids [windows, window]."""
    return samples.ndim == 2 and not samples.is_floating_point()


def amount(samples: Tensor) -> str:
    """How much there is to calibrate on, in words: ids [windows, window], pictures [n, C, H, W] or sounds [n, T]."""
    if are_tokens(samples):
        return f"{samples.numel()} tokens"
    return f"{len(samples)} {'pictures' if samples.ndim == 4 else 'pieces of sounds'}"


def shared_weights(model: Any) -> set[str]:
    """The modules whose weight is another's too, such as a head's that is tied to the embedding."""
    users: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        users.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    return {name for names in users.values() if len(names) > 1 for name in names}

"""Attach an adapter to a model with PEFT so that nothing is lost: every tensor of it is used, every one is there.

PEFT drops what does not fit with a warning or without a word; here it is refused. Weights that are tied in the base are
given to each module that is adapted before anything is merged: else a change to one is a change to all.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from exporter.errors import JobError
from exporter.stages.merge.adapter import Adapter, base_name, repeated, resized_vocabulary
from exporter.stages.merge.misfit import misfit, refuse, refuse_lost_bias

# What PEFT raises when an adapter does not fit: a size mismatch, a target module that is not there, a bad config.
MISFIT = (RuntimeError, ValueError, KeyError, TypeError, AttributeError)
_BY_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")  # in a configuration, with an entry for each layer
NAME = "adapter"  # what PEFT calls the one that is attached


@contextmanager
def quiet() -> Iterator[None]:
    """PEFT warns of what it leaves undone, ties and misfits among it: here each is checked, and mended or refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def resize(model: Any, adapters: list[Adapter]) -> str | None:
    """Gives a model the rows of the adapters' embeddings, where training added tokens; returns a line of history.

    Raises JobError when no adapter holds what the new rows are: they would be random.
    """
    embedding = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embedding)
    before = embedding.weight.shape[0]
    rows = resized_vocabulary(adapters, name, before)
    if rows is None:
        return None
    shapes = {name: parameter.shape for name, parameter in model.named_parameters(remove_duplicate=False)}
    with quiet():
        model.resize_token_embeddings(rows, mean_resizing=False)  # the new rows come from the adapter
    held = {name for adapter in adapters for name in adapter.names()}
    shared = {name: group for group in ties_of(model).groups for name in group}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.shape != shapes[name] and held.isdisjoint(shared.get(name, (name,))):
            raise JobError(
                f"the adapter {adapters[-1].path} was trained with {rows} tokens, this model has {before}, and the "
                f"adapter does not hold the new rows of {name}: train it with modules_to_save=['{name.split('.')[-2]}']"
            )
    return f"resized the vocabulary from {before} to {rows} tokens"


def attach(model: Any, adapter: Adapter, name: str = NAME) -> Any:
    """A PeftModel with the adapter on it (a second one, when `model` is a PeftModel). Raises JobError."""
    from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftConfig, PeftModel

    try:
        with quiet():
            attached, renamed = model, None
            if not isinstance(model, PeftModel):
                # As PeftModel.from_pretrained does, which keeps to itself what did not fit. To load a second time is no
                # way to learn it: AdaLoRA cuts its ranks at each loading.
                config = PeftConfig.from_pretrained(str(adapter.path))
                config.inference_mode = True
                kind = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)
                attached = kind(model, config, name)
                renamed = getattr(model, "_checkpoint_conversion_mapping", {})
            fit = attached.load_adapter(str(adapter.path), name, is_trainable=False, key_mapping=renamed)
    except MISFIT as error:
        raise JobError(misfit(adapter, model, error)) from error
    refuse_lost_bias(adapter, attached)
    lacking = {base_name(key.replace(f".{name}.", ".")) for key in fit.missing_keys}
    missing = {*lacking, *_missing_biases(adapter, attached, name)}
    spare = (key for key in fit.unexpected_keys if repeated(key, adapter.tensors) or _tied_tokens(attached, key))
    refuse(adapter, model, missing, set(fit.unexpected_keys).difference(spare))
    return attached.eval()


def _tied_tokens(attached: Any, key: str) -> bool:
    """Whether a key is PEFT's second copy of trained tokens, for the module that is tied to the embedding."""
    path, _, last = key.rpartition(".")
    modules = dict(attached.named_modules()) if last == "trainable_tokens_delta" else {}
    return bool(getattr(modules.get(path), "tied_adapter", None))


def _missing_biases(adapter: Adapter, attached: Any, name: str) -> set[str]:
    """The base's biases that were trained (bias="all" or "lora_only") and that the file lacks: PEFT says nothing."""
    from peft import get_peft_model_state_dict

    if adapter.config.get("bias", "none") == "none":
        return set()
    with quiet():
        expected = get_peft_model_state_dict(attached, adapter_name=name, save_embedding_layers=False)
    return {base_name(key) for key in expected if ".modules_to_save." not in key and key.endswith(".bias")} - {
        base_name(key) for key in adapter.tensors
    }


@dataclass(frozen=True)
class Ties:
    """The names of the parameters that are one tensor, in groups of two and more, and what each configuration says."""

    groups: tuple[tuple[str, ...], ...]
    flags: tuple[bool, ...]


def ties_of(model: Any) -> Ties:
    names = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    groups = tuple(tuple(group) for group in names.values() if len(group) > 1)
    return Ties(groups, tuple(bool(config.tie_word_embeddings) for config in _configs(model)))


def _configs(model: Any) -> list[Any]:
    """The configurations that can say whether embeddings are tied: the model's, and its text part's."""
    return list({id(config): config for config in (model.config, model.config.get_text_config())}.values())


def untie_adapted(attached: Any) -> None:
    """Gives each adapted module weights of its own, where it shares them with another module."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    holders: dict[int, int] = defaultdict(int)
    for module in attached.modules():
        for parameter in module._parameters.values():
            holders[id(parameter)] += 1
    for module in list(attached.modules()):
        if isinstance(module, BaseTunerLayer):
            base = module.get_base_layer()
            for name, parameter in list(base.named_parameters(recurse=False)):
                if holders[id(parameter)] > 1:
                    own = torch.nn.Parameter(parameter.detach().clone(), requires_grad=False)
                    setattr(base, name, own)


def untie_configuration(model: Any, group: tuple[str, ...]) -> str:
    """The configuration says that nothing is tied; returns a line of history. Raises JobError where it cannot."""
    for config in _configs(model):
        config.tie_word_embeddings = False
        if type(config).from_dict(config.to_dict()).tie_word_embeddings:
            raise JobError(
                f"the adapter changes one of {' and '.join(group)}, which transformers ties whatever the configuration "
                f"of a {type(model).__name__} says: no checkpoint can hold it merged; keep base and adapter apart"
            )
    return f"untied {' and '.join(group)}: the adapter changes one of them"


def own_layers(model: Any, adapter: Adapter, ties: Ties) -> str | None:
    """Gives the layers that an adapter repeated (layer_replication) weights of their own, which a checkpoint holds once
    for each name, and what is listed by layer in the configuration as many entries; returns a line of history."""
    import torch

    layers = adapter.config.get("layer_replication")
    if not layers:
        return None
    tied = {name for group in ties.groups for name in group}
    for group in ties_of(model).groups:
        for name in group[1:] if tied.isdisjoint(group) else ():
            owner, attribute = _place(model, name)
            setattr(owner, attribute, torch.nn.Parameter(owner.get_parameter(attribute).detach().clone(), False))
    places = [place for begin, end in layers for place in range(begin, end)]
    before = 1 + max(places)
    for config in _configs(model):
        for key, value in vars(config).items():
            if isinstance(value, list) and len(value) != len(places) and len(value) >= before and key in _BY_LAYER:
                setattr(config, key, [value[place] for place in places])
    return f"repeated layers, {len(places)} of the base's (layer_replication {layers})"


def _place(model: Any, name: str) -> tuple[Any, str]:
    owner, _, attribute = name.rpartition(".")
    return model.get_submodule(owner), attribute


def tie_again(model: Any, ties: Ties) -> str | None:
    """Ties what is still equal after a merge; otherwise the configuration says "untied". Returns a line of history."""
    import torch

    parameters = dict(model.named_parameters(remove_duplicate=False))
    for group in ties.groups:
        first, *others = (parameters[name] for name in group)
        if not all(first.shape == other.shape and torch.equal(first, other) for other in others):
            for name in group:
                setattr(
                    *_place(model, name), torch.nn.Parameter(parameters[name].detach().clone(), requires_grad=False)
                )
            return untie_configuration(model, group)
        for name in group[1:]:
            setattr(*_place(model, name), first)
    for config, flag in zip(_configs(model), ties.flags, strict=True):
        config.tie_word_embeddings = flag  # PEFT clears it when two equal tensors are two
    return None

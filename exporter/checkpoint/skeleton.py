"""A model without weights, as transformers builds it from config.json: which tensor goes where, what gets quantized.

Names in a checkpoint are not always names in the model (a base model's prefix, renamed modules, experts that are
joined): they are followed here with transformers' own mapping, which from_pretrained uses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.model import trust_code
from exporter.errors import JobError

if TYPE_CHECKING:
    import torch


class Skeleton:
    """`Skeleton(folder)` of a checkpoint; `dtype` is what the model is loaded in. Names are the checkpoint's."""

    def __init__(self, folder: Path, trust_remote_code: bool = False) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming
        from transformers.pytorch_utils import Conv1D

        self._folder, self._model = folder, _build(folder, trust_remote_code)
        self._state = self._model.state_dict()
        self._conv1d = {name for name, module in self._model.named_modules() if isinstance(module, Conv1D)}
        self._ignored = [re.compile(key) for key in self._model._keys_to_ignore_on_load_unexpected or ()]
        mapping = get_model_conversion_mapping(self._model)
        self._renamings = [step for step in mapping if isinstance(step, WeightRenaming)]
        self._converters = [step for step in mapping if isinstance(step, WeightConverter)]

    def place(self, name: str) -> str | None:
        """The model's name of a checkpoint's tensor; None where the model has no place for it."""
        return self._follow(name)[0]

    def joined(self, names: Iterable[str]) -> list[str]:
        """Those that the model holds joined with others, split or turned."""
        return [name for name in names if self._follow(name)[1]]

    def is_conv1d(self, name: str) -> bool:
        """Whether a weight is [in, out] in the model (GPT-2's Conv1D), where a linear layer's is [out, in]."""
        return (self.place(name) or name).rpartition(".")[0] in self._conv1d

    def loaded_in(self, name: str, dtype: torch.dtype) -> torch.dtype:
        """The dtype that a tensor gets in a model that is loaded in `dtype`: some classes keep parts in float32."""
        import torch
        from transformers.core_model_loading import build_glob_alternation

        plan = self._model._get_dtype_plan(dtype)
        return (
            torch.float32 if plan and build_glob_alternation(list(plan))[0].search(self.place(name) or name) else dtype
        )

    def check(self, shapes: Mapping[str, tuple[int, ...]], unpacked: Iterable[str]) -> None:
        """Every tensor has its place in the model, in its shape, and none that was `unpacked` is tied to another, which
        transformers would read instead. Raises JobError naming the tensor."""
        tied = set(self._model.all_tied_weights_keys)
        for name in unpacked:
            if self.place(name) in tied:
                raise JobError(
                    f"{self._folder}: {name} is quantized, and its config.json ties it to another weight; set "
                    "tie_word_embeddings to false there if the quantized weight is meant"
                )
        for name, shape in shapes.items():
            place, joined = self._follow(name)
            if place is None and not any(key.search(name) for key in self._ignored):
                raise JobError(f"{self._folder}: the model has no place for {name}; its format is not the one it names")
            if place is not None and not joined and tuple(self._state[place].shape) != shape:
                raise JobError(f"{self._folder}: {name} is {shape}, and the model's {tuple(self._state[place].shape)}")

    def quantized(self, names: Iterable[str], eight: bool) -> set[str]:
        """The weights that transformers quantizes with load_in_8bit, or else load_in_4bit: linear layers and Conv1D,
        without the output, tied weights and what the model's class keeps in float32. Changes the model: ask once.
        Raises JobError where one cannot be found among the checkpoint's `names`."""
        import transformers.quantizers

        library: Any = transformers  # its own annotations are incomplete
        how = library.BitsAndBytesConfig(load_in_8bit=eight, load_in_4bit=not eight)
        quantizer = library.quantizers.AutoHfQuantizer.from_config(how, pre_quantized=False)
        quantizer.preprocess_model(model=self._model, device_map=None)
        # replace_with_bnb_linear leaves the class that a module had before on the module that takes its place.
        wanted = {f"{name}.weight" for name, module in self._model.named_modules() if hasattr(module, "source_cls")}
        found = {place: name for name in names if (place := self.place(name)) in wanted and not self._follow(name)[1]}
        lacking = sorted(wanted - found.keys())
        if lacking:
            raise JobError(
                f"{self._folder}: which tensors hold {', '.join(lacking[:3])} is not known, so what training saw of "
                "them neither; give the quantized checkpoint with -m, if there is one"
            )
        return set(found.values())

    def _follow(self, name: str) -> tuple[str | None, bool]:
        from transformers.core_model_loading import rename_source_key

        prefix = self._model.base_model_prefix
        place, pattern = rename_source_key(name, self._renamings, self._converters, prefix, self._state)
        if place not in self._state and name in self._state:
            place, pattern = rename_source_key(name, [], [], prefix, self._state)
        return (place if place in self._state else None), pattern is not None


def _build(folder: Path, trust: bool) -> Any:
    import torch
    import transformers
    from transformers.initialization import no_tie_weights

    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust_code(folder, trust))
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    name = next(iter(config.architectures or ()), "")
    model = getattr(transformers, name, None)
    if model is None or not isinstance(config, model.config_class):
        raise JobError(
            f"{folder}: its class {name or '(config.json names none)'} is not one of transformers', so where its "
            "weights go is not known; give a float checkpoint with -m"
        )
    # As from_pretrained does it: a tied output is still there, which decides what counts as the last module.
    with torch.device("meta"), no_tie_weights():
        return model(config)

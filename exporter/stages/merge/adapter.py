"""What an adapter's folder says before anything is merged: its format, its kind, its tensors, its base."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from exporter.checkpoint.renamed import adapter_mark, renaming
from exporter.checkpoint.weights import Stored, stored_tensors
from exporter.errors import JobError, unknown
from exporter.types import Combination

PREFIX = "base_model.model."  # what PEFT puts before the names of the base model's modules
STEM = "adapter_model"
BASE_HASH = (
    "base_model.sha256"  # in an adapter's folder: the sha256 of its base's safetensors files, one after the other
)
COMBINATIONS = get_args(Combination)
_DENSITY = ("ties", "dare_linear", "dare_ties")
_MERGEABLE = ("LORA", "ADALORA", "LOHA", "LOKR", "IA3", "TRAINABLE_TOKENS")
# A file that tells another tool's format, whose it is, and how its adapter becomes PEFT's.
_FOREIGN = (
    (
        "adapters.safetensors",
        "MLX",
        "fuse it where it was trained: mlx_lm.fuse --dequantize, and export the fused model",
    ),
    ("*.gguf", "llama.cpp", "it is made from PEFT's folder by convert_lora_to_gguf.py: give that folder"),
    ("pytorch_adapter.bin", "AdapterHub's", "merge it there: model.merge_adapter(NAME), then save_pretrained"),
    ("pytorch_lora_weights.safetensors", "diffusers'", "it is for an image model, which exporter does not export"),
    (
        "adapter_*.pt",
        "torchtune's",
        "save it again there with save_adapter_weights_only and its HF checkpointer, as PEFT",
    ),
    ("*.nemo", "NeMo's", "export it there to PEFT's format: nemo.collections.llm.export_ckpt(target='hf-peft')"),
)
_CHANGING = {"pissa": "PiSSA", "olora": "OLoRA", "corda": "CorDA", "loftq": "LoftQ", "lora_ga": "LoRA-GA"}
_WEIGHTED = ("LoRA", "rsLoRA")  # the others change the base's weights before they train, or are no sums
_KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_down.weight", "lora_up.weight")


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter's folder: its configuration and its tensors' headers, by the names they have in its file.

    `weight` is its share in a combination; None: it is merged whole. `given`: the model it is merged into, as its user
    named that.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Stored]
    weight: float | None = None
    given: str = ""

    @property
    def base(self) -> str:
        """What to say of the base that it records, where that is not the one that was given: else ""."""
        recorded = str(self.config.get("base_model_name_or_path") or "")
        if not recorded or is_same_model(recorded, self.given):
            return ""
        return f"; it records {recorded} as its base: give that with -m"

    @property
    def kind(self) -> str:
        """The method, as its users call it."""
        if self.config["peft_type"] == "LORA":
            if self.config.get("use_dora"):
                return "DoRA"
            for start, kind in _CHANGING.items():
                if str(self.config.get("init_lora_weights")).startswith(start):
                    return kind
            return "rsLoRA" if self.config.get("use_rslora") else "LoRA"
        names = {"ADALORA": "AdaLoRA", "LOHA": "LoHa", "LOKR": "LoKr", "TRAINABLE_TOKENS": "trainable tokens"}
        return names.get(self.config["peft_type"], str(self.config["peft_type"]))

    @property
    def rank(self) -> int:
        """The largest rank of a LoRA adapter's modules."""
        return int(max(self.config.get("r", 0), *(self.config.get("rank_pattern") or {"": 0}).values()))

    def names(self) -> dict[str, str]:
        """The name in the file of each tensor that stands for a whole tensor of the base, by the base's name of it."""
        found = {base_name(name): name for name in self.tensors if ".modules_to_save." not in name}
        # modules_to_save: the trained tensor has the plain name, and the one that it replaced may be there as well.
        return found | {base: PREFIX + base for base in found if PREFIX + base in self.tensors}


def base_name(key: str) -> str:
    """The name in the base of the tensor that a key of an adapter's file stands for, without PEFT's wrappers in it."""
    plain = key.removeprefix(PREFIX)
    for wrapper in (".token_adapter.base_layer.", ".base_layer.", ".original_module."):
        plain = plain.replace(wrapper, ".")
    return plain


def repeated(key: str, tensors: Container[str]) -> bool:
    """Whether a key is PEFT's second copy of a tensor of modules_to_save, which it writes when vocabularies grow."""
    return key.replace(".modules_to_save.", ".") in tensors if ".modules_to_save." in key else False


def is_same_model(recorded: str, given: str) -> bool:
    """Whether two names are of one model: the same folder, or the same hub id, or that in the hub's cache."""
    if not given:
        return False
    one, other = (Path(name).expanduser() for name in (recorded, given))
    if one.is_dir() and other.is_dir():
        return one.resolve() == other.resolve()
    return recorded.rstrip("/") == given.rstrip("/") or f"models--{recorded.replace('/', '--')}" in other.parts


def parse_adapter(text: str) -> tuple[Path, float | None]:
    """DIR or DIR=WEIGHT, as --adapter takes it. Raises JobError."""
    path, equals, weight = text.rpartition("=")
    if not equals or Path(text).expanduser().is_dir():
        return Path(text).expanduser(), None
    try:
        share = float(weight)
    except ValueError as error:
        raise JobError(f"--adapter {text!r}: {weight!r} is no weight; write DIR=0.7") from error
    if not math.isfinite(share):
        raise JobError(f"--adapter {text!r}: the weight must be a finite number")
    return Path(path).expanduser(), share


def read_adapter(folder: Path, weight: float | None = None, given: str = "") -> Adapter:
    """The adapter of a folder, from its configuration and its file's header. Raises JobError."""
    if not folder.is_dir():
        raise JobError(f"no such adapter folder: {folder}")
    _refuse_foreign(folder)
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise JobError(f"{folder} has no adapter_config.json: it is not a PEFT adapter's folder")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobError(f"{path} is not valid JSON ({error}); save the adapter again") from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if not isinstance(kind, str):
        raise JobError(
            f"{path} names no peft_type: it is not PEFT's; convert the adapter with the tool that trained it"
        )
    if kind not in _MERGEABLE:
        raise JobError(
            f"the adapter {folder} is of PEFT's kind {kind}, which exporter cannot merge; there are: "
            f"{', '.join(_MERGEABLE)}"
        )
    if str(config.get("init_lora_weights")).startswith("pissa_niter"):
        raise JobError(
            f"{folder} began with {config['init_lora_weights']}, which begins at random; "
            "convert it where it was trained: save_pretrained(DIR, path_initial_model_for_weight_conversion=…)"
        )
    tensors = stored_tensors(folder, STEM)
    if any(marker in name for name in tensors for marker in _KOHYA):
        raise JobError(
            f"{folder} holds tensors named as kohya's scripts do ({next(iter(tensors))}), not PEFT's; save it as PEFT"
        )
    if found := adapter_mark(tensors.keys()):
        mark, owner = found
        raise JobError(
            f"the tensors of {folder} are named with {mark!r}, which {owner} puts there and no adapter has that "
            f"PEFT saved; save it with save_pretrained, or write them with their own names: {renaming(folder, mark)}"
        )
    _refuse_ambiguous(folder, config, tensors)
    return Adapter(folder, config, tensors, weight, given)


def _refuse_ambiguous(folder: Path, config: dict[str, Any], tensors: dict[str, Stored]) -> None:
    """PEFT takes the first pattern that matches a module, and saves them sorted: which was first in training is lost.

    With rank_pattern the tensors' shapes tell, with alpha_pattern nothing does.
    """
    patterns = config.get("alpha_pattern") or {}
    for path in {base_name(key).partition(".lora_")[0] for key in tensors if ".lora_" in key}:
        found = [pattern for pattern in patterns if re.match(rf"(.*\.)?({pattern})$", path)]
        if len({patterns[pattern] for pattern in found}) > 1:
            raise JobError(
                f"{folder}: alpha_pattern has {found[0]!r} and {found[1]!r} for {path}, and PEFT does not save which "
                "of them it used; leave the right one in adapter_config.json"
            )


def _refuse_foreign(folder: Path) -> None:
    if any((folder / name).is_file() for name in (f"{STEM}.safetensors", f"{STEM}.safetensors.index.json")):
        return
    for pattern, owner, remedy in _FOREIGN:
        if found := sorted(path.name for path in folder.glob(pattern)):
            raise JobError(f"{folder} is an adapter in {owner} format ({found[0]}), not PEFT's: {remedy}")


def check_combination(adapters: list[Adapter], combine: str | None, density: float | None) -> str | None:
    """How several adapters become one: a name of COMBINATIONS, or None: merged whole, one after another.

    PEFT combines low-rank factors and nothing else: what an adapter holds besides them would be dropped without a word,
    so it is refused. Raises JobError.
    """
    weighted = [adapter for adapter in adapters if adapter.weight is not None]
    if combine is None and not weighted:
        if density is not None:
            raise JobError(f"--density is for --combine {', '.join(_DENSITY)}")
        return None
    if not adapters:
        raise JobError(f"--combine {combine} needs adapters: --adapter DIR=0.7 --adapter DIR2=0.3")
    if combine is not None and combine not in COMBINATIONS:
        raise JobError(unknown("combination", combine, COMBINATIONS))
    if weighted and len(weighted) < len(adapters):
        without = next(adapter.path for adapter in adapters if adapter.weight is None)
        raise JobError(f"give every adapter a weight, or none: {without} has none (--adapter DIR=0.7)")
    combine = combine or "cat"
    if (combine in _DENSITY) != (density is not None):
        raise JobError(
            f"--density is for --combine {', '.join(_DENSITY)}, which need it (such as 0.5); not for {combine}"
        )
    if combine in _DENSITY and len(adapters) < 2:
        raise JobError(f"--combine {combine} needs two adapters or more: --adapter DIR=0.7 --adapter DIR2=0.3")
    for adapter in adapters:
        extra = [name for name in adapter.tensors if ".lora_A.weight" not in name and ".lora_B.weight" not in name]
        extra = [name for name in extra if ".lora_embedding_" not in name and ".base_layer." not in name]
        if extra or adapter.kind not in _WEIGHTED:
            held = f"is {adapter.kind}" if adapter.kind not in _WEIGHTED else f"holds {extra[0]}"
            raise JobError(
                f"the adapter {adapter.path} {held}: only LoRA's factors can be weighted; merge the adapters one after "
                "another (no weights, no --combine)"
            )
    if combine not in ("cat", "svd") and len({adapter.rank for adapter in adapters}) > 1:
        ranks = ", ".join(f"{adapter.path.name} {adapter.rank}" for adapter in adapters)
        raise JobError(f"--combine {combine} needs adapters of one rank (there are: {ranks}); take cat or svd")
    return combine


def resized_vocabulary(adapters: list[Adapter], embedding: str, rows: int) -> int | None:
    """How many rows the input embedding (its module's name) must get before an adapter fits; None: as it is.

    Raises JobError for an adapter that was trained with more tokens and does not hold their embeddings.
    """
    for adapter in adapters:
        whole = adapter.names().get(f"{embedding}.weight")
        if whole is not None:
            held = adapter.tensors[whole].shape[0]
            if held != rows:
                return int(held)
        factor = adapter.tensors.get(f"{PREFIX}{embedding}.lora_embedding_A")
        if factor is not None and whole is None and factor.shape[1] != rows:
            raise JobError(
                f"the adapter {adapter.path} was trained with {factor.shape[1]} tokens, this model has {rows}, and the "
                "adapter does not hold the new ones' embeddings: save it again with save_embedding_layers=True"
            )
    return None


def base_identity(adapter: Adapter, model: str, sha256: str | None) -> str:
    """Whether `model` is the base that an adapter was trained on, as far as it is known. Raises JobError if it is not.

    `sha256` is the hash of the model's safetensors files, one after the other; None: not known yet.
    """
    recorded = adapter.config.get("base_model_name_or_path") or "no base"
    revision = f" at revision {adapter.config['revision']}" if adapter.config.get("revision") else ""
    proof = adapter.path / BASE_HASH
    if proof.is_file():
        wanted = proof.read_text(encoding="utf-8").split()[:1]
        if sha256 is None:
            return f"{BASE_HASH} not compared"
        if wanted != [sha256]:
            mend = f"; give its base ({recorded}{revision}) with -m"
            if is_same_model(recorded, model):
                mend = f"; {model} was changed since, or is another revision: give it as it was in training"
            raise JobError(
                f"the adapter {adapter.path} was trained on other weights: its {BASE_HASH} is {''.join(wanted)[:12]}…, "
                f"and {model} has {sha256[:12]}…{mend}"
            )
        return f"verified: {BASE_HASH} is the base's"
    same = recorded.rstrip("/").rsplit("/", 1)[-1] == model.rstrip("/").rsplit("/", 1)[-1]
    named = "the same name as" if same else "not the name of"
    return (
        f"base identity not verifiable: the adapter records {recorded}{revision}, {named} {model}, and no hash; "
        "prove it with --probe or --expect-perplexity"
    )

"""A family's checkpoint: random weights that make a mistake show, saved as a model's folder with a tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.families.encoders import VOCABULARY
from bench.families.family import Family
from bench.record import ROOT
from exporter.types import TOKENIZER_FILES

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ROPES = ("full_attention", "sliding_attention")  # of a model with a rope for each kind of layer


def save_model(family: Family, folder: Path) -> Any:
    """Writes a family's checkpoint, the same each time, and returns the model, in eval mode."""
    import torch
    import transformers

    torch.manual_seed(0)
    kind = getattr(transformers, family.architecture)
    model = kind(kind.config_class(**family.config)).eval()
    _perturb(model)
    model.save_pretrained(folder)
    if family.hub is not None:
        file = folder / "config.json"
        config = hub_spelling(json.loads(file.read_text(encoding="utf-8"))) | dict(family.hub)
        file.write_text(json.dumps(config, indent=1), encoding="utf-8")
    if family.decoder:
        for name in TOKENIZER_FILES:
            if (ROOT / "models" / "tiny" / name).is_file():
                shutil.copy(ROOT / "models" / "tiny" / name, folder)
    else:
        _word_pieces(folder, segments=family.config.get("type_vocab_size", 2) > 1)
    return model


def _perturb(model: Any) -> None:
    """Weights that attention's answer hangs on, and no bias or norm at its neutral value, which would hide its loss."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.12, generator=generator)
            elif "norm" in name.lower() or "ln_" in name:
                parameter.uniform_(0.6, 1.4, generator=generator)
            else:
                parameter.normal_(0, 0.05, generator=generator)


def hub_spelling(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json as transformers 4 wrote it: dtype and rope under their old names."""
    old = dict(config)
    rope = old.pop("rope_parameters", None) or {}
    old["torch_dtype"] = old.pop("dtype", "float32")
    old["transformers_version"] = "4.51.0"
    if set(_ROPES) & set(rope):  # Gemma 3's
        whole, local = (rope.get(kind) or {} for kind in _ROPES)
        old["rope_local_base_freq"] = local.get("rope_theta", 10000.0)
    else:
        whole = rope
    scaling = {name: value for name, value in whole.items() if name not in ("rope_theta", "partial_rotary_factor")}
    kind = scaling.pop("rope_type", "default")
    if kind == "longrope":  # which Phi-3 had at the configuration's top
        scaling.pop("original_max_position_embeddings", None)
    old["rope_theta"] = whole.get("rope_theta", 10000.0)
    old["rope_scaling"] = None if kind == "default" else {"type": kind, **scaling}
    if "partial_rotary_factor" in whole:
        old["partial_rotary_factor"] = whole["partial_rotary_factor"]
    return old


def _word_pieces(folder: Path, segments: bool) -> None:
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordPiece(unk_token=_SPECIAL[1]))
    plain.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=list(_SPECIAL), show_progress=False)
    plain.train_from_iterator(list(topics.values())[:40], trainer)
    plain.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), _SPECIAL, strict=True))
    inputs = ["input_ids", *["token_type_ids"] * segments, "attention_mask"]
    kind: Any = PreTrainedTokenizerFast  # which transformers leaves untyped
    whole = kind(tokenizer_object=plain, model_max_length=512, model_input_names=inputs, **names)
    whole.save_pretrained(folder)

"""How long a text may be that a program of a fixed size is made for."""

from __future__ import annotations

import json

from exporter.errors import BuildError
from exporter.targets.traced_model.rotary import changes_beyond
from exporter.types import GENERATION, Checkpoint


def longest(checkpoint: Checkpoint, asked: int | None, usual: int, flag: str) -> tuple[int, str]:
    """Tokens of the longest text that a program is made for, and why no longer one where that is not the model's own.

    `asked`: by a `flag`, which the error names; None: the model's, `usual` at most. Raises BuildError for more than the
    model takes, or than a table of its positions holds.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=checkpoint.trust_remote_code)
    known = [getattr(config.get_text_config(), "max_position_embeddings", None)]
    settings = checkpoint.path / "tokenizer_config.json"
    if checkpoint.task != GENERATION and settings.is_file():  # to a decoder a tokenizer's limit is only advice
        known.append(json.loads(settings.read_text(encoding="utf-8")).get("model_max_length"))
    limits = [int(one) for one in known if one is not None and 0 < one < 1 << 40]
    change = changes_beyond(config)
    if asked is None:
        most = min([*limits, usual])
        if change is None or most <= change:
            return most, ""
        return change, f"texts of up to {change} tokens, where its rotary embedding changes"
    if limits and asked > min(limits):
        raise BuildError(f"{flag} {asked}: the model takes {min(limits)} tokens")
    if change is not None and asked > change:
        why = f"its rotary embedding changes beyond {change} tokens, and a table has one side of it"
        raise BuildError(f"{flag} {asked}: {why}; give {change} or less")
    return asked, ""

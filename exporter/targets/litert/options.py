"""What can be asked of litert alone: --litert-…, `litert: {…}` in the job file. Each default is written here, once."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

USUAL_LENGTH = 1024  # tokens of a decoder's cache, of a model that could take more: each step reads all of it
ENCODED = (64, 128, 256)
PREFILLED = (128, 512)


def encoded(window: int) -> tuple[int, ...]:
    """Lengths of the usual signatures, of a task that is measured on texts of `window` tokens unless a job says."""
    return ENCODED if window <= ENCODED[-1] else (*ENCODED, window)


class LitertOptions(BaseModel):
    """The options of the target litert."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lengths: str | None = Field(
        None,
        description="Tokens that the signatures read at once, such as 64,128,256: a text is padded to the next. "
        f"Default: {','.join(map(str, ENCODED))}; of a text generation's prefill {','.join(map(str, PREFILLED))}.",
        examples=["64,128,256"],
    )
    max_length: int | None = Field(
        None,
        ge=8,
        description="Tokens that the KV cache of text generation holds. Default: what the model takes, "
        f"{USUAL_LENGTH} at most.",
        examples=[2048],
    )
    bundle: bool = Field(
        False,
        description="Text generation also as model.litertlm, which LiteRT-LM runs on phones.",
    )

    @field_validator("lengths", mode="before", json_schema_input_type=str | int | list[int] | None)
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        """YAML has numbers and lists of them too."""
        if value is None:
            return None
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        if not re.fullmatch(r"\d+(,\d+)*", text):
            raise ValueError(f"lengths are numbers with commas between them, such as 64,128,256 (this was {text!r})")
        numbers = [int(one) for one in text.split(",")]
        if min(numbers) < 2 or len(set(numbers)) < len(numbers):
            raise ValueError(f"lengths are different numbers of at least 2 (this was {text!r})")
        return ",".join(map(str, sorted(numbers)))

    def asked(self) -> tuple[int, ...] | None:
        """The lengths that were asked for, ascending."""
        return None if self.lengths is None else tuple(int(one) for one in self.lengths.split(","))

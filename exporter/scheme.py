"""Scheme: the number formats that one linear layer gets."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Scheme(BaseModel):
    """One linear layer's number formats.

    Weights are int8 or int4, with a scale per output channel or per `group` of input channels; or each is one of a
    palette's 2^bits values, which 16 output channels share (exporter.quantization.palette). The input stays in float,
    is quantized at run time (`dynamic`: each target in its own granularity), or with the fixed `range` (`static`, one
    scale per tensor; without a range: calibration finds one). A range that is symmetric about 0 is int8 with zero
    point 0; any other is uint8. `signed` asks calibration for a symmetric one, where an engine has no other.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    weight: Literal["int8", "int4", "palette6", "palette4"]
    group: int | None = Field(None, ge=16)
    symmetric: bool = True
    input: Literal["float", "dynamic", "static"] = "float"
    range: tuple[float, float] | None = None
    signed: bool = False

    @model_validator(mode="after")
    def _range_goes_with_static(self) -> Self:
        if self.range is not None and self.input != "static":
            raise ValueError("range goes with 'input: static', and only with it")
        if self.range is not None and not self.range[0] <= 0 <= self.range[1] > self.range[0]:
            raise ValueError(f"range {list(self.range)} must be [low, high] around 0")
        if self.signed and self.input != "static":
            raise ValueError("signed goes with 'input: static', and only with it")
        if self.signed and self.range is not None and not self.symmetric_input:
            raise ValueError(f"range {list(self.range)} of a signed input must be [-high, high]")
        return self

    @model_validator(mode="after")
    def _a_palette_is_of_weights_alone(self) -> Self:
        if self.palette and (self.group is not None or not self.symmetric or self.input != "float"):
            raise ValueError(f"{self.weight} has no group, no zero points and a float input")
        return self

    @property
    def bits(self) -> int:
        return int(self.weight[-1])

    @property
    def palette(self) -> bool:
        return self.weight.startswith("palette")

    @property
    def symmetric_input(self) -> bool:
        return self.range is not None and -self.range[0] == self.range[1]

    def __str__(self) -> str:
        if self.palette:
            return self.weight
        words = [self.weight, f"in groups of {self.group}" if self.group else "per channel"]
        words += [] if self.symmetric else ["with zero points"]
        words += ["signed"] if self.signed else []
        words += [] if self.input == "float" else [f"{self.input} input"]
        return " ".join(words)

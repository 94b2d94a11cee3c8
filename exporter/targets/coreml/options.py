"""What can be asked of coreml alone: --coreml-…, `coreml: {…}` in the job file. Each default is written here, once."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

# The systems that a program can be made for, by the specification that they brought (coremltools' ct.target has both
# names for one number). iOS 18's has states, 4-bit and blockwise weights and the fused attention.
SYSTEMS = {"iOS16": 16, "macOS13": 16, "iOS17": 17, "macOS14": 17, "iOS18": 18, "macOS15": 18}
System = Literal["iOS16", "macOS13", "iOS17", "macOS14", "iOS18", "macOS15"]
STATES = BLOCKS = FUSED = 18  # the first iOS with each of these
ROUNDED_INPUTS = 17
USUAL_LENGTH = 2048  # tokens, of a model that could take more


class CoremlOptions(BaseModel):
    """The options of the target coreml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: System = Field(
        "iOS18",
        description="The oldest system that the model must run on, such as iOS17 or macOS15.",
        examples=["iOS17"],
    )
    cache: Literal["auto", "state", "none"] = Field(
        "auto",
        description="The KV cache of text generation. state: Core ML keeps it between calls, since iOS18 and macOS15; "
        "none: each call reads the whole text; auto: a state where the system has it.",
    )
    max_length: int | None = Field(
        None,
        ge=8,
        description=f"Tokens of the longest text, its answer included. Default: the model's, {USUAL_LENGTH} at most.",
        examples=[4096],
    )
    calibrate: bool = Field(
        True,
        description="Palettes weighted by what the layers are fed in calibration; without: each weight counts alike.",
    )

    @property
    def system(self) -> int:
        """Such as 18, of iOS18 and of macOS15."""
        return SYSTEMS[self.target]

    @property
    def stateful(self) -> bool:
        return self.cache == "state" or (self.cache == "auto" and self.system >= STATES)

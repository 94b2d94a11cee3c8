"""What can be asked of tensorrt and of tensorrt-rtx alone. Each default is written here, once."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from exporter.byte_size import ByteSize
from exporter.targets.tensorrt.profile import Profile


class EngineOptions(BaseModel):
    """What the two have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: bool = Field(True, description="Build the engine; without: the graph, its profile and its proof alone.")
    profile: str = Field(
        "batch=1:1:8,length=1:128:512",
        description="The sizes that an engine takes, min:opt:max. length: tokens of a text; with a KV cache of the "
        "prompt and its answer together, of an encoder-decoder of its target; source: of what that reads, the same "
        "as length where it is left out.",
        examples=["batch=1:1:4,length=1:128:1024", "batch=1:1:8,length=1:64:256,source=1:128:512"],
    )
    workspace: ByteSize | None = Field(
        None,
        description="Memory that a layer may use on the GPU, such as 4G. Default: the GPU's.",
        examples=["4G"],
    )

    @field_validator("profile")
    @classmethod
    def _readable(cls, value: str) -> str:
        Profile.parse(value)
        return value


class TensorrtOptions(EngineOptions):
    """The options of the target tensorrt, which builds for the GPU that it runs on."""

    hardware_compatible: bool = Field(
        False, description="An engine for every GPU from Ampere on, not only for this machine's."
    )
    version_compatible: bool = Field(
        False, description="An engine that other versions of TensorRT of the same major one run too."
    )


def _capability(name: str) -> str:
    if not re.fullmatch(r"sm\d{2,3}", name):
        raise ValueError("give names such as sm80,sm89")
    return name


class RtxOptions(EngineOptions):
    """The options of the target tensorrt-rtx, which builds ahead of time."""

    compute_capability: tuple[Annotated[str, AfterValidator(_capability)], ...] = Field(
        (),
        description="The GPUs that the engine is for, such as sm80,sm86,sm89,sm120. Default: all that TensorRT-RTX "
        "supports by itself, 8.0 and later RTX.",
        examples=["sm89,sm120"],
    )

    @field_validator("compute_capability", mode="before", json_schema_input_type=str | tuple[str, ...])
    @classmethod
    def _one_name_each(cls, value: Any) -> Any:
        given = (value,) if isinstance(value, str) else value
        if not isinstance(given, list | tuple):
            return given
        return tuple(name for one in given for name in (one.split(",") if isinstance(one, str) else (one,)))

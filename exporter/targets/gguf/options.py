"""What can be asked of gguf alone: --gguf-…, `gguf: {…}` in the job file. Each default is written here, once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from exporter.byte_size import ByteSize
from exporter.targets.gguf.types import parse_override
from exporter.yaml_file import off_is_a_word


def _readable(text: str) -> str:
    parse_override(text)
    return text


class GgufOptions(BaseModel):
    """The options of the target gguf."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    imatrix: Literal["auto", "off"] | Path = Field(
        "auto", description="The importance matrix. auto: from the calibration; off; or llama.cpp's imatrix FILE."
    )
    tensor: tuple[Annotated[str, AfterValidator(_readable)], ...] = Field(
        (),
        description="PATTERN=TYPE: the type of the tensors whose names it fits; again for others.",
        examples=["ffn_down=q6_k"],
    )
    split_max_size: ByteSize | None = Field(
        None, description="Split into files of at most this size, such as 4G; powers of 1000.", examples=["4G"]
    )

    gpu_layers: int | None = Field(
        None,
        ge=0,
        description="Layers that a GPU gets, of a model larger than its memory; in the Modelfile too. Default: all.",
    )

    _off = field_validator("imatrix", mode="before")(off_is_a_word)

    @field_validator("tensor", mode="before", json_schema_input_type=str | tuple[str, ...])
    @classmethod
    def _one_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

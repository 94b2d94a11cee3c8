"""What can be asked of onnx alone: --onnx-…, `onnx: {…}` in the job file. Each default is written here, once."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from exporter.targets.onnx_graph.versions import OLDEST, number


class OnnxOptions(BaseModel):
    """The options of the target onnx."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_onnxruntime: str | None = Field(
        None,
        description="The oldest ONNX Runtime that must open the artifact, such as 1.20; what cannot be written for it "
        "fails. Default: what each graph needs, which the report says.",
        examples=["1.20"],
    )

    @field_validator("min_onnxruntime", mode="before", json_schema_input_type=str | None)
    @classmethod
    def _a_version(cls, value: Any) -> Any:
        if isinstance(value, float | int):
            # YAML reads 1.20 as the number 1.2, which is another version.
            raise ValueError(f'a version is a text: write it in quotes, as "1.20" (this was read as {value})')
        if value is None:
            return None
        if not re.fullmatch(r"\d+\.\d+(\.\d+)?", str(value)):
            raise ValueError("a version of ONNX Runtime is written as 1.20 or 1.20.1")
        if number(str(value)) < number(OLDEST):
            raise ValueError(f"what versions before {OLDEST} need is not known: {OLDEST} or later")
        return value

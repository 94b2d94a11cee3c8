"""What quantization-aware training can be asked: --qat-…, `qat: {…}` in the job file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from exporter.scheme import Scheme

HEAD = Scheme(weight="int8", group=32)  # what the output head gets, whose weight is often the embedding's too


class QatOptions(BaseModel):
    """Quantization-aware training: each default is written here, once."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int = Field(200, ge=1, description="Updates of the weights.")
    scheme: Literal["int8-static", "int4-weight"] = Field("int4-weight", description="What is trained for.")
    lr: float = Field(1e-4, gt=0, description="AdamW's highest learning rate; with lora some three times as much.")
    batch: int = Field(4, ge=1, description="Windows of text in each step.")
    window: int = Field(512, ge=8, description="Tokens in a window.")
    # Where the student is near its teacher, cross entropy's gradient is by far the larger: it would teach the text, and
    # make of it another model than the one that is exported.
    kd: float = Field(1.0, ge=0, le=1, description="Share of the KL to the float model in the loss; the rest is CE.")
    lora: int | None = Field(None, ge=1, description="Train LoRA factors of this rank only: less memory.")
    checkpointing: bool = Field(False, description="Gradient checkpointing: less memory, a third slower.")
    seed: int = Field(0, ge=0, description="Of the order of the windows and of the LoRA factors.")
    save: int = Field(50, ge=1, description="Steps between two states on disk, from which a killed run goes on.")
    data: Path | None = Field(None, description="UTF-8 text to train on. Default: the calibration's.")

    def identity(self) -> dict[str, Any]:
        """What makes two trainings on the same data the same."""
        return self.model_dump(mode="json", exclude={"save", "data"})

    def layer_scheme(self) -> Scheme:
        """What each linear layer is trained for, where no policy says otherwise; static ranges are calibration's."""
        if self.scheme == "int4-weight":
            return Scheme(weight="int4", group=32, symmetric=False)
        return Scheme(weight="int8", group=None, input="static")

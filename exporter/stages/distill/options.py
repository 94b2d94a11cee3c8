"""What distillation can be asked: --distill-…, `distill: {…}` in the job file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class DistillOptions(BaseModel):
    """Distillation: each default is written here, once."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int = Field(200, ge=1, description="Updates of the weights, at most.")
    data: Path | None = Field(
        None,
        description="What to learn on: UTF-8 text, or labelled examples (.jsonl, .csv, .parquet) for classifiers. "
        "Default: the calibration's text.",
    )
    teacher: Path | None = Field(
        None,
        description="A folder of another model that teaches, with the same vocabulary or labels. Default: the model as "
        "it was before it was pruned.",
    )
    student: str | None = Field(
        None,
        description="A smaller model to teach, made of the teacher: layers:6,hidden:256,intermediate:1024, one of "
        "them or several. Default: the pruned model.",
    )
    temperature: float = Field(2.0, gt=0, description="What logits are divided by before they are compared.")
    alpha: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of the task's own loss; the rest is temperature^2 KL to the teacher.",
    )
    features: float = Field(0.0, ge=0, description="Weight of the hidden states' error, layer by layer; 0: left out.")
    lr: float = Field(1e-4, gt=0, description="AdamW's highest learning rate.")
    batch: int = Field(4, ge=1, description="Windows, or examples, at a time.")
    accumulate: int = Field(1, ge=1, description="Batches in each step.")
    window: int | None = Field(None, ge=8, description="Tokens in a window. Default: 512; encoders 128.")
    bf16: bool = Field(False, description="Compute in bfloat16 where it is safe: faster on CPUs with AMX.")
    patience: int = Field(
        3, ge=0, description="Looks at the held-out text without improvement after which it stops; 0: never."
    )
    seed: int = Field(0, ge=0, description="Of the order of the examples, of dropout and of projections.")
    save: int = Field(
        50,
        ge=1,
        description="Steps between two looks at the held-out text, each with a state on disk, from which a "
        "killed run goes on.",
    )

    def identity(self) -> dict[str, Any]:
        """What makes two distillations by the same teacher of the same student on the same data the same."""
        return self.model_dump(mode="json", exclude={"data", "teacher"})

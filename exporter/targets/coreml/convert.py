"""A traced model to a program of Core ML, by coremltools: float32, or float16 but for what would overflow there.

coremltools is imported when it is needed: it takes seconds, and tells on stderr which of its parts are for macOS alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.errors import BuildError
from exporter.form import FORMS, PIXELS
from exporter.targets.coreml.options import FUSED, USUAL_LENGTH, CoremlOptions
from exporter.targets.coreml.traps import quiet, scalar_sizes
from exporter.targets.traced_model.longest import longest
from exporter.targets.traced_model.masks import CAUSAL, SLIDING
from exporter.targets.traced_model.traced import (
    BATCH,
    KEYS,
    NEW,
    TOTAL,
    VALUES,
    Dimensions,
    Traced,
    trace_decoder,
    trace_encoder,
    trace_pictures,
)
from exporter.types import GENERATION, Checkpoint

if TYPE_CHECKING:
    from coremltools.models import MLModel

PACKAGE = "model.mlpackage"
WINDOW, LENGTH = "sliding_window", "max_length"  # what a caller must know, among the model's metadata
MAX_BATCH = 64  # of encoders: Core ML wants a limit
# A sum of squares over the hidden size leaves float16's range: RMSNorm's, of which MIL has no operator.
_FLOAT32 = frozenset({"pow", "reduce_mean", "reduce_sum_square", "rsqrt"})
_DESCRIPTIONS = {
    "input_ids": "Token ids.",
    "attention_mask": "1 for a token, 0 for padding.",
    "token_type_ids": "0 for the first of two texts, 1 for the second.",
    "position_ids": "The tokens' positions, counted from 0 at the beginning of the text, cached ones included.",
    CAUSAL: "Added to the attention's scores: 0 where a token sees another, -30000 where not; over the cache and the "
    "new tokens.",
    SLIDING: "The same for layers with a sliding window, which hides what lies further back.",
    PIXELS: "A picture, channels first, as preprocessor_config.json has it made.",
    KEYS: "The keys of all layers, written by the model.",
    VALUES: "The values of all layers, written by the model.",
    "logits": "For each token the scores of the next, or of a text or a picture the scores of each class.",
    "last_hidden_state": "The last layer's states of each token, or of each patch of a picture.",
}


@dataclass(frozen=True)
class Converted:
    """A float program that is not saved yet, and what it was traced from. `limited`: why it takes no longer texts.

    `length`: tokens of the longest text; None of pictures.
    """

    package: MLModel
    traced: Traced
    system: str
    length: int | None
    limited: str
    half: bool

    def told(self) -> dict[str, Any]:
        """What a caller must know, as JSON: names in their order, limits, and the type of masks and logits."""
        traced = self.traced
        return {
            "system": self.system,
            "inputs": [*traced.integers, *traced.masks, *traced.pixels],
            "output": traced.output,
            "states": list(traced.states),
            "max_length": self.length,
            "sliding_window": traced.window,
            "floats": "FLOAT16" if self.half and traced.masks else "FLOAT32",
        }


def convert(checkpoint: Checkpoint, options: CoremlOptions, half: bool) -> Converted:
    """The float program of a checkpoint, described. Raises BuildError."""
    fused = options.system >= FUSED
    if FORMS[checkpoint.task].inputs == "pixels":
        traced = trace_pictures(checkpoint, fused)
        model = _converted(traced, options.target, None, half)
        _describe(model, traced, None)
        return Converted(model, traced, options.target, None, "", half)
    length, limited = longest(checkpoint, options.max_length, USUAL_LENGTH, "--coreml-max-length")
    if checkpoint.task == GENERATION:
        traced = trace_decoder(checkpoint, length, options.stateful, fused)
    else:
        traced = trace_encoder(checkpoint, length, fused)
    model = _converted(traced, options.target, length, half)
    _describe(model, traced, length)
    return Converted(model, traced, options.target, length, limited, half)


def _converted(traced: Traced, system: str, length: int | None, half: bool) -> MLModel:
    with quiet():
        import coremltools as ct

    kind = np.float16 if half else np.float32
    longest_text = length or 1
    sizes = {
        BATCH: ct.RangeDim(1, MAX_BATCH, default=1),
        NEW: ct.RangeDim(1, longest_text, default=min(8, longest_text)),
        TOTAL: ct.RangeDim(1, longest_text, default=min(8, longest_text)),
    }

    def shape(dimensions: Dimensions) -> Any:
        return ct.Shape([sizes[one] if isinstance(one, str) else one for one in dimensions])

    inputs = [ct.TensorType(name, shape(them), np.int32) for name, them in traced.integers.items()]
    inputs += [ct.TensorType(name, shape(them), kind) for name, them in traced.masks.items()]
    inputs += [ct.TensorType(name, shape(them), np.float32) for name, them in traced.pixels.items()]
    states = [
        ct.StateType(ct.TensorType(shape=its.dimensions, dtype=np.float16), name) for name, its in traced.states.items()
    ]
    try:
        # Its passes round constants to float16, where a number may be too large (in BERT one is): NumPy would warn, and
        # the artifact's gates tell what came of it.
        with quiet(), scalar_sizes(), np.errstate(over="ignore"):
            return ct.convert(
                traced.program,
                source="pytorch",
                convert_to="mlprogram",
                inputs=inputs,
                outputs=[ct.TensorType(name=traced.output, dtype=np.float32 if not traced.masks else kind)],
                states=states or None,
                minimum_deployment_target=getattr(ct.target, system),
                compute_precision=ct.transform.FP16ComputePrecision(_in_half) if half else ct.precision.FLOAT32,
                skip_model_load=True,
            )
    except Exception as error:  # whatever its passes run into
        told = " ".join(str(error).split())[:300]
        name = type(traced.model).__name__
        raise BuildError(f"coremltools cannot convert {name} ({type(error).__name__}: {told})") from error


def _in_half(op: Any) -> bool:
    """Whether an operator may compute in float16."""
    if op.op_type in _FLOAT32:
        return False
    # The term that is added to a mean of squares: rounded apart from it, it would be 0.
    operands = [getattr(one, "op", None) for one in op.inputs.values() if not isinstance(one, tuple)]
    return not (op.op_type == "add" and any(one is not None and one.op_type == "reduce_mean" for one in operands))


def _describe(model: MLModel, traced: Traced, length: int | None) -> None:
    description = model._spec.description  # the setters have no word for a state's
    for part in (description.input, description.output, description.state):
        for feature in part:
            feature.shortDescription = _DESCRIPTIONS[feature.name]
    known = {LENGTH: length, WINDOW: traced.window}
    facts = {name: str(value) for name, value in known.items() if value is not None}
    description.metadata.userDefined.update(facts)


def name_it(package: Path, checkpoint: Checkpoint, precision: str, facts: Mapping[str, str | None]) -> None:
    """Writes what a package's reader is told of the model: `facts` are its author, licence and version."""
    from coremltools.proto import Model_pb2

    file = package / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = Model_pb2.Model()
    spec.ParseFromString(file.read_bytes())
    metadata = spec.description.metadata
    for name, value in facts.items():
        setattr(metadata, name, value or "")
    metadata.shortDescription = f"{checkpoint.source}: {checkpoint.task} as coreml:{precision}"
    metadata.userDefined["task"] = checkpoint.task
    metadata.userDefined["history"] = "\n".join(checkpoint.history)
    file.write_bytes(spec.SerializeToString())

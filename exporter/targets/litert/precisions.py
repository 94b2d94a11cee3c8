"""The precisions of LiteRT with their gates, and what a policy may ask of each."""

from __future__ import annotations

from collections.abc import Mapping

from exporter.scheme import Scheme
from exporter.targets.folder.limits import float16, float32
from exporter.types import Gates, Precision, agreement

WEIGHTS = Scheme(weight="int8", group=None)
DYNAMIC = Scheme(weight="int8", group=None, input="dynamic")
STATIC = Scheme(weight="int8", group=None, input="static")
# XNNPACK multiplies 4-bit blocks with inputs that it rounds to 8 bits itself: it has no product with float ones.
BLOCKS = Scheme(weight="int4", group=32, input="dynamic")
GROUPS = (32, 64, 128, 256)  # ai-edge-quantizer's
# What a policy chooses from for each precision, cheapest first; then float.
SCHEMES: Mapping[str, tuple[Scheme, ...]] = {
    "int8-weight": (WEIGHTS,),
    "int8-dynamic": (DYNAMIC, WEIGHTS),
    "int8-static": (STATIC, WEIGHTS),
    "int4-weight": (BLOCKS, WEIGHTS),
}


def usual(precision: str, inputs: int, head: bool, convolution: bool = False) -> Scheme:
    """What a layer gets without a policy; 8 bits for a head, a convolution, and where blocks do not divide inputs."""
    first = SCHEMES[precision][0]
    if first.group is None:
        return first
    if convolution:
        return WEIGHTS
    return DYNAMIC if head or inputs % first.group else first


def cannot_express(precision: str, scheme: Scheme) -> str | None:
    """Why a precision cannot give a layer a scheme, with what it can; None where it can."""
    if precision not in SCHEMES:
        return f"litert:{precision} takes no policy; those that do: {', '.join(SCHEMES)}"
    inputs = {one.input for one in SCHEMES[precision]} | ({"dynamic"} if precision == "int4-weight" else set())
    eight = scheme.weight == "int8" and scheme.group is None and scheme.input in inputs
    four = precision == "int4-weight" and scheme.weight == "int4" and scheme.group in GROUPS
    if scheme.symmetric and (eight or (four and scheme.input == "dynamic")):
        return None
    groups = ", ".join(map(str, GROUPS))
    blocks = f", int4 in groups of {groups} with a dynamic input" if precision == "int4-weight" else ""
    kinds = " or ".join(sorted(inputs))
    taken = f"int8 per channel, symmetric, with a {kinds} input{blocks}; float"
    return f"litert:{precision} cannot express {scheme}; it takes {taken}"


# The limits are those of ONNX's precisions of the same names, where they were measured (onnx/target.py); a static
# product rounds its output too: int8-static may lose more. Measured here without a policy, SmolLM2-135M on 8,191
# tokens, ratio and KL: fp32 1.0000, 1e-9; int8-weight 1.0028, 0.0036; int8-dynamic 1.0173, 0.018. MiniLM's cosine:
# int8-dynamic 0.9987. Under a policy int4-weight: 1.081, 0.080; MiniLM 0.979; int8-static: MiniLM 0.984, with 12 of 36
# layers static; SmolLM2 1.036, 0.043, with 190 of 211.
PRECISIONS: Mapping[str, Precision] = {
    "fp32": float32("float32"),
    "fp16": float16("float16 weights, which are made float32 when the file is opened"),
    "int8-dynamic": Precision(
        "int8 weights per channel, activations quantized at run time",
        Gates(
            max_ppl_ratio=1.02,
            max_kl=0.05,
            min_cosine=0.98,
            max_regression_error=0.25,
            max_cache_kl=0.1,
            min_named_share=0.9,
        ),
        by_task=agreement(0.9),
        schemes=SCHEMES["int8-dynamic"],
        bits=8,
        table_bits=8,
    ),
    "int8-weight": Precision(
        "int8 weights per channel, activations in float32",
        Gates(
            max_ppl_ratio=1.02,
            max_kl=0.03,
            min_cosine=0.99,
            max_regression_error=0.15,
            max_cache_kl=0.01,
            min_named_share=0.9,
        ),
        by_task=agreement(0.93),
        schemes=SCHEMES["int8-weight"],
        bits=8,
        table_bits=8,
    ),
    "int8-static": Precision(
        "int8 products of int8 weights and inputs in ranges fixed by calibration, where the policy allows",
        Gates(
            max_ppl_ratio=1.05,
            max_kl=0.06,
            min_cosine=0.98,
            max_regression_error=0.25,
            max_cache_kl=0.01,
            min_named_share=0.5,
        ),
        by_task=agreement(0.9),
        schemes=SCHEMES["int8-static"],
        rounds_outputs=True,
        bits=8,
        table_bits=8,
    ),
    "int4-weight": Precision(
        "4-bit weights in blocks of 32, activations quantized at run time; embedding and head 8-bit",
        Gates(
            max_ppl_ratio=1.10,
            max_kl=0.15,
            min_cosine=0.95,
            max_regression_error=0.4,
            max_cache_kl=0.1,
            min_named_share=0.5,
        ),
        by_task=agreement(0.8),
        schemes=SCHEMES["int4-weight"],
        bits=4,
        table_bits=8,
    ),
}

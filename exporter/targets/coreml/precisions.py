"""The precisions of Core ML with their gates, and what a policy may ask of each."""

from __future__ import annotations

from collections.abc import Mapping

from exporter.scheme import Scheme
from exporter.targets.coreml.weights import BLOCKS, CHANNELS, PALETTES
from exporter.targets.folder.limits import float16
from exporter.types import Gates, Precision, agreement

FLOATS = ("fp32", "fp16")
# What a policy chooses from for each precision, cheapest first; then float, which is float16 here.
STATIC = Scheme(weight="int8", group=None, input="static", signed=True)
SCHEMES: Mapping[str, tuple[Scheme, ...]] = {
    "int8": (CHANNELS,),
    "int8-static": (STATIC, CHANNELS),
    "int4": (BLOCKS, CHANNELS),
    "palettize6": (PALETTES["palettize6"], CHANNELS),
    "palettize4": (PALETTES["palettize4"], CHANNELS),
}
# Taken of a policy that is given. Where one is chosen 8 bits come next: those are found at once, palettes in seconds.
_ALSO: Mapping[str, set[str]] = {"palettize4": {"palette6"}}
GROUPS = (16, 32, 64, 128, 256)


def cannot_express(precision: str, scheme: Scheme) -> str | None:
    """Why a precision cannot give a layer a scheme, with what it can; None where it can."""
    if precision not in SCHEMES:
        return f"coreml:{precision} takes no policy; those that do: {', '.join(SCHEMES)}"
    taken = {one.weight for one in SCHEMES[precision]} | _ALSO.get(precision, set())
    signed = scheme.symmetric and scheme.group is None and (scheme.signed or scheme.symmetric_input)
    if precision == "int8-static" and scheme.weight == "int8" and scheme.input == "static" and signed:
        return None
    if scheme.input == "float" and scheme.symmetric and scheme.weight in taken and scheme.group in (None, *GROUPS):
        return None
    kinds = " or ".join(sorted(taken))
    groups = ", ".join(map(str, GROUPS))
    whole = "int8 per channel, symmetric, with a static input that is signed (zero point 0); "
    static = whole if precision == "int8-static" else ""
    return (
        f"coreml:{precision} cannot express {scheme}; it takes {static}{kinds}, symmetric, per channel or in groups "
        f"of {groups}, with a float input; float"
    )


# Measured by the evaluator, rounding to float16 (bench/results/coreml.json): SmolLM2-135M on 8,191 tokens of prose,
# ratio and KL: fp16 1.0000, 1.6e-5; int8 1.0009, 0.0026; palettize6 1.0119, 0.013; int8-static 1.0142, 0.014; int4
# under a policy 1.0437, 0.043; palettize4 1.0576, 0.062 (1.2932, 0.26 without). MiniLM's cosine: 0.99999, 0.9994,
# 0.9970, 0.9879, 0.9847, 0.9845. No classifier was measured: their limits are those of ONNX's with as many bits.
PRECISIONS: Mapping[str, Precision] = {
    "fp32": Precision(
        "float32",
        Gates(
            max_ppl_ratio=1.001,
            max_kl=1e-4,
            min_cosine=0.9999,
            max_regression_error=1e-3,
            max_logit_error=0.02,  # the cache is float16 there too
            max_cache_kl=1e-5,
        ),
        by_task=agreement(0.98),
    ),
    "fp16": float16("float16 weights and arithmetic, sums of squares in float32"),
    "int8": Precision(
        "8-bit weights per channel, float16 for the rest",
        Gates(
            max_ppl_ratio=1.02,
            max_kl=0.03,
            min_cosine=0.99,
            max_regression_error=0.15,
            max_cache_kl=0.01,
            min_named_share=0.9,
        ),
        by_task=agreement(0.93),
        schemes=SCHEMES["int8"],
        bits=8,
        table_bits=16,
    ),
    "int8-static": Precision(
        "int8 weights per channel and activations in ranges fixed by calibration, where the policy allows",
        Gates(
            max_ppl_ratio=1.02,
            max_kl=0.03,
            min_cosine=0.98,
            max_regression_error=0.25,
            max_cache_kl=0.01,
            min_named_share=0.5,
        ),
        by_task=agreement(0.9),
        schemes=SCHEMES["int8-static"],
        bits=8,
        table_bits=16,
    ),
    "int4": Precision(
        "4-bit weights in blocks of 32, float16 for the rest",
        Gates(
            max_ppl_ratio=1.10,
            max_kl=0.15,
            min_cosine=0.95,
            max_regression_error=0.4,
            max_cache_kl=0.05,
            min_named_share=0.5,
        ),
        by_task=agreement(0.8),
        schemes=SCHEMES["int4"],
        bits=4,
        table_bits=16,
    ),
    "palettize6": Precision(
        "6-bit weights from palettes of 64 values, one for each 16 rows",
        Gates(
            max_ppl_ratio=1.03,
            max_kl=0.04,
            min_cosine=0.99,
            max_regression_error=0.15,
            max_cache_kl=0.01,
            min_named_share=0.5,
        ),
        by_task=agreement(0.93),
        schemes=SCHEMES["palettize6"],
        bits=6,
        table_bits=16,
    ),
    "palettize4": Precision(
        "4-bit weights from palettes of 16 values, one for each 16 rows",
        Gates(
            max_ppl_ratio=1.10,
            max_kl=0.15,
            min_cosine=0.95,
            max_regression_error=0.4,
            max_cache_kl=0.05,
            min_named_share=0.5,
        ),
        by_task=agreement(0.8),
        schemes=SCHEMES["palettize4"],
        bits=4,
        table_bits=16,
    ),
}

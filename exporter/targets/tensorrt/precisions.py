"""The precisions of TensorRT and TensorRT-RTX with their gates."""

from __future__ import annotations

from exporter.targets.folder.limits import float16, float32
from exporter.targets.tensorrt.quantize import SCHEMES
from exporter.types import Gates, Precision, agreement

# Measured (KL of SmolLM2-135M; then of random BERTs, 185 lines: a number's error, three labels' agreement): fp16 2e-5,
# 0.0041, 100%; bf16 not measured, 0.033, 99%; int8 0.016, 0.22, 94%; int8-weight 0.0034, the others as ONNX's.
PRECISIONS = {
    "fp32": float32("float32, without TF32"),
    "fp16": float16("float16, what would overflow in float32", named_share=0.5),
    "bf16": Precision(
        "bfloat16, norms and softmax in float32",
        Gates(
            max_ppl_ratio=1.02,
            max_kl=0.02,
            min_cosine=0.995,
            max_regression_error=0.06,
            max_cache_kl=0.01,
            min_named_share=0.9,
        ),
        by_task=agreement(0.94),
        bits=16,
        table_bits=16,
    ),
    "int8": Precision(
        "int8 weights and activations (Q/DQ) where the policy allows, float16 for the rest",
        Gates(
            max_ppl_ratio=1.02,
            max_kl=0.03,
            min_cosine=0.98,
            max_regression_error=0.25,
            max_cache_kl=0.01,
            min_named_share=0.5,
        ),
        by_task=agreement(0.9),
        schemes=SCHEMES["int8"],
        bits=8,
        table_bits=16,
        ranges_per_octave=16,  # SmolLM2's engine / ONNX: 1.146, as found 1.176, four 1.140; one for all 1.136
    ),
    "int8-weight": Precision(
        "8-bit weights per channel, float16 for the rest",
        Gates(
            max_ppl_ratio=1.02,
            max_kl=0.03,
            min_cosine=0.99,
            max_regression_error=0.15,
            max_cache_kl=0.01,
            min_named_share=0.5,
        ),
        by_task=agreement(0.93),
        schemes=SCHEMES["int8-weight"],
        bits=8,
        table_bits=16,
    ),
}

"""Decoders whose cache is not keys and values, refused by their configuration by every target that traces."""

from __future__ import annotations

import pytest
import transformers as hf
from test_traced_graph import DECODERS, LLAMA

from exporter.targets import known
from exporter.types import GENERATION


@pytest.mark.parametrize("name", ["onnx", "tensorrt", "tensorrt-rtx", "coreml", "litert"])
def test_a_cache_of_another_kind_is_refused_before_any_work(name: str) -> None:
    target = known.get(name)
    states = [
        hf.MambaConfig(),
        hf.Lfm2Config(**LLAMA, layer_types=["conv", "full_attention"]),
        hf.Qwen3NextConfig(**LLAMA),
        hf.JambaConfig(),
        hf.RecurrentGemmaConfig(),
    ]
    for config in states:
        told = target.check(config.to_dict(), GENERATION, target.default)
        assert told is not None, config.model_type
        assert told.startswith("its cache holds more than keys and values ("), told
    for family, make in DECODERS.items():
        assert target.check(make().to_dict(), GENERATION, target.default) is None, family

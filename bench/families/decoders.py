"""The decoders, small enough that one is exported in seconds.

Windows, and the lengths at which a rope changes, are short, so that a text of 40 or 200 tokens lies beyond them.
Vocabulary and special tokens are the shipped tokenizer's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.families.family import Family

_TOKENS = {"vocab_size": 2048, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_HEADS = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_NEOX = _TOKENS | _HEADS | {"intermediate_size": 128, "max_position_embeddings": 512}
_LLAMA: dict[str, Any] = _NEOX | {"num_key_value_heads": 2}
_GPT2 = _TOKENS | {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}
_LARGE_HEADS = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2}  # of 64, as Phi-2's are of 80
_LENGTHS, _CACHED = (12, 100), ((10, 20),)
_WINDOW: dict[str, Any] = {"lengths": (12, 16, 17, 40, 100), "cached": ((10, 40), (30, 40))}
_SLIDING: dict[str, Any] = {"sliding_window": 16}
_ALTERNATING: dict[str, Any] = _SLIDING | {"layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
_BEYOND_128: dict[str, Any] = {"lengths": (12, 100, 128, 129, 200), "cached": ((10, 40), (120, 140), (150, 160))}


def _longrope(pairs: int) -> dict[str, Any]:
    """Factors for a head of twice so many rotated values; the long ones are far from the short."""
    short, long = ([first + step * i for i in range(pairs)] for first, step in ((1.0, 0.05), (1.5, 0.6)))
    return {"rope_type": "longrope", "short_factor": short, "long_factor": long}


_LONG = {"max_position_embeddings": 1024, "original_max_position_embeddings": 128, "sliding_window": None}
_PHI4 = _LONG | {"partial_rotary_factor": 0.75, "tie_word_embeddings": True, "rope_scaling": _longrope(6)}
_SCALED = {"embedding_multiplier": 6.0, "attention_multiplier": 0.1, "logits_scaling": 4.0, "residual_multiplier": 0.4}


def _of(
    architecture: str,
    sizes: Mapping[str, Any],
    lengths: tuple[int, ...] = _LENGTHS,
    cached: tuple[tuple[int, int], ...] = _CACHED,
    hub: Mapping[str, Any] | None = None,
    **config: Any,
) -> Family:
    return Family(f"{architecture}ForCausalLM", {**sizes, **config}, lengths, cached, hub)


def _llama(name: str = "Llama", **more: Any) -> Family:
    return _of(name, _LLAMA, **more)


_GEMMA3: dict[str, Any] = {"head_dim": 16, "query_pre_attn_scalar": 24, "num_hidden_layers": 3} | _SLIDING
_GEMMA3 |= {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
_SMOLLM3 = {"num_hidden_layers": 4, "no_rope_layer_interval": 2}

_FULL: dict[str, Family] = {
    "llama": _llama(attention_bias=True, mlp_bias=True, rope_theta=500000.0),
    "llama-tied": _llama(tie_word_embeddings=True),
    "llama3rope": _llama(
        max_position_embeddings=1024, rope_theta=500000.0, lengths=(12, 40, 100, 200),
        rope_scaling={
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "llama-linear": _llama(rope_scaling={"rope_type": "linear", "factor": 4.0}),
    "llama-linear-old": _llama(rope_scaling={"rope_type": "linear", "factor": 4.0}, hub={}),
    "llama-dynamic": _llama(
        max_position_embeddings=128, rope_scaling={"rope_type": "dynamic", "factor": 4.0}, **_BEYOND_128
    ),
    "llama-yarn": _llama(rope_scaling=_YARN, **_BEYOND_128),
    "qwen2": _llama("Qwen2", sliding_window=32, use_sliding_window=False, lengths=(12, 40, 100)),
    "qwen2-yarn": _llama("Qwen2", rope_scaling=_YARN, **_BEYOND_128),
    "qwen2-yarn-old": _llama("Qwen2", rope_scaling=_YARN, hub={}, **_BEYOND_128),
    "qwen3": _llama("Qwen3", head_dim=32),
    "mistral-nemo": _llama("Mistral", sliding_window=None, head_dim=32),
    "gemma": _llama("Gemma", head_dim=16),
    "phi": _llama("Phi", num_key_value_heads=4, partial_rotary_factor=0.5),
    "phi-64": _llama("Phi", partial_rotary_factor=0.5, **_LARGE_HEADS),
    "phi3-longrope": _llama("Phi3", rope_scaling=_longrope(8), **_LONG, **_BEYOND_128),
    "phi3-longrope-old": _llama("Phi3", rope_scaling=_longrope(8), hub={}, **_LONG, **_BEYOND_128),
    "phi4mini": _llama("Phi3", **_PHI4, **_BEYOND_128),
    "phi4mini-old": _llama("Phi3", **_PHI4, hub={}, **_BEYOND_128),
    "granite": _llama("Granite", **_SCALED),
    "smollm3": _llama("SmolLM3", **_SMOLLM3),
    "smollm3-old": _llama("SmolLM3", **_SMOLLM3, hub={}),
    "smollm3-yarn": _llama("SmolLM3", **_SMOLLM3, rope_scaling=_YARN, **_BEYOND_128),
    "olmo": _llama("Olmo", clip_qkv=None),
    "olmo-clip": _llama("Olmo", clip_qkv=0.5),
    "olmo2": _llama("Olmo2"),
    "nemotron": _llama("Nemotron", partial_rotary_factor=0.5),
    "nemotron-64": _llama("Nemotron", partial_rotary_factor=0.5, **_LARGE_HEADS),
    "ernie45": _llama("Ernie4_5"),
    "ernie-old": _llama("Ernie4_5", hub={}),
    "cohere": _llama("Cohere", logit_scale=0.25),
    "stablelm": _llama("StableLm"),
    "hunyuan": _llama("HunYuanDenseV1", head_dim=16),
    "glm4": _llama("Glm4", head_dim=16, partial_rotary_factor=0.5),
    "gptj": _of("GPTJ", _GPT2, rotary_dim=8),
    "gptneox": _of("GPTNeoX", _NEOX),
    "persimmon": _of("Persimmon", _NEOX),
    "falcon-alibi": _of(
        "Falcon", _TOKENS | _HEADS, alibi=True, multi_query=False, new_decoder_architecture=False,
        parallel_attn=False, bias=True,
    ),
    "mpt": _of("Mpt", _TOKENS, d_model=64, n_heads=4, n_layers=2, max_seq_len=512, expansion_ratio=2),
    "bloom": _of("Bloom", _TOKENS, hidden_size=64, n_layer=2, n_head=4),
    "opt-350m-like": _of(
        "OPT", _TOKENS | _HEADS, word_embed_proj_dim=32, ffn_dim=128, max_position_embeddings=512,
        do_layer_norm_before=False,
    ),
    "gpt2": Family("GPT2LMHeadModel", _GPT2, _LENGTHS, _CACHED),
    "gptbigcode": _of("GPTBigCode", _GPT2, multi_query=True),
    "codegen": _of("CodeGen", _GPT2, rotary_dim=8),
    "xglm": _of(
        "XGLM", _TOKENS, d_model=64, ffn_dim=128, num_layers=2, attention_heads=4, max_position_embeddings=512
    ),
    "lfm2": _llama("Lfm2", layer_types=["conv", "full_attention"]),
    "lfm2-1": _llama("Lfm2", layer_types=["full_attention", "conv"]),
    "deepseekv3": _llama(
        "DeepseekV3", num_key_value_heads=4, q_lora_rank=32, kv_lora_rank=16, qk_rope_head_dim=8, v_head_dim=16,
        qk_nope_head_dim=16, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
        moe_intermediate_size=32, first_k_dense_replace=1,
    ),
    "mixtral": _llama("Mixtral", sliding_window=None, **_EXPERTS),
    "qwen3moe": _llama("Qwen3Moe", head_dim=16, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2),
    "olmoe": _llama("Olmoe", num_experts=4, num_experts_per_tok=2),
    "granitemoe": _llama("GraniteMoe", **_EXPERTS, **_SCALED),
    "phimoe": _llama(
        "Phimoe", **_EXPERTS, **_LONG, **_BEYOND_128,
        rope_scaling=_longrope(8)
        | {"short_mscale": 1.1, "long_mscale": 1.2, "original_max_position_embeddings": 128},
    ),
}  # fmt: skip
# Layers that see a window alone. Two windows are as long as those that models have: beyond what the program's own
# evaluation of 512 tokens reads, and beyond half of the positions.
_WINDOWED: dict[str, Family] = {
    "qwen2-swa": _llama("Qwen2", use_sliding_window=True, max_window_layers=1, **_SLIDING, **_WINDOW),
    "mistral-swa": _llama("Mistral", **_SLIDING, **_WINDOW),
    "mistral-real": _llama(
        "Mistral", sliding_window=640, max_position_embeddings=2048, hub={},
        lengths=(12, 512, 640, 641, 1000), cached=((600, 660), (700, 704)),
    ),
    "gemma2": _llama(
        "Gemma2", head_dim=16, query_pre_attn_scalar=24, attn_logit_softcapping=5.0, final_logit_softcapping=3.0,
        **_SLIDING, **_WINDOW,
    ),
    "gemma3": _llama("Gemma3", **_GEMMA3, rope_theta=1e6, rope_local_base_freq=1e4, **_WINDOW),
    "gemma3-old": _llama("Gemma3", **_GEMMA3, rope_theta=1e6, rope_local_base_freq=1e4, hub={}, **_WINDOW),
    "phi3": _llama("Phi3", original_max_position_embeddings=512, **_SLIDING, **_WINDOW),
    "phi3-4k": _llama(
        "Phi3", max_position_embeddings=2048, original_max_position_embeddings=2048, sliding_window=1023, hub={},
        lengths=(12, 512, 1023, 1024, 1500), cached=((1000, 1030),),
    ),
    "olmo3": _llama("Olmo3", **_ALTERNATING, **_WINDOW),
    "cohere2": _llama("Cohere2", logit_scale=0.25, **_ALTERNATING, **_WINDOW),
    "starcoder2": _llama("Starcoder2", **_SLIDING, **_WINDOW),
    "gptoss": _llama("GptOss", head_dim=16, **_EXPERTS, **_ALTERNATING, **_WINDOW),
    "exaone4": _llama("Exaone4", **_ALTERNATING, **_WINDOW),
}  # fmt: skip
DECODERS: dict[str, Family] = _FULL | _WINDOWED

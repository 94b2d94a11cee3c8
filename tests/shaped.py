"""Small random models of several families, and what each must be after it was pruned to another shape."""

from __future__ import annotations

import torch
import transformers as t

VOCABULARY = 96
_SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 4,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
_GROUPED = _SIZES | {"num_attention_heads": 6, "num_key_value_heads": 3, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES = ("llama", "qwen3", "gemma3", "phi3", "gpt2", "bert", "bert-classifier")
GROUPED = FAMILIES[:4]  # those whose configuration says a head's size


def family(kind: str, **more):
    """A model of a family, float32, in eval mode, the same each time."""
    torch.manual_seed(0)
    if kind == "llama":
        made = t.LlamaForCausalLM(t.LlamaConfig(**_GROUPED, head_dim=16, attention_bias=True, mlp_bias=True, **more))
    elif kind == "qwen3":
        sliding = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
        made = t.Qwen3ForCausalLM(t.Qwen3Config(**_GROUPED, head_dim=16, tie_word_embeddings=True, **sliding, **more))
    elif kind == "gemma3":
        kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
        config = t.Gemma3TextConfig(**_GROUPED, head_dim=16, sliding_window=8, layer_types=kinds, **more)
        made = t.Gemma3ForCausalLM(config)
    elif kind == "phi3":
        made = t.Phi3ForCausalLM(t.Phi3Config(**_GROUPED, original_max_position_embeddings=64, **more))
    elif kind == "gpt2":
        sizes = {"vocab_size": VOCABULARY, "n_embd": 48, "n_layer": 4, "n_head": 4, "n_positions": 64}
        made = t.GPT2LMHeadModel(t.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2, **more))
    else:
        classifier = kind == "bert-classifier"
        config = t.BertConfig(**_SIZES, num_attention_heads=4, **more)
        made = (t.BertForSequenceClassification if classifier else t.BertModel)(config)
    with torch.no_grad():
        for parameter in made.parameters():  # weights of 0.02 alone leave what a layer adds next to nothing
            if parameter.dim() > 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return made.eval()


def windows(count: int = 3, length: int = 40) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(1))


def answers(model, ids: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        said = model(input_ids=windows()[:1] if ids is None else ids)
    return said.logits if "logits" in said else said.last_hidden_state


def reloaded(model, folder):
    """The model that from_pretrained makes of what was saved: strictly, bit by bit, and able to generate alike.

    Answers agree to rounding alone: on some processors a kernel depends on where in memory the weights lie.
    """
    model.save_pretrained(folder)
    again, info = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    torch.testing.assert_close(answers(again), answers(model), rtol=1e-5, atol=1e-6)
    before = model.state_dict()
    assert again.state_dict().keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in again.state_dict().items())
    if model.can_generate():
        for one in (model, again):
            with_cache, without = (
                one.generate(windows()[:1, :20], max_new_tokens=16, do_sample=False, use_cache=cache, pad_token_id=0)
                for cache in (True, False)
            )
            assert torch.equal(with_cache, without)
    return again


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= 1e-5 * theirs.abs().max().clamp(min=1))

"""Small random models for the methods that change weights, with weights large enough that every layer matters."""

import torch
from transformers import (
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

_SIZES = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
_BERT = {name: value for name, value in _SIZES.items() if name != "num_key_value_heads"}
_MADE = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SIZES)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_SIZES)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**_SIZES)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**_SIZES, head_dim=16, attn_implementation="eager")),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=160, n_embd=64, n_layer=2, n_head=4, n_positions=128)),
    "bert": lambda: BertModel(BertConfig(**_BERT)),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            vocab_size=160,
            hidden_size=64,
            word_embed_proj_dim=64,
            ffn_dim=96,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
    ),
}


def made(name):
    """A model in float32 and eval mode; biases and norms are not what they were made with (0 and 1)."""
    torch.manual_seed(0)
    model = _MADE[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.dim() == 2 else 0.3))
    return model


def windows(count=4, length=48, vocabulary=160):
    return torch.randint(1, vocabulary, (count, length), generator=torch.Generator().manual_seed(1))


def answer(model, ids):
    with torch.no_grad():
        out = model(input_ids=ids)
    return out.logits if "logits" in out else out.last_hidden_state


def weight_and_hessian(outputs=24, inputs=96, seed=0):
    """A weight [N, K], and the Hessian of inputs whose channels depend on one another and differ in size."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator)
    mixed = torch.randn(400, 16, generator=generator) @ torch.randn(16, inputs, generator=generator)
    rows = (mixed + torch.randn(400, inputs, generator=generator)) * torch.rand(inputs, generator=generator).exp()
    return weight, rows.T @ rows


def output_error(weight, other, hessian):
    """The squared error of the layer's outputs, summed over the inputs that the Hessian is of."""
    off = weight - other
    return float(((off @ hessian) * off).sum())

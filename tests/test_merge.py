"""Every method on every family, merged both ways: equal to PEFT's own forward, and to each other bit for bit."""

import json

import peft
import pytest
import torch
from adapters import (
    LIMIT,
    VOCABULARY,
    Trained,
    both,
    config,
    disturb,
    error,
    ids_for,
    load,
    make_base,
    same,
    streaming,
    task_of,
    train,
)

from exporter.stages.merge.proof import answers
from exporter.types import CLASSIFICATION

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # transformers' own, when PEFT wraps any model.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
NEW = VOCABULARY + 5
TOKENS = sorted(map(int, ids_for()[0, :2]))

METHODS = {
    "lora": ("llama", {}),
    "lora, tied": ("tied", {}),
    "rslora": ("llama", {"use_rslora": True}),
    "dora": ("llama", {"use_dora": True}),
    "pissa": ("llama", {"init_lora_weights": "pissa"}),
    "olora": ("llama", {"init_lora_weights": "olora"}),
    "embeddings": ("llama", {"target_modules": ["embed_tokens"]}),
    "embeddings, tied": ("tied", {"target_modules": ["embed_tokens"]}),
    "embeddings and head, tied": ("tied", {"target_modules": ["embed_tokens", "lm_head"]}),
    "dora on embeddings": ("llama", {"target_modules": ["embed_tokens"], "use_dora": True}),
    "head": ("llama", {"target_modules": ["lm_head"]}),
    "head, tied": ("tied", {"target_modules": ["lm_head", "q_proj"]}),
    "all-linear": ("llama", {"target_modules": "all-linear"}),
    "regex": ("llama", {"target_modules": r".*\.layers\.1\.(self_attn\.(q|k)_proj|mlp\.\w+_proj)"}),
    "layers_to_transform": ("llama", {"layers_to_transform": [1]}),
    "exclude_modules": ("llama", {"exclude_modules": ["v_proj"]}),
    "rank_pattern": ("llama", {"rank_pattern": {"layers.0.*q_proj": 2, "down_proj": 7}}),
    "alpha_pattern": ("llama", {"alpha_pattern": {"v_proj": 32, r"layers\.1\.mlp\.down_proj": 2}}),
    "modules_to_save": ("llama", {"modules_to_save": ["lm_head", "norm"]}),
    "modules_to_save, tied": ("tied", {"modules_to_save": ["embed_tokens"]}),
    "modules_to_save head, tied": ("tied", {"modules_to_save": ["lm_head"]}),
    "token indices": ("llama", {"trainable_token_indices": TOKENS}),
    "token indices, tied": ("tied", {"trainable_token_indices": TOKENS}),
    "tokens": ("llama", {"kind": "TrainableTokensConfig", "target_modules": None, "token_indices": TOKENS}),
    "tokens, tied": ("tied", {"kind": "TrainableTokensConfig", "target_modules": None, "token_indices": TOKENS}),
    "adalora": ("llama", {"kind": "AdaLoraConfig", "init_r": 4, "total_step": 9}),
    "loha": ("llama", {"kind": "LoHaConfig", "r": 3, "alpha": 6}),
    "lokr": ("llama", {"kind": "LoKrConfig", "r": 3, "decompose_both": True, "decompose_factor": 4}),
    "ia3": ("llama", {"kind": "IA3Config", "feedforward_modules": ["down_proj"]}),
    "gpt2": ("gpt2", {}),
    "gpt2 dora": ("gpt2", {"use_dora": True}),
    "gpt2 bias all": ("gpt2", {"bias": "all"}),
    "gpt2 embeddings": ("gpt2", {"target_modules": ["wte", "c_attn"]}),
    "gpt2 adalora": ("gpt2", {"kind": "AdaLoraConfig", "init_r": 4, "total_step": 9, "fan_in_fan_out": True}),
    "gpt2 ia3": ("gpt2", {"kind": "IA3Config", "feedforward_modules": ["c_proj"], "fan_in_fan_out": True}),
    "bert": ("bert", {}),
    "bert bias all": ("bert", {"bias": "all"}),
    "bert bias lora_only": ("bert", {"bias": "lora_only"}),
    "bert lora_bias": ("bert", {"lora_bias": True}),
    "bert ia3 and biases": ("bert", {"kind": "IA3Config", "feedforward_modules": ["output.dense"]}),
    "bert features": ("encoder", {}),
    "t5": ("t5", {}),
    "t5 modules_to_save": ("t5", {"modules_to_save": ["final_layer_norm"]}),
    "mixtral attention": ("mixtral", {}),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method(name, tmp_path):
    family, options = METHODS[name]
    base = make_base(tmp_path / "base", family)
    trained = train(base, tmp_path / "adapter", config(family, **options))
    _, _, model = both(base, [trained.path], tmp_path, task=task_of(family))
    assert error(trained, model) < LIMIT
    assert error(trained, load(base)) > 100 * LIMIT  # the adapter does something
    sharded = make_base(tmp_path / "sharded", family, shard="30KB")
    streaming(sharded, [trained.path], tmp_path / "again")
    same(model, load(tmp_path / "again"))


GROWN = {
    "token indices, tied": ("tied", {"trainable_token_indices": [TOKENS[0], *range(VOCABULARY, NEW)]}),
    "token indices": ("llama", {"trainable_token_indices": [TOKENS[0], *range(VOCABULARY, NEW)]}),
    "saved embeddings, tied": ("tied", {}),
    "saved embeddings": ("llama", {}),
    "embeddings, tied": ("tied", {"target_modules": ["embed_tokens"]}),
    "embeddings and head": ("llama", {"target_modules": ["embed_tokens", "lm_head"]}),
    "modules_to_save": ("llama", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "modules_to_save in": ("llama", {"modules_to_save": ["embed_tokens"]}),
    "modules_to_save in, tied": ("tied", {"modules_to_save": ["embed_tokens"]}),
    "modules_to_save, tied": ("tied", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "gpt2": ("gpt2", {}),
    "t5": ("t5", {}),
}


@pytest.mark.parametrize("name", GROWN)
def test_added_tokens(name, tmp_path):
    family, options = GROWN[name]
    base = make_base(tmp_path / "base", family)
    trained = train(base, tmp_path / "adapter", config(family, **options), vocabulary=NEW)
    memory, stream, model = both(base, [trained.path], tmp_path)
    assert trained.ids.max() >= VOCABULARY
    assert error(trained, model) < LIMIT
    line = f"resized the vocabulary from {VOCABULARY} to {NEW} tokens"
    assert [line in record["history"] for record in (memory, stream)] == [True, True]
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == NEW


def test_adalora_after_pruning(tmp_path):
    """Training with AdaLoRA takes ranks away: what is left of each module's is in the configuration."""
    base = make_base(tmp_path / "base", "llama")
    settings = config("llama", "AdaLoraConfig", init_r=6, target_r=2, total_step=20, tinit=1, tfinal=2)
    model = load(base)
    attached = peft.get_peft_model(model, settings)
    disturb(attached)
    ids = torch.from_numpy(ids_for())
    for step in range(20):
        attached(input_ids=ids, labels=ids).loss.backward()
        attached.base_model.update_and_allocate(step)
        attached.zero_grad()
    truth = answers(attached, ids_for())
    attached.save_pretrained(tmp_path / "adapter")
    ranks = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["rank_pattern"]
    assert 0 < sum(map(sum, ranks.values())) < 6 * len(ranks)
    trained = Trained(tmp_path / "adapter", ids_for(), truth)
    _, _, merged = both(base, [trained.path], tmp_path)
    assert error(trained, merged) < LIMIT


def test_a_classifier_without_a_padding_token(tmp_path):
    base = make_base(tmp_path / "base", "llama classifier")
    trained = train(base, tmp_path / "adapter", config("llama classifier"))
    _, _, model = both(base, [trained.path], tmp_path, task=CLASSIFICATION)
    assert error(trained, model) < LIMIT

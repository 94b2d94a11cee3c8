"""Merges that are right though the folders are odd: what a training changed besides its adapter comes along, told."""

import pytest
import torch
from adapters import LIMIT, both, config, error, in_memory, load, make_base, streaming, task_of, tensors, train
from safetensors.torch import save_file
from test_merge_folder import save_tokenizer

from exporter.errors import JobError

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # transformers' own, when PEFT wraps any model.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
WAYS = pytest.mark.parametrize("way", [in_memory, streaming])


def test_repeated_layers_get_weights_of_their_own(tmp_path):
    base = make_base(tmp_path / "base", "llama")
    trained = train(base, tmp_path / "adapter", config("llama", layer_replication=[(0, 2), (1, 2)]))
    record = in_memory(base, [trained.path], tmp_path / "out")
    model = load(tmp_path / "out")
    assert model.config.num_hidden_layers == 3
    assert error(trained, model) < LIMIT
    assert "repeated layers, 3 of the base's (layer_replication [[0, 2], [1, 2]])" in record["history"]
    with pytest.raises(JobError, match=r"repeats layers \(layer_replication\); merge it with --merge memory"):
        streaming(base, [trained.path], tmp_path / "out2")


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_a_bias_of_the_adapter_s_own(tmp_path, family):
    base = make_base(tmp_path / "base", family)
    trained = train(base, tmp_path / "adapter", config(family, lora_bias=True), scale=0.2)
    *_, model = both(base, [trained.path], tmp_path / "out", task=task_of(family))
    assert error(trained, model) < LIMIT


@WAYS
def test_a_reward_model_gets_the_padding_of_its_training(tmp_path, way):
    base = make_base(tmp_path / "base", "llama classifier", num_labels=1)
    save_tokenizer(base)
    trained = train(base, tmp_path / "adapter", config("llama classifier"))
    record = way(base, [trained.path], tmp_path / "out")
    assert (
        "pad_token_id 1, the tokenizer's pad_token: config.json named none, and a batch needs one" in record["history"]
    )
    model = load(tmp_path / "out")
    assert model.config.pad_token_id == 1
    assert model(torch.tensor([[5, 6, 7], [5, 6, 1]])).logits.shape == (2, 1)  # a batch
    assert error(trained, model) < LIMIT


@WAYS
def test_a_tie_that_the_weights_do_not_keep(tmp_path, way):
    base = make_base(tmp_path / "base", "tied")
    whole = tensors(base)
    head = {"lm_head.weight": whole["model.embed_tokens.weight"] * 2}
    save_file(whole | head, base / "model.safetensors", {"format": "pt"})
    trained = train(base, tmp_path / "adapter", config("tied"))
    record = way(base, [trained.path], tmp_path / "out")
    told = "tie_word_embeddings is false now: the weights hold two embeddings, and config.json tied them"
    assert told in record["history"]
    model = load(tmp_path / "out")
    assert not model.config.tie_word_embeddings  # else transformers 4 puts one in the other's place
    assert torch.equal(model.lm_head.weight, head["lm_head.weight"])
    assert error(trained, model) < LIMIT


@pytest.mark.parametrize("family", ["llama", "tied"])
def test_a_vocabulary_that_training_made_smaller(tmp_path, family):
    base = make_base(tmp_path / "base", family)
    trained = train(base, tmp_path / "adapter", config(family), vocabulary=100)
    *_, model = both(base, [trained.path], tmp_path / "out")
    assert model.config.vocab_size == model.lm_head.weight.shape[0] == 100
    assert error(trained, model) < LIMIT

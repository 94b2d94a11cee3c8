"""What goes with the weights: a tokenizer that fits the embeddings, its chat template, generation defaults."""

import json

import pytest
from adapters import (
    VOCABULARY,
    config,
    in_memory,
    load,
    make_base,
    names,
    streaming,
    train,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from exporter.errors import JobError

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # transformers' own, when PEFT wraps any model.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
WAYS = pytest.mark.parametrize("way", [in_memory, streaming])
TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"


def save_tokenizer(folder, tokens=VOCABULARY, template=None):
    plain = Tokenizer(models.WordLevel({f"w{number}": number for number in range(tokens)}, unk_token="w0"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="w0", pad_token="w1")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


@pytest.fixture
def base(tmp_path):
    folder = make_base(tmp_path / "base", "tied")
    GenerationConfig(temperature=0.3, do_sample=True, eos_token_id=[1, 2]).save_pretrained(folder)
    return folder


@WAYS
def test_the_base_s_tokenizer_and_generation_defaults(base, tmp_path, way):
    save_tokenizer(base, template=TEMPLATE)
    (base / "processor_config.json").write_text("{}")
    trained = train(base, tmp_path / "adapter", config("tied"))
    way(base, [trained.path], tmp_path / "out")
    assert names(tmp_path / "out") == names(base)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == TEMPLATE
    kept = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (kept.temperature, kept.eos_token_id) == (0.3, [1, 2])


@WAYS
def test_the_adapter_s_tokenizer_wins_whole(base, tmp_path, way):
    save_tokenizer(base, template=TEMPLATE)
    (base / "vocab.json").write_text("{}")  # of the base's tokenizer: it would not fit the adapter's
    trained = train(base, tmp_path / "adapter", config("tied"), vocabulary=133)
    save_tokenizer(trained.path, 133, template="{{ messages[0]['content'] }}")
    plain = train(base, tmp_path / "plain", config("tied"), seed=2)
    way(base, [plain.path, trained.path] if way is streaming else [trained.path], tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(tokenizer) == load(tmp_path / "out").get_input_embeddings().num_embeddings == 133
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"
    assert not (tmp_path / "out" / "vocab.json").exists()


@WAYS
def test_a_tokenizer_without_a_template_gets_the_base_s(base, tmp_path, way):
    save_tokenizer(base, template=TEMPLATE)
    trained = train(base, tmp_path / "adapter", config("tied"))
    save_tokenizer(trained.path)
    way(base, [trained.path], tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == TEMPLATE


@WAYS
def test_a_tokenizer_with_more_tokens_than_embeddings(base, tmp_path, way):
    save_tokenizer(base)
    trained = train(base, tmp_path / "adapter", config("tied"))
    save_tokenizer(trained.path, VOCABULARY + 1)
    with pytest.raises(JobError, match=r"has a token 128 .*, and the model 128 embeddings.*save_embedding_layers=True"):
        way(base, [trained.path], tmp_path / "out")
    assert names(tmp_path / "out") == []  # before the long work


@WAYS
def test_a_configuration_that_says_what_was_merged(base, tmp_path, way):
    trained = train(base, tmp_path / "adapter", config("tied"), vocabulary=140)
    way(base, [trained.path], tmp_path / "out")
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["vocab_size"] == 140
    assert told["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in told

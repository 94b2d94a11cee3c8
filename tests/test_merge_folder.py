"""What goes with the weights: a tokenizer that fits the embeddings, its chat template, generation defaults."""

import json

import pytest
import torch
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
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from exporter.checkpoint.folder import carried_sha256
from exporter.errors import JobError
from exporter.stages.merge.merge import How

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


OLD = {  # of transformers 4, and a key that nobody knows
    "rope_theta": 500000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    "torch_dtype": "float32",
    "transformers_version": "4.57.1",
    "trained_by": {"name": "me"},
}


def as_transformers_4(folder):
    """Rewrites config.json as an older release has it; returns what it holds then."""
    file = folder / "config.json"
    held = {k: v for k, v in json.loads(file.read_text()).items() if k not in ("rope_parameters", "dtype")} | OLD
    file.write_text(json.dumps(held))
    return held


@WAYS
def test_config_json_is_the_base_s_but_for_what_was_changed(base, tmp_path, way):
    held = as_transformers_4(base)
    same = train(base, tmp_path / "same", config("tied"))
    way(base, [same.path], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == held
    grown = train(base, tmp_path / "grown", config("tied"), vocabulary=140)
    way(base, [grown.path], tmp_path / "out2", How(dtype="bfloat16"))
    now = json.loads((tmp_path / "out2" / "config.json").read_text())
    assert now == held | {"vocab_size": 140, "torch_dtype": "bfloat16"}


def test_an_untied_flag_and_a_file_that_names_it_otherwise(tmp_path):
    base = make_base(tmp_path / "base", "gpt2")
    file = base / "config.json"
    held = json.loads(file.read_text())
    held["num_hidden_layers"] = held.pop("n_layer")
    held.pop("dtype")
    file.write_text(json.dumps(held))
    on_one = train(base, tmp_path / "adapter", config("gpt2", target_modules=["wte"]))
    streaming(base, [on_one.path], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == held | {"tie_word_embeddings": False}


@WAYS
def test_all_that_is_not_weights_travels(base, tmp_path, way):
    files = {
        "LICENSE": "terms", "README.md": "# it", "modeling_mine.py": "", "words.tiktoken": "",
        "assets/logo.svg": "<svg/>", "deep/er/notes.txt": "", "additional_chat_templates/rag.jinja": "",
    }  # fmt: skip
    left = {
        "pytorch_model.bin": "", "training_args.bin": "", "model.onnx": "", "onnx/config.json": "",
        "onnx/model.onnx": "", "checkpoint-5/config.json": "",
        "checkpoint-5/model.safetensors": "", "assets/voice.pt": "", ".git/HEAD": "",
        "original/consolidated.00.pth": "", "pytorch_model.bin.index.json": "",
    }  # fmt: skip
    for name, text in (files | left).items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(text)
    trained = train(base, tmp_path / "adapter", config("tied"))
    out = base / "results" / "merged"  # where what is copied could be what is being written
    way(base, [trained.path], out)
    own = {"config.json", "generation_config.json", "model.safetensors"}
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == own | files.keys()
    assert (out / "assets" / "logo.svg").read_text() == "<svg/>"


MODULES = [
    {"idx": i, "name": str(i), "path": path} for i, path in enumerate(["", "1_Pooling", "2_Dense", "3_Normalize"])
]


def sentence_transformer(folder, weight):
    """The modules that sentence-transformers runs after a transformer, of which one has weights of its own."""
    (folder / "modules.json").write_text(json.dumps(MODULES))
    for name in ("1_Pooling", "2_Dense", "3_Normalize"):
        (folder / name).mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "2_Dense" / "config.json").write_text("{}")
    save_file({"linear.weight": torch.full((2, 2), weight)}, folder / "2_Dense" / "model.safetensors")


@WAYS
def test_the_modules_after_a_transformer_travel_with_their_weights(tmp_path, way):
    base = make_base(tmp_path / "base", "encoder")
    sentence_transformer(base, 1.0)
    plain = train(base, tmp_path / "plain", config("encoder"))
    way(base, [plain.path], tmp_path / "out")
    assert names(tmp_path / "out")[:3] == ["1_Pooling", "2_Dense", "3_Normalize"]
    assert load_file(tmp_path / "out" / "2_Dense" / "model.safetensors")["linear.weight"][0, 0] == 1.0
    whole = train(base, tmp_path / "whole", config("encoder"), seed=2)
    sentence_transformer(whole.path, 2.0)  # it saves adapter and modules in one folder: these are what was trained
    way(base, [whole.path], tmp_path / "out2")
    assert load_file(tmp_path / "out2" / "2_Dense" / "model.safetensors")["linear.weight"][0, 0] == 2.0


def test_what_travels_has_a_hash_of_its_own(base):
    before = carried_sha256(base, [])
    (base / "chat_template.jinja").write_text(TEMPLATE)
    assert carried_sha256(base, []) != before  # else a merged model in the cache would keep another template

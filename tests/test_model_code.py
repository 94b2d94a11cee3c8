"""Python code that a config.json names: beside it, left over in one that needs none, or lacking."""

import json
import shlex
import sys

import pytest
import torch
from adapters import config, in_memory, make_base, streaming, tensors, train
from safetensors.torch import save_file
from test_merge_folder import save_tokenizer
from transformers import XLNetConfig, XLNetModel

from exporter.checkpoint.inspection import inspect
from exporter.checkpoint.load import check_config, read_config
from exporter.checkpoint.model import load_model
from exporter.checkpoint.skeleton import Skeleton
from exporter.errors import JobError
from exporter.pipeline.quantized_base import refuse_leftover
from exporter.stages.merge.adapter import read_adapter
from exporter.stages.merge.merge import How, merge
from exporter.stages.merge.streaming import merge_streaming
from exporter.types import GENERATION

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # transformers' own, when PEFT wraps any model.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
TOKENIZER = """
from transformers import PreTrainedTokenizerFast


class MineTokenizer(PreTrainedTokenizerFast):
    pass
"""


def rewrite(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def base(tmp_path):
    folder = make_base(tmp_path / "base", "llama")
    save_tokenizer(folder)
    return folder


def look(folder, trust=False):
    return inspect("m", folder, None, trust, {}, None, True, folder)


@pytest.mark.parametrize("name", ["modeling_mine.MineForCausalLM", "org/name--modeling_mine.MineForCausalLM"])
@pytest.mark.parametrize("trust", [False, True])
def test_code_that_is_left_over(base, name, trust):
    rewrite(base / "config.json", auto_map={"AutoModelForCausalLM": name, "AutoConfig": name})
    known = look(base, trust)
    assert known["notes"] == [f"config.json names code that is not beside it ({name}): transformers' own was used."]
    assert "auto_map" not in known["config"]
    assert type(load_model(base, GENERATION, "float32", trust)).__module__.startswith("transformers.models.llama")
    assert Skeleton(base, trust).place("lm_head.weight") == "lm_head.weight"


def test_code_that_is_there_or_must_be(base):
    rewrite(base / "config.json", auto_map={"AutoModelForCausalLM": "modeling_mine.MineForCausalLM"})
    (base / "modeling_mine.py").write_text("")
    with pytest.raises(JobError, match="brings Python code of its own; read it"):
        check_config("m", base, read_config(base), trust=False)
    (base / "modeling_mine.py").unlink()
    rewrite(base / "config.json", model_type="mine")
    for trust, says in ((False, "needs Python code .*--trust-remote-code"), (True, "lacks the Python code .*copy it")):
        with pytest.raises(JobError, match=says):
            look(base, trust)


@pytest.mark.parametrize("way", [in_memory, streaming])
def test_a_tokenizer_s_code_runs_where_it_is_trusted(base, tmp_path, way):
    (base / "tokenization_mine.py").write_text(TOKENIZER)
    named = {
        "auto_map": {"AutoTokenizer": [None, "tokenization_mine.MineTokenizer"]},
        "tokenizer_class": "MineTokenizer",
    }
    rewrite(base / "tokenizer_config.json", **named)
    trained = train(base, tmp_path / "adapter", config("llama"))
    with pytest.raises(JobError, match=r"the tokenizer of .* brings Python code .*--trust-remote-code"):
        way(base, [trained.path], tmp_path / "refused")
    out = tmp_path / "out"
    out.mkdir()

    def load(path, **options):
        return load_model(path, GENERATION, "float32", True, **options)

    adapters = [read_adapter(trained.path)]
    if way is streaming:
        merge_streaming(load, base, adapters, out, How(trust=True), lambda done, total: None)
    else:
        merge(load, base, adapters, out, How(trust=True), GENERATION)
    assert (out / "tokenization_mine.py").read_text() == TOKENIZER


def test_a_quantization_that_is_left_over(base):
    rewrite(base / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(
        JobError, match=r"m is float \(F32\), and its config.json says fp4, .* take that out: "
    ) as error:
        refuse_leftover("m", base, read_config(base))
    *_, code, file = shlex.split(str(error.value).partition("take that out: ")[2])
    with pytest.MonkeyPatch.context() as given:
        given.setattr(sys, "argv", ["-c", file])
        exec(code, {})
    refuse_leftover("m", base, read_config(base))
    assert "quantization_config" not in read_config(base)


def test_a_tie_that_the_weights_do_not_keep_is_told(tmp_path):
    base = make_base(tmp_path / "base", "tied")
    save_tokenizer(base)
    whole = tensors(base)
    for factor, told in ((1, []), (2, ["differ"])):
        head = {"lm_head.weight": whole["model.embed_tokens.weight"] * factor}
        save_file(whole | head, base / "model.safetensors", {"format": "pt"})
        assert [note.split("two that ")[1][:6] for note in look(base)["notes"]] == told
    save_file(whole, base / "model.safetensors", {"format": "pt"})
    rewrite(base / "config.json", tie_word_embeddings=False)
    with pytest.raises(JobError, match="set tie_word_embeddings to true there"):
        look(base)


def test_a_limit_of_positions_that_is_none(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": 128, "d_model": 32, "n_layer": 1, "n_head": 4, "d_inner": 64}
    XLNetModel(XLNetConfig(**sizes)).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    assert look(tmp_path)["max_length"] is None

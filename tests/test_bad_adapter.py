"""An adapter that cannot be merged into this model: one clear line before anything is built."""

import json

import numpy as np
import pytest
from adapters import load
from conftest import rewrite
from safetensors.numpy import load_file, save_file

from exporter.errors import JobError
from exporter.stages.merge.adapter import read_adapter
from exporter.stages.merge.merge import How, merge
from exporter.types import GENERATION

pytestmark = [
    # transformers' own, when PEFT wraps any model.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # PEFT only warns where merge refuses.
    pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning"),
]


@pytest.fixture
def adapter(tiny, tmp_path):
    """The tiny model's adapter with other tensors, or with other keys in its configuration."""

    def make(change=lambda tensors: tensors, **config):
        folder = tmp_path / "adapter"
        folder.mkdir()
        save_file(
            change(load_file(tiny / "adapter" / "adapter_model.safetensors")), folder / "adapter_model.safetensors"
        )
        settings = json.loads((tiny / "adapter" / "adapter_config.json").read_text()) | config
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        return folder

    return make


def cut(tensors):
    """Of a model of another width."""
    return {
        name: np.ascontiguousarray(value[:, :100] if "lora_A" in name else value) for name, value in tensors.items()
    }


def fewer(tensors):
    return {name: value for name, value in tensors.items() if "layers.2." not in name}


def more(tensors):
    return tensors | {
        name.replace("layers.2.", "layers.3."): value for name, value in tensors.items() if "layers.2." in name
    }


def renamed(tensors):
    return {name.replace("q_proj", "query"): value for name, value in tensors.items()}


def diverged(tensors):
    name = sorted(tensors)[0]
    return tensors | {name: np.full_like(tensors[name], np.inf)}


@pytest.mark.parametrize(
    ("change", "config", "says"),
    [
        (cut, {}, "does not fit this model: its |and this model needs"),
        (fewer, {}, "is for another model: it has no tensor for|layers.2."),
        (more, {}, "is for another model: it holds tensors that this model lacks|layers.3."),
        (renamed, {}, "is for another model"),
        (renamed, {"target_modules": ["query", "key"]}, "does not fit this model|query"),
        (dict, {"peft_type": "NEWER"}, "of PEFT's kind NEWER, which exporter cannot merge"),
        (dict, {"peft_type": None}, "names no peft_type"),
        (dict, {"r": "eight"}, "does not fit this model"),
    ],
    ids=[
        "other shapes",
        "fewer layers",
        "more layers",
        "renamed tensors",
        "renamed modules",
        "new kind",
        "no kind",
        "bad rank",
    ],
)
def test_an_adapter_for_another_model(adapter, tiny, tmp_path, change, config, says):
    """The command says the same: see the test after this one."""
    (tmp_path / "merged").mkdir()
    with pytest.raises(JobError) as refusal:
        merge_here(tiny, adapter(change, **config), tmp_path / "merged")
    line = str(refusal.value)
    assert len(line.splitlines()) == 1
    assert str(tmp_path / "adapter") in line
    for part in says.split("|"):
        assert part in line
    assert not list((tmp_path / "merged").iterdir())


def merge_here(base, adapter, folder):
    return merge(load, base, [read_adapter(adapter)], folder, How(), GENERATION)


def test_an_adapter_for_another_model_leaves_no_merged_one(refused, adapter, tmp_path):
    cache = tmp_path / "cache"  # into which no other test merges
    line = refused("-m", "tiny", "--adapter", adapter(fewer), env={"EXPORTER_CACHE": str(cache)})
    assert "is for another model: it has no tensor for" in line
    assert list(cache.rglob("*merged*")) == []


def test_an_adapter_that_has_no_weights_to_merge(tiny, tmp_path):
    from peft import PromptTuningConfig, get_peft_model

    get_peft_model(load(tiny), PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=4)).save_pretrained(
        tmp_path / "prompt"
    )
    with pytest.raises(JobError, match="of PEFT's kind PROMPT_TUNING, which exporter cannot merge; there are: LORA, "):
        read_adapter(tmp_path / "prompt")


def test_an_adapter_that_diverged(refused, adapter):
    assert "holds NaN or Inf" in refused("-m", "tiny", "--adapter", adapter(diverged))


def test_an_adapter_with_pickled_weights(refused, adapter):
    folder = adapter()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    line = refused("-m", "tiny", "--adapter", folder)
    assert "pickled weights (adapter_model.bin)" in line
    assert "s.save_file(torch.load('adapter_model.bin', weights_only=True), 'adapter_model.safetensors')" in line


def test_a_truncated_adapter(refused, adapter):
    path = adapter() / "adapter_model.safetensors"
    rewrite(path, path.read_bytes()[:-100])
    assert "is not a whole safetensors file" in refused("-m", "tiny", "--adapter", path.parent)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("~/nowhere/lora", "no such adapter folder: "),
        ("models/tiny", "has no adapter_config.json: it is not a PEFT adapter's folder"),
        ("models/tiny/adapter/adapter_config.json", "no such adapter folder"),
    ],
)
def test_an_adapter_that_is_not_there(refused, name, says):
    assert says in refused("-m", "tiny", "--adapter", name)


def test_a_broken_adapter_config(refused, adapter):
    folder = adapter()
    rewrite(folder / "adapter_config.json", "{")
    assert "adapter_config.json is not valid JSON" in refused("-m", "tiny", "--adapter", folder)

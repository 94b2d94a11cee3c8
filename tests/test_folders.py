"""Folders that hold more than a model, or less: one order everywhere, transformers', or a refusal that says why."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from adapters import config, error, in_memory, load, make_base, streaming, tensors, train
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from exporter.checkpoint.load import locate, read_config
from exporter.checkpoint.model import load_model
from exporter.checkpoint.weights import check_weights, spare_files, stored_tensors, weight_files
from exporter.errors import JobError
from exporter.targets.gguf.converter import _in_its_words
from exporter.types import GENERATION

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # transformers' own, when PEFT wraps any model.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
WAYS = pytest.mark.parametrize("way", [in_memory, streaming])
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = "model.safetensors.index.json"


@pytest.fixture
def base(tmp_path):
    return make_base(tmp_path / "base", "llama")


def split(folder, values, index=True):
    """Saves tensors as two shards; returns which is in which."""
    places = {name: SHARDS[number % 2] for number, name in enumerate(sorted(values))}
    for shard in SHARDS:
        held = {name: value for name, value in values.items() if places[name] == shard}
        save_file(held, folder / shard, {"format": "pt"})
    if index:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return places


def command_of(refusal):
    """What a refusal says to type: all that follows the last colon before its first word."""
    text = str(refusal)
    start = min(text.index(word) for word in ("cp -rL /", "cd /", "mkdir ") if word in text)
    return text[start:].split("; where it is not merged")[0].replace("python -c", f"{sys.executable} -c")


@WAYS
def test_a_model_beside_an_earlier_one_in_shards(base, tmp_path, way):
    trained = train(base, tmp_path / "adapter", config("llama"), scale=0.2)
    split(base, {name: value + 1 for name, value in tensors(base).items()})
    assert [path.name for path in spare_files(base)] == [*SHARDS, INDEX]
    way(base, [trained.path], tmp_path / "out")
    assert error(trained, load(tmp_path / "out")) < 1e-4
    for shard in SHARDS:  # an index alone, as save_pretrained leaves it
        (base / shard).unlink()
    assert [path.name for path in weight_files(base)] == ["model.safetensors"]
    way(base, [trained.path], tmp_path / "again")


def test_what_is_read_is_what_transformers_reads(base):
    split(base, {name: value + 1 for name, value in tensors(base).items()})
    parameters = dict(load(base).named_parameters())
    for name, stored in stored_tensors(base).items():
        assert torch.equal(load_file(stored.path)[name], parameters[name])


def test_shards_that_the_index_does_not_name(base):
    whole = tensors(base)
    (base / "model.safetensors").unlink()
    split(base, whole)
    stray = "model-00003-of-00003.safetensors"
    save_file({name: value + 1 for name, value in whole.items()}, base / stray)
    assert [path.name for path in spare_files(base)] == [stray]
    assert [path.name for path in weight_files(base)] == SHARDS


def test_llama_cpp_s_converter_does_not_see_an_earlier_save(base, tmp_path):
    split(base, tensors(base))
    (tmp_path / "seen").mkdir()
    seen = _in_its_words(base, tmp_path / "seen")
    assert [path.name for path in sorted(seen.glob("model*"))] == ["model.safetensors"]


@WAYS
def test_a_tensor_in_two_shards(base, tmp_path, way):
    trained = train(base, tmp_path / "adapter", config("llama"), scale=0.2)
    whole = tensors(base)
    (base / "model.safetensors").unlink()
    places = split(base, whole)
    name = "model.layers.0.mlp.up_proj.weight"
    [other] = set(SHARDS) - {places[name]}
    save_file(load_file(base / other) | {name: whole[name] + 1}, base / other, {"format": "pt"})
    for ask in (stored_tensors, check_weights, lambda folder: way(folder, [trained.path], tmp_path / "out")):
        with pytest.raises(JobError, match=f"holds {name} twice, in {SHARDS[0]} and {SHARDS[1]}") as refusal:
            ask(base)
    subprocess.run(command_of(refusal.value), shell=True, check=True)
    mended = stored_tensors(tmp_path / "base-once")
    assert mended.keys() == whole.keys()
    assert all(torch.equal(load_file(mended[key].path)[key], value) for key, value in whole.items())


def test_shards_without_their_index(base):
    whole = tensors(base)
    (base / "model.safetensors").unlink()
    places = split(base, whole, index=False)
    with pytest.raises(
        JobError, match=f"but not {INDEX}, which says that they are the model; write it: cd "
    ) as refusal:
        weight_files(base)
    subprocess.run(command_of(refusal.value), shell=True, check=True)
    assert json.loads((base / INDEX).read_text())["weight_map"] == places
    assert stored_tensors(base).keys() == whole.keys()
    (base / INDEX).unlink()
    (base / SHARDS[0]).unlink()
    with pytest.raises(JobError, match=f"lacks {SHARDS[0]} and the index; copy it again"):
        weight_files(base)


def test_an_index_that_names_another_folder_s_files(base):
    (base / "model.safetensors").unlink()
    (base / INDEX).write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(JobError, match=r"names a file of another folder, \.\./model\.safetensors"):
        weight_files(base)


def test_a_config_that_names_other_weights(base):
    told = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(told | {"transformers_weights": "other.safetensors"}))
    with pytest.raises(JobError, match=r"has transformers read other\.safetensors"):
        read_config(base)


@WAYS
def test_an_adapter_in_the_model_s_folder(base, tmp_path, way):
    """peft#1381: what was merged is saved beside its adapter, and gets it again whenever transformers loads it."""
    trained = train(base, tmp_path / "my model", config("llama"), scale=0.2)
    merged = trained.path
    model = load(base)
    model.save_pretrained(merged)
    second = train(base, tmp_path / "second", config("llama"), scale=0.2, seed=3)
    for ask in (read_config, lambda folder: load_model(folder, GENERATION, "float32")):
        with pytest.raises(JobError, match=r"holds a model and an adapter .* applies by itself") as refusal:
            ask(merged)
    subprocess.run(command_of(refusal.value), shell=True, check=True)
    apart = Path(f"{merged}-adapter")
    assert (apart / "adapter_model.safetensors").is_file()
    assert torch.equal(load(merged).state_dict()["model.norm.weight"], model.state_dict()["model.norm.weight"])
    way(merged, [second.path], tmp_path / "out")
    assert error(second, load(tmp_path / "out")) < 1e-4


def test_an_adapter_with_a_configuration_and_no_model(base, tmp_path):
    trained = train(base, tmp_path / "adapter", config("llama"))
    (trained.path / "config.json").write_text((base / "config.json").read_text())
    with pytest.raises(JobError, match="is an adapter, not a model; give its base with -m and this with --adapter"):
        read_config(trained.path)


def test_a_hub_id_that_is_in_the_cache_needs_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(JobError, match=r"nor in the hub's cache.*\(hf download some/model\)"):
        locate("some/model", offline=True)
    kept = tmp_path / "models--some--model" / "snapshots" / "abc"
    kept.mkdir(parents=True)
    (kept.parents[1] / "refs").mkdir()
    (kept.parents[1] / "refs" / "main").write_text("abc")
    (kept / "config.json").write_text("{}")
    assert locate("some/model", offline=True) == kept


ASKING = """
from exporter.process import serve

def ask(session):
    try:
        return input("Do you wish to run the custom code? [y/N] ")
    except EOFError:
        return "nobody"

serve({"ask": ask})
"""


def test_nothing_in_a_worker_can_ask():
    request = json.dumps({"operation": "ask", "args": {}}) + "\n"
    command = [sys.executable, "-c", ASKING]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, start_new_session=True, **pipes) as worker:
        for _ in range(2):  # the second request is no answer to what the first one asks
            worker.stdin.write(request)
            worker.stdin.flush()
        assert [json.loads(worker.stdout.readline()) for _ in range(2)] == [{"result": "nobody"}] * 2
        worker.stdin.close()

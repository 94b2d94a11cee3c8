"""What does not fit is said with its true cause, and the command that mends it, which is run here."""

import json
import os
import re
import shlex
import shutil
import subprocess

import peft
import pytest
import torch
from adapters import config, in_memory, load, make_base, streaming, tensors, train
from safetensors.torch import save_file
from test_merge_folder import save_tokenizer
from transformers import Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration

from exporter.checkpoint.inspection import inspect
from exporter.checkpoint.weights import stored_tensors, weight_files
from exporter.errors import JobError
from exporter.stages.merge.adapter import base_identity, read_adapter
from exporter.stages.merge.attach import attach
from exporter.stages.merge.misfit import refuse

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # transformers' own, when PEFT wraps any model.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
WAYS = pytest.mark.parametrize("way", [in_memory, streaming])
FILE = "adapter_model.safetensors"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # and back: what mends goes into folders


@pytest.fixture
def base(tmp_path):
    folder = make_base(tmp_path / "base", "llama")
    save_tokenizer(folder)
    return folder


def look(folder, task=None, measured=True):
    return inspect("m", folder, task, False, {}, None, measured, folder)


def mended(error):
    """Does what the command at the end of an error does: its shell in one, its Python here."""
    command = re.search(r": ((?:cp|cd|python) .*)", str(error.value), re.DOTALL)[1]
    for part in command.split(" && "):
        program, *arguments = shlex.split(part)
        if program == "cd":
            os.chdir(arguments[0])
        elif program == "python":
            exec(arguments[1], {})  # a Python of its own would import torch once more
        else:
            subprocess.run(part, shell=True, check=True)


@pytest.mark.parametrize(
    "wrapper",
    ["_orig_mod.", "module.", "pretrained_model.", "base_model.model.", "language_model.", "module._orig_mod."],
)
def test_tensors_with_a_wrapper_s_names(base, wrapper):
    whole = tensors(base)
    more = {"v_head.weight": torch.ones(1)} if wrapper == "pretrained_model." else {}
    save_file({wrapper + name: value for name, value in whole.items()} | more, base / "model.safetensors")
    with pytest.raises(JobError, match=f"the tensors of m are named with '{wrapper}'") as error:
        look(base)
    mended(error)
    renamed = base.with_name("base-renamed")
    assert look(renamed)["unused"] == ", ".join(more)
    assert all(torch.equal(tensors(renamed)[name], value) for name, value in whole.items())


def test_a_model_with_an_adapter_in_it(base):
    names = {name.replace("q_proj.", "q_proj.base_layer."): value for name, value in tensors(base).items()}
    save_file(
        names | {"model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.ones(2)}, base / "model.safetensors"
    )
    with pytest.raises(JobError, match=r"with an adapter in it that is not merged .*; save the adapter alone"):
        look(base)


@pytest.mark.parametrize("mark", ["_orig_mod.", "module.", "base_model.model._orig_mod."])
@WAYS
def test_an_adapter_with_a_wrapper_s_names(base, tmp_path, mark, way):
    trained = train(base, tmp_path / "adapter", config("llama"))
    whole = tensors(trained.path)
    plain = mark.removeprefix("base_model.model.")
    prefix = mark if mark == plain else "base_model.model."
    save_file({name.replace("base_model.model.", f"{mark}base_model.model." if prefix == mark else mark): value
               for name, value in whole.items()}, trained.path / FILE)  # fmt: skip
    with pytest.raises(JobError, match=f"are named with '{plain}'") as error:
        way(base, [trained.path], tmp_path / "out")
    mended(error)
    assert tensors(tmp_path / "adapter-renamed").keys() == whole.keys()
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    way(base, [tmp_path / "adapter-renamed"], tmp_path / "out")


def test_an_adapter_with_its_name_in_its_keys(base, tmp_path):
    trained = train(base, tmp_path / "adapter", config("llama"))
    whole = tensors(trained.path)
    save_file({name.replace(".weight", ".default.weight"): value for name, value in whole.items()}, trained.path / FILE)
    with pytest.raises(JobError, match=r"are named with 'default\.', which PEFT within a model puts there") as error:
        read_adapter(trained.path)
    mended(error)
    assert read_adapter(tmp_path / "adapter-renamed").tensors.keys() == whole.keys()


@pytest.mark.parametrize(("kind", "task"), [("FEATURE_EXTRACTION", "feature-extraction"), ("SEQ_CLS", "text-classif")])
@WAYS
def test_an_adapter_of_another_class(base, tmp_path, kind, task, way):
    trained = train(base, tmp_path / "adapter", config("llama"))
    names = {name.replace("model.model.model.", "model.model."): value for name, value in tensors(trained.path).items()}
    save_file(names, trained.path / FILE)
    file = trained.path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"task_type": kind}))
    with pytest.raises(JobError, match=f"was trained for {task}.* is a LlamaForCausalLM.*take --task {task}"):
        way(base, [trained.path], tmp_path / "out")


def test_the_base_is_asked_for_only_where_another_was_given(base, tmp_path):
    trained = train(base, tmp_path / "adapter", config("llama"))
    names = {name.replace("layers.1.", "layers.3."): value for name, value in tensors(trained.path).items()}
    save_file(names, trained.path / FILE)
    for given, asked in ((str(base), False), ("org/other", True)):
        with pytest.raises(JobError, match="it was trained on 4 layers, and this model has 2") as error:
            attach(load(base), read_adapter(trained.path, given=given))
        assert ("give that with -m" in str(error.value)) is asked
    (trained.path / "base_model.sha256").write_text("00")
    with pytest.raises(JobError, match="was changed since, or is another revision"):
        base_identity(read_adapter(trained.path), str(base), "11")


@pytest.mark.parametrize("where", ["base", "adapter"])
def test_empty_tensors(base, tmp_path, where):
    trained = train(base, tmp_path / "adapter", config("llama"))
    folder, stem = (base, "model") if where == "base" else (trained.path, "adapter_model")
    names = tensors(folder)
    save_file(names | {next(iter(names)): torch.zeros(0)}, folder / f"{stem}.safetensors")
    with pytest.raises(JobError, match=r"is empty .* ZeRO-3 .*zero_to_fp32\.py"):
        stored_tensors(folder, stem)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["pytorch_model_fsdp_0/__0_0.distcp"], r"FSDP's shards .*accelerate merge-weights .*pytorch_model_fsdp_0"),
        (["global_step9/zero_pp_rank_0_mp_rank_00_model_states.pt"], r"DeepSpeed's shards .*zero_to_fp32.py \. merged"),
        (["pytorch_model_fsdp.bin"], r"pickled weights .*cp .*pytorch_model_fsdp.bin .*pytorch_model.bin && python -c"),
        (["consolidated.safetensors"], "under Mistral's own names"),
        (["checkpoint-9/config.json", "checkpoint-10/config.json"], r"one of its checkpoints .*: .*checkpoint-10$"),
        ([], "lacks model.safetensors; copy it again from where it was saved"),
    ],
)  # fmt: skip
def test_what_a_training_left(base, files, says):
    (base / "model.safetensors").unlink()
    for name in files:
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_bytes(b"x")
    with pytest.raises(JobError, match=says):
        weight_files(base)


def test_a_download_is_made_again(tmp_path):
    folder = tmp_path / "models--a--b" / "snapshots" / "0"
    folder.mkdir(parents=True)
    with pytest.raises(JobError, match=r"lacks model\.safetensors; download the model again"):
        weight_files(folder)


def test_a_pickled_classifier_keeps_its_head(tmp_path):
    base = make_base(tmp_path / "base", "bert")
    whole = tensors(base)
    (base / "model.safetensors").unlink()
    torch.save(whole, base / "pytorch_model.bin")
    held = (base / "config.json").read_text()
    with pytest.raises(JobError, match="holds pickled weights") as error:
        weight_files(base)
    mended(error)
    assert tensors(base).keys() == whole.keys()
    assert torch.equal(tensors(base)["classifier.weight"], whole["classifier.weight"])
    assert (base / "config.json").read_text() == held


@WAYS
def test_a_bias_that_no_checkpoint_can_hold(base, tmp_path, way):
    trained = train(base, tmp_path / "adapter", config("llama", lora_bias=True))
    with pytest.raises(JobError, match=r"trains a bias \(lora_bias\) of .*_proj, which has none in a LlamaForCausalLM"):
        way(base, [trained.path], tmp_path / "out")


@pytest.fixture(scope="module")
def with_images(tmp_path_factory):
    """A tiny Gemma 3 that takes images, and the folder of an adapter on its text part."""
    text = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 1}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    whole = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=5)
    model, folder = Gemma3ForConditionalGeneration(whole), tmp_path_factory.mktemp("images") / "adapter"
    on = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=r".*language_model.*\.(q_proj|v_proj)")
    peft.get_peft_model(model, on).save_pretrained(folder)
    return whole, folder


def test_an_adapter_of_a_model_with_images(with_images, tmp_path):
    """By its names of before transformers 4.52, which a merge in memory reads, and on the text part alone."""
    whole, folder = with_images
    held = tensors(folder)
    shutil.copytree(folder, tmp_path / "adapter")
    save_file(
        {name.replace("model.language_model.", "language_model.model."): value for name, value in held.items()},
        tmp_path / "adapter" / FILE,
    )
    old, model = read_adapter(tmp_path / "adapter"), Gemma3ForConditionalGeneration(whole)
    with pytest.raises(JobError, match=r"with transformers before 4\.52, .* the names of now") as error:
        refuse(old, model, held, old.tensors)
    with pytest.raises(JobError, match=r"trained on a model with images .* this is its text part alone"):
        attach(Gemma3ForCausalLM(whole.text_config), old)
    attach(model, old)
    mended(error)
    assert tensors(tmp_path / "adapter-renamed").keys() == held.keys()

"""Adapters that today's tools merge wrong without a word: each is either merged right here, or refused."""

import shutil

import numpy as np
import peft
import pytest
import torch
from adapters import (
    LIMIT,
    adapters_of,
    both,
    config,
    error,
    ids_for,
    in_memory,
    load,
    make_base,
    streaming,
    tensors,
    train,
)
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from exporter.checkpoint.weights import check_weights
from exporter.errors import BuildError, JobError
from exporter.stages.merge.adapter import BASE_HASH, base_identity, read_adapter
from exporter.stages.merge.merge import How
from exporter.stages.merge.proof import answers, compare, refuse_unproven

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # transformers' own, when PEFT wraps any model.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
WAYS = pytest.mark.parametrize("way", [in_memory, streaming])


@pytest.fixture
def base(tmp_path):
    return make_base(tmp_path / "base", "llama")


@pytest.fixture
def adapter(base, tmp_path):
    return train(base, tmp_path / "adapter", config("llama"), scale=0.2)


def naive(base, folder):
    """What everybody writes."""
    return peft.PeftModel.from_pretrained(load(base), folder).merge_and_unload()


@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head"]])
@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`:UserWarning")  # all that PEFT does about it
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_tied_embeddings(tmp_path, targets):
    base = make_base(tmp_path / "base", "tied")
    trained = train(base, tmp_path / "adapter", config("tied", target_modules=targets), scale=0.3)
    assert error(trained, naive(base, trained.path)) > 0.1
    memory, stream, model = both(base, [trained.path], tmp_path)
    assert error(trained, model) < LIMIT
    assert model.config.tie_word_embeddings is False
    line = "untied model.embed_tokens.weight and lm_head.weight: the adapter changes one of them"
    assert [line in record["history"] for record in (memory, stream)] == [True, True]


def test_tied_embeddings_that_stay_tied(tmp_path):
    base = make_base(tmp_path / "base", "tied")
    trained = train(base, tmp_path / "adapter", config("tied"))
    _, _, model = both(base, [trained.path], tmp_path)
    assert model.config.tie_word_embeddings is True
    for way in ("memory", "streaming"):
        assert "lm_head.weight" not in tensors(tmp_path / way)


@WAYS
def test_embeddings_that_no_configuration_can_untie(tmp_path, way):
    base = make_base(tmp_path / "base", "t5")
    trained = train(base, tmp_path / "adapter", config("t5", target_modules=["lm_head"]))
    with pytest.raises(JobError, match="which transformers ties whatever the configuration of a T5ForConditional"):
        way(base, [trained.path], tmp_path / "out")


@WAYS
def test_a_base_with_fewer_layers(adapter, tmp_path, way):
    fewer = make_base(tmp_path / "fewer", "llama", num_hidden_layers=1)
    naive(fewer, adapter.path)  # not a word
    says = r"\(it was trained on 2 layers, and this model has 1\)"
    with pytest.raises(JobError, match=rf"this model lacks: .*layers\.1\..* and \d+ more {says}"):
        way(fewer, [adapter.path], tmp_path / "out")


@WAYS
def test_a_base_with_more_layers(adapter, tmp_path, way):
    more = make_base(tmp_path / "more", "llama", num_hidden_layers=3)
    with pytest.warns(UserWarning, match="Found missing adapter keys"):
        naive(more, adapter.path)  # a warning, and a model
    with pytest.raises(
        JobError, match=r"no tensor for .*layers\.2\..* \(it was trained on 2 layers, and this model has 3\)"
    ):
        way(more, [adapter.path], tmp_path / "out")


@WAYS
def test_renamed_keys(base, adapter, tmp_path, way):
    path = adapter.path / "adapter_model.safetensors"
    save_torch({name.replace("q_proj", "query"): value for name, value in tensors(adapter.path).items()}, path)
    with pytest.warns(UserWarning, match="Found missing adapter keys"):
        naive(base, adapter.path)
    with pytest.raises(JobError, match=r"no tensor for .*q_proj.lora_A"):
        way(base, [adapter.path], tmp_path / "out")


@WAYS
def test_another_width(adapter, tmp_path, way):
    wide = make_base(tmp_path / "wide", "llama", hidden_size=64)
    with pytest.raises(JobError, match=r"does not fit this model"):
        way(wide, [adapter.path], tmp_path / "out")


@WAYS
@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_were_trained_and_not_saved(tmp_path, bias, way):
    base = make_base(tmp_path / "base", "gpt2")
    trained = train(base, tmp_path / "adapter", config("gpt2", bias=bias))
    kept = {name: value for name, value in tensors(trained.path).items() if not name.endswith("c_attn.base_layer.bias")}
    save_torch(kept, trained.path / "adapter_model.safetensors")
    naive(base, trained.path)  # not a word
    with pytest.raises(JobError, match=r"no tensor for .*h\.0\.attn\.c_attn\.(base_layer\.)?bias"):
        way(base, [trained.path], tmp_path / "out")


@WAYS
def test_new_tokens_whose_output_rows_were_not_saved(base, tmp_path, way):
    """PEFT saves the grown embedding that LoRA is on, and not the grown lm_head."""
    trained = train(base, tmp_path / "adapter", config("llama", target_modules=["embed_tokens"]), vocabulary=133)
    with pytest.raises(
        JobError, match=r"does not hold the new rows of lm_head.weight: .*modules_to_save=\['lm_head'\]"
    ):
        way(base, [trained.path], tmp_path / "out")


@WAYS
def test_new_tokens_that_were_not_saved(base, tmp_path, way):
    options = {"target_modules": ["embed_tokens"]}
    trained = train(base, tmp_path / "adapter", config("llama", **options), vocabulary=133, save_embedding_layers=False)
    with pytest.raises(JobError, match=r"trained with 133 tokens, this model has 128.*save_embedding_layers=True"):
        way(base, [trained.path], tmp_path / "out")


@WAYS
def test_a_base_that_lacks_what_the_adapter_needs(tmp_path, way):
    """A headless base: the classifier is in the adapter, the pooler was random when it was trained, and is lost."""
    base = make_base(tmp_path / "base", "bert")
    kept = {name: value for name, value in tensors(base).items() if not name.startswith("classifier.")}
    save_torch(kept, base / "model.safetensors", {"format": "pt"})
    trained = train(base, tmp_path / "adapter", config("bert"))
    way(base, [trained.path], tmp_path / "out")
    assert error(trained, load(tmp_path / "out")) < LIMIT
    kept = {name: value for name, value in kept.items() if "pooler" not in name}
    save_torch(kept, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(JobError, match=r"has no tensor for bert.pooler.dense.bias, .*it would be random"):
        way(base, [trained.path], tmp_path / "again")


def test_another_base_of_the_same_shapes(adapter, base, tmp_path):
    other = make_base(tmp_path / "other", "llama", seed=5)
    read = read_adapter(adapter.path)
    assert "base identity not verifiable: the adapter records " in base_identity(read, str(other), "0" * 64)
    assert f"/base, not the name of {other}, and no hash; prove it with --probe" in base_identity(
        read, str(other), None
    )
    in_memory(other, [adapter.path], tmp_path / "wrong")  # nothing in the adapter could tell
    assert error(adapter, load(tmp_path / "wrong")) > 0.1
    probe = tmp_path / "probe.safetensors"
    save_file({"input_ids": adapter.ids, "logits": adapter.truth}, probe)
    right = in_memory(base, [adapter.path], tmp_path / "right", How(probe=probe))
    assert right["proof"]["probe_kl"] < 1e-9
    with pytest.raises(BuildError, match=r"does not answer as the probe .* says: KL .* this is not the base"):
        in_memory(other, [adapter.path], tmp_path / "caught", How(probe=probe))


def test_the_hash_of_the_base(adapter, base, tmp_path):
    sha256 = check_weights(base).sha256
    (adapter.path / BASE_HASH).write_text(f"{sha256}  base\n")
    assert base_identity(read_adapter(adapter.path), "base", sha256) == f"verified: {BASE_HASH} is the base's"
    assert streaming(base, [adapter.path], tmp_path / "out")["source_sha256"] == sha256
    with pytest.raises(JobError, match=f"was trained on other weights: its {BASE_HASH} is {sha256[:12]}"):
        base_identity(read_adapter(adapter.path), "base", "0" * 64)


@WAYS
def test_a_copy_of_the_embedding_tells_the_base(tmp_path, way):
    for family, other in (("llama", 5), ("tied", 6)):
        base = make_base(tmp_path / family, family, dtype="bfloat16")
        trained = train(base, tmp_path / f"{family}-lora", config(family, target_modules=["embed_tokens"]))
        record = way(base, [trained.path], tmp_path / f"{family}-out")
        assert f"model.embed_tokens.weight is the one that {family}-lora was trained on" in record["history"][0]
        with pytest.raises(
            JobError, match=r"is not the base of the adapter .* copy of its base's model.embed_tokens.weight"
        ):
            way(make_base(tmp_path / f"{family}-2", family, seed=other), [trained.path], tmp_path / f"{family}-no")


@WAYS
def test_a_merge_that_overflows(base, tmp_path, way):
    trained = train(base, tmp_path / "adapter", config("llama"))
    huge = {name: value + 1e25 for name, value in tensors(trained.path).items()}
    save_torch(huge, trained.path / "adapter_model.safetensors")
    with pytest.raises((JobError, BuildError), match="NaN or Inf"):
        way(base, [trained.path], tmp_path / "out")


@WAYS
def test_a_dtype_that_is_too_small(base, tmp_path, way):
    trained = train(base, tmp_path / "adapter", config("llama", modules_to_save=["norm"]))
    saved = tensors(trained.path)
    saved["base_model.model.model.norm.weight"][0] = 1e5
    save_torch(saved, trained.path / "adapter_model.safetensors")
    with pytest.raises(
        BuildError, match=r"model.norm.weight does not fit into (float16|F16) after the merge: take --merge-dtype"
    ):
        way(base, [trained.path], tmp_path / "out", How(dtype="float16"))
    way(base, [trained.path], tmp_path / "wide", How(dtype="bfloat16"))


def test_the_proof_sees_a_merge_that_is_wrong(adapter, base, tmp_path):
    """The model without its adapter, with one module forgotten, and with a weight that is not a number."""
    in_memory(base, [adapter.path], tmp_path / "out")
    forgotten = load(tmp_path / "out")
    forgotten.model.layers[1].self_attn.v_proj = load(base).model.layers[1].self_attn.v_proj
    broken = load(tmp_path / "out")
    broken.model.norm.weight.data[3] = torch.nan
    for wrong in (load(base), forgotten, broken):
        agreement = compare(adapter.truth, answers(wrong, adapter.ids), "float32", distribution=True)
        with pytest.raises(BuildError, match=r"does not answer as base \+ adapter do: largest error"):
            refuse_unproven(agreement, "the merge")
    right = compare(adapter.truth, answers(load(tmp_path / "out"), adapter.ids), "float32", distribution=True)
    refuse_unproven(right, "the merge")
    assert right.max_error < LIMIT
    assert right.kl < 1e-9


def test_patterns_of_which_the_first_is_not_known(base, tmp_path):
    """PEFT applies the first pattern that matches, and sorts them when it saves: its own reload answers otherwise."""
    patterns = {"q_proj": 32, r"layers\.1\.self_attn\..*": 2}
    trained = train(base, tmp_path / "adapter", config("llama", alpha_pattern=patterns), scale=0.2)
    assert error(trained, naive(base, trained.path)) > 0.01
    with pytest.raises(JobError, match=r"alpha_pattern has .* for model.layers.1.self_attn.q_proj, and PEFT does not"):
        read_adapter(trained.path)


@WAYS
def test_pissa_that_cannot_be_repeated(base, tmp_path, way):
    trained = train(base, tmp_path / "adapter", config("llama", init_lora_weights="pissa_niter_4"))
    with pytest.raises(JobError, match=r"began with pissa_niter_4.*path_initial_model_for_weight_conversion"):
        way(base, [trained.path], tmp_path / "out")


FOREIGN = {
    "adapters.safetensors": "in MLX format .*mlx_lm",
    "lora.gguf": "in llama.cpp format",
    "pytorch_adapter.bin": "in AdapterHub's format",
    "pytorch_lora_weights.safetensors": "in diffusers' format",
    "adapter_0.pt": "in torchtune's format",
    "lora.nemo": "in NeMo's format",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_another_tool_s_format(tmp_path, name):
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / name)
    with pytest.raises(JobError, match=FOREIGN[name]) as refusal:
        read_adapter(tmp_path)
    assert name in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


def test_kohya_s_names(adapter):
    save_file(
        {"lora_unet_down.lora_down.weight": np.zeros((2, 2), np.float32)}, adapter.path / "adapter_model.safetensors"
    )
    with pytest.raises(JobError, match="named as kohya's scripts do"):
        read_adapter(adapter.path)


def test_pickles(adapter):
    shutil.move(adapter.path / "adapter_model.safetensors", adapter.path / "adapter_model.bin")
    with pytest.raises(JobError, match=r"pickled weights \(adapter_model.bin\).*weights_only=True"):
        read_adapter(adapter.path)


def test_an_adapter_is_read_with_its_weight(adapter):
    [read] = adapters_of([adapter.path], [0.5])
    assert (read.kind, read.weight, read.rank) == ("LoRA", 0.5, 4)
    assert len(ids_for()) == 3

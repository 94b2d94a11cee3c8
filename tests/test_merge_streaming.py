"""What only files can get wrong: names, dtypes, indexes, broken bases; and what files cannot do and is refused."""

import json

import pytest
import torch
from adapters import (
    LIMIT,
    Trained,
    adapters_of,
    both,
    config,
    error,
    ids_for,
    in_memory,
    load,
    make_base,
    names,
    same,
    streaming,
    tensors,
    train,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from exporter.errors import JobError
from exporter.stages.merge.adapter import read_adapter
from exporter.stages.merge.merge import How
from exporter.stages.merge.proof import answers
from exporter.stages.merge.streaming import merge_streaming

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # transformers' own, when PEFT wraps any model.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"]
METADATA = {"format": "pt"}


@pytest.fixture
def base(tmp_path):
    return make_base(tmp_path / "base", "llama")


def rename(base, change):
    """Gives the tensors of a base other names; None drops one."""
    path = base / "model.safetensors"
    renamed = {change(name): value for name, value in load_file(path).items()}
    save_file({name: value for name, value in renamed.items() if name}, path, METADATA)


@given(data=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_ranks_and_patterns(tmp_path_factory, data):
    """Merged == base + adapter, and streaming == in memory, for what nobody thought of."""
    folder = tmp_path_factory.mktemp("any")
    targets = data.draw(st.lists(st.sampled_from(MODULES), min_size=1, max_size=4, unique=True))
    some = st.sampled_from([*targets, "layers.0.mlp.down_proj", r".*\.1\.self_attn\.q_proj", "self_attn.[qk]_proj"])
    options = {
        "target_modules": targets,
        "r": data.draw(st.integers(1, 9)),
        "lora_alpha": data.draw(st.integers(1, 40)),
        "rank_pattern": data.draw(st.dictionaries(some, st.integers(1, 9), max_size=2)),
        "alpha_pattern": data.draw(st.dictionaries(some, st.integers(1, 40), max_size=2)),
        "use_rslora": data.draw(st.booleans()),
        "use_dora": data.draw(st.booleans()),
    }
    base = make_base(folder / "base", data.draw(st.sampled_from(["llama", "tied"])), shard="40KB")
    trained = train(base, folder / "adapter", config("llama", **options))
    try:
        read_adapter(trained.path)
    except JobError as refusal:
        assert "alpha_pattern has" in str(refusal)  # noqa: PT017  # hypothesis finds overlapping patterns, too
        return
    try:
        _, _, model = both(base, [trained.path], folder)
    except JobError as refusal:
        assert "and this model needs" in str(refusal)  # noqa: PT017  # likewise: PEFT cannot load what it saved
        assert len(options["rank_pattern"]) > 1
        return
    assert error(trained, model) < LIMIT * max(1.0, float(abs(trained.truth).max()))


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("dtype", ["keep", "float32", "bfloat16", "float16"])
def test_dtypes(tmp_path, stored, dtype):
    base = make_base(tmp_path / "base", "tied", dtype=stored, shard="30KB")
    trained = train(base, tmp_path / "adapter", config("tied", target_modules=["q_proj", "embed_tokens"]))
    _, _, model = both(base, [trained.path], tmp_path, How(dtype=dtype))
    kept = stored if dtype == "keep" else dtype
    for way in ("memory", "streaming"):
        assert {value.dtype for value in tensors(tmp_path / way).values()} == {getattr(torch, kept)}
        assert json.loads((tmp_path / way / "config.json").read_text())["dtype"] == kept
    assert error(trained, model) < {"float32": LIMIT, "float16": 0.01, "bfloat16": 0.1}[kept]


def test_a_base_of_two_dtypes_keeps_both(tmp_path):
    base = make_base(tmp_path / "base", "llama", dtype="bfloat16")
    mixed = {name: value.float() if "norm" in name else value for name, value in tensors(base).items()}
    save_file(mixed, base / "model.safetensors", METADATA)
    trained = train(base, tmp_path / "adapter", config("llama", modules_to_save=["norm"]))
    both(base, [trained.path], tmp_path)
    for way in ("memory", "streaming"):
        found = tensors(tmp_path / way)
        assert {name for name, value in found.items() if value.dtype == torch.float32} == {
            n for n in found if "norm" in n
        }


def test_the_files_of_a_sharded_base(tmp_path):
    base = make_base(tmp_path / "base", "llama", shard="30KB")
    trained = train(base, tmp_path / "adapter", config("llama", target_modules=["embed_tokens"]))
    seen = []
    (tmp_path / "out").mkdir()
    record = merge_streaming(
        load, base, adapters_of([trained.path]), tmp_path / "out", How(), lambda *step: seen.append(step)
    )
    assert names(tmp_path / "out") == names(base)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    held = {}
    for path in sorted((tmp_path / "out").glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            held |= dict.fromkeys(file.keys(), path.name)
    assert index["weight_map"] == held
    total = sum(value.nbytes for value in tensors(tmp_path / "out").values())
    assert index["metadata"]["total_size"] == total
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")}
    assert {name: entry["bytes"] for name, entry in record["hashes"].items()} == sizes


def test_a_new_tensor_goes_into_the_last_file(tmp_path):
    base = make_base(tmp_path / "base", "tied", shard="30KB")
    trained = train(base, tmp_path / "adapter", config("tied", target_modules=["lm_head"]))
    streaming(base, [trained.path], tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert index["lm_head.weight"] == max(index.values())
    assert error(trained, load(tmp_path / "out")) < LIMIT


def test_merging_once_more(base, tmp_path):
    """The merged folder is a base like any other: a second adapter is merged into it, each way into the other's."""
    first = train(base, tmp_path / "first", config("llama"))
    both(base, [first.path], tmp_path)
    assert names(tmp_path / "memory") == names(tmp_path / "streaming") == names(base)
    second = train(tmp_path / "memory", tmp_path / "second", config("llama", target_modules=["lm_head"]), seed=2)
    streaming(tmp_path / "memory", [second.path], tmp_path / "again")
    in_memory(tmp_path / "streaming", [second.path], tmp_path / "once more")
    model, found = load(tmp_path / "again", output_loading_info=True)
    assert not any(found.values()), found
    same(model, load(tmp_path / "once more"))
    assert error(second, model) < LIMIT


@pytest.mark.parametrize("options", [{}, {"target_modules": ["wte", "c_fc"]}, {"bias": "all"}], ids=str)
def test_names_without_the_base_model_s_prefix(tmp_path, options):
    """As GPT-2 is on the hub; it holds the attention's masks too, which no model reads any more."""
    base = make_base(tmp_path / "base", "gpt2")
    rename(base, lambda name: name.removeprefix("transformer."))
    extra = tensors(base) | {f"h.{n}.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool) for n in (0, 1)}
    save_file(extra, base / "model.safetensors", METADATA)
    trained = train(base, tmp_path / "adapter", config("gpt2", **options))
    _, _, model = both(base, [trained.path], tmp_path)
    assert error(trained, model) < LIMIT
    assert set(tensors(tmp_path / "streaming")) >= set(extra)


def test_names_that_transformers_changes(tmp_path):
    """Old checkpoints of BERT call a LayerNorm's bias beta: a file cannot have both."""
    base = make_base(tmp_path / "base", "bert")
    rename(
        base,
        lambda name: name.replace("LayerNorm.bias", "LayerNorm.beta").replace("LayerNorm.weight", "LayerNorm.gamma"),
    )
    plain = train(base, tmp_path / "plain", config("bert"))
    streaming(base, [plain.path], tmp_path / "fine", How(dtype="bfloat16"))
    assert {value.dtype for value in tensors(tmp_path / "fine").values()} == {torch.bfloat16}
    trained = train(base, tmp_path / "adapter", config("bert", bias="all"))
    with pytest.raises(JobError, match=r"LayerNorm.bias from tensors with other names .* merge it with --merge memory"):
        streaming(base, [trained.path], tmp_path / "out")
    in_memory(base, [trained.path], tmp_path / "memory", task="text-classification")
    assert error(trained, load(tmp_path / "memory")) < LIMIT


MOE = {
    "target_parameters": {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    "the router": {"target_parameters": ["mlp.gate.weight"]},
}


@pytest.mark.parametrize("name", MOE)
def test_experts_in_memory(tmp_path, name):
    base = make_base(tmp_path / "base", "mixtral")
    trained = train(base, tmp_path / "adapter", config("mixtral", **MOE[name]))
    in_memory(base, [trained.path], tmp_path / "memory")
    assert error(trained, load(tmp_path / "memory")) < LIMIT
    with pytest.raises(
        JobError, match=r"\(target_parameters\), which cannot be done file by file; merge it with --merge m"
    ):
        streaming(base, [trained.path], tmp_path / "streaming")


def test_experts_under_their_old_names(tmp_path):
    """An adapter of transformers 4 on w1, w2 and w3 of each expert: PEFT fuses it when it loads, files cannot."""
    base = make_base(tmp_path / "base", "mixtral")
    settings = config("mixtral", target_modules=["w1", "w2", "w3"], r=2, lora_alpha=4)
    settings.save_pretrained(tmp_path / "adapter")
    truth, factors = load(base), {}
    for layer in (0, 1):
        experts = truth.model.layers[layer].mlp.experts
        for expert in range(4):
            deltas = {}
            for name, out, inner in (("w1", 64, 32), ("w2", 32, 64), ("w3", 64, 32)):
                a, b = torch.randn(2, inner) * 0.1, torch.randn(out, 2) * 0.1
                stem = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}"
                factors |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
                deltas[name] = b @ a * 2  # lora_alpha / r
            experts.gate_up_proj.data[expert] += torch.cat([deltas["w1"], deltas["w3"]])
            experts.down_proj.data[expert] += deltas["w2"]
    save_file(factors, tmp_path / "adapter" / "adapter_model.safetensors")
    trained = Trained(tmp_path / "adapter", ids_for(), answers(truth, ids_for()))
    in_memory(base, [trained.path], tmp_path / "memory")
    assert error(trained, load(tmp_path / "memory")) < LIMIT
    with pytest.raises(
        JobError, match=r"\(target_parameters\), which cannot be done file by file; merge it with --merge m"
    ):
        streaming(base, [trained.path], tmp_path / "streaming")


def test_a_nan_that_no_adapter_touches(base, tmp_path):
    trained = train(base, tmp_path / "adapter", config("llama"))
    broken = tensors(base)
    broken["model.layers.0.mlp.up_proj.weight"][3, 3] = torch.nan
    save_file(broken, base / "model.safetensors", METADATA)
    with pytest.raises(JobError, match=r"the tensor model.layers.0.mlp.up_proj.weight holds NaN or Inf"):
        streaming(base, [trained.path], tmp_path / "out")


def test_a_truncated_base(base, tmp_path):
    trained = train(base, tmp_path / "adapter", config("llama"))
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(JobError, match="is not a whole safetensors file"):
        streaming(base, [trained.path], tmp_path / "out")


def test_a_base_that_shrinks_while_it_is_read(base, tmp_path):
    trained = train(base, tmp_path / "adapter", config("llama"))
    path, out = base / "model.safetensors", tmp_path / "out"
    out.mkdir()

    def shrink(done, total):
        with path.open("r+b") as file:
            file.truncate(total // 2)

    with pytest.raises(JobError, match="ended early: it was changed while it was read"):
        merge_streaming(load, base, adapters_of([trained.path]), out, How(), shrink)

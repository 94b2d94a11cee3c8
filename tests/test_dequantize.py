"""Float checkpoints out of quantized ones, against bitsandbytes' and transformers' own dequantization and logits."""

import importlib.util
import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from exporter.errors import JobError, MissingPackage
from exporter.stages.dequantize import unpack
from exporter.stages.dequantize.dequantize import dequantize, refusal, scheme_of, simulate

SCHEMES = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "nf4-single": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}
CASES = [("llama", scheme) for scheme in SCHEMES] + [
    (family, scheme) for family in ("gpt2", "bert", "t5", "mixtral") for scheme in ("nf4", "int8")
]
MODELS = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=128, n_positions=64)
    ),
    "bert": lambda: transformers.BertForSequenceClassification(
        transformers.BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
                                vocab_size=128)
    ),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, vocab_size=128)
    ),
    "mixtral": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                                   num_key_value_heads=2, vocab_size=128, num_local_experts=4)
    ),
}  # fmt: skip
IDS = torch.arange(2, 34).reshape(2, 16)


def model_class(folder):
    config = json.loads((folder / "config.json").read_text())
    return getattr(transformers, config["architectures"][0])


def load(folder, **options):
    """A model and what was missing or left over; both must be nothing."""
    model, told = model_class(folder).from_pretrained(folder, output_loading_info=True, **options)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert not told["mismatched_keys"]
    return model


def quantized(source, scheme, **options):
    how = transformers.BitsAndBytesConfig(**SCHEMES[scheme])
    return model_class(source).from_pretrained(source, quantization_config=how, device_map="cpu", **options)


def same_weights(found, expected):
    """Whether two models hold the same numbers. transformers dequantizes a Conv1D to a linear layer: turned."""
    theirs = {name: module for name, module in expected.named_modules() if type(module) is torch.nn.Linear}
    turned = {
        f"{name}.weight"
        for name, module in found.named_modules()
        if type(module).__name__ == "Conv1D" and name in theirs
    }
    mine, others = found.state_dict(), expected.state_dict()
    assert mine.keys() == others.keys()
    assert all(mine[name].dtype == torch.float32 for name in mine)
    return all(torch.equal(mine[name], (others[name].t() if name in turned else others[name]).float()) for name in mine)


@pytest.fixture(scope="module")
def bases(tiny, tmp_path_factory):
    folders = {"llama": tiny}
    for name, build in MODELS.items():
        torch.manual_seed(0)
        folders[name] = tmp_path_factory.mktemp("bases") / name
        build().save_pretrained(folders[name])
    return folders


@pytest.mark.parametrize(("family", "scheme"), CASES)
def test_a_quantized_checkpoint_is_what_transformers_dequantizes(bases, tmp_path, out, family, scheme):
    quantized(bases[family], scheme).save_pretrained(tmp_path / "quantized")
    out.mkdir()
    history = dequantize(tmp_path / "quantized", out)
    assert f"{scheme.removesuffix('-single')} weights" in history[0]
    fresh = model_class(out).from_pretrained(tmp_path / "quantized", device_map="cpu")
    assert same_weights(load(out), fresh.dequantize())


@pytest.mark.parametrize(("family", "scheme"), CASES)
def test_a_simulated_base_is_what_a_quantized_load_holds(bases, out, family, scheme):
    out.mkdir()
    history = simulate(bases[family], out, scheme.removesuffix("-single"), double_quant=scheme == "nf4")
    assert same_weights(load(out), quantized(bases[family], scheme).dequantize())
    assert ("experts" in history[-1]) == (family == "mixtral")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_base_loaded_in_half_precision(bases, tmp_path, scheme, dtype):
    """The weights are rounded before the quantization, and in 4 bits after it; T5 keeps some in float32."""
    kind, base = getattr(torch, dtype), bases["t5"]
    quantized(base, scheme, dtype=kind).save_pretrained(tmp_path / "quantized")
    for name in ("simulated", "dequantized"):
        (tmp_path / name).mkdir()
    simulate(base, tmp_path / "simulated", scheme.removesuffix("-single"), loaded=dtype, double_quant=scheme == "nf4")
    dequantize(tmp_path / "quantized", tmp_path / "dequantized")
    simulated, dequantized = load(tmp_path / "simulated"), load(tmp_path / "dequantized")
    assert same_weights(simulated, dequantized)
    expected = quantized(base, scheme, dtype=kind).dequantize()
    if scheme == "int8":  # transformers rounds the float32 weights that the int8 ones stand for once more
        theirs = expected.state_dict()
        for name, weight in dequantized.state_dict().items():
            weight.copy_(weight.to(theirs[name].dtype))
    assert same_weights(dequantized, expected)


@pytest.mark.parametrize(("scheme", "limit"), [("nf4", 0), ("fp4", 0), ("int8", 1e-4)])
def test_logits_are_those_of_the_quantized_model_in_training(tiny, tmp_path, out, scheme, limit):
    """In training mode: in evaluation bitsandbytes repacks the weights for bfloat16 on some CPUs, and rounds more."""
    quantized(tiny, scheme).save_pretrained(tmp_path / "quantized")
    out.mkdir()
    dequantize(tmp_path / "quantized", out)
    fresh = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "quantized", device_map="cpu").train()
    with torch.no_grad():
        assert (load(out)(IDS).logits - fresh(IDS).logits).abs().max() <= limit


def test_shards_and_what_stands_beside_them(tiny, tmp_path, out):
    """A weight's parts may lie in different shards, as older savers left them."""
    source = tmp_path / "quantized"
    shutil.copytree(tiny, source, ignore=shutil.ignore_patterns("*.safetensors", "adapter"))
    quantized(tiny, "nf4").save_pretrained(source)
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    weight_map = {name: f"model-{place % 3 + 1:05}-of-00003.safetensors" for place, name in enumerate(sorted(tensors))}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, source / file)
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    out.mkdir()
    steps = []
    dequantize(source, out, progress=lambda done, total: steps.append((done, total)))
    assert {path.name for path in out.glob("*.safetensors")} == set(weight_map.values())
    assert same_weights(load(out), quantized(tiny, "nf4").dequantize())
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    config = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"
    assert steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1] == sum(len(t.numpy().tobytes()) for p in out.glob("*.safetensors")
                                              for t in load_file(p).values())  # fmt: skip


def test_one_shard_that_is_named_in_an_index(tiny, tmp_path, out):
    source = tmp_path / "base"
    shutil.copytree(tiny, source, ignore=shutil.ignore_patterns("adapter"))
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").rename(source / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    out.mkdir()
    simulate(source, out, "nf4")
    load(out)


def test_a_base_models_checkpoint_without_its_prefix(bases, tmp_path, out):
    """GPT-2's own checkpoint says h.0.attn…, and its model with an output transformer.h.0.attn…"""
    shutil.copytree(bases["gpt2"], tmp_path / "base")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    out.mkdir()
    simulate(tmp_path / "base", out, "nf4")
    assert same_weights(load(out), quantized(bases["gpt2"], "nf4").dequantize())


def test_pieces_of_a_weight_are_the_weight(monkeypatch, tiny, tmp_path, out):
    quantized(tiny, "nf4").save_pretrained(tmp_path / "quantized")
    expected = quantized(tiny, "nf4").dequantize()
    monkeypatch.setattr(unpack, "_CHUNK", 1 << 13)
    monkeypatch.setattr("exporter.checkpoint.blocks._BLOCK", 1 << 12)
    out.mkdir()
    (tmp_path / "simulated").mkdir()
    dequantize(tmp_path / "quantized", out)
    simulate(tiny, tmp_path / "simulated", "nf4")
    assert same_weights(load(out), expected)
    assert same_weights(load(tmp_path / "simulated"), expected)


@pytest.mark.parametrize("scheme", ["nf4", "fp4"])
def test_rows_that_are_no_multiple_of_a_block(tmp_path, out, scheme):
    """Blocks of 64 values go across rows of 48. The reference is the definition: with AVX-512, bitsandbytes 0.50 gives
    such a weight other blocks' scales when it dequantizes, and is off by the weights' own size."""
    torch.manual_seed(0)
    base = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=48, n_layer=1, n_head=2, vocab_size=64))
    base.save_pretrained(tmp_path / "base")
    quantized(tmp_path / "base", scheme).save_pretrained(tmp_path / "quantized")
    out.mkdir()
    (tmp_path / "simulated").mkdir()
    dequantize(tmp_path / "quantized", out)
    simulate(tmp_path / "base", tmp_path / "simulated", scheme, double_quant=scheme == "nf4")
    found, simulated = load_file(out / "model.safetensors"), load_file(tmp_path / "simulated" / "model.safetensors")
    assert all(torch.equal(found[name], simulated[name]) for name in simulated)
    original = base.transformer.h[0].attn.c_attn.weight.detach()
    # Half of the widest gap between two of the 16 values, times the largest weight, and the scales' own rounding.
    gap = {"nf4": 0.14, "fp4": 0.17}[scheme]
    assert 0 < (found["transformer.h.0.attn.c_attn.weight"] - original).abs().max() < 1.05 * gap * original.abs().max()


@pytest.mark.parametrize(
    ("how", "scheme", "reason"),
    [
        (None, None, None),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4", None),
        ({"load_in_4bit": True}, "fp4", None),
        ({"_load_in_8bit": True}, "int8", None),
        ({"quant_method": "gptq", "bits": 4, "desc_act": True}, "gptq", None),
        ({"quant_method": "gptq", "bits": 5}, "gptq", "5 bits"),
        ({"quant_method": "gptq", "bits": 4, "is_marlin_format": True}, "gptq", "format marlin"),
        ({"quant_method": "gptq", "bits": 4, "pack_dtype": "int16"}, "gptq", "into int16"),
        ({"quant_method": "awq", "bits": 4, "version": "GEMM"}, "awq", None),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "awq", "layout gemv"),
        ({"quant_method": "awq", "bits": 4, "backend": "llm-awq"}, "awq", "layout llm-awq"),
        ({"quant_method": "awq", "bits": 8}, "awq", "8 bits"),
        *[({"quant_method": name}, name, f"by {name}") for name in
          ("hqq", "aqlm", "eetq", "fp8", "fbgemm_fp8", "compressed-tensors", "mxfp4", "torchao", "quanto")],
        ({"group_size": 64, "bits": 4}, "MLX", "by MLX"),
    ],
)  # fmt: skip
def test_what_is_read_and_what_is_refused(how, scheme, reason):
    for config in ({"quantization_config": how}, {"text_config": {"quantization_config": how}}):
        assert scheme_of(config) == scheme
        said = refusal(config | {"_name_or_path": "org/base"})
        assert said is None if reason is None else reason in said
        assert reason is None or "org/base, with -m" in said


def test_what_simulate_refuses(tiny, tmp_path, out):
    out.mkdir()
    with pytest.raises(JobError, match=r"nf5.*nf4"):
        simulate(tiny, out, "nf5")
    with pytest.raises(JobError, match="float32"):
        simulate(tiny, out, "nf4", loaded="float31")
    shutil.copytree(tiny, tmp_path / "base", ignore=shutil.ignore_patterns("adapter"))
    tensors = load_file(tiny / "model.safetensors")
    tensors["elsewhere.weight"] = tensors.pop("model.layers.0.mlp.down_proj.weight")
    save_file(tensors, tmp_path / "base" / "model.safetensors")
    with pytest.raises(JobError, match=r"down_proj\.weight is not known"):
        simulate(tmp_path / "base", out, "nf4")
    with pytest.raises(JobError, match="is not quantized"):
        dequantize(tiny, out)
    config = json.loads((tiny / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"architectures": ["NobodysForCausalLM"]}))
    with pytest.raises(JobError, match="NobodysForCausalLM"):
        simulate(tmp_path / "base", out, "nf4")
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"quantization_config": {"load_in_8bit": True}}))
    with pytest.raises(JobError, match="quantized already"):
        simulate(tmp_path / "base", out, "nf4")
    assert not list(out.iterdir())


def test_without_bitsandbytes(tiny, monkeypatch, out):
    """As on a machine that lacks it: the finders do not find it."""
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else there(name, *a)
    )
    with pytest.raises(MissingPackage, match=r"pip install .*\[qlora\]'"):
        simulate(tiny, out, "nf4")

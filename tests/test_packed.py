"""GPTQ's and AWQ's packed weights made float.

The packed words are made here from the layouts' definitions, in plain integers; that they are the words which AutoGPTQ,
GPTQModel and AutoAWQ write is checked against values that were recorded from these packages.
"""

import hashlib
import json
import shutil

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from exporter.errors import JobError
from exporter.stages.dequantize import unpack
from exporter.stages.dequantize.dequantize import dequantize


def words(fields, bits):
    """int32 words of one stream of bits, the lowest first."""
    stream = sum(int(value) << (bits * place) for place, value in enumerate(fields))
    unsigned = [stream >> (32 * number) & 0xFFFFFFFF for number in range(len(fields) * bits // 32)]
    return [word - (1 << 32) if word >> 31 else word for word in unsigned]


def gptq(codes, zeros, scales, groups, bits, less=1, dtype=torch.float16):
    """codes [out, in], zeros and scales [out, groups], the group of each input; v1 stores each zero point less one."""
    stored = (zeros - less) % 2**bits
    return {
        "qweight": torch.tensor([words(row, bits) for row in codes.tolist()], dtype=torch.int32).t().contiguous(),
        "qzeros": torch.tensor([words(column, bits) for column in stored.t().tolist()], dtype=torch.int32),
        "scales": scales.t().to(dtype).contiguous(),
        "g_idx": groups.to(torch.int32),
    }


def awq(codes, zeros, scales):
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def rows(values):  # [n, out]
        eights = values.view(len(values), -1, 8)[:, :, order].flatten(1)
        return torch.tensor([words(row, 4) for row in eights.tolist()], dtype=torch.int32)

    return {"qweight": rows(codes.t()), "qzeros": rows(zeros.t()), "scales": scales.t().half().contiguous()}


def example(bits, least=1):
    """The weight that the recorded words are of: [32, 64] in two groups of 32 inputs."""
    codes = torch.tensor([[(7 * a + 5 * b + a * b) % 2**bits for b in range(64)] for a in range(32)])
    zeros = torch.tensor([[least + (3 * a + g) % (2**bits - least) for g in range(2)] for a in range(32)])
    scales = torch.tensor([[(1 + (a + g) % 8) / 64 for g in range(2)] for a in range(32)])
    return codes, zeros, scales


def sha(tensor):
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


# The sha256 of qweight and of qzeros as int32, and qzeros' first row. Recorded from QuantLinear.pack of AutoGPTQ 0.7.1
# (qlinear_cuda_old.py), given a linear layer with the example's weights, its scales and its zero points.
AUTOGPTQ = {
    2: ("a78491371197b0cd", "8361ddc46c2ae0a1", [0, 0]),
    3: ("d3b0a231e64c55cc", "460b7ea093660f5f", [-1290742376, 1129734682, 1502112460]),
    4: ("fe3d4915c18b4267", "5514f3e72bca47e5", [1661769264, 211169481, -1775187613, 818504460]),
    8: ("d0291965160de705", "5a744995327b4b75", [151388928, 353505036, 555621144, 757737252, 959853360, 1161969468,
                                                 1364085576, 1566201684]),
}  # fmt: skip
# The same from TorchLinear.pack_original of GPTQModel 7.7.0 with g_idx = 11i % 64 // 32 and zero points from 0: format
# v2, and v1 after convert_gptq_v2_to_v1_format_module.
GPTQMODEL = {
    ("gptq_v2", 3): ("d3b0a231e64c55cc", "774df9427b729066"),
    ("gptq", 3): ("d3b0a231e64c55cc", "38c51489464fb3fb"),
    ("gptq_v2", 4): ("fe3d4915c18b4267", "8dd31d6fec73a4d6"),
    ("gptq", 4): ("fe3d4915c18b4267", "c1071f453228f81d"),
}


@pytest.mark.parametrize("bits", AUTOGPTQ)
def test_gptq_words_as_autogptq_packs_them(bits):
    codes, zeros, scales = example(bits)
    groups = torch.arange(64) // 32
    parts = gptq(codes, zeros, scales, groups, bits)
    assert (sha(parts["qweight"]), sha(parts["qzeros"]), parts["qzeros"][0].tolist()) == AUTOGPTQ[bits]
    del parts["g_idx"]
    found = torch.cat(list(unpack.gptq_rows(parts, {"bits": bits, "group_size": 32}, "w")))
    assert torch.equal(found.float(), (codes - zeros[:, groups]) * scales[:, groups])


@pytest.mark.parametrize(("layout", "bits"), GPTQMODEL)
def test_gptq_words_as_gptqmodel_packs_them(layout, bits):
    codes, zeros, scales = example(bits, least=0)
    groups = torch.tensor([11 * i % 64 // 32 for i in range(64)])
    parts = gptq(codes, zeros, scales, groups, bits, less=0)
    if (layout, bits) == ("gptq", 4):
        parts["qzeros"] = parts["qzeros"] - 0x11111111  # whole words: a zero point of 0 borrows from the next
    elif layout == "gptq":
        parts = gptq(codes, zeros, scales, groups, bits)
    assert (sha(parts["qweight"]), sha(parts["qzeros"])) == GPTQMODEL[layout, bits]
    how = {"bits": bits, "group_size": 32, "desc_act": True, "checkpoint_format": layout}
    if layout == "gptq":
        with pytest.raises(JobError, match="zero points of 0"):
            list(unpack.gptq_rows(parts, how, "w"))
    found = torch.cat(list(unpack.gptq_rows(parts, how | {"meta": {"quantizer": ["gptqmodel:7.7.0"]}}, "w")))
    assert torch.equal(found.float(), (codes - zeros[:, groups]) * scales[:, groups])


def test_awq_words_as_autoawq_packs_them():
    """Recorded from WQLinear_GEMM.from_linear of AutoAWQ 0.2.9."""
    codes, zeros, scales = example(4)
    parts = awq(codes, zeros, scales)
    assert (sha(parts["qweight"]), sha(parts["qzeros"])) == ("d691284bfb0e97c9", "7d8514318629944f")
    assert parts["qweight"][0].tolist() == [324512992, -1679874968, 324512992, -1679874968]
    found = torch.cat(list(unpack.awq_rows(parts, 32, "w")))
    groups = torch.arange(64) // 32
    assert torch.equal(found.float(), (codes - zeros[:, groups]) * scales[:, groups])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([2, 3, 4, 8]), st.sampled_from([0, 1]), st.sampled_from([32, 64, 96, -1]), st.booleans(),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32]), st.integers(0, 2**31),
)  # fmt: skip
def test_gptq_of_any_kind(bits, less, size, shuffled, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs, outputs = 192, 64
    groups = torch.arange(inputs) // (size if size > 0 else inputs)
    if shuffled:
        groups = groups[torch.randperm(inputs, generator=generator)]
    count = int(groups.max()) + 1
    codes = torch.randint(0, 2**bits, (outputs, inputs), generator=generator)
    zeros = torch.randint(less, 2**bits, (outputs, count), generator=generator)
    scales = torch.rand(outputs, count, generator=generator).to(dtype).float()
    parts = gptq(codes, zeros, scales, groups, bits, less, dtype)
    how = {"bits": bits, "group_size": size, "checkpoint_format": "gptq" if less else "gptq_v2", "desc_act": shuffled}
    found = torch.cat(list(unpack.gptq_rows(parts, how, "w")))
    assert torch.equal(found, ((codes - zeros[:, groups]).to(dtype) * scales[:, groups].to(dtype)))


def packed_checkpoint(source, folder, how):
    """A checkpoint whose linear layers are rounded to the nearest of 4 bits; and the float one it stands for."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("adapter"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": how}))
    stored, meant = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        meant[name] = stored[name] = weight
        turned = ".c_" in name  # GPT-2's Conv1D
        if weight.ndim == 2 and (turned or "proj" in name):
            weight = weight.t() if turned else weight
            groups = torch.arange(weight.shape[1]) // 16
            scales = (weight.view(len(weight), -1, 16).abs().amax(-1) / 7).half().float()
            codes = (weight / scales[:, groups]).round().clamp(-7, 7).int() + 8
            zeros = torch.full(scales.shape, 8)
            del stored[name]
            module = name.removesuffix("weight")
            parts = awq(codes, zeros, scales) if how["quant_method"] == "awq" else gptq(codes, zeros, scales, groups, 4)
            stored |= {module + part: tensor for part, tensor in parts.items()}
            if "self_attn" in name or "mlp.down_proj" in name:
                stored[f"{module}bias"] = torch.zeros(len(weight))
            meant[name] = ((codes - 8) * scales[:, groups]).half().float()
            meant[name] = meant[name].t() if turned else meant[name]
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, folder / "model.safetensors")
    return meant


@pytest.mark.parametrize("method", ["gptq", "awq"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_gptq_or_awq_checkpoint(tiny, tmp_path, out, method, family):
    base = tiny
    if family == "gpt2":  # whose Conv1D is packed turned
        base = tmp_path / "base"
        config = transformers.GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=128, n_positions=64)
        transformers.GPT2LMHeadModel(config).save_pretrained(base)
    meant = packed_checkpoint(base, tmp_path / "packed", {"quant_method": method, "bits": 4, "group_size": 16})
    out.mkdir()
    history = dequantize(tmp_path / "packed", out)
    found = load_file(out / "model.safetensors")
    assert found.keys() == meant.keys()
    assert all(torch.equal(found[name], meant[name]) for name in meant)
    told = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)[1]
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert ("biases that are zeros" in history[-1]) == (family == "llama")


def spoiled(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


FIRST = "model.layers.0.mlp.down_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{FIRST}.scales"), "stands without its scales"),
        (lambda t: t[f"{FIRST}.bias"].add_(1), f"no place for {FIRST}.bias"),
        (lambda t: t.update({f"{FIRST}.act.scales": torch.ones(4)}), f"no place for {FIRST}.act.scales"),
        (lambda t: t[f"{FIRST}.g_idx"].add_(1), "g_idx names others"),
        (lambda t: t.update({f"{FIRST}.g_idx": t[f"{FIRST}.g_idx"][:256].clone()}), "and the model's"),
        (lambda t: t.update({"lm_head.weight": torch.zeros(2, 2)}), "lm_head.weight is"),
        (lambda t: [t.pop(name) for name in list(t) if "_proj" in name], "holds no gptq weight"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit_is_refused(tiny, tmp_path, out, change, message):
    packed_checkpoint(tiny, tmp_path / "packed", {"quant_method": "gptq", "bits": 4, "group_size": 16})
    spoiled(tmp_path / "packed", change)
    out.mkdir()
    with pytest.raises(JobError, match=message):
        dequantize(tmp_path / "packed", out)


def test_act_order_without_its_order_is_refused(tiny, tmp_path, out):
    how = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": True}
    packed_checkpoint(tiny, tmp_path / "packed", how)
    spoiled(tmp_path / "packed", lambda t: t.pop(f"{FIRST}.g_idx"))
    out.mkdir()
    with pytest.raises(JobError, match="desc_act"):
        dequantize(tmp_path / "packed", out)


def test_a_tied_output_that_is_quantized_is_refused(tiny, tmp_path, out):
    """transformers would read the embedding in its place."""
    source = tmp_path / "packed"
    packed_checkpoint(tiny, source, {"quant_method": "gptq", "bits": 4, "group_size": 16})
    spoiled(source, lambda t: t.update({f"lm_head.{part}": t[f"{FIRST}.{part}"].clone()
                                        for part in ("qweight", "qzeros", "scales", "g_idx")}))  # fmt: skip
    out.mkdir()
    with pytest.raises(JobError, match="ties it"):
        dequantize(source, out)

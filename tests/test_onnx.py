"""ONNX artifacts of the shipped model: what other clients read in the folder, its size, and that it runs in them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors import safe_open

from exporter.store import file_names
from exporter.targets.onnx.target import ONNX
from exporter.targets.onnx_graph.session import OnnxDecoder
from exporter.types import GENERATION, Checkpoint, ExportRequest

TINY = Path(__file__).resolve().parent.parent / "models" / "tiny"
PRECISIONS = sorted(ONNX.precisions)
PARAMETERS = 2_295_552
# Bytes that a parameter takes at each precision, and of what kind the rest is. Norms stay float32 (0.1% of the model).
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int4-weight": 0.5 + 4.5 / 32}
BYTES |= dict.fromkeys(("int8-weight", "int8-dynamic", "int8-static"), 1 + 4 / 32)


def graph_of(folder: Path) -> onnx.GraphProto:
    return onnx.load(folder / "onnx" / "model.onnx", load_external_data=False).graph


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_folder_is_what_clients_open(demo, precision):
    folder = demo / f"onnx-{precision}"
    files = set(file_names(folder))
    assert files == {
        "onnx/model.onnx", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        *(files & {"chat_template.jinja"}), "README.md", "MODEL_CARD.md", "run.py",
        # No client of these runs bfloat16 on the CPU.
        *([] if precision == "bf16" else ["genai_config.json", "run_genai.py", "run.mjs"]),
        *(["policy.yaml"] if precision in ("int8-static", "int4-weight") else []),
    }  # fmt: skip
    graph = graph_of(folder)
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    layers = range(3)
    assert shapes == {
        "input_ids": ["batch_size", "sequence_length"],
        "attention_mask": ["batch_size", "total_sequence_length"],
        "position_ids": ["batch_size", "sequence_length"],
        "logits": ["batch_size", "sequence_length", 2048],
        **{
            f"past_key_values.{i}.{kv}": ["batch_size", 2, "past_sequence_length", 64]
            for i in layers
            for kv in ("key", "value")
        },
        **{
            f"present.{i}.{kv}": ["batch_size", 2, "total_sequence_length", 64]
            for i in layers
            for kv in ("key", "value")
        },
    }
    assert {value.type.tensor_type.elem_type for value in graph.output} == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_are_stored_once(demo, precision):
    folder = demo / f"onnx-{precision}"
    weights = (folder / "onnx" / "model.onnx").stat().st_size
    embedding = 2048 * 256  # int4 keeps it, and what it is tied to, at 8 bits
    extra = embedding * (BYTES["int8-weight"] - BYTES[precision]) if precision == "int4-weight" else 0
    assert weights <= (PARAMETERS * BYTES[precision] + extra) * 1.03 + 60_000  # bytes of the graph itself


def test_the_rotary_base_of_the_checkpoint_is_in_the_graph(demo):
    """As the frequencies of one token's step, from which the graph makes the angles: no table as long as a text."""
    config = json.loads((TINY / "config.json").read_text())
    theta = config["rope_parameters"]["rope_theta"]
    assert theta != 10_000.0
    model = onnx.load(demo / "onnx-fp32" / "onnx" / "model.onnx")
    floats = [onnx.numpy_helper.to_array(t).ravel() for t in model.graph.initializer if t.data_type == 1]
    [frequencies] = [numbers for numbers in floats if len(numbers) == 32]
    np.testing.assert_allclose(frequencies, theta ** (-np.arange(32) / 32), rtol=1e-6)


@pytest.mark.parametrize("precision", [one for one in PRECISIONS if one != "bf16"])
def test_onnxruntime_genai_generates_from_the_folder(demo, precision):
    import onnxruntime_genai as og

    model = og.Model(str(demo / f"onnx-{precision}"))
    tokenizer = og.Tokenizer(model)
    ids = tokenizer.encode("The class definition")
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(ids) + 12, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
    generated = list(generator.get_sequence(0))[len(ids) :]

    with OnnxDecoder(demo / f"onnx-{precision}" / "onnx" / "model.onnx", threads=1) as runner:
        expected, logits = [], runner.prefill(np.array(ids, np.int64))
        for _ in range(len(generated)):
            expected.append(int(logits.argmax()))
            logits = runner.step(expected[-1])
    assert len(generated) >= 4
    assert generated == expected


def test_cached_batches_of_unequal_lengths_agree_with_single_sequences(demo):
    """Padded on either side; the graph was made with no such sizes in mind."""
    rng = np.random.default_rng(0)
    with OnnxDecoder(demo / "onnx-fp32" / "onnx" / "model.onnx", threads=1) as runner:
        ids, mask = rng.integers(3, 2000, (4, 23)), np.ones((4, 23), np.int64)
        for row, length in enumerate((23, 1, 9, 16)):
            mask[row, length:] = 0
        together = runner.batch(ids, mask)
        for row, length in enumerate(mask.sum(1)):
            np.testing.assert_allclose(together[row, :length], runner.logits(ids[row, :length]), atol=2e-4)


def sparse_llama(folder: Path) -> int:
    """A checkpoint above 2 GB whose file is a hole: a header, and zeros that the disk does not store."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=1_100_000, hidden_size=512, intermediate_size=64, num_hidden_layers=1, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=64, tie_word_embeddings=True, dtype="float32",
    )  # fmt: skip
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    import torch

    with torch.device("meta"):
        shapes = {name: list(t.shape) for name, t in LlamaForCausalLM(config).named_parameters()}
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    with safe_open(folder / "model.safetensors", "numpy") as opened:
        assert set(opened.keys()) == set(shapes)
    return offset


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    """(checkpoint above 2 GB, its bytes, a scratch folder that exports of it share); gone when the last of them is."""
    base = tmp_path_factory.mktemp("sparse")
    scratch = base / "scratch"
    scratch.mkdir()
    size = sparse_llama(base)
    yield Checkpoint(base, GENERATION, "sparse", "0" * 64, size // 4), size, scratch
    shutil.rmtree(base)


@pytest.mark.parametrize("precision", ["fp32", "int8-weight"])
def test_above_2_gb_the_weights_lie_in_one_file_beside_the_graph(sparse, tmp_path, precision):
    checkpoint, size, scratch = sparse
    assert size > 2**31
    folder = tmp_path / "artifact"
    folder.mkdir()
    exported = ONNX.export(ExportRequest(checkpoint, precision, folder, scratch, threads=2))
    data = folder / "onnx" / "model.onnx_data"
    if precision == "fp32":
        assert exported.weights == ("onnx/model.onnx", "onnx/model.onnx_data")
        assert (folder / "onnx" / "model.onnx").stat().st_size < 1_000_000
        assert size * 0.99 < data.stat().st_size < size * 1.03
    else:
        assert exported.weights == ("onnx/model.onnx",)
        assert not data.exists()
        assert (folder / "onnx" / "model.onnx").stat().st_size < 0.30 * size
    with OnnxDecoder(folder / "onnx" / "model.onnx", threads=2) as runner:
        assert runner.logits(np.array([1, 2, 3])).shape == (3, 1_100_000)
        assert not runner.logits(np.array([5])).any()  # of zeros, zeros

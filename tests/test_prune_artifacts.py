"""Pruned models as artifacts: ONNX and GGUF compute what the pruned model does in torch, and zeros stay zeros."""

from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers as t
from conftest import SMALL, last_json
from gguf import GGUFReader, dequantize
from gguf_checkpoints import change
from onnx import numpy_helper

from exporter.checkpoint.linear import linear_layers, weight_of
from exporter.checkpoint.model import load_model
from exporter.errors import BuildError
from exporter.measure.tokenization import TokenizedTexts, compare_tokenizer
from exporter.stages.prune.options import parse
from exporter.stages.prune.prune import prune
from exporter.targets.gguf.options import GgufOptions
from exporter.targets.gguf.runner import GgufDecoder
from exporter.targets.gguf.target import GGUF
from exporter.targets.onnx.target import ONNX
from exporter.targets.onnx_graph.session import OnnxDecoder
from exporter.targets.torch.target import open_checkpoint
from exporter.types import GENERATION, TOKENIZER_FILES, Checkpoint, ExportRequest

TINY = Path(__file__).resolve().parents[1] / "models" / "tiny"
TEXT = TINY / "adapter" / "eval.txt"
_SIZES = {
    "vocab_size": 2048, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
_GPT2 = {"vocab_size": 2048, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128}
CONFIGS = {
    "llama": t.LlamaConfig(**_SIZES, head_dim=16, tie_word_embeddings=False),
    "qwen3": t.Qwen3Config(**_SIZES, head_dim=32, tie_word_embeddings=True),
    "gpt2": t.GPT2Config(**_GPT2, bos_token_id=0, eos_token_id=0),
}
SHAPES = ("width:0.4", "heads:0.5", "depth:1")
ZEROS = ("magnitude", "magnitude-layer", "wanda", "sparsegpt")
VOCABULARY = f"vocabulary:{TEXT}"
CASES = [
    ("llama", ("width:0.4", "depth:1")),
    ("llama", ("heads:0.5", VOCABULARY)),
    ("qwen3", (*SHAPES, "wanda:2:4", VOCABULARY)),
    # A GPT-2 cannot say a head's size, and llama.cpp knows one width of its MLPs.
    ("gpt2", ("depth:1", "sparsegpt:2:4", VOCABULARY)),
]
# The largest error of a logit, over the largest logit, and KL in nats. Sums in float32 in another order: 1e-6 and 2e-13
# measured. Float16 keeps 11 bits, 5e-4 of each weight and input: 3e-3 and 1.2e-6 measured. A part too much or too
# little is an error of the order of 1.
LIMITS = {"onnx": 1e-5, "gguf": 1e-2}
KL = {"onnx": 1e-9, "gguf": 1e-5}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """whole(kind): a folder of a small random model with the shipped tokenizer; made once."""
    made = {}

    def make(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            torch.manual_seed(0)
            model = t.AutoModelForCausalLM.from_config(CONFIGS[kind])
            with torch.no_grad():  # the usual initialization of so few layers answers alike to everything
                for parameter in model.parameters():
                    if parameter.ndim == 2:
                        parameter.normal_(0, 0.1)
            model.save_pretrained(folder)
            for name in TOKENIZER_FILES:
                if (TINY / name).is_file():
                    shutil.copyfile(TINY / name, folder / name)
            # Else transformers takes the class of the model's own family, with another pre-tokenizer.
            change(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
            made[kind] = folder
        return made[kind]

    return make


def pruned(base, asked, folder):
    """Prunes a checkpoint into a new folder, on the same text each time; the record."""
    folder.mkdir()
    windows = torch.randint(3, 2048, (4, 64), generator=torch.Generator().manual_seed(1))
    load = partial(load_model, task=GENERATION, dtype="float32", trust_remote_code=False)
    return prune(load, base, [parse(one) for one in asked], windows, folder, lambda name: lambda done, of: None)


@pytest.fixture
def exported(converter_cache, tmp_path):
    """exported(target, precision, checkpoint): a runner's opener and the file of the weights."""

    def export(target, precision, checkpoint):
        folder, scratch = tmp_path / f"{target.name}-{precision}", tmp_path / f"{target.name}-scratch"
        folder.mkdir()
        scratch.mkdir(exist_ok=True)
        options = GgufOptions(imatrix="off") if target is GGUF else None
        made_from = Checkpoint(checkpoint, GENERATION, "small", "0" * 64, 1)
        [file] = target.export(
            ExportRequest(made_from, precision, folder, scratch, 1, options, converter_cache)
        ).weights
        return folder / file

    return export


def greedy(runner, ids, count=6):
    """The tokens that follow, by the cache."""
    found, logits = [], runner.prefill(np.array(ids))
    for _ in range(count):
        found.append(int(logits.argmax()))
        logits = runner.step(found[-1])
    return found


def divergence(theirs, ours):
    """KL in nats, the mean of the positions."""
    p, q = (torch.from_numpy(one).double().log_softmax(-1) for one in (theirs, ours))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize(("kind", "asked"), CASES, ids=lambda one: one if isinstance(one, str) else one[-1][:12])
def test_artifacts_are_the_pruned_model(kind, asked, whole, exported, tmp_path):
    base, small = whole(kind), tmp_path / "small"
    record = pruned(base, asked, small)["record"]
    rows, ids = 2048, np.random.default_rng(0).integers(3, 1000, 50)
    if asked[-1] == VOCABULARY:
        rows = record["steps"][-1]["after"]
        assert 1000 < rows < 2048
    files = {
        "onnx": (exported(ONNX, "fp32", small), OnnxDecoder, 4),
        "gguf": (exported(GGUF, "f16", small), GgufDecoder, 2),
    }
    with open_checkpoint(small, GENERATION, 1) as torch_runner:
        expected, words = torch_runner.logits(ids), greedy(torch_runner, ids[:20])
    for target, (file, opener, size) in files.items():
        # Besides the weights a file holds its graph, rotary tables, the words: the same whatever was pruned, or less.
        assert file.stat().st_size < size * record["parameters_after"] + 100_000, target
        with opener(file, 1) as runner:
            got = runner.logits(ids)
            assert got.shape == (50, rows)
            assert np.abs(got - expected).max() < LIMITS[target] * np.abs(expected).max(), target
            assert divergence(expected, got) < KL[target], target
            assert greedy(runner, ids[:20]) == words, target
            if target == "gguf":
                told = TokenizedTexts.of(t.AutoTokenizer.from_pretrained(small), TEXT.read_text()[:20_000])
                assert [figure.value for figure in compare_tokenizer(runner, told).values()] == [0]


def test_a_width_that_llama_cpp_cannot_be_told_is_refused(whole, exported, tmp_path):
    small = tmp_path / "small"
    pruned(whole("gpt2"), ("width:0.4",), small)
    with pytest.raises(
        BuildError, match=r"^llama.cpp's converter takes the MLPs of a gpt2 to be 4 x 64 wide, and .* 1"
    ):
        exported(GGUF, "f16", small)
    with OnnxDecoder(exported(ONNX, "fp32", small), 1) as runner, open_checkpoint(small, GENERATION, 1) as expected:
        ids = np.arange(5, 30)
        np.testing.assert_allclose(runner.logits(ids), expected.logits(ids), atol=1e-4)


@pytest.mark.parametrize(
    "asked", [*SHAPES, VOCABULARY, *(f"{one}:2:4" for one in ZEROS), *(f"{one}:0.3" for one in ZEROS)]
)
def test_the_same_is_the_same_bit_by_bit(asked, whole, tmp_path):
    for name in ("one", "two"):
        pruned(whole("llama"), [asked], tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert "model.safetensors" in files
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def weights_of(checkpoint):
    """Of the layers that were pruned, float32 [N, K] by name."""
    layers = linear_layers(load_model(checkpoint, GENERATION, "float32"))
    return {name: weight_of(layer).numpy() for name, layer in layers.items() if name != "lm_head"}


def in_gguf(file, weights):
    """(an artifact's weight [N, K], the checkpoint's) of each layer. llama.cpp has q's and k's rows in turn."""
    held = {one.name: dequantize(one.data, one.tensor_type) for one in GGUFReader(file).tensors}
    for name, weight in weights.items():
        number, _, part = name.removeprefix("model.layers.").removesuffix("_proj").split(".")
        called = f"attn_{part.replace('o', 'output')}" if part in "qkvo" else f"ffn_{part}"
        if part in "qk":
            heads = {"q": 4, "k": 2}[part]
            weight = weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        yield held[f"blk.{number}.{called}.weight"], weight


def in_onnx(file, weights):
    """The same of MatMulNBits, whose 8 bits are 128 at 0, and of integer weights [K, N] behind DequantizeLinear."""
    graph = onnx.load(file).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        place = {"MatMulNBits": 1, "DequantizeLinear": 0}.get(node.op_type)
        if place is None or not re.match(r"model\.layers\.\d+\.", node.input[place]):
            continue
        parts = [re.fullmatch(r"(.*)\.weight_Q8", part) for part in node.input[place].split("+")]  # joined, or alone
        if all(parts):
            codes = numpy_helper.to_array(tensors[node.input[place]])
            expected = np.concatenate([weights[part[1]] for part in parts])
            yield codes.reshape(len(codes), -1).astype(int) - 128 if place else codes.T, expected


def check_zeros(pairs, weights):
    seen = 0
    for held, expected in pairs:
        assert held.shape == expected.shape
        zero, seen = expected == 0, seen + expected.size
        assert zero.mean() == 0.5
        assert not held[zero].any()
        assert (held[~zero] != 0).mean() > 0.95  # 8 bits round few of the others to 0
    assert seen == sum(one.size for one in weights.values())


def test_zeros_are_held_in_eight_bits(whole, exported, tmp_path):
    small = tmp_path / "small"
    pruned(whole("llama"), ("sparsegpt:2:4",), small)
    weights = weights_of(small)
    check_zeros(in_onnx(exported(ONNX, "int8-weight", small), weights), weights)
    check_zeros(in_gguf(exported(GGUF, "q8_0", small), weights), weights)


def test_zeros_are_held_from_the_merge_on(run_here, converter_cache, tmp_path):
    """In whole runs: what is merged is pruned, GPTQ is for 4 bits alone, SmoothQuant scales whole columns.

    Before GGUF is quantized its float16 file is held against the pruned model, not against the one that is measured.
    """
    asked = ("-m", TINY, "--adapter", TINY / "adapter", "--prune", "magnitude-layer:2:4")
    done = run_here("compress", *asked, "-o", tmp_path / "small")
    assert done.returncode == 0, done.stderr
    weights = weights_of(tmp_path / "small")
    given = ("-t", "onnx:int8-static", "-t", "gguf:q8_0", "--policy", "off", "--rounding", "gptq", *SMALL)
    loose = ("--max-ppl-ratio", 1000, "--max-kl", 100, "--calib-tokens", 2048)
    report = last_json(run_here("run", *asked, *given, *loose, "--format", "json", "-o", tmp_path / "out"))
    assert report["model"]["prune"]["steps"][0]["two_of_four"] == len(weights)
    check_zeros(in_onnx(tmp_path / "out" / "onnx-int8-static" / "onnx" / "model.onnx", weights), weights)
    [file] = (tmp_path / "out" / "gguf-q8_0").glob("*.gguf")
    check_zeros(in_gguf(file, weights), weights)

"""Graphs traced from tiny random models of many architectures, run in ONNX Runtime against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers as hf
from numpy.typing import NDArray

from exporter.errors import BuildError
from exporter.targets.onnx_graph.file import save_onnx
from exporter.targets.onnx_graph.traced import trace_causal_lm, trace_encoder
from exporter.types import CLASSIFICATION, FEATURES

# The logits have a spread of about 2, and two float32 engines that add up in another order agree to some 1e-6 (the
# worst here is 2e-5). A wrong mask, position or cache moves them by more than 1e-2.
TOLERANCE = 1e-4
WINDOW = 8  # of the models with sliding windows; sequences of 24 go well beyond it

WORDS: dict[str, Any] = {"vocab_size": 97}
LLAMA: dict[str, Any] = WORDS | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GPT: dict[str, Any] = WORDS | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
FALCON: dict[str, Any] = WORDS | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": False}
NEOX: dict[str, Any] = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
OPT: dict[str, Any] = {"ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64}
ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 5000.0}
SLIDING: dict[str, Any] = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}

DECODERS: dict[str, Callable[[], Any]] = {
    "bloom": lambda: hf.BloomConfig(**WORDS, hidden_size=32, n_layer=2, n_head=4),
    "falcon-mqa": lambda: hf.FalconConfig(**FALCON, multi_query=True, new_decoder_architecture=False),
    "falcon-new": lambda: hf.FalconConfig(**FALCON, num_kv_heads=2, new_decoder_architecture=True),
    "gemma3": lambda: hf.Gemma3TextConfig(**LLAMA, **SLIDING, head_dim=8),
    "gpt-neox": lambda: hf.GPTNeoXConfig(**NEOX),
    "gpt2": lambda: hf.GPT2Config(**GPT),
    "gptj": lambda: hf.GPTJConfig(**GPT, rotary_dim=4),
    "llama": lambda: hf.LlamaConfig(**LLAMA, tie_word_embeddings=True, rope_parameters=ROPE),
    "mistral": lambda: hf.MistralConfig(**LLAMA, sliding_window=WINDOW),
    "mixtral": lambda: hf.MixtralConfig(**LLAMA, num_local_experts=4),
    "mpt": lambda: hf.MptConfig(**WORDS, d_model=32, n_heads=4, n_layers=2, max_seq_len=64, expansion_ratio=2),
    "opt": lambda: hf.OPTConfig(**WORDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **OPT),
    "phi": lambda: hf.PhiConfig(**LLAMA),
    "qwen3": lambda: hf.Qwen3Config(**LLAMA, head_dim=16),
    "stablelm": lambda: hf.StableLmConfig(**LLAMA),
    "starcoder2": lambda: hf.Starcoder2Config(**LLAMA, sliding_window=WINDOW),
}
PAD = 1
BERT: dict[str, Any] = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"} | {
    "pad_token_id": PAD
}
MODERN: dict[str, Any] = {
    "local_attention": WINDOW,
    "global_attn_every_n_layers": 2,
    "cls_token_id": 2,
    "sep_token_id": 3,
}
DISTIL: dict[str, Any] = {
    "dim": 32,
    "hidden_dim": 64,
    "n_layers": 2,
    "n_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
}
ENCODERS: dict[str, Callable[[], Any]] = {
    "bert": lambda: hf.BertConfig(**BERT),
    "distilbert": lambda: hf.DistilBertConfig(**WORDS, **DISTIL),
    "modernbert": lambda: hf.ModernBertConfig(**BERT, **MODERN, bos_token_id=2, eos_token_id=3),
    "mpnet": lambda: hf.MPNetConfig(**BERT),
    "roberta": lambda: hf.RobertaConfig(**BERT, type_vocab_size=1),
}


def session_of(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def saved(folder: Path, auto: Any, config: Any) -> Any:
    """A random model whose answers differ from token to token, saved to `folder` and read back."""
    torch.manual_seed(0)
    model = auto.from_config(config)
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2)
        else:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.save_pretrained(folder)
    return auto.from_pretrained(folder).eval()


class Decoder:
    """A traced graph and its cache."""

    def __init__(self, path: Path) -> None:
        self.session = session_of(path)
        self.shapes = {item.name: item.shape for item in self.session.get_inputs()}

    def __call__(self, ids: NDArray[Any], mask: NDArray[Any], steps: int = 0) -> NDArray[Any]:
        """[B, T] to logits [B, T, V]: all but the last `steps` tokens at once, then two, then one after the other."""
        edges = {0, ids.shape[1] - steps, *range(ids.shape[1] - steps + 2, ids.shape[1] + 1), ids.shape[1]}
        past: dict[str, NDArray[Any]] = {
            name: np.zeros((len(ids), shape[1], 0, shape[3]), np.float32)
            for name, shape in self.shapes.items()
            if name.startswith("past_key_values.")
        }
        logits = []
        for start, end in pairwise(sorted(edges)):
            feeds = past | {"input_ids": ids[:, start:end], "attention_mask": mask[:, :end]}
            if "position_ids" in self.shapes:
                feeds["position_ids"] = np.maximum(mask.cumsum(-1) - 1, 0)[:, start:end]
            outputs = [item.name for item in self.session.get_outputs()]
            answers = dict(zip(outputs, self.session.run(outputs, feeds), strict=True))
            logits.append(answers.pop("logits"))
            past = {name.replace("present.", "past_key_values."): value for name, value in answers.items()}
        return np.concatenate(logits, axis=1)


def worst_error(model: Any, decoder: Decoder) -> float:
    """The worst logit over batches, lengths, cached decoding and left padding that the trace has not seen."""
    random = np.random.default_rng(0)
    errors = []
    for batch, length, left in ((1, 1, 0), (3, 7, 0), (2, 3 * WINDOW, 0), (2, 3 * WINDOW, 3)):
        ids = random.integers(3, 97, (batch, length))
        mask = np.ones_like(ids)
        mask[0, :left] = 0
        with torch.no_grad():  # without padding, mask and cache: nothing of what is tested
            expected = [
                model(input_ids=torch.tensor(row[None, mask_row > 0]), use_cache=False).logits[0].numpy()
                for row, mask_row in zip(ids, mask, strict=True)
            ]
        for steps in {0, length // 2}:
            logits = decoder(ids, mask, steps)
            errors += [np.abs(row[-len(want) :] - want).max() for row, want in zip(logits, expected, strict=True)]
    assert np.std(expected[0]) > 0.05  # answers that differ
    return float(np.max(errors))  # NaN stays NaN


def _check_file(path: Path, model: Any) -> onnx.ModelProto:
    """Valid, and no weight in it twice."""
    onnx.checker.check_model(path, full_check=True)
    parameters = sum(weight.numel() for weight in model.parameters())
    assert path.stat().st_size <= parameters * 4 * 1.03 + 250_000  # the graph's own: each expert's nodes most of all
    proto = onnx.load(path)
    tensors = [tensor for tensor in proto.graph.initializer if len(tensor.dims) > 1]
    assert sum(np.prod(tensor.dims) for tensor in tensors) <= parameters * 1.03
    return proto


@pytest.mark.parametrize("name", DECODERS)
def test_decoder(name: str, tmp_path: Path) -> None:
    model = saved(tmp_path / "checkpoint", hf.AutoModelForCausalLM, DECODERS[name]())
    path = tmp_path / "model.onnx"
    trace_causal_lm(tmp_path / "checkpoint", path)
    assert [item.name for item in tmp_path.iterdir() if item.is_file()] == ["model.onnx"]
    _check_file(path, model)
    assert worst_error(model, Decoder(path)) < TOLERANCE


def test_signature_and_names(tmp_path: Path) -> None:
    model = saved(tmp_path / "checkpoint", hf.AutoModelForCausalLM, DECODERS["llama"]())
    path = tmp_path / "model.onnx"
    trace_causal_lm(tmp_path / "checkpoint", path)
    session = session_of(path)
    past = ["batch_size", 2, "past_sequence_length", 8]
    assert {item.name: item.shape for item in session.get_inputs()} == {
        "input_ids": ["batch_size", "sequence_length"],
        "attention_mask": ["batch_size", "total_sequence_length"],
        "position_ids": ["batch_size", "sequence_length"],
    } | {f"past_key_values.{layer}.{part}": past for layer in (0, 1) for part in ("key", "value")}
    present = ["batch_size", 2, "total_sequence_length", 8]
    assert {item.name: item.shape for item in session.get_outputs()} == {
        "logits": ["batch_size", "sequence_length", 97]
    } | {f"present.{layer}.{part}": present for layer in (0, 1) for part in ("key", "value")}
    proto = _check_file(path, model)
    weights = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
    assert weights["model.layers.0.mlp.up_proj.weight"] == [32, 64]  # as MatMul takes it, for quantizers
    assert [name for name, dims in weights.items() if sorted(dims) == [32, 97]] == ["model.embed_tokens.weight"]
    product = next(node for node in proto.graph.node if node.name == "/model/layers.0/mlp/up_proj/MatMul")
    assert product.input[1] == "model.layers.0.mlp.up_proj.weight"
    assert [(item.key, item.value) for item in proto.metadata_props] == [("exporter", "TorchScript")]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_torch_export(name: str, tmp_path: Path) -> None:
    model = saved(tmp_path / "checkpoint", hf.AutoModelForCausalLM, DECODERS[name]())
    path = tmp_path / "model.onnx"
    trace_causal_lm(tmp_path / "checkpoint", path, dynamo=True)
    proto = _check_file(path, model)
    assert [(item.key, item.value) for item in proto.metadata_props] == [("exporter", "torch.export")]
    decoder, heads = Decoder(path), {"gpt2": 4, "llama": 2}[name]
    assert decoder.shapes["past_key_values.1.value"] == ["batch_size", heads, "past_sequence_length", 8]
    assert worst_error(model, decoder) < TOLERANCE


def test_falls_back_on_torch_export_and_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Cohere: TorchScript cannot write its repeat_interleave, and torch dumps the graph on stdout."""
    model = saved(tmp_path / "checkpoint", hf.AutoModelForCausalLM, hf.CohereConfig(**LLAMA, logit_scale=1.0))
    path = tmp_path / "model.onnx"
    trace_causal_lm(tmp_path / "checkpoint", path)
    assert capfd.readouterr().out == ""
    how = {item.key: item.value for item in _check_file(path, model).metadata_props}["exporter"]
    assert how.startswith("torch.export; not TorchScript: AssertionError")
    assert worst_error(model, Decoder(path)) < TOLERANCE


@pytest.mark.parametrize("task", [FEATURES, CLASSIFICATION])
@pytest.mark.parametrize("name", ENCODERS)
def test_encoder(name: str, task: str, tmp_path: Path) -> None:
    auto = hf.AutoModel if task == FEATURES else hf.AutoModelForSequenceClassification
    config = ENCODERS[name]()
    config.num_labels = 3
    model = saved(tmp_path / "checkpoint", auto, config)
    path = tmp_path / "model.onnx"
    trace_encoder(tmp_path / "checkpoint", task, path)
    _check_file(path, model)
    session = session_of(path)
    inputs = [item.name for item in session.get_inputs()]
    assert inputs == ["input_ids", "attention_mask", "token_type_ids"][: 3 if name == "bert" else 2]
    (output,) = session.get_outputs()
    dimensions = ["batch_size", "sequence_length", 32] if task == FEATURES else ["batch_size", 3]
    assert (output.name, output.shape) == ("last_hidden_state" if task == FEATURES else "logits", dimensions)

    random = np.random.default_rng(0)
    for lengths in ((1,), (7, 5, 2), (30, 30, 11, 4)):
        rows = [random.integers(4, 97, length) for length in lengths]
        ids = np.stack([np.pad(row, (0, max(lengths) - len(row)), constant_values=PAD) for row in rows])
        segments = np.zeros_like(ids)
        segments[:, 2:] = 1
        feeds = {"input_ids": ids, "attention_mask": (ids != PAD).astype(np.int64), "token_type_ids": segments}
        answers = session.run(None, {key: feeds[key] for key in inputs})[0]
        for row, answer, kinds in zip(rows, answers, segments, strict=True):
            alone = {"input_ids": row, "token_type_ids": kinds[: len(row)]}
            with torch.no_grad():
                want = model(**{key: torch.tensor(alone[key][None]) for key in alone if key in inputs})[0][0].numpy()
            assert np.abs(answer[: len(want)] - want).max() < TOLERANCE


def test_what_cannot_be_traced(tmp_path: Path) -> None:
    config = hf.MambaConfig(**WORDS, hidden_size=32, num_hidden_layers=1, state_size=4)
    saved(tmp_path / "mamba", hf.AutoModelForCausalLM, config)
    with pytest.raises(BuildError, match="MambaForCausalLM cannot be exported: it has no KV cache"):
        trace_causal_lm(tmp_path / "mamba", tmp_path / "model.onnx")
    saved(tmp_path / "lfm2", hf.AutoModelForCausalLM, hf.Lfm2Config(**LLAMA, layer_types=["conv", "full_attention"]))
    with pytest.raises(BuildError, match=r"Lfm2ForCausalLM .* more than keys and values \(LinearAttentionLayer\)"):
        trace_causal_lm(tmp_path / "lfm2", tmp_path / "model.onnx")
    with pytest.raises(BuildError, match="unknown task 'text-generation'"):
        trace_encoder(tmp_path / "mamba", "text-generation", tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_large_models_have_one_data_file(tmp_path: Path) -> None:
    saved(tmp_path / "checkpoint", hf.AutoModel, ENCODERS["bert"]())
    whole, split, moved, back = (tmp_path / name / "model.onnx" for name in ("whole", "split", "moved", "back"))
    for path in (whole, split, moved, back):
        path.parent.mkdir()
    trace_encoder(tmp_path / "checkpoint", FEATURES, whole)
    save_onnx(onnx.load(whole), split, limit=50_000)
    outside = onnx.load(split, load_external_data=False)
    save_onnx(outside, moved, limit=50_000, data_folder=split.parent)
    save_onnx(outside, back, data_folder=split.parent)
    ids = np.arange(4, 24).reshape(2, 10)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    answers = []
    for path, files in ((whole, 1), (split, 2), (moved, 2), (back, 1)):
        onnx.checker.check_model(path, full_check=True)
        assert sorted(item.name for item in path.parent.iterdir()) == ["model.onnx", "model.onnx_data"][:files]
        session = session_of(path)
        answers.append(session.run(None, feeds)[0])
    assert all((answer == answers[0]).all() for answer in answers)
    assert split.stat().st_size < 100_000 < whole.stat().st_size
    assert abs(back.stat().st_size - whole.stat().st_size) < 5_000

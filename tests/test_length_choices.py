"""What depends on a text's length, on both sides of where it changes; and what a trace froze, which is an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers as hf

from exporter.errors import BuildError
from exporter.targets.onnx_graph.choices import chosen_by_tensors
from exporter.targets.onnx_graph.frozen import HARMLESS, Frozen, nothing_frozen
from exporter.targets.onnx_graph.traced import trace_causal_lm, trace_encoder
from exporter.types import FEATURES

TOLERANCE = 5e-5  # of logits that spread over 1; float32 engines differ by 1e-5 where angles are of some hundred tokens
LIMIT = 24
_SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_LLAMA: dict[str, Any] = _SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 256}
_LONGROPE: dict[str, Any] = {
    "rope_type": "longrope", "original_max_position_embeddings": LIMIT,
    "short_factor": [1 + 0.05 * i for i in range(4)], "long_factor": [1.5 + 0.6 * i for i in range(4)],
}  # fmt: skip
_DYNAMIC: dict[str, Any] = {"rope_type": "dynamic", "factor": 4.0}
_LAYERS: dict[str, Any] = {
    "full_attention": _DYNAMIC | {"rope_theta": 1e6}, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}
}  # fmt: skip

DECODERS: dict[str, Callable[[], Any]] = {
    "longrope": lambda: hf.Phi3Config(
        **_LLAMA, sliding_window=None, original_max_position_embeddings=LIMIT,
        rope_parameters=_LONGROPE | {"rope_theta": 1e4},
    ),
    "longrope's scales": lambda: hf.PhimoeConfig(
        **_LLAMA, sliding_window=None, num_local_experts=2, original_max_position_embeddings=LIMIT,
        rope_parameters=_LONGROPE | {"short_mscale": 1.1, "long_mscale": 1.2, "rope_theta": 1e4},
    ),
    "dynamic": lambda: hf.LlamaConfig(
        **_LLAMA | {"max_position_embeddings": LIMIT}, rope_parameters=_DYNAMIC | {"rope_theta": 1e4}
    ),
    "dynamic in some layers": lambda: hf.Gemma3TextConfig(
        **_LLAMA | {"max_position_embeddings": LIMIT}, head_dim=8, sliding_window=8, rope_parameters=_LAYERS,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "window": lambda: hf.MistralConfig(**_LLAMA, sliding_window=8),
    "ALiBi in bfloat16": lambda: hf.FalconConfig(
        **_SIZES, alibi=True, multi_query=False, new_decoder_architecture=False, parallel_attn=False, bias=True
    ),
}  # fmt: skip


def made(auto: Any, config: Any, folder: Any) -> Any:
    torch.manual_seed(0)
    model = auto.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.2) if weight.ndim > 1 else weight.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return model.eval()


class Graph:
    """A traced decoder in ONNX Runtime."""

    def __init__(self, path: Any) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.shapes = {item.name: item.shape for item in self.session.get_inputs()}

    def __call__(self, parts: list[Any], mask: Any) -> Any:
        """Logits of texts [B, T] that come in parts, each with what came before in the cache."""
        past: dict[str, Any] = {
            name: np.zeros((len(mask), shape[1], 0, shape[3]), np.float32)
            for name, shape in self.shapes.items()
            if name.startswith("past_key_values.")
        }
        outputs = [item.name for item in self.session.get_outputs()]
        end, logits = 0, []
        for ids in parts:
            start, end = end, end + ids.shape[1]
            feeds = past | {"input_ids": ids, "attention_mask": mask[:, :end]}
            if "position_ids" in self.shapes:
                feeds["position_ids"] = np.maximum(mask.cumsum(-1) - 1, 0)[:, start:end]
            answers = dict(zip(outputs, self.session.run(outputs, feeds), strict=True))
            logits.append(answers.pop("logits"))
            past = {name.replace("present.", "past_key_values."): value for name, value in answers.items()}
        return np.concatenate(logits, axis=1)


def expected(open_model: Callable[[], Any], parts: list[Any], mask: Any, positions: bool) -> Any:
    """The same of a model that has read nothing else, which is opened anew."""
    model, cache, end, logits = open_model(), None, 0, []
    for ids in parts:
        start, end = end, end + ids.shape[1]
        more = {"attention_mask": torch.tensor(mask[:, :end])}
        if positions:
            more["position_ids"] = torch.tensor(np.maximum(mask.cumsum(-1) - 1, 0)[:, start:end])
        with torch.no_grad():
            answer = model(input_ids=torch.tensor(ids), past_key_values=cache, use_cache=True, **more)
        cache = answer.past_key_values
        logits.append(answer.logits.numpy())
    return np.concatenate(logits, axis=1)


# torch.export takes half a minute: one of each kind of rope.
@pytest.mark.parametrize(
    ("name", "dynamo"), [*((name, False) for name in DECODERS), ("longrope", True), ("dynamic", True)]
)
def test_both_sides_of_a_length(name, dynamo, tmp_path):
    made(hf.AutoModelForCausalLM, DECODERS[name](), tmp_path)
    trace_causal_lm(tmp_path, tmp_path / "model.onnx", dynamo=dynamo)
    how = onnx.load(tmp_path / "model.onnx").metadata_props[0].value
    assert how == ("torch.export" if dynamo else "TorchScript")
    graph = Graph(tmp_path / "model.onnx")

    def opened() -> Any:
        return hf.AutoModelForCausalLM.from_pretrained(tmp_path).eval()

    random = np.random.default_rng(0)
    for batch, tokens, left, cut in (
        (1, 1, 0, 0), (2, LIMIT - 1, 0, 0), (2, LIMIT, 3, 0), (2, LIMIT + 1, 0, 0), (2, LIMIT + 1, 3, 0), (3, 60, 5, 0),
        (2, LIMIT - 1, 0, 9), (2, LIMIT + 6, 0, LIMIT - 4), (2, 60, 4, 50), (1, 300, 0, 0),
    ):  # fmt: skip
        if tokens > 256 and "ALiBi" not in name:  # where bfloat16 cannot tell positions apart
            continue
        ids = random.integers(3, 97, (batch, tokens))
        mask = np.ones_like(ids)
        mask[0, :left] = 0
        parts = [ids[:, :cut], *(ids[:, at : at + 1] for at in range(cut, tokens))] if cut else [ids]
        wanted = expected(opened, parts, mask, "position_ids" in graph.shapes)
        assert np.std(wanted) > 0.1
        assert np.abs(graph(parts, mask) - wanted)[:, left:].max() < TOLERANCE, (batch, tokens, left, cut)


def test_the_length_matters(tmp_path):
    """What the test above would not see, were both sets of factors alike."""
    config = DECODERS["longrope"]()
    model = made(hf.AutoModelForCausalLM, config, tmp_path)
    rope, positions = model.model.rotary_emb, torch.arange(LIMIT + 1)[None]
    hidden = torch.zeros(1, LIMIT + 1, 32)
    with chosen_by_tensors(model):
        (short, _), (long, _) = rope(hidden, positions[:, :LIMIT]), rope(hidden, positions)
    assert (short - long[:, :LIMIT]).abs().max() > 0.1
    assert "forward" not in vars(rope)


def test_a_dynamic_model_is_left_as_it_was(tmp_path):
    model = made(hf.AutoModelForCausalLM, DECODERS["dynamic"](), tmp_path)
    rope = model.model.rotary_emb
    before = {name: value for name, value in vars(rope).items() if name != "_buffers"} | rope._buffers
    with chosen_by_tensors(model), torch.no_grad():
        model(torch.arange(3, 60)[None])
        rope.max_seq_len_cached = 60  # as transformers' own forward leaves it
        rope.inv_freq = rope.inv_freq * 2
    after = {name: value for name, value in vars(rope).items() if name != "_buffers"} | rope._buffers
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)


def test_an_encoder_whose_positions_reach_as_far_as_the_text(tmp_path):
    config = hf.DebertaConfig(
        **_SIZES, max_position_embeddings=64, relative_attention=True, pos_att_type=["c2p", "p2c"], type_vocab_size=0,
        position_biased_input=False,
    )  # fmt: skip
    model = made(hf.AutoModel, config, tmp_path)
    trace_encoder(tmp_path, FEATURES, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for tokens in (1, 3, 9, 50):
        ids = np.random.default_rng(0).integers(3, 97, (2, tokens))
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        with torch.no_grad():
            wanted = model(**{name: torch.tensor(value) for name, value in feeds.items()})[0].numpy()
        names = [item.name for item in session.get_inputs()]
        assert np.abs(session.run(None, {name: feeds[name] for name in names})[0] - wanted).max() < TOLERANCE


def test_block_sparse_attention_is_refused_with_the_place(tmp_path):
    config = hf.BigBirdConfig(**_SIZES, max_position_embeddings=256, block_size=4, num_random_blocks=1)
    made(hf.AutoModel, config, tmp_path)
    with pytest.raises(BuildError, match="was decided at the traced length") as refused:
        trace_encoder(tmp_path, FEATURES, tmp_path / "model.onnx")
    assert "TorchScript: Frozen: transformers/models/big_bird/modeling_big_bird.py:" in str(refused.value)
    assert "torch.export: " in str(refused.value)
    assert "site-packages" not in str(refused.value)
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated:DeprecationWarning")  # what torch.onnx calls
def test_a_branch_on_a_length_is_an_error_that_names_the_place():
    def halved(values: Any) -> Any:
        return values / 2 if values.shape[0] > 4 else values

    with (
        pytest.raises(Frozen, match=r"test_length_choices\.py:\d+ \(return values / 2 if .* was decided at"),
        nothing_frozen(),
    ):
        torch.jit.trace(halved, torch.ones(3), check_trace=False)
    with nothing_frozen():
        torch.jit.trace(lambda values: values / 2, torch.ones(3), check_trace=False)


@pytest.mark.quick
def test_each_place_has_its_proof_and_is_still_there():
    """A place that transformers has rewritten must be looked at again."""
    packages = Path(torch.__file__).parents[1]
    lost = []
    for (file, line), why in HARMLESS.items():
        assert len(why) > 10
        if line not in [text.strip() for text in (packages / file).read_text(encoding="utf-8").splitlines()]:
            lost.append((file, line))
    assert lost == []

"""A sentence-transformers folder's own modules: what vector they make, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from exporter.errors import JobError
from exporter.measure.embedding import Embedding, module_files, modules_identity, read_embedding

pytestmark = pytest.mark.quick

STATES = np.random.default_rng(0).normal(0, 1, (5, 4)).astype(np.float32)
CLS = {"word_embedding_dimension": 4, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
MEAN = {"word_embedding_dimension": 4, "pooling_mode_mean_tokens": True}


def folder(
    path: Path, pooling: dict[str, Any], *more: str, weights: dict[str, Any] | None = None, **settings: Any
) -> Path:
    kinds = ["Transformer", "Pooling", *more]
    listed = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    for one in listed:
        (path / one["path"]).mkdir(exist_ok=True)
    (path / "modules.json").write_text(json.dumps(listed))
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if weights is not None:
        dense = {
            "in_features": 4,
            "activation_function": settings.pop("activation", "torch.nn.modules.activation.Tanh"),
        }
        (path / "2_Dense" / "config.json").write_text(json.dumps(dense))
        save_file(weights, path / "2_Dense" / "model.safetensors")
    for name, value in settings.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return path


def test_without_modules_there_are_none(tmp_path):
    assert read_embedding(tmp_path) is None


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (CLS, STATES[0]),
        (MEAN, STATES.mean(0)),
        (CLS | {"pooling_mode_mean_tokens": True}, np.concatenate([STATES[0], STATES.mean(0)])),
        ({"pooling_mode_max_tokens": True}, STATES.max(0)),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, STATES.sum(0) / np.sqrt(5)),
        ({"pooling_mode_weightedmean_tokens": True}, (STATES * np.arange(1, 6)[:, None]).sum(0) / 15),
        ({"pooling_mode_lasttoken": True}, STATES[-1]),
        ({"pooling_mode": "lasttoken"}, STATES[-1]),
        ({"pooling_mode": "cls"}, STATES[0]),
    ],
)
def test_each_way_of_pooling(tmp_path, pooling, expected):
    embedding = read_embedding(folder(tmp_path, pooling))
    np.testing.assert_allclose(embedding.vector(STATES), expected, rtol=1e-6)


def test_dense_and_normalize_follow_and_travel_with_the_reference(tmp_path):
    rng = np.random.default_rng(1)
    weights = {"linear.weight": rng.normal(0, 1, (3, 4)).astype(np.float32), "linear.bias": np.ones(3, np.float32)}
    prompts = {"prompts": {"query": "Query: "}, "default_prompt_name": "query"}
    made = folder(
        tmp_path, CLS, "Dense", "Normalize", weights=weights, config_sentence_transformers=prompts,
        sentence_bert_config={"max_seq_length": 64, "do_lower_case": True},
    )  # fmt: skip
    embedding = read_embedding(made)
    expected = np.tanh(weights["linear.weight"] @ STATES[0] + 1)
    np.testing.assert_allclose(embedding.vector(STATES), expected / np.linalg.norm(expected), rtol=1e-5)
    assert embedding.read(" Hello") == "query:  hello"
    assert (embedding.max_length, embedding.words()) == (
        64, "cls_token, Dense (Tanh), Normalize, after the prompt 'Query: '",
    )  # fmt: skip
    embedding.save(tmp_path / "stored.npz")
    stored = Embedding.load(tmp_path / "stored.npz")
    np.testing.assert_array_equal(stored.vector(STATES), embedding.vector(STATES))
    assert (stored.read("A"), stored.max_length) == ("query: a", 64)
    assert module_files(made) == [
        "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "1_Pooling/config.json",
        "2_Dense/config.json", "2_Dense/model.safetensors",
    ]  # fmt: skip
    before = modules_identity(made)
    save_file({**weights, "linear.bias": np.zeros(3, np.float32)}, made / "2_Dense" / "model.safetensors")
    assert modules_identity(made) != before


@pytest.mark.parametrize(
    ("pooling", "more", "activation", "said"),
    [
        ({"pooling_mode_attention": True}, [], None, r"pools by \['attention'\]; measured are cls_token, max_tokens"),
        ({"pooling_mode_mean_tokens": False}, [], None, r"pools by nothing"),
        (MEAN, ["LSTM"], None, r"has a module sentence_transformers.models.LSTM, which is not measured"),
        (MEAN, ["Dense"], "torch.nn.modules.activation.Mish", r"has the activation Mish; measured are Tanh"),
        (MEAN, ["Dense"], "none", r"2_Dense.config.json cannot be read"),
    ],
)
def test_what_is_not_measured_is_refused(tmp_path, pooling, more, activation, said):
    weights = {"linear.weight": np.eye(4, dtype=np.float32)} if activation not in (None, "none") else None
    folder(tmp_path, pooling, *more, weights=weights, **({"activation": activation} if weights else {}))
    for one in more:
        if one == "LSTM":
            (tmp_path / "2_LSTM" / "config.json").write_text("{}")
    with pytest.raises(JobError, match=said):
        read_embedding(tmp_path)

"""LiteRT's files broken on purpose, and what cannot be converted: each is refused or found out."""

from __future__ import annotations

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from litert_models import (
    CACHE,
    FLOATS,
    IDS,
    artifacts_in,
    changed,
    close,
    export,
    models_in,
    reference_of,
    torch_answer,
)

from exporter.checkpoint.linear import linear_layers
from exporter.errors import BuildError
from exporter.measure.held import held
from exporter.measure.lengths import Lengths
from exporter.measure.probe import compare_probe
from exporter.measure.quality import ANSWERS, NotFinite, Reference, finite
from exporter.scheme import Scheme
from exporter.targets.folder.proven import FLOAT16, FLOAT32, float_disagrees
from exporter.targets.litert import convert as conversion
from exporter.targets.litert.agreement import prove_signatures
from exporter.targets.litert.held import weights_of
from exporter.targets.litert.opened import open_file
from exporter.targets.litert.runner import LitertDecoder
from exporter.targets.litert.target import FLOAT, LITERT
from exporter.types import GENERATION, Checkpoint, ExportRequest

pytest.importorskip("litert_torch", reason="needs the extra [litert]")
MIDDLE = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("litert-broken")


@pytest.fixture(scope="module")
def models(place):
    return models_in(place)


@pytest.fixture(scope="module")
def artifacts(place, models):
    return artifacts_in(place, models)


@pytest.fixture(scope="module")
def references(place, models):
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = reference_of(*models(kind)[:2], place / f"{kind}-reference")
        return made[kind]

    return get


@pytest.fixture
def broken(artifacts, place, tmp_path):
    """broken(kind, module, change, signature): a scratch folder whose float program has other numbers."""

    def make(kind, module, change, signature=None):
        artifacts(kind, "fp32")
        made = place / f"{kind}-scratch"
        shutil.copyfile(made / "places.json", tmp_path / "places.json")
        changed(made / FLOAT, tmp_path / FLOAT, module, change, signature)
        return tmp_path

    return make


def opened(scratch, task=GENERATION):
    return partial(open_file, scratch / FLOAT, task, 1)


def test_a_program_that_answers_otherwise_is_not_quantized(models, references, broken, tmp_path):
    checkpoint, task, model = models("llama")
    scratch = broken("llama", MIDDLE, lambda weight: weight * 1.5)
    with opened(scratch)() as runner, pytest.raises(AssertionError):
        close(runner.logits(IDS[:20]), torch_answer(model, IDS[:20], task), 0.01)
    for folder in ("first", "second"):  # the second time from what stands beside it
        with pytest.raises(
            BuildError, match=r"its float32 program does not agree with the reference \(.* on the probe\); nothing"
        ):
            export(checkpoint, task, "int8-weight", tmp_path / folder, scratch, reference=references("llama"))


@pytest.mark.parametrize(
    ("kind", "module", "by"), [("llama", MIDDLE, 1.02), ("bert", "encoder.layer.0.output.dense", 1.1)]
)
def test_a_float32_program_is_held_to_the_tolerance_of_its_own_type(
    kind, module, by, models, references, broken, place
):
    """An error that float16 explains is none of float32's."""
    _, task, _ = models(kind)
    probe = Reference.load(references(kind) / ANSWERS).probe
    scratch = broken(kind, module, lambda weight: weight * np.float32(by))
    for folder, allowed, right in (
        (scratch, FLOAT16, True),
        (scratch, FLOAT32, False),
        (place / f"{kind}-scratch", FLOAT32, True),
    ):
        wrong = float_disagrees(opened(folder, task), probe, Lengths(CACHE), task, allowed)
        assert (wrong is None) == right, wrong


@pytest.mark.parametrize(
    ("kind", "signature", "module", "told"),
    [
        ("llama", "decode", MIDDLE, "decode is off prefill_32"),
        ("llama", "prefill_8", MIDDLE, "prefill_8 is off prefill_32"),
        ("bert", "encode_8", "encoder.layer.0.output.dense", "encode_8 is off encode_32"),
    ],
)
def test_a_signature_of_its_own_mind_is_found(
    kind, signature, module, told, models, references, broken, place, tmp_path
):
    """Each is traced by itself: a short text would never reach the longest, nor decode."""
    checkpoint, task, _ = models(kind)
    options = LITERT.options(lengths="8,32", **({"max_length": CACHE} if task == GENERATION else {}))
    scratch = broken(kind, module, lambda weight: weight * 1.1, signature)
    request = ExportRequest(
        Checkpoint(checkpoint, task, kind, "0" * 64, 0),
        "fp32",
        tmp_path,
        scratch,
        1,
        options,
        reference=references(kind),
    )
    with pytest.raises(BuildError, match=f"its signatures do not agree: {told} by "):
        prove_signatures(scratch / FLOAT, request)
    prove_signatures(place / f"{kind}-scratch" / FLOAT, request)


class Forgetful(LitertDecoder):
    """A runner that hands no cache on: what is read at once is right, and nothing behind it."""

    def _run(self, *given):
        self._last = None
        return super()._run(*given)


def test_a_cache_is_held_against_what_is_read_without_one(references, artifacts):
    """Between the signatures' lengths, and where a text is read in pieces, which go through the cache too."""
    probe = Reference.load(references("llama") / ANSWERS).probe
    file = artifacts("llama", "fp32") / "model.tflite"
    for length in (20, 45, CACHE):
        with LitertDecoder(file, 1) as runner:
            assert compare_probe(runner, probe, GENERATION, IDS[:length])["cache_kl"].value < 1e-9
        with Forgetful(file, 1) as runner:
            close(runner.logits(IDS[:20]), runner.logits(IDS[:32])[:20], FLOATS)
            assert compare_probe(runner, probe, GENERATION, IDS[:length])["cache_kl"].value > 0.01


def test_a_policy_that_has_nothing_of_its_precision_s_name_is_refused(models, place, artifacts):
    checkpoint, task, model = models("llama")
    artifacts("llama", "fp32")
    policy = dict.fromkeys(linear_layers(model), Scheme(weight="int8"))
    with pytest.raises(BuildError, match="no layer of litert:int8-dynamic would have a dynamic input"):
        export(checkpoint, task, "int8-dynamic", place / "unnamed", place / "llama-scratch", policy=policy)
    floats = dict.fromkeys(linear_layers(model))
    export(checkpoint, task, "int8-weight", place / "floats", place / "llama-scratch", policy=floats)
    found = held(LITERT.precisions["int8-weight"], weights_of(place / "floats"))
    assert found["named_share"] < 0.9  # the gate's limit: the row fails
    assert "32 bits" in found["wider"]


def test_a_file_that_is_cut_is_not_opened(artifacts, tmp_path):
    whole = (artifacts("llama", "fp32") / "model.tflite").read_bytes()
    (tmp_path / "manifest.json").write_text(json.dumps({"task": GENERATION}))
    (tmp_path / "model.tflite").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BuildError, match="LiteRT cannot open"):
        LITERT.open(tmp_path, 1)
    (tmp_path / "model.tflite").write_bytes(b"something else")
    with pytest.raises(BuildError, match=r"is no \.tflite file"):
        LITERT.inspects[".tflite"](tmp_path / "model.tflite")


def test_not_a_number_is_told(broken):
    def spoilt(weight):
        weight[3, 4] = np.nan
        return weight

    with opened(broken("llama", MIDDLE, spoilt))() as runner, pytest.raises(NotFinite):
        finite(IDS[:20], runner.logits(IDS[:20]))


def test_a_model_that_a_stage_left_too_large_is_refused_before_it_is_converted(models, tmp_path, monkeypatch):
    """What was not known before any work; here with a limit that a small model is above."""
    checkpoint, task, model = models("llama")
    monkeypatch.setattr(conversion, "LIMIT", 1000)
    size = 4 * sum(one.numel() for one in model.parameters())
    with pytest.raises(BuildError, match=f"its float32 weights are {size:,} bytes"):
        export(checkpoint, task, "int4-weight", tmp_path / "a", tmp_path / "b")


def test_lengths_that_the_model_has_not(models, tmp_path):
    checkpoint, task, _ = models("bert")
    with pytest.raises(BuildError, match="--litert-lengths 256: the model takes 128 tokens"):
        export(checkpoint, task, "fp32", tmp_path / "a", tmp_path / "b", options={"lengths": "64,256"})
    decoder, task, _ = models("llama")
    with pytest.raises(BuildError, match="--litert-lengths 8,100: its cache holds 62 tokens"):
        export(decoder, task, "fp32", tmp_path / "c", tmp_path / "d", options={"lengths": "8,100"})


def test_an_operator_that_litert_has_not_is_named(tmp_path):
    class Odd(torch.nn.Module):
        def forward(self, x):
            return {"y": torch.special.erfcx(x)}

    with pytest.raises(
        BuildError, match=r"cannot convert Odd: LiteRT has nothing for its operator aten\.special_erfcx"
    ):
        conversion._write(Odd(), {"one": {"x": torch.ones(4)}}, Odd(), tmp_path / "odd.tflite")

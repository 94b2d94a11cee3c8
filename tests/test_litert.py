"""LiteRT: real small models, converted, run by its interpreter, held against torch between the signatures' lengths."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from clients import client
from coreml_models import TASKS, VOCABULARY
from litert_models import CACHE, FLOATS, IDS, artifacts_in, close, export, load, models_in, torch_answer

from exporter.checkpoint.linear import linear_layers, weight_of
from exporter.errors import BuildError
from exporter.measure.held import held
from exporter.measure.samples import greedy
from exporter.pipeline.packing import pack
from exporter.quantization.grid import quantized, rounded_input
from exporter.scheme import Scheme
from exporter.targets.litert.held import weights_of
from exporter.targets.litert.precisions import usual
from exporter.targets.litert.target import LITERT
from exporter.targets.litert.zeros import zeros_of
from exporter.types import FEATURES, GENERATION

pytest.importorskip("litert_torch", reason="needs the extra [litert]")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("litert")


@pytest.fixture(scope="module")
def models(place):
    return models_in(place)


@pytest.fixture(scope="module")
def artifacts(place, models):
    return artifacts_in(place, models)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_a_decoder_answers_as_torch_at_and_between_its_signatures_lengths(kind, artifacts, models):
    """Padded, in pieces, where the cache ends before the last piece's signature does; beyond a sliding window too."""
    _, task, model = models(kind)
    with LITERT.open(artifacts(kind, "fp32"), 1) as runner:
        assert (runner.engine.split()[0], runner.engine.split()[-1]) == ("ai-edge-litert", "XNNPACK")
        assert runner.max_length == CACHE
        for length in (1, 5, 8, 9, 32, 33, 45, CACHE):
            close(runner.logits(IDS[:length]), torch_answer(model, IDS[:length], task), FLOATS)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_with_its_cache_it_is_what_it_is_without(kind, artifacts, models):
    """From a prompt that is padded to the last row of the cache; what an earlier text left there is not seen."""
    _, task, model = models(kind)
    expected = torch_answer(model, IDS, task)
    with LITERT.open(artifacts(kind, "fp32"), 1) as runner:
        for begin in (13, 1, 40):
            steps = [runner.prefill(IDS[:begin]), *(runner.step(int(token)) for token in IDS[begin:])]
            close(np.stack(steps), expected[begin - 1 :], FLOATS)
        with pytest.raises(BuildError, match=f"{CACHE + 1} tokens are more than the cache of {CACHE} holds"):
            runner.step(1)


@pytest.mark.parametrize("kind", TASKS)
def test_an_encoder_pads_to_the_next_signature_on_either_side(kind, artifacts, models):
    _, task, model = models(kind)
    rows, mask = IDS[:24].reshape(2, 12), np.ones((2, 12), np.int64)
    mask[0, 7:], mask[1, :5] = 0, 0
    segments = np.arange(12) // 6
    with LITERT.open(artifacts(kind, "fp32"), 1) as runner:
        for length in (1, 8, 9, 32):
            close(runner.logits(IDS[:length]), torch_answer(model, IDS[:length], task), FLOATS)
        got, expected = runner.batch(rows, mask), torch_answer(model, rows, task, attention_mask=torch.tensor(mask))
        if task == FEATURES:
            got, expected = got[mask == 1], expected[mask == 1]
        close(got, expected, FLOATS)
        kinds = torch.tensor(segments[None])
        close(runner.segmented(rows[0], segments), torch_answer(model, rows[0], task, token_type_ids=kinds), FLOATS)
        with pytest.raises(BuildError, match="33 tokens are more than its longest signature takes, 32"):
            runner.logits(IDS[:33])


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_signatures_share_one_copy_of_the_weights(kind, artifacts, models):
    _, task, model = models(kind)
    told = LITERT.inspects[".tflite"](artifacts(kind, "fp32") / "model.tflite")
    encodes = ["encode_8", "encode_32"]
    assert [one["name"] for one in told["functions"]] == (
        ["prefill_8", "prefill_32", "decode"] if task == GENERATION else encodes
    )
    weights = sum(one.numel() for name, one in model.named_parameters() if "pooler" not in name)
    tables = sum(one.numel() for name, one in model.named_buffers() if one.is_floating_point())
    rotations = 2 * CACHE * 16 if task == GENERATION else 0
    assert told["bytes"]["FLOAT32"] < 1.05 * 4 * (weights + tables + rotations)


def rounded(model, precision):
    """The model with each linear layer and table as a precision's form leaves it."""
    copy = load(model.config._name_or_path, TASKS.get(model.config._name_or_path.rpartition("/")[2], GENERATION))
    head = copy.get_output_embeddings()
    for layer in linear_layers(copy).values():
        weight = weight_of(layer)
        scheme = usual(precision, weight.shape[1], layer is head)
        weight.copy_(quantized(weight.contiguous(), scheme).floats())
        if scheme.input == "dynamic":
            layer.register_forward_pre_hook(lambda _, given, scheme=scheme: (rounded_input(given[0], scheme),))
    for module in copy.modules():
        # Positions of an encoder are no lookup here: each signature has its own as numbers.
        if isinstance(module, torch.nn.Embedding) and module is not getattr(module, "position_embeddings", None):
            table = module.weight.data
            if len(table) != model.config.max_position_embeddings:
                table.copy_(quantized(table, Scheme(weight="int8")).floats())
    return copy


@pytest.mark.parametrize("precision", ["int8-weight", "int8-dynamic", "int4-weight"])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_quantized_weights_are_those_that_were_meant(kind, precision, artifacts, models):
    _, task, model = models(kind)
    folder = artifacts(kind, precision)
    # XNNPACK rounds inputs with zero points, not symmetrically as the simulation does; weights alone are exact.
    share = 1e-5 if precision == "int8-weight" else 0.05
    with LITERT.open(folder, 1) as runner:
        close(runner.logits(IDS[:20]), torch_answer(rounded(model, precision), IDS[:20], task), share)
    found = held(LITERT.precisions[precision], weights_of(folder))
    assert found["named_share"] == 1.0
    assert found["bits_per_weight"] == LITERT.precisions[precision].bits


def test_half_is_half(artifacts, models):
    _, task, model = models("llama")
    folder = artifacts("llama", "fp16")
    assert {one.bits for one in weights_of(folder)} == {16}
    with LITERT.open(folder, 1) as runner:
        close(runner.logits(IDS[:20]), torch_answer(model, IDS[:20], task), 2e-3)


def test_static_products_under_a_policy_that_leaves_some_in_float(models, place, artifacts):
    checkpoint, task, model = models("llama")
    artifacts("llama", "fp32")
    seen, layers = {}, linear_layers(model)
    hooks = [
        layer.register_forward_pre_hook(lambda _, given, name=name: seen.__setitem__(name, given[0]))
        for name, layer in layers.items()
    ]
    torch_answer(model, IDS, task)
    for hook in hooks:
        hook.remove()
    spans = {name: (min(float(one.min()), 0.0), max(float(one.max()), 0.0)) for name, one in seen.items()}
    policy = {name: Scheme(weight="int8", input="static", range=spans[name]) for name in layers}
    wide, other = "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"
    policy |= {wide: None, other: Scheme(weight="int8"), "lm_head": Scheme(weight="int8")}
    calibration = place / "calibration"
    calibration.mkdir()
    np.save(calibration / "windows.npy", IDS[None])
    folder = place / "static"
    given = {"policy": policy, "calibration": calibration}
    exported = export(checkpoint, task, "int8-static", folder, place / "llama-scratch", **given)
    assert exported.notes == ("static inputs in 12 of 15 linear layers",)
    bits = {one.name: one.bits for one in weights_of(folder)}
    assert bits[wide] == 32
    assert bits[other] == bits["model.layers.0.self_attn.q_proj"] == 8
    operators = LITERT.inspects[".tflite"](folder / "model.tflite")["functions"][0]["operators"]
    assert operators["QUANTIZE"] == 6  # of two layers: what q, k and v read; o; gate and up
    with LITERT.open(folder, 1) as runner:
        got, expected = runner.logits(IDS[:20]), torch_answer(model, IDS[:20], task)
    assert np.sqrt(np.square(got - expected).mean() / np.square(expected).mean()) < 0.05


def test_what_the_file_says_of_itself(artifacts):
    told = LITERT.inspects[".tflite"](artifacts("llama", "int8-dynamic") / "model.tflite")
    assert told["metadata"]["description"] == "llama: text-generation as litert:int8-dynamic"
    assert told["metadata"]["task"] == GENERATION
    decode = told["functions"][-1]
    assert decode["inputs"][0]["shape"][0] == 1
    described = told["metadata"]["signatures"]["decode"]
    assert {one["name"] for one in decode["inputs"]} == described["inputs"].keys()
    assert {one["name"] for one in decode["outputs"]} == described["outputs"].keys()
    assert {"tokens", "input_pos", "mask", "kv_cache_k_0", "kv_cache_v_1"} <= described["inputs"].keys()


def test_zeros_are_counted(artifacts):
    zeros = zeros_of(artifacts("llama", "int4-weight"))
    layers = [one.name for one in weights_of(artifacts("llama", "int4-weight")) if not one.table]
    assert zeros.counts.keys() == set(layers)
    assert all(0 < count < 64 * 128 for count in zeros.counts.values())


@pytest.mark.parametrize("kind", ["llama", "classifier", "bert"])
def test_its_program_answers_as_the_artifact(kind, artifacts, models):
    """On a text whose tokens are the tokenizer's bytes, which are all that these small models know."""
    checkpoint, task, _ = models(kind)
    folder = artifacts(kind, "int8-dynamic" if kind == "llama" else "fp32")
    pack(LITERT, checkpoint, folder, task)
    text = "Q%Z~Q~%Z^Q"
    prompt = np.array(transformers.AutoTokenizer.from_pretrained(checkpoint)(text)["input_ids"], np.int64)
    assert len(prompt) > 8
    assert prompt.max() < VOCABULARY
    with LITERT.open(folder, 1) as runner:
        expected = greedy(runner, prompt, [0], 24) if task == GENERATION else runner.logits(prompt)
    if task == GENERATION:
        assert [int(word) for word in client(folder, text, "-n", 24, "--ids").split()] == expected
        return
    said = json.loads(client(folder, text))
    if task == FEATURES:
        close(np.array(said), expected.mean(axis=0), 1e-5)
    else:
        powers = np.exp(expected[0])
        assert [said[f"LABEL_{label}"] for label in range(3)] == pytest.approx(list(powers / powers.sum()), rel=1e-4)

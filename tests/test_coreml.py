"""Core ML: real small models, converted, evaluated without a Mac, and held against torch at other lengths."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from coreml_models import FAMILIES, TASKS, VOCABULARY, export, random_model

from exporter.checkpoint.linear import linear_layers, weight_of
from exporter.errors import BuildError
from exporter.measure.held import held
from exporter.quantization.grid import quantized, rounded_input
from exporter.quantization.palette import palettized
from exporter.scheme import Scheme
from exporter.targets.coreml.held import weights_of
from exporter.targets.coreml.target import COREML
from exporter.targets.coreml.weights import BLOCKS, CHANNELS, PALETTES
from exporter.types import CLASSIFICATION, FEATURES

pytest.importorskip("coremltools", reason="needs the extra [coreml]")
DECODERS = [kind for kind in FAMILIES if kind not in (*TASKS, "longrope")]
IDS = np.random.default_rng(0).integers(1, VOCABULARY, 96)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("coreml")


@pytest.fixture(scope="module")
def models(place):
    """models(kind): a checkpoint's folder, its task and the float32 model."""
    made = {}

    def get(kind):
        if kind not in made:
            folder, task = random_model(place / kind, kind)
            classes = {
                FEATURES: transformers.AutoModel,
                CLASSIFICATION: transformers.AutoModelForSequenceClassification,
            }
            load = classes.get(task, transformers.AutoModelForCausalLM).from_pretrained
            made[kind] = folder, task, load(folder, dtype=torch.float32).eval()
        return made[kind]

    return get


@pytest.fixture(scope="module")
def artifacts(models, place):
    """artifacts(kind, precision, cache): an artifact's folder; the float program is made once for all of a kind."""
    made = {}

    def get(kind, precision, cache="auto"):
        key = (kind, precision, cache)
        if key not in made:
            checkpoint, task, _ = models(kind)
            folder = place / "-".join(key)
            exported = export(
                checkpoint, task, precision, folder, place / f"{kind}-{cache}-scratch", options={"cache": cache}
            )
            made[key] = folder, exported
        return made[key][0]

    return get


def answer(model, ids, task):
    with torch.no_grad():
        out = model(input_ids=torch.tensor(ids)[None])
    return (out.last_hidden_state[0] if task == FEATURES else out.logits[0]).numpy()


def close(got, expected, share):
    error = np.abs(got - expected).max() / max(1.0, np.abs(expected).max())
    assert error < share, error


@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_answers_as_torch_at_lengths_it_was_not_traced_at(kind, artifacts, models):
    _, task, model = models(kind)
    with COREML.open(artifacts(kind, "fp16"), 1) as runner:
        assert (runner.engine, runner.max_length) == ("mil-reference (fp16 emulated)", 128)
        assert runner.untimed
        for length in (1, 5, 40):
            close(runner.logits(IDS[:length]), answer(model, IDS[:length], task), 0.01)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "qwen3", "gemma3", "bert"])
def test_in_float32_it_is_torch(kind, artifacts, models):
    _, task, model = models(kind)
    with COREML.open(artifacts(kind, "fp32", "none"), 1) as runner:
        close(runner.logits(IDS[:40]), answer(model, IDS[:40], task), 1e-5)
        assert runner.engine == "mil-reference (float32)"


@pytest.mark.parametrize("kind", DECODERS)
def test_with_its_cache_it_is_what_it_is_without(kind, artifacts):
    """64 steps, beyond the sliding windows too."""
    with COREML.open(artifacts(kind, "fp16"), 1) as runner, COREML.open(artifacts(kind, "fp16", "none"), 1) as whole:
        assert not hasattr(whole, "step")
        cached = [runner.prefill(IDS[:16]), *(runner.step(int(token)) for token in IDS[16:80])]
        close(np.stack(cached), whole.logits(IDS[:80])[15:], 0.01)


@pytest.mark.parametrize("kind", ["bert", "classifier"])
def test_an_encoder_takes_any_length_and_batch(kind, artifacts, models):
    _, task, model = models(kind)
    ids, mask = IDS[:24].reshape(2, 12), np.ones((2, 12), np.int64)
    mask[1, 7:] = 0
    with torch.no_grad():
        out = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))
    expected = (out.last_hidden_state if task == FEATURES else out.logits).numpy()
    with COREML.open(artifacts(kind, "fp16"), 1) as runner:
        for length in (1, 33):
            close(runner.logits(IDS[:length]), answer(model, IDS[:length], task), 0.01)
        got = runner.batch(ids, mask)
        if task == FEATURES:
            got, expected = got[mask == 1], expected[mask == 1]
        close(got, expected, 0.01)


def rounded(model, precision):
    """The model with each linear layer as a precision's form leaves it, the untied ones and not the small."""
    copy = type(model).from_pretrained(model.config._name_or_path, dtype=torch.float32).eval()
    for name, layer in linear_layers(copy).items():
        weight = weight_of(layer)
        if weight.data_ptr() == copy.get_input_embeddings().weight.data_ptr() or weight.numel() < 2048:
            continue
        if precision.startswith("palettize") and name != "lm_head":
            new = palettized(weight, PALETTES[precision]).numpy()
        else:
            scheme = CHANNELS if precision == "int8" or name == "lm_head" else BLOCKS
            new = quantized(weight.contiguous(), scheme).floats().numpy()
        weight.copy_(torch.from_numpy(new))
    return copy


@pytest.mark.parametrize("precision", ["int8", "int4", "palettize6", "palettize4"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "qwen3", "gemma3", "bert"])
def test_compressed_weights_are_those_that_were_meant(kind, precision, artifacts, models):
    _, task, model = models(kind)
    folder = artifacts(kind, precision)
    with COREML.open(folder, 1) as runner:
        # Scales are float16 as well: 0.012 was the most, of int4.
        close(runner.logits(IDS[:20]), answer(rounded(model, precision), IDS[:20], task), 0.02)
    found = held(COREML.precisions[precision], weights_of(folder))
    assert found["named_share"] > 0.99
    assert found["bits_per_weight"] == pytest.approx(COREML.precisions[precision].bits, abs=0.2)


def test_a_policy_mixes_forms_by_layer(models, place):
    checkpoint, task, model = models("llama")
    names = list(linear_layers(model))
    policy = dict.fromkeys(names, Scheme(weight="int4", group=32))
    policy |= {names[0]: None, names[1]: Scheme(weight="int8", group=None)}
    folder = place / "mixed"
    export(checkpoint, task, "int4", folder, place / "llama-auto-scratch", policy=policy)
    bits = {one.name: one.bits for one in weights_of(folder)}
    assert [bits[name] for name in sorted(bits) if "layers_0_self_attn_q" in name] == [16]
    assert [bits[name] for name in sorted(bits) if "layers_0_self_attn_k" in name] == [8]
    assert list(bits.values()).count(4) == len(names) - 2


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "qwen3", "gemma3", "bert"])
def test_static_inputs_are_rounded_once_for_all_that_share_them(kind, models, place):
    checkpoint, task, model = models(kind)
    names = [name for name in linear_layers(model) if name not in ("lm_head", "pooler.dense")]
    seen = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, given, name=name: seen.__setitem__(name, float(given[0].abs().max())))
        for name, layer in linear_layers(model).items()
    ]
    answer(model, IDS[:20], task)
    for hook in hooks:
        hook.remove()
    static = {"weight": "int8", "group": None, "input": "static"}
    policy = {name: Scheme(**static, range=(-seen[name], seen[name])) for name in names}
    folder = place / f"{kind}-static"
    export(checkpoint, task, "int8-static", folder, place / f"{kind}-auto-scratch", policy=policy)
    operators = COREML.inspects[".mlpackage"](folder / "model.mlpackage")["functions"][0]["operators"]
    assert operators["quantize"] == operators["dequantize"] == 8  # of two layers: q, k and v; o; gate and up; down
    places = json.loads((place / f"{kind}-auto-scratch" / "float16" / "facts.json").read_text())["places"]
    steps = {f"{places[name]['constant']}_quantized": policy[name].range[1] / 127 for name in names}
    assert input_steps(folder) == pytest.approx(steps, rel=1e-3)  # float16
    meant = rounded(model, "int8")
    for name, layer in linear_layers(meant).items():
        if name in policy:
            layer.register_forward_pre_hook(lambda _, given, name=name: (rounded_input(given[0], policy[name]),))
    with COREML.open(folder, 1) as runner:
        got, expected = runner.logits(IDS[:20]), answer(meant, IDS[:20], task)
        # Where float16 moves an input over the edge of a code, these random models make much of it: inputs rounded to
        # float16 in torch alone gave 0.034 of gemma3.
        assert np.sqrt(np.square(got - expected).mean() / np.square(expected).mean()) < 0.05


def input_steps(folder):
    """By the name of a weight, the step of the int8 grid that what is multiplied with it was rounded to."""
    import coremltools as ct

    [function] = ct.utils.load_spec(str(folder / "model.mlpackage")).mlProgram.functions.values()
    [block] = function.block_specializations.values()
    makers = {one.name: op for op in block.operations for one in op.outputs}
    steps = {}
    for op in block.operations:
        inputs = {name: bound.arguments[0].name for name, bound in op.inputs.items() if bound.arguments}
        weight = {"linear": "weight", "matmul": "y"}.get(op.type)
        source = makers.get(inputs.get("x", ""))
        if weight and source is not None and source.type == "dequantize":
            [scale] = source.inputs["scale"].arguments
            value = scale.value if scale.HasField("value") else makers[scale.name].attributes["val"]
            steps[inputs[weight]] = float(np.frombuffer(value.immediateValue.tensor.bytes.values, np.float16)[0])
    return steps


def test_weights_that_lie_on_their_grid_stay_there(models, place):
    _, task, model = models("llama")
    on_grid = rounded(model, "int4")
    on_grid.save_pretrained(place / "grid")
    export(place / "grid", task, "int4", place / "grid-int4", place / "grid-scratch")
    with COREML.open(place / "grid-int4", 1) as runner:
        close(runner.logits(IDS[:20]), answer(on_grid, IDS[:20], task), 0.01)


def test_the_folder_says_what_a_caller_must_know(artifacts):
    import coremltools as ct

    folder = artifacts("gemma3", "fp16")
    program = json.loads((folder / "program.json").read_text())
    assert program == {
        "system": "iOS18", "inputs": ["input_ids", "position_ids", "causal_mask", "sliding_mask"], "output": "logits",
        "states": ["key_cache", "value_cache"], "max_length": 128, "sliding_window": 16, "floats": "FLOAT16",
    }  # fmt: skip
    description = ct.utils.load_spec(str(folder / "model.mlpackage")).description
    assert [one.name for one in description.input] == program["inputs"]
    assert all(one.shortDescription for part in ("input", "output", "state") for one in getattr(description, part))
    assert description.metadata.shortDescription == "gemma3: text-generation as coreml:fp16"
    assert description.metadata.author == "gemma3"


def test_older_systems_get_what_they_have(models, place):
    checkpoint, task, model = models("llama")
    folder = place / "older"
    exported = export(checkpoint, task, "int8", folder, place / "older-scratch", options={"target": "iOS16"})
    assert "iOS16 has no state to keep it in" in exported.notes[0]
    with COREML.open(folder, 1) as runner:
        close(runner.logits(IDS[:20]), answer(rounded(model, "int8"), IDS[:20], task), 0.01)


def test_a_model_that_takes_less_is_not_made_longer(models, place):
    checkpoint, task, _ = models("llama")
    with pytest.raises(BuildError, match="the model takes 128 tokens"):
        export(checkpoint, task, "fp16", place / "long", place / "long-scratch", options={"max_length": 256})


def test_where_a_rotary_embedding_changes_a_table_ends(models, place):
    """Longrope has other angles beyond 64 tokens; what a table has is one side of it."""
    checkpoint, task, model = models("longrope")
    with pytest.raises(BuildError, match="--coreml-max-length 96: its rotary embedding changes beyond 64 tokens"):
        export(checkpoint, task, "fp16", place / "beyond", place / "beyond-scratch", options={"max_length": 96})
    exported = export(checkpoint, task, "fp16", place / "below", place / "below-scratch")
    assert exported.notes == ("texts of up to 64 tokens, where its rotary embedding changes",)
    with COREML.open(place / "below", 1) as runner:
        assert runner.max_length == 64
        close(runner.logits(IDS[:64]), answer(model, IDS[:64], task), 0.01)

"""A tiny Llama and a tiny BERT as .mlpackages in the evaluator's runner, against PyTorch."""

import warnings

import numpy as np
import pytest
import torch

from exporter.errors import BuildError
from exporter.runner import BatchRunner, BoundedRunner, CachedRunner, SegmentRunner, TracingRunner
from exporter.targets.coreml.mil.runner import open_mil
from exporter.targets.coreml.traps import scalar_sizes
from exporter.types import FEATURES

VOCABULARY, LENGTH, LAYERS, HEADS, SIZE = 60, 48, 2, 4, 8
IDS = np.random.default_rng(0).integers(0, VOCABULARY, 20)


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=64,
        attn_implementation="sdpa", tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for weight in model.parameters():  # far enough from zero for the answers to differ
        weight.data *= 3 if weight.ndim == 2 else 1
    return model


class Plain(torch.nn.Module):
    """A ready mask and positions in, logits out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, causal_mask, position_ids):
        taken = {"attention_mask": causal_mask, "position_ids": position_ids}
        return self.model(input_ids, **taken, use_cache=False).logits


class Cached(torch.nn.Module):
    """The same with a cache in two buffers, which become states; the mask tells how much of them is filled."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        for name in ("key_cache", "value_cache"):
            self.register_buffer(name, torch.zeros(LAYERS, 1, HEADS, LENGTH, SIZE))

    def forward(self, input_ids, causal_mask, position_ids):
        from transformers.cache_utils import Cache

        outer = self

        class Slices(Cache):
            def __init__(self):
                super().__init__([])

            def update(self, keys, values, layer, *_, **__):
                end = causal_mask.shape[-1]
                begin = end - input_ids.shape[1]
                outer.key_cache[layer : layer + 1, :, :, begin:end] = keys[None]
                outer.value_cache[layer : layer + 1, :, :, begin:end] = values[None]
                return outer.key_cache[layer, :, :, :end], outer.value_cache[layer, :, :, :end]

            def get_seq_length(self, *_):
                return 0

        taken = {"attention_mask": causal_mask, "position_ids": position_ids, "past_key_values": Slices()}
        return self.model(input_ids, **taken, use_cache=True).logits


def converted(wrapper, folder, half, stateful):
    import coremltools as ct

    new, every = ct.RangeDim(1, LENGTH, default=4), ct.RangeDim(1, LENGTH, default=4)
    wide = np.float16 if half else np.float32
    inputs = [
        ct.TensorType("input_ids", (1, new), np.int32),
        ct.TensorType("causal_mask", (1, 1, new, every if stateful else new), wide),
        ct.TensorType("position_ids", (1, new), np.int32),
    ]
    states = [
        ct.StateType(ct.TensorType(shape=(LAYERS, 1, HEADS, LENGTH, SIZE), dtype=np.float16), name)
        for name in ("key_cache", "value_cache")
    ]
    example = (
        torch.zeros(1, 4, dtype=torch.int32),
        torch.zeros(1, 1, 4, 7 if stateful else 4),
        torch.zeros(1, 4, dtype=torch.int32),
    )
    with warnings.catch_warnings(), torch.no_grad(), scalar_sizes():
        warnings.simplefilter("ignore")
        model = ct.convert(
            torch.jit.trace(wrapper.eval(), example, check_trace=False),
            inputs=inputs,
            outputs=[ct.TensorType("logits", dtype=wide)],
            states=states if stateful else None,
            compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS18,
            skip_model_load=True,
        )
        model.save(str(folder / "model.mlpackage"))
    return folder / "model.mlpackage"


@pytest.fixture(scope="module")
def reference():
    with torch.no_grad():
        return llama()(torch.from_numpy(IDS)[None]).logits[0].numpy()


@pytest.fixture(scope="module", params=[False, True], ids=["float32", "float16"])
def plain(request, tmp_path_factory):
    path = converted(Plain(llama()), tmp_path_factory.mktemp("plain"), request.param, stateful=False)
    return path, 0.05 if request.param else 2e-4


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    return converted(Cached(llama()), tmp_path_factory.mktemp("cached"), half=True, stateful=True)


@pytest.mark.parametrize("length", [1, 3, 20])
def test_a_llama_is_pytorchs_at_any_length(plain, reference, length):
    path, limit = plain
    for half in (False, True):
        with open_mil(path, 1, half) as runner:
            assert not isinstance(runner, CachedRunner)
            assert runner.max_length == LENGTH
            found = runner.logits(IDS[:length])
    assert found.shape == (length, VOCABULARY)
    assert np.abs(found - reference[:length]).max() < limit


def test_a_cache_is_no_cache_token_by_token(cached, reference):
    with open_mil(cached, 1, half=True) as runner:
        assert isinstance(runner, CachedRunner)
        assert isinstance(runner, BoundedRunner)
        assert runner.max_length == LENGTH
        assert runner.engine == "mil-reference (fp16 emulated)"
        assert all(
            step.owned for step in runner._evaluator.plans["main"].steps if step.operation.kind == "slice_update"
        )
        whole = runner.logits(IDS)
        assert np.abs(whole - reference).max() < 0.05
        found = [runner.prefill(IDS[:5]), *(runner.step(int(token)) for token in IDS[5:])]
        np.testing.assert_allclose(np.array(found), whole[4:], atol=0.02)
        np.testing.assert_array_equal(runner.prefill(IDS[:5]), found[0])  # nothing is left of the text before
        assert runner.first_not_finite(IDS) is None
        assert isinstance(runner, TracingRunner)
    with open_mil(cached, 1, half=False) as runner:
        exact = runner.logits(IDS)
        found = [runner.prefill(IDS[:1]), *(runner.step(int(token)) for token in IDS[1:])]
        np.testing.assert_allclose(np.array(found), exact, atol=1e-4)


def test_a_text_that_is_too_long_is_refused(cached):
    with (
        open_mil(cached, 1, half=False) as runner,
        pytest.raises(BuildError, match="49 tokens are more than the cache of 48"),
    ):
        runner.prefill(np.zeros(LENGTH + 1, np.int64))


def bert():
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    return BertModel(config, add_pooling_layer=False).eval()


class Encoder(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_bias, token_type_ids):
        taken = {"attention_mask": attention_bias, "token_type_ids": token_type_ids}
        return self.model(input_ids, **taken).last_hidden_state


def test_a_bert_is_pytorchs_in_batches_and_with_segments(tmp_path):
    import coremltools as ct

    batch, length = ct.RangeDim(1, 8, default=2), ct.RangeDim(1, 32, default=6)
    example = (torch.zeros(2, 6, dtype=torch.int32), torch.zeros(2, 1, 1, 6), torch.zeros(2, 6, dtype=torch.int32))
    model = bert()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        ct.convert(
            torch.jit.trace(Encoder(model), example, check_trace=False),
            inputs=[
                ct.TensorType("input_ids", (batch, length), np.int32),
                ct.TensorType("attention_bias", (batch, 1, 1, length), np.float32),
                ct.TensorType("token_type_ids", (batch, length), np.int32),
            ],
            outputs=[ct.TensorType("last_hidden_state")],
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS17,
            skip_model_load=True,
        ).save(str(tmp_path / "bert.mlpackage"))
    ids = np.random.default_rng(1).integers(0, 60, (3, 11))
    mask = (np.arange(11) < np.array([[11], [7], [2]])).astype(np.int64)
    segments = (np.arange(11) > 5).astype(np.int64)
    with open_mil(tmp_path / "bert.mlpackage", 1, half=False, task=FEATURES) as runner, torch.no_grad():
        assert isinstance(runner, BatchRunner)
        assert isinstance(runner, SegmentRunner)
        wanted = model(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state.numpy()
        found = runner.batch(ids, mask)
        np.testing.assert_allclose(found[mask != 0], wanted[mask != 0], atol=1e-5)
        np.testing.assert_allclose(runner.logits(ids[0]), wanted[0], atol=1e-5)
        wanted = model(torch.from_numpy(ids[:1]), token_type_ids=torch.from_numpy(segments)[None]).last_hidden_state
        np.testing.assert_allclose(runner.segmented(ids[0], segments), wanted[0].numpy(), atol=1e-5)

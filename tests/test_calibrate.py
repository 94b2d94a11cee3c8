"""The calibration pass: what it counts, in which windows; and the tokenizer's comparison beside it."""

import json

import gguf_checkpoints
import numpy as np
import pytest
import torch
import transformers

from exporter.checkpoint.linear import linear_layers
from exporter.errors import JobError
from exporter.measure.tokenization import EVALUATION, HARD, TokenizedTexts, compare_tokenizer
from exporter.quantization.calibrate import calibrate, calibration_windows
from exporter.quantization.hessians import hessians
from exporter.quantization.statistics import collect, load_statistics, watched
from exporter.report.result import Figure
from exporter.types import GENERATION, Checkpoint


def quiet(done, total):
    """Progress that nobody looks at."""


@pytest.fixture(scope="module")
def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def pieces():
    return torch.randint(0, 99, (5, 20), generator=torch.Generator().manual_seed(1))


def fed(model, pieces):
    """All that each linear layer is fed, float32 [rows, K] by name: kept whole, where the product only counts."""
    inputs = {}
    layers = linear_layers(model)
    with torch.no_grad(), watched(layers, lambda name, rows: inputs.setdefault(name, []).append(rows[0].clone())):
        for piece in pieces:
            model(input_ids=piece[None])
    return {name: torch.cat(rows) for name, rows in inputs.items()}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_statistics_are_those_of_all_that_a_layer_is_fed(kind, pieces, request):
    model = request.getfixturevalue(kind)
    statistics, expected = collect(model, pieces, quiet), fed(model, pieces)
    assert set(statistics) == set(linear_layers(model)) == set(expected)
    for name, its in statistics.items():
        rows = expected[name].numpy()
        assert its.rows == len(rows) == 100
        np.testing.assert_array_equal(its.low, rows.min(0))
        np.testing.assert_array_equal(its.high, rows.max(0))
        np.testing.assert_array_equal(its.absmax, np.abs(rows).max(0))
        np.testing.assert_allclose(its.squares, np.square(rows.astype(np.float64)).sum(0), rtol=1e-6)
        histogram = its.histogram
        assert (histogram.minimum, histogram.maximum) == (rows.min(), rows.max())
        assert histogram.counts.sum() == rows.size
        inner = np.sort((rows.view(np.uint32) & 0xFFFF0000).view(np.float32), axis=None)  # each value's edge towards 0
        edges, counts = np.unique(inner, return_counts=True)
        np.testing.assert_array_equal(histogram.counts, counts)
        np.testing.assert_array_equal(np.where(edges > 0, histogram.low, histogram.high)[1:-1], edges[1:-1])
        middle = slice(1, -1)
        width = (histogram.high - histogram.low)[middle]
        assert (width <= np.abs(histogram.high + histogram.low)[middle] / 2 / 128).all()


def test_bins_lie_in_order_across_zero():
    values = [-3.0, -1e-3, -0.0, 0.0, 1e-30, 1e-3, 3.0, 3.0]

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(8, 1)

        def forward(self, input_ids):
            return self.layer(torch.tensor([values]))

    histogram = collect(Model(), torch.zeros(1, 1, dtype=torch.int64), quiet)["layer"].histogram
    assert histogram.counts.tolist() == [1, 1, 1, 1, 1, 1, 2]
    assert (histogram.low[1:] >= histogram.high[:-1]).all()
    assert (histogram.low <= values[:-1]).all()
    assert (histogram.high >= values[:-1]).all()


def test_the_order_of_the_windows_changes_no_count(llama, pieces):
    forth, back = collect(llama, pieces, quiet), collect(llama, pieces.flip(0), quiet)
    for name, its in forth.items():
        np.testing.assert_array_equal(its.histogram.low, back[name].histogram.low)
        np.testing.assert_array_equal(its.histogram.counts, back[name].histogram.counts)


def test_what_a_layer_is_fed_beside_others_does_not_depend_on_them(pieces):
    """Two layers are fed one tensor in the first window and different ones later, as a router's experts may be."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = torch.nn.Linear(4, 1), torch.nn.Linear(4, 1)
            self.calls = 0

        def forward(self, input_ids):
            rows = input_ids.float().reshape(-1, 4)
            self.left(rows)
            self.right(rows if self.calls == 0 else -rows)
            self.calls += 1

    statistics = collect(Model(), pieces, quiet)
    rows = pieces.float().reshape(-1, 4).numpy()
    assert statistics["left"].low.tolist() == rows.min(0).tolist()
    assert statistics["right"].low.tolist() == (-rows[5:]).min(0).tolist()
    assert statistics["right"].high.tolist() == rows[:5].max(0).tolist()


def test_nan_in_the_model_is_said_by_its_layers_name(pieces):
    config = transformers.GPT2Config(vocab_size=99, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    broken = transformers.GPT2LMHeadModel(config).eval()
    broken.transformer.h[0].ln_2.weight.data[3] = torch.nan
    with pytest.raises(JobError, match=r"transformer\.h\.0\.mlp\.c_fc is fed NaN"):
        collect(broken, pieces, quiet)
    with pytest.raises(JobError, match=r"transformer\.h\.0\.mlp\.c_fc is fed NaN"):
        list(hessians(broken, pieces, linear_layers(broken), 1 << 20, quiet))
    assert not broken.transformer.h[0].mlp.c_fc._forward_pre_hooks


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("budget", [1, 3 * 4 * 32 * 32, 1 << 30])
def test_hessians_are_x_transposed_times_x_in_blocks_of_the_budget(kind, budget, pieces, request):
    model = request.getfixturevalue(kind)
    expected = {name: rows.double().T @ rows.double() for name, rows in fed(model, pieces).items()}
    told, order = [], []
    for block in hessians(model, pieces, linear_layers(model), budget, lambda *at: told.append(at)):
        distinct = {matrix.data_ptr(): matrix for matrix in block.values()}
        assert len(distinct) == 1 or sum(4 * matrix.numel() for matrix in distinct.values()) <= budget
        for name, matrix in block.items():
            assert matrix.dtype == torch.float32
            torch.testing.assert_close(matrix.double(), expected[name], rtol=1e-5, atol=1e-5 * expected[name].max())
            order.append(name)
    assert order == list(expected)  # as they are executed: `fed` was filled in that order
    assert told == sorted(told)  # layers, of all
    assert {total for _, total in told} == {len(expected)}
    assert (told[0][0], told[-1][0]) == (0, len(expected))


def test_layers_fed_one_tensor_share_one_matrix(llama, pieces):
    names = [name for name in linear_layers(llama) if ".layers.1." in name]
    [block] = hessians(llama, pieces, names, 1 << 30, quiet)
    attention, mlp = (f"model.layers.1.{room}" for room in ("self_attn", "mlp"))
    assert block[f"{attention}.q_proj"] is block[f"{attention}.k_proj"] is block[f"{attention}.v_proj"]
    assert block[f"{mlp}.gate_proj"] is block[f"{mlp}.up_proj"]
    assert len({id(matrix) for matrix in block.values()}) == 4
    assert set(block) == set(names)


def test_later_blocks_see_what_the_caller_made_of_earlier_layers(llama, pieces):
    first, later = (f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1))
    kept = linear_layers(llama)["model.layers.0.mlp.down_proj"].weight
    original = kept.detach().clone()
    try:
        blocks = hessians(llama, pieces, [first, later], 1, quiet)
        assert set(next(blocks)) == {first}
        kept.data *= 3
        [matrix] = next(blocks).values()
        rows = fed(llama, pieces)[later].double()
        torch.testing.assert_close(matrix.double(), rows.T @ rows, rtol=1e-4, atol=1e-3)
    finally:
        kept.data = original
    old = fed(llama, pieces)[later].double()
    assert ((matrix - old.T @ old).abs().max() / (old.T @ old).abs().max()) > 0.01
    assert next(blocks, None) is None


def statistics(tiny, folder, **how):
    checkpoint = Checkpoint(tiny, GENERATION, "tiny", "0" * 64, 1)
    how = {"name": "text", "text": "one two three " * 900, "tokens": 600, "skip": 0, "max_length": 256} | how
    return calibrate(checkpoint, folder, "key", 1, quiet, **how)


def test_windows_are_whole_and_begin_after_what_is_left_out(tiny, tmp_path):
    told = statistics(tiny, tmp_path / "a")
    assert (told["tokens"], told["windows"], told["window"]) == (512, 2, 256)
    assert json.loads((tmp_path / "a" / "calibration.json").read_text())["text"] == "text"
    assert np.load(tmp_path / "a" / "windows.npy").shape == (2, 256)
    assert {its.rows for its in load_statistics(tmp_path / "a").values()} == {512}
    text = gguf_checkpoints.TEXT.read_text()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    ids = tokenizer(text)["input_ids"]
    windows = calibration_windows(tokenizer, text, 300, 256 + 255, 256)
    assert windows.tolist() == [ids[300:556]]
    assert calibration_windows(tokenizer, text, 0, 2048, None).shape == (4, 512)


def test_stored_statistics_are_those_that_were_collected(tiny, tmp_path):
    text = gguf_checkpoints.TEXT.read_text()
    statistics(tiny, tmp_path / "a", text=text, tokens=512)
    stored = load_statistics(tmp_path / "a")
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    fresh = collect(model, calibration_windows(tokenizer, text, 0, 512, 256), quiet)
    assert set(stored) == set(fresh)
    for name, its in fresh.items():
        for kind in ("low", "high", "squares"):
            np.testing.assert_array_equal(getattr(stored[name], kind), getattr(its, kind))
            assert getattr(stored[name], kind).dtype == getattr(its, kind).dtype
        for kind in ("low", "high", "counts"):
            np.testing.assert_array_equal(getattr(stored[name].histogram, kind), getattr(its.histogram, kind))


def test_a_text_shorter_than_a_window_is_refused(tiny, tmp_path):
    with pytest.raises(JobError, match="fewer than a window of 256"):
        statistics(tiny, tmp_path / "short", text="too short")
    with pytest.raises(JobError, match="after the 2000 that are measured on"):
        statistics(tiny, tmp_path / "short", text="one two", skip=2000)


class Reader:
    """A tokenizer's answers, some of them wrong."""

    def __init__(self, told, wrong):
        self.answers = dict(zip(told.texts, told.ids, strict=True)) | wrong

    def tokenize(self, text):
        return self.answers[text]


def test_other_ids_are_counted_and_the_first_difference_is_shown(tiny, tmp_path):
    evaluation = "A text that is long enough for its place to be shown, with 4 ½ months of words in it."
    told = TokenizedTexts.of(transformers.AutoTokenizer.from_pretrained(tiny), evaluation)
    told.save(tmp_path / "tokenizer.npz")
    loaded = TokenizedTexts.load(tmp_path / "tokenizer.npz")
    assert loaded.texts == told.texts
    assert len(loaded.texts) > len(HARD) + 4
    assert "a<|im_end|>b" in loaded.texts
    for mine, stored in zip((*told.ids, *told.starts), (*loaded.ids, *loaded.starts), strict=True):
        np.testing.assert_array_equal(mine, stored)
    assert compare_tokenizer(Reader(told, {}), loaded) == {"tokenizer_errors": Figure(0)}
    ids = told.ids[-1].copy()
    ids[10] += 1
    [errors] = compare_tokenizer(Reader(told, {evaluation: ids}), loaded).values()
    assert errors.value == 1
    assert f"{EVALUATION}, near " in errors.detail
    assert f"token 10: the checkpoint's tokenizer gives [{told.ids[-1][10]}, " in errors.detail
    [errors] = compare_tokenizer(Reader(told, {"1": np.zeros(0, np.int64), evaluation: ids}), loaded).values()
    assert errors.value == 2
    assert "'1', token 0: " in errors.detail
    assert "the artifact's no more tokens" in errors.detail

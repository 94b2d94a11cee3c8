"""The calibration pass: what it sums, which text it takes, and the tokenizer's comparison that is stored beside it."""

import json

import gguf_checkpoints
import numpy as np
import pytest
import torch
import transformers

from exporter.bench.tokenization import EVALUATION, HARD, TokenizedTexts, compare_tokenizer
from exporter.calibrate import calibrate, collect
from exporter.errors import JobError
from exporter.texts import TOPICS, calibration_text, standard_library_topics
from exporter.types import GENERATION, Checkpoint


def test_squares_are_summed_for_every_linear_layer_of_either_kind():
    config = transformers.GPT2Config(vocab_size=99, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    model = transformers.GPT2LMHeadModel(config).eval()
    squares, fed = collect(model), []
    model.transformer.h[0].mlp.c_fc.register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0]))  # a Conv1D
    with torch.inference_mode():
        for _ in range(3):
            model(input_ids=torch.randint(0, 99, (1, 20)))
    layers = {f"transformer.h.0.{name}" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}
    assert set(squares) == {*layers, "lm_head"}
    assert squares["transformer.h.0.mlp.c_fc"].dtype == torch.float64
    expected = torch.cat([rows[0] for rows in fed]).double().square().sum(0)
    torch.testing.assert_close(squares["transformer.h.0.mlp.c_fc"], expected, rtol=1e-6, atol=0)


def statistics(tiny, folder, **how):
    checkpoint = Checkpoint(tiny, GENERATION, "tiny", "0" * 64, 1)
    how = {"name": "text", "text": "one two three " * 900, "tokens": 600, "skip": 0, "max_length": 256} | how
    return calibrate(checkpoint, folder, "key", 1, lambda done, total: None, **how)


def test_windows_are_whole_and_begin_after_what_is_left_out(tiny, tmp_path):
    told = statistics(tiny, tmp_path / "a")
    assert (told["tokens"], told["windows"], told["window"]) == (512, 2, 256)
    assert json.loads((tmp_path / "a" / "calibration.json").read_text())["text"] == "text"
    text = gguf_checkpoints.TEXT.read_text()
    statistics(tiny, tmp_path / "whole", text=text, tokens=256, skip=300)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    rest = tokenizer.decode(tokenizer(text)["input_ids"][300:])
    statistics(tiny, tmp_path / "rest", text=rest, tokens=256)
    first, second = ((tmp_path / name / "squares.safetensors").read_bytes() for name in ("whole", "rest"))
    assert first == second


def test_a_text_shorter_than_a_window_is_refused(tiny, tmp_path):
    with pytest.raises(JobError, match="fewer than a window of 256"):
        statistics(tiny, tmp_path / "short", text="too short")


def test_the_text_is_never_the_evaluations(tmp_path):
    topics = standard_library_topics()
    assert calibration_text(None, None, topics, 4096) == (TOPICS, topics, 4096)  # after what is measured
    assert calibration_text(None, None, "another text", 4096) == (TOPICS, topics, 0)
    file = tmp_path / "text.txt"
    file.write_text("the evaluation's\n")
    assert calibration_text(file, None, "another text", 4096)[0] == "text.txt"
    with pytest.raises(JobError, match="give another --calib-text"):
        calibration_text(file, None, "the evaluation's", 4096)


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
    assert compare_tokenizer(Reader(told, {}), loaded) == {"tokenizer_errors": 0, "tokenizer_difference": None}
    ids = told.ids[-1].copy()
    ids[10] += 1
    compared = compare_tokenizer(Reader(told, {evaluation: ids}), loaded)
    assert compared["tokenizer_errors"] == 1
    difference = compared["tokenizer_difference"]
    assert f"{EVALUATION}, near " in difference
    assert f"token 10: the checkpoint's tokenizer gives [{told.ids[-1][10]}, " in difference
    compared = compare_tokenizer(Reader(told, {"1": np.zeros(0, np.int64), evaluation: ids}), loaded)
    assert compared["tokenizer_errors"] == 2
    assert "'1', token 0: " in compared["tokenizer_difference"]
    assert "the artifact's no more tokens" in compared["tokenizer_difference"]

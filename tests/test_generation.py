"""Greedy agreement with the reference, whole generations and batches, on the shipped model in three engines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import last_json
from onnx import numpy_helper
from test_samples import Bounded, Cached, Counting

from exporter.checkpoint.opened import open_checkpoint
from exporter.measure import generation
from exporter.measure.generation import agreement, itself, prompts_of, reference_continuations, time_generation
from exporter.measure.samples import SAMPLES, greedy
from exporter.runner import BatchCachedRunner, CachedRunner
from exporter.targets.gguf.target import GGUF
from exporter.targets.onnx_graph.session import OnnxDecoder
from exporter.types import GENERATION

TARGETS = ("onnx:fp32", "torch:bf16", "gguf:q8_0")
AGREEMENT = ("greedy_agreement", "agreed_tokens", "agreed_tokens_mean", "agreed_tokens_median", "prompts")


def told(new, ids=(3, 4)):
    return {"prompts": [{"ids": list(ids), "new": list(one)} for one in new], "new_tokens": 4}


def test_tokens_are_counted_up_to_the_first_that_differs():
    found = agreement(Cached(), told([[5, 6, 7, 8], [5, 6, 0, 8], [9, 6, 7, 8], [5, 6]]))
    assert found["agreed_tokens"] == [4, 2, 0, 2]
    assert (found["greedy_agreement"], found["agreed_tokens_mean"], found["agreed_tokens_median"]) == (0.5, 2.0, 2.0)
    assert (found["prompts"], found["prompt_tokens"], found["new_tokens"]) == (4, 2, 4)
    assert itself(told([[5, 6, 7, 8], [5, 6]]))["agreed_tokens"] == [4, 2]


class Asked(Cached):
    steps = 0

    def step(self, token):
        self.steps += 1
        return super().step(token)


def test_nothing_is_asked_after_the_first_difference():
    runner = Asked()
    agreement(runner, told([[5, 0, 7, 8]]))
    assert runner.steps == 1
    agreement(runner, told([[5, 6, 7, 8]]))
    assert runner.steps == 1 + 3


class BoundedCached(Cached, Bounded):
    """Takes five tokens."""


def test_what_cannot_be_compared_says_why():
    assert agreement(Counting(), told([[5]])) == {"not_compared": "it has no KV cache"}
    assert agreement(BoundedCached(), told([[5, 6, 7, 0]]))["agreed_tokens"] == [3]
    assert agreement(BoundedCached(), told([[5, 6, 7, 0]]))["greedy_agreement"] == 1.0
    found = agreement(BoundedCached(), told([[5]], ids=range(6)))
    assert found == {"not_compared": "it takes no more than 5 tokens, and a prompt has 6"}


def test_prompts_are_from_all_over_the_text_and_begin_as_a_text_does():
    ids = np.arange(1, 1001)
    prompts = prompts_of(ids, None, None)
    assert [prompt[0] for prompt in prompts] == [1, 139, 277, 415, 554, 692, 830, 969]
    assert all(len(prompt) == generation.PROMPT_TOKENS for prompt in prompts)
    assert [prompt[0] for prompt in prompts_of(ids, 1, None)] == [1] * 8
    assert [prompt[0] for prompt in prompts_of(ids, 7, None)][1] == 139  # a text here does not begin so
    assert {len(prompt) for prompt in prompts_of(ids, None, 10)} == {5}
    stored = reference_continuations(Cached(), np.arange(100) % 10, None, [], 40)
    assert (stored["new_tokens"], len(stored["prompts"][0]["ids"])) == (20, 20)
    assert reference_continuations(Cached(), np.arange(100) % 10, None, [3], None)["prompts"][0]["new"] == [2, 3]


def test_what_is_not_timed_says_why():
    assert time_generation(Counting(), np.arange(9), 4096) == {"not_timed": "it has no KV cache"}
    assert "228 tokens are generated" in time_generation(Cached(), np.arange(9), 227)["not_timed"]
    run = time_generation(Cached(), np.arange(9), 228)
    assert run["seconds"] > 0
    assert run["tokens_per_s"]["1"] > 0
    assert (run["tokens_per_s"]["4"], run["tokens_per_s"]["8"]) == (None, None)
    assert run["not_timed"] == "more than one sequence at once: counts is asked for one at a time here"
    runs = [run | {"seconds": one} for one in (1.0, 5.0, 2.0)]
    summed = generation.summarize(runs)
    assert (summed["end_to_end_s"], summed["end_to_end_runs"], summed["tokens_per_s"]["8"]) == (2.0, 3, None)
    assert set(summed) == set(generation.TIMED)


@pytest.fixture(scope="module")
def done(run_here, converter_cache, tmp_path_factory):
    """The report of the shipped model for three engines, and its folder."""
    output = tmp_path_factory.mktemp("generation") / "out"
    targets = [word for target in TARGETS for word in ("-t", target)]
    told = run_here(
        "run", "-m", "tiny", "--eval-tokens", 512, "--threads", 1, "--repeats", 1, *targets,
        "--min-greedy-agreement", 0.2, "-o", output, "--format", "json",
    )  # fmt: skip
    return last_json(told), output


def rows_of(report):
    return {f"{row['target']}:{row['precision']}": row for row in report["results"]}


@pytest.fixture(scope="module")
def opened(done, tiny):
    """opened(variant): its runner."""
    _, output = done

    def open_one(variant):
        if variant == "torch:fp32":
            return open_checkpoint(tiny, GENERATION, 1)
        if variant == "onnx:fp32":
            return OnnxDecoder(output / "onnx-fp32" / "onnx" / "model.onnx", 1)
        if variant == "torch:bf16":
            return open_checkpoint(output / "torch-bf16", GENERATION, 1, "auto")
        return GGUF.open(output / "gguf-q8_0", 1)

    return open_one


def stored(output: Path):
    return json.loads((output / "reference" / SAMPLES).read_text(encoding="utf-8"))["generation"]


def test_every_row_has_its_agreement(done):
    report, output = done
    rows = rows_of(report)
    assert rows["torch:fp32"]["generation"]["agreed_tokens"] == [len(one["new"]) for one in stored(output)["prompts"]]
    assert rows["onnx:fp32"]["generation"]["greedy_agreement"] == 1.0
    for row in rows.values():
        found = row["generation"]
        assert (found["prompts"], found["prompt_tokens"], found["new_tokens"]) == (8, 32, 32)
        assert found["agreed_tokens_mean"] == np.mean(found["agreed_tokens"])
        assert 0.2 <= found["greedy_agreement"] <= 1
        assert found["not_compared"] is None
    gates = [gate for gate in rows["gguf:q8_0"]["gates"] if gate["name"] == "min_greedy_agreement"]
    assert [gate["passed"] for gate in gates] == [True]


def test_every_row_is_timed(done):
    rows = rows_of(done[0])
    for row in rows.values():
        found = row["generation"]
        assert found["end_to_end_s"] > 0
        assert (found["end_to_end_prompt"], found["end_to_end_new"], found["end_to_end_runs"]) == (128, 100, 1)
    for name in ("torch:fp32", "torch:bf16", "onnx:fp32"):
        assert all(rows[name]["generation"]["tokens_per_s"][size] > 0 for size in "148"), name
        assert rows[name]["generation"]["not_timed"] is None
    gguf = rows["gguf:q8_0"]["generation"]
    assert gguf["tokens_per_s"]["1"] > 0
    assert (gguf["tokens_per_s"]["4"], gguf["tokens_per_s"]["8"]) == (None, None)
    assert "is asked for one at a time here" in gguf["not_timed"]


def test_the_report_shows_it(done):
    _, output = done
    markdown, page = ((output / name).read_text(encoding="utf-8") for name in ("report.md", "report.html"))
    assert "| Greedy agree |" in markdown
    assert "8 of 8 prompts of 32 tokens are continued as the reference continues them" in markdown
    assert '<h2 id="generation">How it generates</h2>' in page
    assert "100 tokens after a prompt of 128: " in page


def by_batch(runner, prompts, count):
    """The same greedy continuations of all prompts at once."""
    logits, found = runner.prefill_batch(np.stack(prompts)), []
    for _ in range(count):
        found.append(logits.argmax(-1))
        logits = runner.step_batch(found[-1])
    return np.stack(found, 1).tolist()


@pytest.mark.parametrize("variant", ["torch:fp32", "onnx:fp32"])
def test_a_batch_of_prompts_gives_the_tokens_that_they_give_one_by_one(variant, done, opened):
    prompts = [np.array(one["ids"]) for one in stored(done[1])["prompts"]]
    with opened(variant) as runner:
        assert isinstance(runner, BatchCachedRunner)
        alone = [greedy(runner, prompt, (), 24) for prompt in prompts]
        assert by_batch(runner, prompts, 24) == alone
        assert [greedy(runner, prompt, (), 24) for prompt in prompts] == alone  # the cache is one prompt's again
        logits = runner.prefill_batch(np.stack(prompts))
        np.testing.assert_allclose(logits, [runner.prefill(prompt) for prompt in prompts], atol=2e-4)


@pytest.mark.parametrize("variant", TARGETS)
def test_the_report_s_agreement_is_that_of_whole_continuations(variant, done, opened):
    """Asked anew, the usual way: the whole continuation, beside the reference's."""
    report, output = done
    with opened(variant) as runner:
        assert isinstance(runner, CachedRunner)
        for one, found in zip(
            stored(output)["prompts"], rows_of(report)[variant]["generation"]["agreed_tokens"], strict=True
        ):
            new = greedy(runner, np.array(one["ids"]), (), len(one["new"]))
            unlike = [at for at, (a, b) in enumerate(zip(new, one["new"], strict=True)) if a != b]
            assert found == (unlike[0] if unlike else len(new))
    with opened("torch:fp32") as runner:
        assert [greedy(runner, np.array(one["ids"]), (), 32) for one in stored(output)["prompts"]] == [
            one["new"] for one in stored(output)["prompts"]
        ]


def test_a_broken_artifact_agrees_little_and_its_gate_fails(done, run_here):
    """The rows of one matrix moved by one; `bench` needs what the reference's folder has alone."""
    before, output = done
    path = output / "onnx-fp32" / "onnx" / "model.onnx"
    whole = path.read_bytes()
    model = onnx.load(path)
    matrices = [one for one in model.graph.initializer if len(one.dims) == 2 and min(one.dims) >= 256]
    broken = matrices[-1]
    broken.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(broken), 1, axis=0), broken.name))
    onnx.save(model, path)
    try:
        done_again = run_here("bench", output, "--format", "json")
    finally:
        path.write_bytes(whole)
    assert done_again.returncode == 3, done_again.stderr
    rows = rows_of(json.loads(done_again.stdout.splitlines()[-1]))
    found = rows["onnx:fp32"]["generation"]
    assert found["agreed_tokens_mean"] < 8
    assert found["greedy_agreement"] < 0.2
    gates = {gate["name"]: gate for gate in rows["onnx:fp32"]["gates"]}
    assert not gates["min_greedy_agreement"]["passed"]
    for name in ("torch:bf16", "gguf:q8_0"):  # measured again, they are what they were
        for key in AGREEMENT:
            assert rows[name]["generation"][key] == rows_of(before)[name]["generation"][key]
        assert rows[name]["generation"]["end_to_end_s"] > 0


def test_what_was_timed_is_used_again_and_it_can_be_left_out(run_here, tmp_path):
    words = ("run", "-m", "tiny", "--eval-tokens", 256, "--threads", 1, "-t", "onnx:fp32", "--format", "json", "-o")
    first = last_json(run_here(*words, tmp_path / "o", "--repeats", 1, "--no-generation"))
    assert all(set(row["generation"].values()) == {None} for row in first["results"])
    assert "generation" not in json.loads((tmp_path / "o" / "reference" / SAMPLES).read_text())
    second = last_json(run_here(*words, tmp_path / "o", "--repeats", 1))
    third = last_json(run_here(*words, tmp_path / "o", "--repeats", 1))
    assert all(row["generation"]["end_to_end_s"] > 0 for row in second["results"])
    assert [row["generation"] for row in third["results"]] == [row["generation"] for row in second["results"]]

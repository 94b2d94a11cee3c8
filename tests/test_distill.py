"""A student learns from its teacher: three families, zeros that stay, and a training that can be killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from statistics import fmean

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from shaped import answers, family, windows

from exporter.checkpoint.linear import linear_layers
from exporter.errors import BuildError, JobError
from exporter.stages.distill.distill import Lessons, distill
from exporter.stages.distill.options import DistillOptions
from exporter.stages.prune.depth import prune_depth
from exporter.stages.prune.options import parse
from exporter.stages.prune.sparse import prune_to_zeros
from exporter.stages.prune.student import cut_student, parse_shape
from exporter.store import disk_full
from exporter.types import CLASSIFICATION, FEATURES, GENERATION, SINGLE_LABEL

FEW = {"steps": 12, "batch": 2, "save": 4, "lr": 3e-4, "alpha": 0.0}  # random ids have no task to learn
TASKS = {"llama": GENERATION, "gpt2": GENERATION, "bert": FEATURES, "bert-classifier": CLASSIFICATION}


def lessons(kind, count=64, labels=False):
    """Windows of random ids, with labels where they are asked for; the last ones are shorter where there is padding."""
    rows = [{"input_ids": row.tolist()} for row in windows(count)]
    if TASKS[kind] != GENERATION:
        rows = [{"input_ids": row["input_ids"][: 40 - number % 5]} for number, row in enumerate(rows)]
    if labels:  # what the teacher would say: another label of random ids can only be learned by heart
        teacher = family(kind)
        rows = [{**row, "labels": int(answers(teacher, torch.tensor([row["input_ids"]])).argmax())} for row in rows]
    return Lessons("a text", rows, TASKS[kind], SINGLE_LABEL if kind == "bert-classifier" else "", 0)


def taught(kind, folder, options, student=None, learned=None, progress=lambda done, total: None, layers=1, states=None):
    """(record and history, the folder) of a distillation of a family's model without one of its layers."""
    torch.set_num_threads(1)
    teacher, base = family(kind), folder / "base"
    student = student or family(kind)
    if layers:
        prune_depth(student, layers, windows())
    student.save_pretrained(base)
    saved = folder / "taught"
    saved.mkdir()
    given = (
        base,
        learned or lessons(kind),
        DistillOptions(**FEW | options),
        saved,
        states or folder / "states",
        progress,
    )
    return distill(type(teacher).from_pretrained, teacher, student, *given), saved


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("kind", TASKS)
def test_what_is_saved_is_nearer_to_the_teacher(kind, tmp_path):
    made, folder = taught(kind, tmp_path, {})
    teacher, again = family(kind), type(family(kind)).from_pretrained(folder).eval()
    before = type(teacher).from_pretrained(tmp_path / "base").eval()
    held_out = windows(64)[[19, 39, 59]]  # one in twenty

    def error(model):
        return float((answers(model, held_out) - answers(teacher, held_out)).square().mean())

    assert error(again) < 0.95 * error(before)
    record = json.loads(json.dumps(made["record"]))
    assert record["after"] < record["before"] == record["held_out"][0][1]
    assert [step for step, *_ in record["curve"]] == list(range(1, 13))
    assert [step for step, _ in record["held_out"]] == [0, 4, 8, 12]
    assert (record["examples"], record["examples_held_out"]) == (61, 3)
    assert made["history"][0].startswith("distilled 12 steps on a text: ")
    assert again.config.num_hidden_layers == 3


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("asked", ["magnitude:2:4", "magnitude-layer:0.5"])
def test_zeros_stay_zeros(kind, asked, tmp_path):
    student = family(kind)
    prune_to_zeros(student, parse(asked), None, lambda done, total: None)
    zeros = {name: layer.weight == 0 for name, layer in linear_layers(student).items() if "lm_head" not in name}
    made, folder = taught(kind, tmp_path, {}, student, layers=0)
    again = linear_layers(type(student).from_pretrained(folder))
    for name, mask in zeros.items():
        assert torch.equal(again[name].weight == 0, mask), name
    assert made["record"]["zeros_held"] == sum(int(mask.sum()) for mask in zeros.values())


def test_labels_are_learned_where_there_are_any(tmp_path):
    learned = lessons("bert-classifier", labels=True)
    (tmp_path / "hard").mkdir()
    made, _ = taught("bert-classifier", tmp_path, {"alpha": 0.1}, learned=learned)
    assert made["record"]["hard"]
    assert all(hard > 0 for _, _, _, hard, _ in made["record"]["curve"])
    only, _ = taught("bert-classifier", tmp_path / "hard", {"alpha": 1.0}, learned=learned)
    assert only["record"]["measure"] == "the task's loss"
    for _, whole, _, hard, _ in only["record"]["curve"]:
        assert whole == pytest.approx(hard, rel=1e-5)


def test_hidden_states_are_matched_through_projections(tmp_path):
    """The projections are the training's own: the saved student has none."""
    student = family("llama")
    cut_student(student, parse_shape("hidden:42"))
    made, folder = taught("llama", tmp_path, {"features": 1.0, "steps": 40}, student)
    errors = [features for *_, features in made["record"]["curve"]]
    assert fmean(errors[-5:]) < 0.95 * fmean(errors[:5])  # of different examples each
    assert weights(folder).keys() == weights(tmp_path / "base").keys()


def test_a_seed_gives_the_same_and_another_does_not(tmp_path):
    folders = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        (tmp_path / name).mkdir()
        folders.append(taught("bert", tmp_path / name, {"seed": seed})[1])
    one, two, three = map(weights, folders)
    assert same(one, two)
    assert not same(one, three)


def test_accumulation_is_a_larger_batch(tmp_path):
    curves = []
    for name, options in (("at once", {"batch": 4}), ("in parts", {"batch": 2, "accumulate": 2})):
        (tmp_path / name).mkdir()
        made, _ = taught("llama", tmp_path / name, {"steps": 4, **options})
        curves.append([whole for _, whole, *_ in made["record"]["curve"]])
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_bfloat16_learns_too(tmp_path):
    made, folder = taught("llama", tmp_path, {"bf16": True})
    assert made["record"]["after"] < made["record"]["before"]
    assert all(tensor.dtype == torch.float32 for tensor in weights(folder).values())


@pytest.mark.parametrize("kind", ["gpt2", "bert"])  # a tied head; both draw dropout
def test_killed_and_run_again_is_as_never_killed(kind, tmp_path):
    (tmp_path / "whole").mkdir()
    whole, folder = taught(kind, tmp_path / "whole", {})
    script = textwrap.dedent(
        f"""
        import sys, time
        from pathlib import Path
        sys.path.insert(0, "tests")
        from test_distill import taught

        def progress(done, total):
            print(done, flush=True)
            time.sleep(0.2)

        taught({kind!r}, Path(sys.argv[1]), {{}}, progress=progress)
        """
    )
    again = tmp_path / "again"
    again.mkdir()
    command = [sys.executable, "-c", script, again]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout is not None
        assert next(line for line in run.stdout if line == "6\n") == "6\n"
        run.send_signal(signal.SIGKILL)
    assert [path.name for path in (again / "states").glob("checkpoint-*")] == ["checkpoint-4"]
    shutil.copytree(again / "states" / "checkpoint-4", again / "states" / "checkpoint-8")
    (again / "states" / "checkpoint-8" / "whole").unlink()  # as one that was being written
    assert not list((again / "taught").iterdir())
    (again / "taught").rmdir()
    shutil.rmtree(again / "base")
    seen = []
    resumed, other = taught(kind, again, {}, progress=lambda done, total: seen.append(done))
    assert seen == list(range(5, 13))
    assert resumed["record"]["curve"] == whole["record"]["curve"]
    assert resumed["record"]["held_out"] == whole["record"]["held_out"]
    assert same(weights(other), weights(folder))


def test_it_stops_when_held_out_text_says_so(tmp_path):
    """Each step learns its own example by heart: the others are answered worse, and the best state is kept."""
    options = {"steps": 60, "lr": 1e-3, "save": 2, "patience": 2}
    made, folder = taught("gpt2", tmp_path, options, learned=lessons("gpt2", count=8))
    record = made["record"]
    assert record["steps_done"] < 60
    assert 0 < record["best_step"] == record["steps_done"] - 4
    assert record["after"] == min(value for _, value in record["held_out"])
    student, held_out = type(family("gpt2")).from_pretrained(folder).eval(), windows(8)[[7]]
    wanted, ours = ((answers(one, held_out) / 2).log_softmax(-1)[:, :-1] for one in (family("gpt2"), student))
    assert float((wanted.exp() * (wanted - ours)).sum(-1).mean()) == pytest.approx(record["after"], rel=1e-4)


class Killed(BaseException):
    """Nobody catches it."""


@pytest.mark.parametrize("stop", [3, 7, 8])  # before the first look, after the best one, and at the last
def test_patience_outlives_a_kill(stop, tmp_path):
    options, learned = {"steps": 60, "lr": 1e-3, "save": 2, "patience": 2}, lessons("gpt2", count=8)
    for name in ("whole", "again"):
        (tmp_path / name).mkdir()
    whole, folder = taught("gpt2", tmp_path / "whole", options, learned=learned)
    assert whole["record"]["steps_done"] == 8

    def progress(done, total):
        if done == stop:
            raise Killed

    with pytest.raises(Killed):
        taught("gpt2", tmp_path / "again", options, learned=learned, progress=progress)
    for _ in range(2):  # the second time it had ended, and was killed before anything was kept of it
        for name in ("taught", "base"):
            shutil.rmtree(tmp_path / "again" / name)
        resumed, other = taught("gpt2", tmp_path / "again", options, learned=learned)
        assert resumed["record"]["curve"] == whole["record"]["curve"]
        assert resumed["record"]["held_out"] == whole["record"]["held_out"]
        assert same(weights(other), weights(folder))


def test_what_bettered_nothing_is_not_kept(tmp_path):
    with pytest.raises(
        BuildError, match=r"distillation made nothing better: KL to the teacher .*--distill-lr \(now 1\)"
    ):
        taught("llama", tmp_path, {"lr": 1.0, "steps": 4})
    assert not list((tmp_path / "taught").iterdir())


def test_a_loss_that_is_no_number_ends_it(tmp_path):
    student = family("llama")
    prune_depth(student, 1, windows())
    student.model.norm.weight.data[0] = float("nan")
    with pytest.raises(BuildError, match="diverged after 0 steps: the loss is nan"):
        taught("llama", tmp_path, {}, student, layers=0)
    assert not list((tmp_path / "taught").iterdir())


@pytest.mark.parametrize("size", ["100k", "1m"])  # of the weights, of the optimizer's state
def test_a_full_disk_is_told_as_one(size, mounted, tmp_path):
    with pytest.raises((OSError, SafetensorError)) as caught:
        taught("gpt2", tmp_path, {}, states=mounted(f"size={size}") / "states")
    assert disk_full(caught.value)
    assert not list((tmp_path / "taught").iterdir())


def test_too_few_examples(tmp_path):
    with pytest.raises(JobError, match="gives 2 windows to learn on, and a step of 2 with one held out needs 3"):
        taught("llama", tmp_path, {}, learned=lessons("llama", count=2))


def test_held_out_examples_are_spread_and_never_learned():
    for count, held_out in ((3, 1), (19, 1), (20, 1), (40, 2), (1000, 16)):
        rows = [{"input_ids": [number]} for number in range(count)]
        learned, held = Lessons("a text", rows, GENERATION, "", 0).parted(2)
        assert len(held) == held_out
        assert sorted(row["input_ids"][0] for row in [*learned, *held]) == list(range(count))
    assert [row["input_ids"][0] for row in held][-1] > 900


def test_another_width_is_no_teacher_of_vectors(tmp_path):
    student = type(family("bert"))(type(family("bert").config)(**family("bert").config.to_dict() | {"hidden_size": 32}))
    with pytest.raises(JobError, match="the teacher has the width 48 and the student 32"):
        taught("bert", tmp_path, {}, student, layers=0)


def test_pages_of_the_cache_are_no_part(tmp_path):
    """Trainer writes to the folder of states alone."""
    taught("llama", tmp_path, {})
    assert {path.name for path in Path(tmp_path).iterdir()} == {"base", "taught", "states"}

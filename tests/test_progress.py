"""What is told of work while it goes on: true, never backwards, and with the time that is left once it was measured."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from functools import partial
from itertools import groupby

import pytest
from conftest import STEP

from exporter import Job, cache, run, store
from exporter.command.screen import Phase, Screen, in_minutes
from exporter.progress import counting, halves
from exporter.quantization.preparing import How, prepare
from exporter.quantization.quantizing import Quantizer
from exporter.scheme import Scheme
from exporter.types import GENERATION, Checkpoint

INT4 = Scheme(weight="int4", group=32, symmetric=False)
STATIC = Scheme(weight="int8", input="static")
LAYERS = 22  # of the tiny model, its head, which is no layer for 4 bits, among them
WINDOWS = 6  # of 8, for two are held out

quick = pytest.mark.quick


class Clock:
    """Seconds that a test makes pass."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def phases(events):
    """(name, [(done, total), ...]) of each phase, of events (name, done, total). One that ended may begin again."""
    found = []
    for name, done, total in events:
        last = found[-1] if found else None
        again = last is not None and last[1][-1] == (total, total) and done == 0 < total
        if last is None or last[0] != name or again:
            found.append((name, []))
        found[-1][1].append((done, total))
    return found


def check(events):
    """Each phase goes from 0 to its total, and never back; returns the names and totals."""
    told = []
    for name, counts in phases(events):
        known = [(done, total) for done, total in counts if total]  # what is not known yet is told before
        assert counts[: len(counts) - len(known)] == [(0, 0)] * (len(counts) - len(known)), name
        if known:
            for each in zip(*known, strict=True):  # done; and the total, which may grow by what was found to be left
                assert list(each) == sorted(each), (name, known)
            assert known[-1][0] == known[-1][1], (name, known)
        told.append((name, known[-1][1] if known else 0))
    return told


@pytest.fixture
def made(tiny, tmp_path):
    """made(how, *budgets): what is told while a mix is chosen and written for each budget."""

    def make(how, *budgets):
        events = []

        def step(name):
            return lambda done, total: events.append((name, done, total))

        keep = partial(cache.RANKINGS.kept, store.content_key(str(tmp_path)), print)
        checkpoint = Checkpoint(tiny, GENERATION, "tiny", "0" * 64, 0)
        text = {"name": "calib", "text": (tiny / "calib.txt").read_text(encoding="utf-8")}
        (tmp_path / "prepared").mkdir()
        prepare(checkpoint, how, 1, step, tmp_path / "prepared", **text, skip=0, tokens=1024, max_length=128)
        for budget in budgets:
            quantizer = Quantizer(checkpoint, how, 1, step, tmp_path / "prepared", tmp_path / "originals", keep)
            (tmp_path / f"{budget}").mkdir()
            quantizer.write(quantizer.choose(budget), budget, tmp_path / f"{budget}")
        return check(events)

    return make


CHOSEN = [
    ("loading the model", 0), ("keeping the float weights", LAYERS), ("answers in float", 2),
    ("rounding mix 1", LAYERS), ("simulating mix 1", 2),
]  # fmt: skip


def test_gptq_and_sensitivity_are_told_in_layers_and_groups(made):
    told = made(How((INT4, Scheme(weight="int8", group=32)), True, "min-max", False, "gptq"), 1e-3)
    assert told[:3] == [("loading the model", 0), ("GPTQ", LAYERS - 1), ("rounded weights", LAYERS - 1)]
    assert told[3:8] == CHOSEN
    names = [name for name, _ in told[8:]]
    assert names[0] == "sensitivity"
    mixes = [name for name in names if name.startswith("simulating mix")]
    assert mixes == [f"simulating mix {number}" for number in range(2, len(mixes) + 2)]
    assert names[-4:] == ["rounding", "writing the checkpoint", f"rounding {mixes[-1][11:]}", mixes[-1]]


def test_estimates_are_told(made):
    how = How((INT4, Scheme(weight="int8", group=32)), True, "min-max", False, "nearest", sensitivity="estimated")
    told = made(how, 1e-3)
    names = [name for name, _ in told]
    at = names.index("sensitivity")
    assert names[at : at + 4] == ["sensitivity", "gradients", "sensitivity at rung 2", "gradients"]
    assert names[at + 4] == "sensitivity of the worst"
    assert dict(told)["gradients"] == 2
    assert dict(told)["sensitivity of the worst"] == 10


def test_smoothing_and_ranges_are_told(made):
    told = made(How((STATIC,), False, "entropy", True, "nearest"), 1.0)
    assert [name for name, _ in told[:9]] == [
        "loading the model", "looking for inputs to scale", "calibrating", "rows of inputs", "smoothing",
        "keeping the float weights", "calibrating", "ranges", "loading the model",
    ]  # fmt: skip
    assert told[2] == told[6] == ("calibrating", WINDOWS)
    assert told[7] == ("ranges", LAYERS)


def test_awq_is_told(made):
    told = made(How((INT4,), False, "min-max", False, "awq"))
    assert [name for name, _ in told] == [
        "loading the model", "looking for inputs to scale", "rows of inputs", "AWQ", "keeping the float weights",
        "rows of inputs", "rounded weights",
    ]  # fmt: skip


def test_palettes_are_told_in_layers(made):
    told = made(How((Scheme(weight="palette4"),), False, "min-max", False, "gptq"))
    assert told == [("loading the model", 0), ("calibrating", WINDOWS), ("palettes", LAYERS - 1)]


def test_a_whole_run_never_goes_back(tmp_path, monkeypatch):
    """What exporter.run tells its caller, of all that it does; and what a person would see of it."""
    monkeypatch.setenv("EXPORTER_CACHE", str(tmp_path / "cache"))  # in which nothing was found before
    events = []
    fields = {"eval_tokens": 512, "calib_tokens": 2048, "repeats": 2, "threads": 1, "output": tmp_path / "out"}
    targets = ("onnx:int8-static", "onnx:int4-weight")
    report = run(Job(model="tiny", target=targets, **fields), lambda *event: events.append(event))
    assert report["passed"]
    names = {name for name, _ in check(events)}
    assert {"reference", "calibrating", "smoothing", "GPTQ", "simulating mix 1", "writing the checkpoint"} <= names
    assert {"quality onnx:int8-static", "speed"} <= names


@quick
def test_items_are_counted_from_0_to_all_of_them():
    told = []
    assert list(counting("abc", lambda *at: told.append(at))) == ["a", "b", "c"]
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert list(counting((), lambda *at: told.append(at))) == []
    assert len(told) == 4


@quick
def test_two_halves_are_one_progress():
    told = []
    first, second = halves(lambda *at: told.append(at))
    for part in (first, second):
        for done in range(4):
            part(done, 3)
    assert told == [(done // 2, 3) for done in (0, 1, 2, 3, 3, 4, 5, 6)]


@quick
def test_the_time_left_is_told_once_two_pieces_were_measured():
    clock = Clock()
    phase = Phase("sensitivity", clock)
    seen = []
    for done in range(5):
        phase.told(done, 5)
        seen.append(phase.left)
        clock.now += 10
    assert seen == ["", "", "about 0:30 left", "about 0:20 left", "about 0:10 left"]
    phase.told(5, 5)
    assert phase.left == ""


@quick
def test_a_phase_whose_beginning_was_not_told_is_measured_from_its_first_piece():
    clock = Clock()
    phase = Phase("calibrating", clock)
    clock.now = 1000.0  # loading, of which the windows that follow tell nothing
    phase.told(1, 4)
    clock.now += 10
    assert phase.left == ""
    phase.told(2, 4)
    assert phase.left == "about 0:20 left"


@quick
def test_the_time_left_shrinks_while_a_piece_is_worked_on_and_grows_where_it_takes_longer():
    clock = Clock()
    phase = Phase("GPTQ", clock)
    for done in range(3):
        phase.told(done, 4)
        clock.now += 10
    clock.now = 24.0
    assert phase.seconds_left == 16.0  # of two pieces of 10, one begun 4 seconds ago
    clock.now = 80.0
    assert phase.seconds_left > 20  # it is no piece of 10
    phase.told(3, 4)
    clock.now += 1000
    assert phase.seconds_left >= 1


@quick
def test_what_is_not_counted_has_no_time_left():
    clock = Clock()
    phase = Phase("exporting onnx:fp32", clock)
    for _ in range(3):
        phase.told(0, 0)
        clock.now += 40
    assert str(phase) == "exporting onnx:fp32, 2:00 so far"
    phase.told(0, 7)  # it is known later
    phase.told(1, 7)
    assert str(phase) == "exporting onnx:fp32 1/7, 2:00 so far"


@quick
def test_minutes_are_rounded_up():
    assert [in_minutes(seconds) for seconds in (0.2, 59.1, 750, 3661)] == ["0:01", "1:00", "12:30", "1:01:01"]


@quick
def test_a_step_is_a_line_with_its_seconds_in_a_pipe_too(capsys):
    with Screen(False) as screen:
        screen.progress("reading weights", 3, 9)
        for number, step in enumerate(("reference", "export onnx:fp32", "speed"), 2):
            screen.step(step, number, 4)
            screen.progress("a part of it", 1, 2)
    lines = capsys.readouterr().err.splitlines(keepends=True)
    assert all(STEP.fullmatch(line) for line in lines)
    assert [line.rpartition("  ")[0] for line in lines] == [
        "[1/4] check", "[2/4] reference", "[3/4] export onnx:fp32", "[4/4] speed",
    ]  # fmt: skip


@quick
def test_a_long_step_is_told_now_and_then_in_a_pipe(capsys):
    with Screen(False, silence=0.1) as screen:
        screen.step("export onnx:int4-weight", 2, 3)
        for done in range(6):
            screen.progress("sensitivity", done, 150)
            time.sleep(0.1)
        screen.progress("writing the checkpoint", 0, 0)
        time.sleep(0.9)
    first, *lines, last = capsys.readouterr().err.splitlines()
    assert (first[:11], last[:29]) == ("[1/3] check", "[2/3] export onnx:int4-weight")
    assert 3 <= len(lines) <= 12  # ever more seldom
    left = r"\[2/3\] sensitivity \d/150, (about 0:1\d left|0:01 so far)"
    parts = [name for name, _ in groupby(line.split()[1] for line in lines)]
    assert parts == ["sensitivity", "writing"]
    assert all(re.fullmatch(left, line) for line in lines if "sensitivity" in line), lines
    assert any("left" in line for line in lines)
    assert lines[-1] == "[2/3] writing the checkpoint, 0:01 so far"


@quick
def test_a_short_step_is_told_nothing_of(capsys):
    with Screen(False) as screen:
        screen.progress("reading weights", 3, 9)
    assert capsys.readouterr().err == ""


@quick
def test_a_step_that_failed_is_not_told_as_done(capsys):
    def fails():
        with Screen(False) as screen:
            screen.step("reference", 2, 4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert [line.partition("  ")[0] for line in capsys.readouterr().err.splitlines()] == ["[1/4] check"]


AT_A_TERMINAL = """
import time
from exporter.command.screen import Screen
with Screen(False) as screen:
    screen.step("export", 2, 3)
    for done in range(4):
        screen.progress("sensitivity", done, 4)
        time.sleep(0.4)
    screen.progress("writing", 0, 0)
    time.sleep(0.4)
"""


@pytest.mark.program
def test_at_a_terminal_the_bar_has_the_time_left():
    """And what is not counted has not the pieces of what was before it."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen([sys.executable, "-c", AT_A_TERMINAL], stderr=theirs, env=os.environ | {"COLUMNS": "120"})
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 1 << 16):
            shown += piece
    except OSError:  # how a terminal says that nobody writes to it any more
        pass
    assert child.wait(timeout=60) == 0
    frames = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown.decode()).replace("\r", "\n").splitlines()
    bars = [line for line in frames if "sensitivity" in line]
    assert any(re.search(r" 0/4 0:00:00 *$", line) for line in bars), bars
    assert not any("left" in line for line in bars if re.search(r" [01]/4 ", line)), bars
    assert any(re.search(r" 3/4 0:00:01 about 0:01 left *$", line) for line in bars), bars
    assert any(re.search(r"2/3 writing .* 0/\? 0:00:00 *$", line) for line in frames), frames

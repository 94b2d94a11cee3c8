"""The table of tasks, targets and precisions: each cell has a quality gate, or is refused with a reason."""

import pytest
from bench_results import run_module

from bench.tasks import plain, refusals, table
from exporter.form import FORMS
from exporter.targets.known import BUILTIN, REFERENCE
from exporter.tasks.known import TASKS
from exporter.types import Gates, Preparation

pytestmark = pytest.mark.quick
CELLS = [
    (task, target, precision)
    for task in TASKS
    for target in BUILTIN.values()
    for precision in target.precisions
    if str(REFERENCE) != f"{target.name}:{precision}"
]  # fmt: skip


def quality_gates(limits, task):
    """The gates that judge how near an artifact's answers are: those of a figure that the task has."""
    has = {*TASKS[task].of_itself, *(["ppl_ratio"] if FORMS[task].answers == "vocabulary" else [])}
    return [name for name in Gates.__dataclass_fields__ if name[4:] in has and getattr(limits, name) is not None]


@pytest.mark.parametrize(("task", "target", "precision"), CELLS, ids=lambda one: getattr(one, "name", str(one)))
def test_each_cell_is_judged_or_refused(task, target, precision):
    reason = refusals(target, task)[precision]
    if reason is not None:
        assert reason.strip()
        assert "\n" not in reason
        return
    assert quality_gates(target.precisions[precision].limits(task), task)


def test_each_task_is_taken_by_torch_and_onnx():
    for task in TASKS:
        for name in ("torch", "onnx"):
            taken = [precision for precision, reason in refusals(BUILTIN[name], task).items() if reason is None]
            assert "fp32" in taken or name == "torch", task
            assert len(taken) > 1, task


def test_forms_and_tasks_are_of_the_same_names():
    assert list(TASKS) == list(FORMS)
    for task in TASKS.values():
        assert task.of_itself
        assert task.example


@pytest.mark.program
def test_the_page_has_the_table():
    done = run_module("bench.tasks", "--check")
    assert done.returncode == 0, done.stderr
    assert table().startswith("| task | torch | onnx |")


@pytest.mark.parametrize("name", ["coreml", "litert"])
def test_what_a_task_is_measured_on_fits_into_the_usual_sizes(name, tmp_path):
    """A size is a number there: no default may refuse a task's own window."""
    target = BUILTIN[name]
    assert target.options is not None
    for task in TASKS:
        if refusals(target, task)[target.default] is None:
            options = target.options.model_validate({})
            window = TASKS[task].window
            asked = Preparation(tmp_path, plain(task), task, target.default, options, tmp_path, True, window, 10**6)
            assert target.prepare(asked) is None, task

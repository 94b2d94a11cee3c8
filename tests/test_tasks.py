"""The table of tasks, targets and precisions: each cell has a quality gate, or is refused with a reason."""

import pytest
from bench_results import run_module

from bench.tasks import quality_gates, refusals, table
from exporter.form import FORMS
from exporter.targets.known import BUILTIN, REFERENCE
from exporter.tasks.known import TASKS

pytestmark = pytest.mark.quick
CELLS = [
    (task, target, precision)
    for task in TASKS
    for target in BUILTIN.values()
    for precision in target.precisions
    if str(REFERENCE) != f"{target.name}:{precision}"
]  # fmt: skip


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

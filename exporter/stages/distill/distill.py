"""Distillation: a teacher and a smaller student in, an ordinary checkpoint of the student out.

The student is trained on the answers of its teacher (objective.py) by transformers' Trainer (trainer.py). One example
in twenty is held out: nothing is learned of it, what answered it best is kept, and a student that does not answer it
better than it did before is refused. A weight of a linear layer that is 0 stays 0: pruned zeros survive.

Memory, in float32 copies: one of the teacher, four of the student (weights, gradients, AdamW's two moments), and two
tensors of logits, [batch, window, vocabulary].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.folder import carry
from exporter.checkpoint.linear import linear_layers
from exporter.checkpoint.model import Load
from exporter.checkpoint.saving import save_float32
from exporter.checkpoint.tokenizer import check_ids, rows_of
from exporter.errors import BuildError, JobError
from exporter.stages.distill.options import DistillOptions
from exporter.types import FEATURES, GENERATION, REGRESSION

if TYPE_CHECKING:
    from torch import Tensor

_ONE_IN = 20  # examples is held out
_HELD_OUT = 16  # at most: each look at them is as long as some steps

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Lessons:
    """What is learned on: `rows` of input_ids, perhaps with token_type_ids and labels (a list of numbers).

    `name` is the text's; `task` and `problem_type` as in exporter.measure.quality.Passages; `pad`: a token's id.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    task: str
    problem_type: str
    pad: int

    def parted(self, batch: int) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
        """(learned, held out). Raises JobError for too few."""
        fewest = batch + 1
        if len(self.rows) < fewest:
            what = "windows" if self.task == GENERATION else "examples"
            raise JobError(
                f"{self.name} gives {len(self.rows)} {what} to learn on, and a step of {batch} with one held out "
                f"needs {fewest}: give more with --distill-data FILE, or a smaller --distill-batch or --distill-window"
            )
        held = set(range(_ONE_IN - 1, len(self.rows), _ONE_IN)) or {len(self.rows) - 1}
        if len(held) > _HELD_OUT:  # spread over all
            chosen = sorted(held)
            held = {chosen[place * len(chosen) // _HELD_OUT] for place in range(_HELD_OUT)}
        parts: tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]] = ([], [])
        for number, row in enumerate(self.rows):
            parts[number in held].append(row)
        return parts


def distill(
    load: Load,
    teacher: Any,
    student: Any,
    base: Path,
    lessons: Lessons,
    options: DistillOptions,
    folder: Path,
    states: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Trains `student` towards `teacher`, float32 models of one task, and saves it into an empty folder.

    `base`: the checkpoint that the student was made of, for its tokenizer and configuration. `states`: a folder of this
    very training, where a killed one goes on from; it may be removed once the result is kept.

    Returns history (a line) and record (for the report: the options, seconds of this process, the curve [step, loss,
    soft, hard, features], and `held_out` [step, measure] before training and at each look at the held-out examples).
    Raises JobError for lessons that do not fit, BuildError for a training that diverged or bettered nothing; nothing is
    written then.
    """
    import torch

    from exporter.stages.distill.objective import Objective
    from exporter.stages.distill.trainer import HELD_OUT, Pupil, teach

    examples = lessons.parted(options.batch * options.accumulate)
    ids = torch.tensor(sorted({one for row in lessons.rows for one in row["input_ids"]}))
    for model in (teacher, student):
        check_ids(rows_of(model), ids, "the text to learn on")
    _check_answers(teacher, student, lessons)
    began = perf_counter()
    torch.manual_seed(options.seed)  # of the projections
    ours, theirs = student.config.get_text_config(), teacher.config.get_text_config()
    pupil = Pupil(
        student,
        ours.num_hidden_layers + 1 if options.features else 0,
        ours.hidden_size if options.features else 0,
        theirs.hidden_size if options.features else 0,
    )
    teacher.requires_grad_(False).eval()
    masks = _zeros(student)
    objective = Objective(lessons.task, lessons.problem_type, options.alpha, options.temperature, options.features)
    log = teach(pupil, teacher, objective, examples, lessons.pad, masks, options, states, progress)
    looks = [entry for entry in log if HELD_OUT in entry]
    before, best = looks[0][HELD_OUT], min(looks[1:], key=lambda entry: entry[HELD_OUT])
    measure = _measure(lessons, options)
    if not best[HELD_OUT] < before:
        raise BuildError(
            f"distillation made nothing better: {measure} on held-out examples was {before:.4g} before and "
            f"{best[HELD_OUT]:.4g} at its best; nothing was kept. Take a lower --distill-lr (now {options.lr:g}) or "
            f"--distill-alpha (now {options.alpha:g}), more steps, or a longer text that is like what the model is for"
        )
    _check_zeros(student, masks)
    student.eval()
    carry(base, [], folder)
    save_float32(student, base, load, folder, "distilled")
    curve = [_point(entry) for entry in log if "soft" in entry]
    record = {
        **options.identity(),
        "text": lessons.name,
        "examples": len(examples[0]),
        "examples_held_out": len(examples[1]),
        "tokens": sum(len(row["input_ids"]) for row in examples[0]),
        "hard": curve[0][3] is not None,
        "measure": measure,
        "seconds": perf_counter() - began,
        "steps_done": len(curve),
        "best_step": int(best["step"]),
        "zeros_held": sum(int((mask == 0).sum()) for mask in masks.values()),
        "before": before,
        "after": best[HELD_OUT],
        "curve": curve,
        "held_out": [[int(entry["step"]), entry[HELD_OUT]] for entry in looks],
    }
    line = (
        f"distilled {len(curve)} steps on {lessons.name}: {measure} on held-out examples {before:.4g} before, "
        f"{best[HELD_OUT]:.4g} after step {record['best_step']}, which was kept"
    )
    return {"history": [line], "record": record}


def _measure(lessons: Lessons, options: DistillOptions) -> str:
    """What is told of held-out examples."""
    if options.alpha == 1:
        return "the task's loss"
    if lessons.task == FEATURES:
        return "squared error of the states over their square"
    if lessons.problem_type == REGRESSION:
        return "squared error to the teacher"
    return f"KL to the teacher (temperature {options.temperature:g})"


def _point(entry: Mapping[str, float]) -> list[float | None]:
    return [int(entry["step"]), *(entry.get(name) for name in ("whole", "soft", "hard", "features"))]


def _check_answers(teacher: Any, student: Any, lessons: Lessons) -> None:
    """Raises JobError where the two do not answer the same question."""
    if lessons.task == FEATURES:
        what, ours, theirs = "width", student.config.hidden_size, teacher.config.hidden_size
    elif lessons.problem_type:
        what, ours, theirs = "labels", student.config.id2label, teacher.config.id2label
    else:
        return
    if ours != theirs:
        raise JobError(f"the teacher has the {what} {theirs} and the student {ours}: it has nothing to teach it")


def _zeros(model: Any) -> dict[str, Tensor]:
    """Masks of the linear layers' weights that hold a 0, by the parameters' names: float32, 0 where the weight is."""
    shared = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for layer in linear_layers(model).values():
        weight = layer.weight
        if id(weight) in shared and bool((weight == 0).any()):
            found[shared[id(weight)]] = (weight.detach() != 0).to(weight.dtype)
    return found


def _check_zeros(model: Any, masks: Mapping[str, Tensor]) -> None:
    for name, mask in masks.items():
        if not bool((model.get_parameter(name)[mask == 0] == 0).all()):
            raise BuildError(f"distillation filled zeros of {name}: nothing was kept; leave out --distill-steps")

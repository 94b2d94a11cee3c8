"""transformers' Trainer with a teacher beside the student: its loop, accumulation, schedule, checkpoints and resuming.

What it would write of a model is replaced: a checkpoint here holds a state dict by the modules' own names, and is read
strictly. Trainer's own saves under the names that a family's files have, and fills in silently what it then misses. The
optimizer's and the generators' states are Trainer's, pickles of this cache that torch reads as weights alone.

transformers' Trainer is imported at the top, for classes are derived of it: import this file inside functions only.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

from exporter.errors import BuildError
from exporter.stages.distill.objective import Objective, Parts
from exporter.stages.distill.options import DistillOptions

_WARMUP = 0.05  # of the steps
_CLIP = 1.0  # largest norm of the gradient
_WEIGHTS, _WHOLE = "model.safetensors", "whole"  # of a checkpoint: its weights, and the mark that all of it is there
HELD_OUT = "eval_held_out"  # the figure that says which checkpoint is the best

Progress = Callable[[int, int], None]


class Pupil(torch.nn.Module):
    """The student, and a projection of each of its hidden states to the teacher's width, where they differ."""

    def __init__(self, student: Any, states: int, width: int, wanted: int) -> None:
        super().__init__()
        self.student = student
        same = torch.nn.Identity()
        self.projections = torch.nn.ModuleList(
            same if width == wanted else torch.nn.Linear(width, wanted, bias=False) for _ in range(states)
        )


class Distiller(Trainer):
    """Trains a pupil towards `teacher` by `objective`; its log has what each step and each look at the held-out was."""

    def __init__(self, pupil: Pupil, teacher: Any, objective: Objective, pad: int, **given: Any) -> None:
        super().__init__(pupil, data_collator=lambda rows: collate(rows, pad), **given)
        self.pupil, self.teacher = pupil, teacher
        self.objective: Objective = objective
        self.model_accepts_loss_kwargs = False  # a loss is a mean: Trainer divides it by the batches of a step
        self._seen: list[Parts] = []

    def _asked(self, pupil: Pupil, batch: Mapping[str, Any]) -> Parts:
        """What a batch says. Raises BuildError where that is no number."""
        parts = self.objective(pupil.student, self.teacher, batch, pupil.projections)
        if not torch.isfinite(parts.loss):
            raise BuildError(
                f"distillation diverged after {self.state.global_step} steps: the loss is {float(parts.loss.detach())}"
                f"; take a lower learning rate, such as --distill-lr {self.args.learning_rate / 10:g}"
            )
        return parts

    def compute_loss(self, model: Any, inputs: Mapping[str, Any], *args: Any, **named: Any) -> Any:
        parts = self._asked(model, inputs)
        self._seen.append(replace(parts, loss=parts.loss.detach()))
        return parts.loss

    def log(self, logs: dict[str, float], *args: Any, **named: Any) -> None:
        if "loss" in logs:  # of a step, which may be of several batches
            logs = logs | means(self._seen)
            self._seen = []
        super().log(logs, *args, **named)

    def evaluate(self, *args: Any, **named: Any) -> dict[str, float]:
        self.pupil.eval()
        parts = []
        with torch.no_grad():
            for batch in self.get_eval_dataloader():
                with self.compute_loss_context_manager():
                    parts.append(self._asked(self.pupil, batch))
        found = {f"eval_{name}": value for name, value in means(parts).items()}
        # Where the task alone is learned, the teacher does not say how well.
        found[HELD_OUT] = found["eval_soft"] if self.objective.alpha < 1 else found["eval_hard"]
        self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        assert output_dir is not None
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        save_model(self.pupil, str(Path(output_dir) / _WEIGHTS))

    def _save_checkpoint(self, *args: Any, **named: Any) -> None:
        try:
            super()._save_checkpoint(*args, **named)
        except RuntimeError as error:  # all that torch.save says of a full disk is "unexpected pos 576 vs 534"
            states = Path(str(self.args.output_dir))
            if "inline_container" in str(error) and shutil.disk_usage(states).free < _size(self.pupil):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(states)) from error
            raise

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_model(self.pupil, Path(resume_from_checkpoint) / _WEIGHTS, strict=True)

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        self._load_from_checkpoint(self.state.best_model_checkpoint)


class _Watch(TrainerCallback):
    """Holds zeros at zero, marks what is saved whole, and tells how far it is."""

    def __init__(self, masks: Mapping[str, torch.Tensor], progress: Progress) -> None:
        self._masks, self._progress = masks, progress

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **named: Any) -> None:
        with torch.no_grad():
            for name, mask in self._masks.items():
                model.student.get_parameter(name).mul_(mask)

    def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        self._progress(state.global_step, state.max_steps)
        if state.global_step == state.max_steps:  # which need not be where Trainer would look
            control.should_evaluate = control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _WHOLE).touch()


def teach(
    pupil: Pupil,
    teacher: Any,
    objective: Objective,
    examples: tuple[Sequence[Any], Sequence[Any]],
    pad: int,
    masks: Mapping[str, torch.Tensor],
    options: DistillOptions,
    states: Path,
    progress: Progress,
) -> list[dict[str, float]]:
    """Trains a pupil in place on `examples` (learned, held out), to what was best on the held-out ones; its log.

    `masks` [N, K] by the student's parameters: where 0, the weight stays 0. `states`: where a killed one goes on.
    """
    last = _last_whole(states)
    args = TrainingArguments(
        output_dir=str(states),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch,
        per_device_eval_batch_size=options.batch,
        gradient_accumulation_steps=options.accumulate,
        learning_rate=options.lr,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(_WARMUP * options.steps)),
        weight_decay=0.0,
        max_grad_norm=_CLIP,
        bf16=options.bf16,
        use_cpu=True,
        seed=options.seed,
        data_seed=options.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=options.save,
        eval_on_start=last is None,
        save_strategy="steps",
        save_steps=options.save,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=HELD_OUT,
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,  # else the patience would begin anew
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    callbacks: list[Any] = [_Watch(masks, progress)]
    callbacks += [EarlyStoppingCallback(options.patience)] if options.patience else []
    learned, held_out = examples
    trainer = Distiller(
        pupil, teacher, objective, pad, args=args, train_dataset=learned, eval_dataset=held_out, callbacks=callbacks
    )
    trainer.remove_callback(PrinterCallback)
    ended = None if last is None else _ended(last)
    if ended is not None:  # and what came after it was not kept: Trainer would do one step more
        trainer.state = ended
        trainer._load_best_model()
    else:
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    log: list[dict[str, float]] = trainer.state.log_history
    return log


def _ended(checkpoint: Path) -> TrainerState | None:
    """The state of a checkpoint after which nothing is left to learn, by the steps or by its patience."""
    file = checkpoint / "trainer_state.json"
    control = json.loads(file.read_text(encoding="utf-8"))["stateful_callbacks"]["TrainerControl"]
    return TrainerState.load_from_json(str(file)) if control["args"]["should_training_stop"] else None


def _size(model: torch.nn.Module) -> int:
    """Bytes of what AdamW keeps of a model, two moments of each weight."""
    return 2 * sum(one.numel() * one.element_size() for one in model.parameters())


def _last_whole(states: Path) -> Path | None:
    """The last checkpoint that was written whole; what was not is removed."""
    found = sorted(states.glob("checkpoint-*"), key=lambda one: int(one.name.rpartition("-")[2]))
    for one in found:
        if not (one / _WHOLE).is_file():
            shutil.rmtree(one)
    return next((one for one in reversed(found) if one.is_dir()), None)


def means(parts: Sequence[Parts]) -> dict[str, float]:
    """The means of what batches were made of; a part that none has is left out."""
    columns = {
        "whole": [float(one.loss) for one in parts],
        "soft": [one.soft for one in parts],
        "hard": [one.hard for one in parts if one.hard is not None],
        "features": [one.features for one in parts if one.features is not None],
    }
    return {name: fmean(values) for name, values in columns.items() if values}


def collate(rows: Sequence[Mapping[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """Rows of input_ids, perhaps token_type_ids and labels, as a batch with an attention_mask, padded on the right."""
    longest = max(len(row["input_ids"]) for row in rows)
    batch = {
        "input_ids": torch.tensor([[*row["input_ids"], *[pad] * (longest - len(row["input_ids"]))] for row in rows]),
        "attention_mask": torch.tensor(
            [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
        ),
    }
    if "token_type_ids" in rows[0]:
        batch["token_type_ids"] = torch.tensor(
            [[*row["token_type_ids"], *[0] * (longest - len(row["input_ids"]))] for row in rows]
        )
    if "labels" in rows[0]:
        batch["labels"] = torch.tensor([row["labels"] for row in rows], dtype=torch.float32)
    return batch

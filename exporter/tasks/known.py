"""The tasks by their names."""

from __future__ import annotations

from collections.abc import Mapping

from exporter.form import FORMS
from exporter.measure.perplexity import Forms
from exporter.measure.quality import Answers, Passages, Pool, Progress, Reference, mean_pooled
from exporter.runner import Runner
from exporter.tasks.feature_extraction import FEATURE_EXTRACTION
from exporter.tasks.fill_mask import FILL_MASK
from exporter.tasks.image_classification import IMAGE_CLASSIFICATION
from exporter.tasks.image_features import IMAGE_FEATURE_EXTRACTION
from exporter.tasks.question_answering import QUESTION_ANSWERING
from exporter.tasks.speech_ctc import SPEECH_RECOGNITION_CTC
from exporter.tasks.speech_recognition import AUTOMATIC_SPEECH_RECOGNITION
from exporter.tasks.task import Compared, Task
from exporter.tasks.text2text_generation import TEXT2TEXT_GENERATION
from exporter.tasks.text_classification import TEXT_CLASSIFICATION
from exporter.tasks.text_generation import TEXT_GENERATION
from exporter.tasks.token_classification import TOKEN_CLASSIFICATION
from exporter.tasks.zero_shot_image_classification import ZERO_SHOT_IMAGE_CLASSIFICATION

_ALL = (
    TEXT_GENERATION, FILL_MASK, FEATURE_EXTRACTION, TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION, QUESTION_ANSWERING,
    TEXT2TEXT_GENERATION, SPEECH_RECOGNITION_CTC, AUTOMATIC_SPEECH_RECOGNITION, IMAGE_CLASSIFICATION,
    IMAGE_FEATURE_EXTRACTION, ZERO_SHOT_IMAGE_CLASSIFICATION,
)  # fmt: skip
TASKS: Mapping[str, Task] = {task.name: task for task in _ALL}
assert set(TASKS) == set(FORMS)


def answer(runner: Runner, passages: Passages, progress: Progress, pool: Pool = mean_pooled) -> Answers:
    """The reference's answers to all passages."""
    return TASKS[passages.task].answer(runner, passages, progress, pool)


def compare(
    runner: Runner,
    reference: Reference,
    progress: Progress = lambda done, total: None,
    pool: Pool = mean_pooled,
    forms: Forms | None = None,
) -> Compared:
    """Every figure of a row's quality that the task has, by its name there; and the artifact's vectors, if any."""
    return TASKS[reference.passages.task].compare(runner, reference, progress, pool, forms)

"""The float precisions with the limits that they have wherever a format has them; what differs, a target replaces."""

from __future__ import annotations

from exporter.checkpoint.weights import stored_tensors
from exporter.form import FORMS
from exporter.targets.folder.proven import FLOAT16, FLOAT32
from exporter.types import Gates, Precision, Preparation, agreement


def of_one_text_or_picture(task: str, form: str) -> str | None:
    """Why a task's model is not written in a form for models of one text or of one picture; None: it is."""
    told, does = FORMS[task], "hear"
    if told.matches:
        does = "match pictures with texts"
    elif told.inputs in ("text", "pixels"):
        return None
    return f"models that {does} are not exported to {form} yet"


def of_convolutions(wanted: Preparation, least: float, form: str) -> str | None:
    """Why a precision cannot hold what its name says of a model with convolutions, which it does not round so; or None.

    `least`: share of the numbers that must be rounded so. The weights' headers tell how many are convolutions'.
    """
    if FORMS[wanted.task].inputs == "text":
        return None
    sizes = [(len(one.shape), one.numbers) for one in stored_tensors(wanted.path).values() if len(one.shape) > 1]
    convolved = sum(numbers for dimensions, numbers in sizes if dimensions > 2) / sum(numbers for _, numbers in sizes)
    if convolved <= 1 - least:
        return None
    return f"{convolved:.0%} of this model's weights are convolutions', and {form} rounds linear layers alone so"


def float32(summary: str) -> Precision:
    """The same model: what is left is the order of its sums."""
    gates = Gates(
        max_ppl_ratio=1.001,
        max_kl=FLOAT32.kl,
        min_cosine=FLOAT32.cosine,
        max_regression_error=1e-3,
        max_logit_error=FLOAT32.error,
        max_cache_kl=1e-6,
    )
    return Precision(summary, gates, by_task=agreement(0.98))


def float16(summary: str, named_share: float = 0.9) -> Precision:
    """Half the bytes; `named_share`: the least share of the layers' numbers that are float16."""
    gates = Gates(
        max_ppl_ratio=1.005,
        max_kl=FLOAT16.kl,
        min_cosine=FLOAT16.cosine,
        max_regression_error=0.02,
        max_cache_kl=1e-3,
        min_named_share=named_share,
    )
    return Precision(summary, gates, by_task=agreement(0.97), bits=16, table_bits=16)


def bfloat16(summary: str) -> Precision:
    """As many bits, three of them fewer for the digits."""
    gates = Gates(
        max_ppl_ratio=1.01,
        max_kl=0.01,
        min_cosine=0.999,
        max_regression_error=0.06,
        max_cache_kl=0.01,
        min_named_share=0.9,
    )
    return Precision(summary, gates, by_task=agreement(0.94), bits=16, table_bits=16)

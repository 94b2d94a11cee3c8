"""What a model is asked, and what transformers answers: alone, in a batch, padded, with holes, and through the cache.

Where transformers itself answers otherwise padded or cached than it answers the text alone, either is right: a window
counts places and not positions, a rope that changes with the text's length has turned the keys in its cache already.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.families.family import Family
from exporter.runner import Floats, Ids
from exporter.targets.onnx_graph.session import joined

# Short texts besides the first: what a format costs them bounds what it may cost, so it must be known.
_OTHERS, _SHORT = 15, 100


@dataclass(frozen=True)
class Question:
    """[B, T] token ids, 1 in the mask where one is of the text. `near`: below all lengths at which something changes.

    `pieces`: how many tokens are read at once, one time after the other, through the cache; all of them without one.
    """

    name: str
    ids: Ids
    mask: Ids
    pieces: tuple[int, ...] = ()
    segments: Ids | None = None
    near: bool = False

    def spans(self) -> list[tuple[int, int]]:
        """Where each piece begins and ends."""
        ends = np.cumsum(self.pieces or [self.ids.shape[1]]).tolist()
        return list(zip([0, *ends], ends, strict=False))


def positions_of(mask: Ids) -> Ids:
    """As generate() of transformers counts them."""
    return np.maximum(np.cumsum(mask, axis=1) - 1, 0)


def questions(family: Family, vocabulary: int, pad: int, segments: bool, boundary: int | None = None) -> list[Question]:
    """What a family is asked; the same each time. `boundary`: up to so many tokens it computes alike."""
    random = np.random.default_rng(1)

    def text(*shape: int) -> Ids:
        return random.integers(5, vocabulary, shape)

    def whole(name: str, ids: Ids, **more: Any) -> Question:
        return Question(name, ids, np.ones_like(ids), **more)

    below = [length for length in family.lengths if length <= min(boundary or _SHORT, _SHORT)]
    near = max(below, default=min(family.lengths))
    asked = [whole(f"alone, {length} tokens", text(1, length), near=length == near) for length in family.lengths]
    asked += [whole(f"another text, {number}", text(1, near), near=True) for number in range(_OTHERS)]
    for length in sorted({min(40, max(family.lengths)), max(family.lengths)}):
        asked.append(whole(f"two of {length} tokens", text(2, length)))
        asked += [_padded(text(3, length), pad, left) for left in (False, True)]
    ids = text(2, 30)
    mask = np.ones_like(ids)
    mask[0, [4, 9, 10]] = mask[1, [1, 20]] = 0
    asked.append(Question("a mask with holes", ids, mask))
    if segments:
        ids = text(2, 24)
        asked.append(whole("two segments", ids, segments=(np.arange(24)[None] >= [[9], [15]]).astype(np.int64)))
    for first, length in family.cached:
        ids = text(1, length)
        asked.append(whole(f"{first} cached, to {length}", ids, pieces=(first, *[1] * (length - first))))
        half = first // 2
        asked.append(whole(f"{half} cached, {length - half} at once", ids, pieces=(half, length - half)))
    if family.cached:
        ids = text(2, 20)
        asked.append(whole("two cached, to 20", ids, pieces=(12, *[1] * 8)))
        left = _padded(text(3, 24), pad, left=True)
        asked.append(Question("padded left and cached", left.ids, left.mask, pieces=(18, *[1] * 6)))
    return asked


def _padded(ids: Ids, pad: int, left: bool) -> Question:
    """Three texts of unequal lengths; the longest has no padding."""
    length = ids.shape[1]
    mask = np.ones_like(ids)
    for row, missing in enumerate((length // 2, 0, length // 5)):
        mask[row, slice(0, missing) if left else slice(length - missing, length)] = 0
    ids = np.where(mask == 1, ids, pad)
    return Question(f"padded {'left' if left else 'right'} to {length}", ids, mask)


class Asked:
    """transformers' model, in torch float32. Each question has a copy of its own: a rope may keep what it has read."""

    def __init__(self, model: Any, outputs: Sequence[str], cached: bool) -> None:
        self._model, self._outputs, self._cached = model, outputs, cached
        self._takes = inspect.signature(model.forward).parameters

    def answers(self, question: Question) -> list[Floats]:
        """Those that are right, [B, T, V] or [B, V] each. None: torch itself cannot answer, or not with numbers."""
        found = [self._attempt(question.ids, question.mask, question.spans(), question.segments)]
        if question.pieces:
            found.append(self._attempt(question.ids, question.mask, [(0, question.ids.shape[1])], None))
        if not question.mask.all():
            found.append(self._one_by_one(question))
        seen = question.mask == 1
        kept = (one for one in found if one is not None)
        return [one for one in kept if np.isfinite(one[seen] if one.ndim == 3 else one).all()]

    def _one_by_one(self, question: Question) -> Floats | None:
        """Each text alone, without what its mask hides, put back in its place."""
        rows = []
        for ids, mask in zip(question.ids, question.mask, strict=True):
            alone = ids[mask == 1][None]
            answer = self._attempt(alone, np.ones_like(alone), [(0, alone.shape[1])], None)
            if answer is None:
                return None
            if answer.ndim == 3:
                placed = np.zeros((*mask.shape, answer.shape[-1]), np.float32)
                placed[mask == 1] = answer[0]
                answer = placed[None]
            rows.append(answer)
        return np.concatenate(rows)

    def _attempt(self, ids: Ids, mask: Ids, spans: Sequence[tuple[int, int]], segments: Ids | None) -> Floats | None:
        try:
            return self._run(ids, mask, spans, segments)
        except ValueError:  # of a classifier without a padding token, which takes no batch; all else is a mistake here
            return None

    def _run(self, ids: Ids, mask: Ids, spans: Sequence[tuple[int, int]], segments: Ids | None) -> Floats:
        import torch

        model, past, parts = copy.deepcopy(self._model), None, []
        for begin, end in spans:
            given: dict[str, Any] = {"input_ids": ids[:, begin:end], "attention_mask": mask[:, :end]}
            if "position_ids" in self._takes and self._cached:
                given["position_ids"] = positions_of(mask)[:, begin:end]
            if segments is not None:
                given["token_type_ids"] = segments[:, begin:end]
            given = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in given.items()}
            if len(spans) > 1:
                given |= {"past_key_values": past, "use_cache": True}
            with torch.no_grad():
                said = model(**given, return_dict=True)
            past = said.get("past_key_values")
            parts.append(joined([said[name].numpy() for name in self._outputs]))
        answer: Floats = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
        return answer

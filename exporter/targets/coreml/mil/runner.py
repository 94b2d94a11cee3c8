"""An .mlpackage run by the reference evaluator, as exporter measures it.

What a package may take, by name; whatever of it a package has is fed:

    text generation     input_ids int32 [1, T], causal_mask [1, 1, T, S], sliding_mask [1, 1, T, S],
                        position_ids int32 [1, T], attention_mask int32 [1, S]; S is what is in the cache and T.
                        A mask is added to the scores: 0, or -30000, which float16 can hold.
                        With states (the KV cache, [layers, 1, heads, length, size]) it decodes token by token; the
                        length of the cache before a prediction is S - T. Several functions: prefill and decode.
                        Out: logits [1, T, V], or [1, 1, V] of the last position.
    encoders            input_ids int32 [B, T], attention_mask int32 [B, T] or attention_bias [B, 1, 1, T] (0, -30000),
                        token_type_ids and position_ids int32 [B, T].
                        Out: last_hidden_state [B, T, H], or logits [B, C].
    pictures            pixel_values float32 [1, C, H, W].
                        Out: logits [1, C], or last_hidden_state [1, P, H] or [1, H, height, width].

A model with a sliding window says how long it is in the package's metadata, under the key sliding_window; what else
limits a text's length than the shapes, under max_length.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np

from exporter.errors import BuildError
from exporter.form import FORMS, PIXELS
from exporter.runner import Floats, Ids, Sample, rows_of_states
from exporter.targets.coreml.mil.blob import Array
from exporter.targets.coreml.mil.evaluator import Evaluator, States, Watch
from exporter.targets.coreml.mil.threads import set_threads
from exporter.types import GENERATION

MASKED = -30000.0  # a minus infinity that stays finite in float16 when two are added
_TEXT = frozenset({"input_ids", "causal_mask", "sliding_mask", "position_ids", "attention_mask"})
_ENCODER = frozenset({"input_ids", "attention_mask", "attention_bias", "token_type_ids", "position_ids"})


class MilRunner:
    """A package without a cache: `logits` of one text. `half` emulates the declared float16."""

    takes = _TEXT

    def __init__(self, evaluator: Evaluator, path: Path, half: bool) -> None:
        self._evaluator = evaluator
        self.engine = f"mil-reference ({'fp16 emulated' if half else 'float32'})"
        for name, plan in evaluator.plans.items():
            unknown = sorted(plan.function.inputs.keys() - self.takes)
            if unknown:
                known = ", ".join(sorted(self.takes))
                raise BuildError(f"{path}: its function {name} takes {unknown[0]}; what can be fed is {known}")
        self._window = self._sliding_window(path)
        longest = self._longest()
        if longest is not None:
            self.max_length = longest

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        del self._evaluator

    def logits(self, ids: Ids) -> Floats:
        found: Floats = self._run(ids, 0, None)[0]
        return found

    def first_not_finite(self, ids: Ids) -> str | None:
        """What is NaN or infinite first on [T] token ids."""
        seen: list[str] = []

        def watch(name: str, value: Array) -> None:
            if not seen and value.dtype == np.float32 and not np.isfinite(value).all():
                seen.append(name)

        self._run(ids, 0, None, watch=watch)
        return seen[0] if seen else None

    def _run(
        self, ids: Ids, past: int, states: States | None, function: str | None = None, watch: Watch | None = None
    ) -> Array:
        """[T] new ids after `past` that are in the states: the output [1, T, V]."""
        return self._answer(self._feeds(ids, past), states, function, watch)

    def _answer(
        self,
        usual: dict[str, Any],
        states: States | None = None,
        function: str | None = None,
        watch: Watch | None = None,
    ) -> Array:
        """What the function takes of the usual inputs, to its first output."""
        plan = self._evaluator.plans[function or self._evaluator.default]
        feeds = {name: usual[name] for name in plan.function.inputs}
        if states is None and plan.function.states:
            states = self._evaluator.new_states(function)
        found = self._evaluator.run(feeds, states, function, watch)
        return next(iter(found.values()))

    def _feeds(self, ids: Ids, past: int) -> dict[str, Any]:
        new = np.arange(past, past + len(ids))
        behind = new[:, None] - np.arange(past + len(ids))  # [T, S]: how far each position is behind each new one
        causal = np.where(behind >= 0, 0.0, MASKED).astype(np.float32)
        usual = {
            "input_ids": ids[None],
            "position_ids": new[None],
            "attention_mask": np.ones((1, past + len(ids)), np.int32),
            "causal_mask": causal[None, None],
        }
        if self._window is not None:
            sliding = np.where(behind < self._window, causal, np.float32(MASKED))
            usual["sliding_mask"] = sliding[None, None]
        return usual

    def _sliding_window(self, path: Path) -> int | None:
        if not any("sliding_mask" in plan.function.inputs for plan in self._evaluator.plans.values()):
            return None
        told = self._told("sliding_window")
        if not told.isdecimal():
            raise BuildError(f"{path} takes a sliding_mask, and its metadata has no sliding_window that says how long")
        return int(told)

    def _told(self, key: str) -> str:
        """What the package's metadata says under a key; "" for nothing."""
        return str(self._evaluator.specification.description.metadata.userDefined.get(key, ""))

    def _longest(self) -> int | None:
        """The longest text that the declared shapes allow; None where they allow any."""
        limits = [self._most("input_ids", 1)] if not self._states() else [shape[3] for shape in self._states()]
        limits += [self._most(name, 3) for name in ("causal_mask", "sliding_mask")]
        told = self._told("max_length")
        limits += [int(told)] if told.isdecimal() else []
        return min((limit for limit in limits if limit is not None), default=None)

    def _states(self) -> list[tuple[int, ...]]:
        types = self._evaluator.plans[self._evaluator.default].function.states.values()
        return [tuple(size or 0 for size in kind.shape) for kind in types if len(kind.shape) == 5]

    def _most(self, name: str, axis: int, function: str | None = None) -> int | None:
        """The largest size of an input's dimension that a function's description allows."""
        description = self._evaluator.specification.description
        wanted = function or self._evaluator.default
        described = next((f.input for f in description.functions if f.name == wanted), description.input)
        for value in described:
            if value.name == name:
                return _largest(value.type.multiArrayType, axis)
        return None


def _largest(array: Any, axis: int) -> int | None:
    """Of a FeatureType's multi-array: a fixed shape, several, or a range whose end may be open (-1)."""
    flexible = array.WhichOneof("ShapeFlexibility")
    if flexible == "enumeratedShapes":
        return max(int(shape.shape[axis]) for shape in array.enumeratedShapes.shapes)
    if flexible == "shapeRange":
        end = int(array.shapeRange.sizeRanges[axis].upperBound)
        return end if 0 < end < 2**31 - 1 else None
    return int(array.shape[axis]) if len(array.shape) > axis else None


class MilDecoder(MilRunner):
    """A package with a KV cache as states, which are kept between predictions."""

    def __init__(self, evaluator: Evaluator, path: Path, half: bool) -> None:
        super().__init__(evaluator, path, half)
        self._names = {name: name if name in evaluator.plans else None for name in ("prefill", "decode")}
        self._cache: States = {}
        self._length = 0

    def logits(self, ids: Ids) -> Floats:
        states = self._evaluator.new_states(self._names["prefill"])
        pieces = self._in_pieces(ids, 0, states, every=True)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)  # logits are too large to copy for nothing

    def prefill(self, ids: Ids) -> Floats:
        self._cache = self._evaluator.new_states(self._names["prefill"])
        found: Floats = self._in_pieces(ids, 0, self._cache, every=False)[-1][-1]
        self._length = len(ids)
        return found

    def step(self, token: int) -> Floats:
        self._within(self._length + 1)
        found: Floats = self._run(np.array([token]), self._length, self._cache, self._names["decode"])[0, -1]
        self._length += 1
        return found

    def _in_pieces(self, ids: Ids, past: int, states: States, every: bool) -> list[Floats]:
        """Logits of each piece of a text that one prediction takes; each position's, where `every`."""
        self._within(past + len(ids))
        function = self._names["prefill"]
        size = self._most("input_ids", 1, function) or len(ids)
        if every and self._last_only(function):
            size, function = 1, self._names["decode"]
        return [
            self._run(ids[begin : begin + size], past + begin, states, function)[0]
            for begin in range(0, len(ids), size)
        ]

    def _last_only(self, function: str | None) -> bool:
        """Whether its logits are declared as one position's, while it takes several."""
        plan = self._evaluator.plans[function or self._evaluator.default]
        given = next(iter(plan.function.output_types().values())).shape
        return len(given) == 3 and given[1] == 1 and plan.function.inputs["input_ids"].shape[1] != 1

    def _within(self, length: int) -> None:
        limit = getattr(self, "max_length", None)
        if limit is not None and length > limit:
            raise BuildError(f"{length} tokens are more than the cache of {limit} holds")


class MilEncoder(MilRunner):
    """A package that reads whole texts, padded or not: hidden states or class logits."""

    takes = _ENCODER

    def logits(self, ids: Ids) -> Floats:
        return _single(self.batch(ids[None], np.ones_like(ids)[None]))

    def segmented(self, ids: Ids, segments: Ids) -> Floats:
        return _single(self._answer(_encoder_feeds(ids[None], np.ones_like(ids)[None], segments[None])))

    def batch(self, ids: Ids, mask: Ids) -> Floats:
        plan = self._evaluator.plans[self._evaluator.default]
        if plan.function.inputs["input_ids"].shape[0] == 1 and len(ids) > 1:  # made for one text at a time
            return np.concatenate([self.batch(ids[i : i + 1], mask[i : i + 1]) for i in range(len(ids))])
        return self._answer(_encoder_feeds(ids, mask, np.zeros_like(ids)))

    def _feeds(self, ids: Ids, past: int) -> dict[str, Any]:
        return _encoder_feeds(ids[None], np.ones_like(ids)[None], np.zeros_like(ids)[None])


class MilPictures(MilRunner):
    """A package that looks at pictures, one at a time: class logits, or hidden states."""

    takes = frozenset({PIXELS})

    def logits(self, ids: Sample) -> Floats:
        return rows_of_states(self._answer(self._feeds(ids, 0)))

    def batch(self, ids: Sample, mask: Ids) -> Floats:
        return np.concatenate([self.logits(picture) for picture in ids])

    def _feeds(self, ids: Sample, past: int) -> dict[str, Any]:
        return {PIXELS: ids[None]}

    def _longest(self) -> int | None:
        return None


def _single(out: Array) -> Floats:
    found: Floats = out[0] if out.ndim == 3 else out
    return found


def _encoder_feeds(ids: Ids, mask: Ids, segments: Ids) -> dict[str, Any]:
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "attention_bias": np.where(mask[:, None, None] != 0, 0.0, MASKED).astype(np.float32),
        "token_type_ids": segments,
        "position_ids": np.maximum(np.cumsum(mask, axis=1) - 1, 0),
    }


def open_mil(package: Path, threads: int, half: bool, task: str = GENERATION) -> MilRunner:
    """An .mlpackage of a task's model, opened in the reference evaluator.

    Raises BuildError for what is damaged, has unknown operators or takes inputs that are not known.
    """
    evaluator = Evaluator(package, half)
    set_threads(threads)
    if FORMS[task].inputs == "pixels":
        return MilPictures(evaluator, package, half)
    if task != GENERATION:
        return MilEncoder(evaluator, package, half)
    cached = evaluator.plans[evaluator.default].function.states
    return (MilDecoder if cached else MilRunner)(evaluator, package, half)

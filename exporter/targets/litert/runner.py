"""A model.tflite run by ai-edge-litert's Interpreter: a text is padded to the signature that it fits in.

The KV cache stays in the interpreter's own tensors: what a call writes is copied into the inputs of the next one, once.
Padding is never seen: the mask hides it, and what it left in the cache is written over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import numpy as np

from exporter.errors import BuildError
from exporter.form import PIXELS
from exporter.runner import Floats, Ids, Sample, rows_of_states
from exporter.targets.litert.convert import DECODE, ENCODE, KEYS, MASK, POSITIONS, PREFILL, SEE, TOKENS, VALUES
from exporter.targets.traced_model.masks import HIDDEN

_DELEGATE = "DELEGATE"  # what an interpreter calls an operator that stands for a part of the graph


class Signature:
    """One of a file's signatures, with its inputs written and its outputs read in place."""

    def __init__(self, interpreter: Any, name: str) -> None:
        self.name = name
        self._runner = interpreter.get_signature_runner(name)
        self._wrapper = interpreter._interpreter  # the SignatureRunner copies each tensor twice, a cache too
        self.inputs = {key: one["index"] for key, one in self._runner.get_input_details().items()}
        self.outputs = {key: one["index"] for key, one in self._runner.get_output_details().items()}
        first = next(name for name in (TOKENS, "input_ids", PIXELS) if name in self.inputs)
        self.tokens = int(self._runner.get_input_details()[first]["shape"][1])  # of a picture its channels
        self._index = self._runner._subgraph_index
        self._wrapper.AllocateTensors(self._index)

    def tensor(self, index: int) -> Any:
        """A view of it, which must not outlive the next call."""
        return self._wrapper.tensor(self._runner._interpreter, index, self._index)

    def set(self, name: str, value: Any) -> None:
        self._wrapper.SetTensor(self.inputs[name], value, self._index)

    def get(self, name: str) -> Any:
        """A copy."""
        return self._wrapper.GetTensor(self.outputs[name], self._index)

    def call(self) -> None:
        self._wrapper.Invoke(self._index)


class LitertRunner:
    """What encoders and decoders have in common: the file, opened."""

    def __init__(self, file: Path, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        try:
            self._interpreter = Interpreter(str(file), num_threads=threads)
            names = list(self._interpreter.get_signature_list())
            self._signatures = {name: Signature(self._interpreter, name) for name in names}
        except (ValueError, RuntimeError) as error:
            raise BuildError(f"LiteRT cannot open {file.name}: {' '.join(str(error).split())[:300]}") from error
        kinds = {one["op_name"] for one in self._interpreter._get_ops_details()}
        how = "XNNPACK" if _DELEGATE in kinds else "its reference kernels"
        self.engine = f"ai-edge-litert {metadata.version('ai-edge-litert')} {how}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._signatures = {}
        del self._interpreter

    def _of(self, prefix: str) -> list[Signature]:
        """The signatures of a kind, the shortest first."""
        found = [one for name, one in self._signatures.items() if name.startswith(prefix)]
        return sorted(found, key=lambda one: one.tokens)


class LitertEncoder(LitertRunner):
    """Hidden states or class logits of whole texts."""

    def __init__(self, file: Path, threads: int) -> None:
        super().__init__(file, threads)
        self._lengths = self._of(ENCODE)
        self.max_length = self._lengths[-1].tokens
        [output] = self._lengths[0].outputs.values()
        self._per_token = len(self._lengths[0].tensor(output).shape) == 3

    def logits(self, ids: Ids) -> Floats:
        return self._answer(ids, np.ones_like(ids), np.zeros_like(ids))

    def segmented(self, ids: Ids, segments: Ids) -> Floats:
        return self._answer(ids, np.ones_like(ids), segments)

    def batch(self, ids: Ids, mask: Ids) -> Floats:
        """One after the other: a signature has one text."""
        answers = [self._answer(row, seen, np.zeros_like(row)) for row, seen in zip(ids, mask, strict=True)]
        return np.stack(answers) if self._per_token else np.concatenate(answers)

    def by_signature(self, text: Ids, steps: int) -> Iterator[tuple[str, Floats]]:
        """What each signature answers to as much of a text as the shortest takes; of its states the last `steps`."""
        ids = text[: self._lengths[0].tokens]
        for one in reversed(self._lengths):
            yield one.name, self._answer(ids, np.ones_like(ids), np.zeros_like(ids), one)[-steps:]

    def _answer(self, ids: Ids, mask: Ids, segments: Ids, signature: Signature | None = None) -> Floats:
        """By a signature, or by the shortest that takes the text."""
        chosen = signature or next((one for one in self._lengths if one.tokens >= len(ids)), None)
        if chosen is None:
            raise BuildError(f"{len(ids)} tokens are more than its longest signature takes, {self.max_length}")
        known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}
        for name in chosen.inputs:
            padded = np.zeros((1, chosen.tokens), np.int32)
            padded[0, : len(ids)] = known[name]
            chosen.set(name, padded)
        chosen.call()
        [output] = chosen.outputs
        answer: Floats = chosen.get(output)
        return answer[0, : len(ids)] if self._per_token else answer


class LitertPictures(LitertRunner):
    """Class logits or hidden states of pictures."""

    def __init__(self, file: Path, threads: int) -> None:
        super().__init__(file, threads)
        self._see = self._signatures[SEE]

    def logits(self, ids: Sample) -> Floats:
        self._see.set(PIXELS, np.ascontiguousarray(ids[None], np.float32))
        self._see.call()
        [output] = self._see.outputs
        return rows_of_states(self._see.get(output))

    def batch(self, ids: Sample, mask: Ids) -> Floats:
        """One after the other: a signature has one picture."""
        return np.concatenate([self.logits(picture) for picture in ids])


class LitertDecoder(LitertRunner):
    """Text generation: prefill in pieces of its signatures' lengths, decode token by token."""

    def __init__(self, file: Path, threads: int) -> None:
        super().__init__(file, threads)
        self._decode, self._prefills = self._signatures[DECODE], self._of(PREFILL)
        self._caches = [name for name in self._decode.inputs if name.startswith((KEYS, VALUES))]
        self.max_length = int(self._decode.tensor(self._decode.inputs[MASK]).shape[-1])
        self.at_once = self._prefills[-1].tokens
        self._past = 0
        self._last: Signature | None = None

    def logits(self, ids: Ids) -> Floats:
        pieces = self._read(ids, self._prefills)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def prefill(self, ids: Ids) -> Floats:
        answer: Floats = self._read(ids, self._prefills, last=True)[-1][-1]
        return answer

    def step(self, token: int) -> Floats:
        self._within(self._past + 1)
        answer: Floats = self._run(self._decode, np.array([token]), self._past, 1)[0]
        self._past += 1
        return answer

    def by_signature(self, text: Ids, steps: int) -> Iterator[tuple[str, Floats]]:
        """Logits of the last `steps` of as many tokens as are read at once: the longest prefill's first, then the
        others', in pieces; at last decode's, behind a prefill of all but these."""
        ids = text[: self.at_once]
        steps = min(steps, len(ids) - 1)
        for one in reversed(self._prefills):
            yield one.name, np.concatenate(self._read(ids, [one]))[-steps:]
        self._read(ids[:-steps], self._prefills, last=True)
        yield self._decode.name, np.stack([self.step(int(token)) for token in ids[-steps:]])

    def _read(self, ids: Ids, prefills: Sequence[Signature], last: bool = False) -> list[Floats]:
        """Logits of all positions, or of each piece's last one, from an empty cache on."""
        self._within(len(ids))
        self._last, self._past = None, 0
        answers = []
        while self._past < len(ids):
            left = len(ids) - self._past
            chosen = next((one for one in prefills if one.tokens >= left), prefills[-1])
            # Where the cache's end is nearer than the signature's, some tokens before are read once more.
            start = min(self._past, self.max_length - chosen.tokens)
            new = min(chosen.tokens, len(ids) - start)
            rows = 1 if last else new - (self._past - start)
            answers.append(self._run(chosen, ids[start : start + new], start, rows))
            self._past = start + new
        return answers

    def _run(self, signature: Signature, ids: Ids, past: int, rows: int) -> Floats:
        """The last so many rows of [T, V] of new ids behind `past` cached ones."""
        new, length = len(ids), signature.tokens
        tokens = np.zeros((1, length), np.int32)
        tokens[0, :new] = ids
        at = np.minimum(np.arange(past, past + length), self.max_length - 1)
        signature.set(TOKENS, tokens)
        signature.set(POSITIONS, at.astype(np.int32))
        seen = np.arange(self.max_length)[None] <= at[:, None]
        signature.set(MASK, np.where(seen, np.float32(0), np.float32(HIDDEN))[None, None])
        for name in self._caches:
            cache = signature.tensor(signature.inputs[name])
            if self._last is None:
                cache.fill(0)
            else:
                np.copyto(cache, self._last.tensor(self._last.outputs[name]))
            del cache
        signature.call()
        self._last = signature
        logits = signature.tensor(signature.outputs["logits"])
        answer: Floats = logits[0, new - rows : new].copy()
        del logits
        return answer

    def _within(self, length: int) -> None:
        if length > self.max_length:
            raise BuildError(f"{length} tokens are more than the cache of {self.max_length} holds")

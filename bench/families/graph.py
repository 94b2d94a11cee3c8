"""An ONNX artifact asked by plain ONNX Runtime, as a client would: whatever its states are, they begin with nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench.families.asked import Question, positions_of
from exporter.runner import Floats
from exporter.targets.onnx_graph.session import joined

_TYPES = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(int64)": np.int64}


class Graph:
    """A model.onnx on the CPU. Its states are the inputs and outputs whose names begin with past and present."""

    def __init__(self, model: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._inputs = {value.name: value for value in self._session.get_inputs()}
        self._past = [name for name in self._inputs if name.startswith("past")]
        outputs = [value.name for value in self._session.get_outputs()]
        answers = [name for name in outputs if not name.startswith("present")]
        present = {name.removeprefix("present"): name for name in outputs if name.startswith("present")}
        ends = [name.removeprefix("past_key_values").removeprefix("past") for name in self._past]
        self._answers = len(answers)
        self._asked = [*answers, *(present[end] for end in ends)]

    def answer(self, question: Question) -> Floats:
        """[B, T, V] or [B, V]."""
        ids, mask, batch = question.ids, question.mask, len(question.ids)
        segments = np.zeros_like(ids) if question.segments is None else question.segments
        states: dict[str, Any] = {name: self._empty(name, batch) for name in self._past}
        parts = []
        for begin, end in question.spans():
            usual = {
                "input_ids": ids[:, begin:end],
                "attention_mask": mask[:, :end],
                "position_ids": positions_of(mask)[:, begin:end],
                "token_type_ids": segments[:, begin:end],
            }
            feeds = {name: np.ascontiguousarray(value) for name, value in usual.items() if name in self._inputs}
            told = self._session.run(self._asked, feeds | states)
            states = dict(zip(self._past, told[self._answers :], strict=True))
            parts.append(joined(told[: self._answers]))
        answer: Floats = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
        return answer

    def _empty(self, name: str, batch: int) -> Any:
        """No past: of the dimensions that are no numbers the first is the batch, the others are lengths."""
        first, *rest = self._inputs[name].shape
        shape = [first if isinstance(first, int) else batch, *(size if isinstance(size, int) else 0 for size in rest)]
        return np.zeros(shape, _TYPES[self._inputs[name].type])

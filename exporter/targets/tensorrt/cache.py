"""The inputs of a decode step that always has one shape, which a CUDA graph needs.

The past is padded on the left to the longest, and masked, so that the newest tokens stand side by side as a sliding
window wants them. After a step the oldest place is given up for the newest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PAST = "past_key_values."


def present(past: str) -> str:
    """The output that a cache's input becomes."""
    return past.replace("past_key_values", "present")


class StepInputs:
    """`tensors`: the inputs of one token for a text behind `room` places, by name; they keep their addresses.

    `shapes`: of the graph's inputs, with the heads and the size of past_key_values.N.key and .value [1, heads, past,
    size] as numbers; `kinds` their types.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, torch.dtype], room: int, device: str
    ) -> None:
        import torch

        self._room, self._length = room, 0
        totals = {"input_ids": 1, "position_ids": 1, "attention_mask": room + 1}
        sizes: dict[str, tuple[int, ...]] = {name: (1, total) for name, total in totals.items() if name in shapes}
        self.past = [name for name in shapes if name.startswith(PAST)]
        sizes |= {name: (1, shapes[name][1], room, shapes[name][3]) for name in self.past}
        self.tensors = {name: torch.zeros(size, dtype=kinds[name], device=device) for name, size in sizes.items()}

    def begin(self, length: int, outputs: Mapping[str, torch.Tensor]) -> None:
        """Takes over a prompt of so many tokens, and what its run made present: [1, heads, length, size]."""
        self._length, kept = length, min(length, self._room)
        for name in self.past:
            self.tensors[name].zero_()
            if kept:
                self.tensors[name][:, :, -kept:] = outputs[present(name)][:, :, -kept:]
        self.tensors["attention_mask"].zero_()
        self.tensors["attention_mask"][:, self._room - kept :] = 1

    def write(self, token: int) -> None:
        """The next token, at its position, with itself and all before it to be seen."""
        self.tensors["input_ids"].fill_(token)
        if "position_ids" in self.tensors:
            self.tensors["position_ids"].fill_(self._length)
        self.tensors["attention_mask"][:, max(self._room - self._length, 0) :] = 1
        self._length += 1

    def keep(self, outputs: Mapping[str, torch.Tensor]) -> None:
        """Takes what the step made present [1, heads, room + 1, size], without its oldest place, for the next one."""
        for name in self.past:
            self.tensors[name].copy_(outputs[present(name)][:, :, 1:])

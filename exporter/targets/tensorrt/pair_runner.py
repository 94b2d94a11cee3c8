"""An encoder's engine and a decoder's on the GPU, as one runner: both caches and the source's states stay there.

The decoder's graph has no mask of its own tokens, so its past cannot be padded to one length: each step runs at its own
shape, and is no CUDA graph. The first step makes the source's keys and values; from then on they are fed as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from exporter.runner import Floats, Ids, Sample
from exporter.targets.tensorrt.cache import PAST, present
from exporter.targets.tensorrt.parts import DECODER, ENCODER
from exporter.targets.tensorrt.platform import Platform
from exporter.targets.tensorrt.profile import Profile
from exporter.targets.tensorrt.runner import EngineRunner

if TYPE_CHECKING:
    import torch

_STATES = "last_hidden_state"


class _Decoder(EngineRunner):
    """A decoder's engine. What it is fed is on the device: ids [B, T], a source's mask [B, S], its states [B, S, H]."""

    def __init__(self, folder: Path, platform: Platform, profile: Profile) -> None:
        super().__init__(folder, platform, profile)
        self._past = [name for name in self._inputs if name.startswith(PAST)]
        self._cache: dict[str, torch.Tensor] = {}

    def answers(self, ids: Ids, mask: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """[B, T, V], of nothing in the cache."""
        return self._run(self._fed(ids, mask, states) | self._nothing_read(len(ids)))[self._outputs[0]]

    def begin(self, ids: Ids, mask: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """[1, T, V] of [1, T] ids, which the cache has alone from here on, with the source."""
        outputs = self._run(self._fed(ids, mask, states) | self._nothing_read(1))
        self._cache = {name: outputs[present(name)] for name in self._past}
        return outputs[self._outputs[0]]

    def extend(self, ids: Ids, mask: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """[1, T, V] of [1, T] more ids."""
        outputs = self._run(self._fed(ids, mask, states) | self._cache)
        self._cache |= {name: outputs[present(name)] for name in self._past if ".decoder." in name}
        return outputs[self._outputs[0]]

    def _nothing_read(self, batch: int) -> dict[str, torch.Tensor]:
        return {name: self._empty(name, batch) for name in self._past}

    def _fed(self, ids: Ids, mask: torch.Tensor, states: torch.Tensor) -> dict[str, torch.Tensor]:
        import torch

        own = torch.from_numpy(np.ascontiguousarray(ids)).to("cuda")
        fed = {"input_ids": own, "encoder_attention_mask": mask, "encoder_hidden_states": states}
        return {name: value.to(self._kinds[name]).contiguous() for name, value in fed.items() if name in self._inputs}


class _Encoder(EngineRunner):
    def read(self, sources: Sample, mask: Ids) -> torch.Tensor:
        """The states [B, S, H] of [B, S] ids, on the device."""
        self._profile.admit(sources.shape[1])
        return self._run(self._feeds(sources, mask))[_STATES]


class PairEngineRunner:
    """Both engines. `device_ms`: of `paired` that of both, else that of the engine that was asked."""

    def __init__(self, folder: Path, platform: Platform, profile: Profile) -> None:
        self._encoder = _Encoder(folder / ENCODER, platform, profile.of_source())
        self._decoder = _Decoder(folder / DECODER, platform, profile)
        self._profile, self._length = profile, 0
        self.engine, self.device_ms = self._decoder.engine, 0.0
        self.max_length = min(profile.length.max, profile.of_source().length.max)
        both = (self._encoder.device_memory_bytes, self._decoder.device_memory_bytes)
        self.device_memory_bytes = {name: sum(one[name] for one in both) for name in both[0]}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._encoder.__exit__(*exc)
        self._decoder.__exit__(*exc)

    def encode(self, ids: Sample) -> Floats:
        import torch

        mask = np.ones((1, len(ids)), np.int64)
        self._states, self._mask = self._encoder.read(ids[None], mask), torch.from_numpy(mask).to("cuda")
        self.device_ms = self._encoder.device_ms
        return _floats(self._states[0])

    def logits(self, ids: Ids) -> Floats:
        self._profile.admit(len(ids))
        answers = self._decoder.answers(ids[None], self._mask, self._states)
        self.device_ms = self._decoder.device_ms
        return _floats(answers[0])

    def paired(self, sources: Sample, mask: Ids, ids: Ids) -> Floats:
        import torch

        self._profile.admit(ids.shape[1])
        answers, spent = [], 0.0
        for rows in self._profile.batches(len(ids)):
            states = self._encoder.read(sources[rows], mask[rows])
            seen = torch.from_numpy(np.ascontiguousarray(mask[rows])).to("cuda")
            answers.append(_floats(self._decoder.answers(ids[rows], seen, states)))
            spent += self._encoder.device_ms + self._decoder.device_ms
        self.device_ms = spent
        return np.concatenate(answers)

    def prefill(self, ids: Ids) -> Floats:
        self._profile.admit(len(ids))
        self._length = len(ids)
        answers = self._decoder.begin(ids[None], self._mask, self._states)
        self.device_ms = self._decoder.device_ms
        return _floats(answers[0, -1])

    def step(self, token: int) -> Floats:
        self._profile.admit(self._length + 1)
        self._length += 1
        answers = self._decoder.extend(np.array([[token]], np.int64), self._mask, self._states)
        self.device_ms = self._decoder.device_ms
        return _floats(answers[0, -1])


def _floats(answers: torch.Tensor) -> Floats:
    floats: Floats = answers.float().cpu().numpy()
    return floats


def open_engines(folder: Path, platform: Platform, profile: Profile, gpu: int) -> PairEngineRunner:
    """The runner of a folder's two engines; platform.cannot_run must have said None of the GPU before."""
    import torch

    torch.cuda.set_device(gpu)
    return PairEngineRunner(folder, platform, profile)

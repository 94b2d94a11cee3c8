"""From a sound to what Whisper reads, the logarithm of its mel spectrogram: preprocessor_config.json has its sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]


def settings(folder: Path) -> dict[str, Any]:
    """The feature extractor's settings: in a file of their own, or in the one of a processor."""
    file = folder / "preprocessor_config.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    return json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))["feature_extractor"]


def spectrogram(sound: Floats, told: dict[str, Any]) -> Floats:
    """[1, mel, frames] float32 of [T]: cut, or filled with silence, to the length that the model reads at once."""
    size, hop, longest = told["n_fft"], told["hop_length"], told["chunk_length"] * told["sampling_rate"]
    whole = np.zeros(longest)
    whole[: len(sound)] = sound[:longest]
    around = np.pad(whole, size // 2, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    pieces = np.lib.stride_tricks.sliding_window_view(around, size)[:longest:hop]
    power = np.abs(np.fft.rfft(pieces * window)) ** 2
    mel = mel_filters(told["feature_size"], size, told["sampling_rate"]) @ power.T
    decades = np.log10(np.maximum(mel, 1e-10))
    return ((np.maximum(decades, decades.max() - 8) + 4) / 4).astype(np.float32)[None]


def mel_filters(count: int, size: int, rate: int) -> Floats:
    """[count, size // 2 + 1]: triangles of the same area (Slaney 1998, "Auditory Toolbox"), up to half of the rate."""
    # Slaney's scale: linear to 1000 Hz, which is 15, and 27 steps for each factor of 6.4 from there on.
    step, bend = 200 / 3, 15.0
    octave = np.log(6.4) / 27
    top = rate / 2
    highest = bend + np.log(top / 1000) / octave if top >= 1000 else top / step
    mels = np.linspace(0, highest, count + 2)
    edges = np.where(mels < bend, mels * step, 1000 * np.exp((mels - bend) * octave))
    hertz = np.linspace(0, top, size // 2 + 1)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = np.minimum((hertz - low) / (middle - low), (high - hertz) / (high - middle))
    return np.maximum(triangles, 0) * 2 / (high - low)

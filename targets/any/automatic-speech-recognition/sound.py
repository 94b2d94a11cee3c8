"""A WAV file's samples, or a made sound where there is no file."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np


def read_sound(file: Path | None, rate: int) -> np.ndarray:
    """Mono, float32 [T] within -1 and 1, of 16-bit PCM at `rate` samples a second; without a file a rising tone."""
    if file is None:
        seconds = np.arange(2 * rate) / rate
        return (0.3 * np.sin(2 * np.pi * (200 + 400 * seconds) * seconds)).astype(np.float32)
    try:
        with wave.open(str(file)) as opened:
            channels, width, own = opened.getnchannels(), opened.getsampwidth(), opened.getframerate()
            data = opened.readframes(opened.getnframes())
    except OSError as error:
        raise SystemExit(f"{file}: {error.strerror}") from error
    except (wave.Error, EOFError) as error:
        width, own, why = 0, 0, str(error)
    else:
        why = f"it has {own} samples a second of {8 * width} bits"
    if (width, own) != (2, rate):
        raise SystemExit(f"{file}: {why}; convert it: ffmpeg -i {file} -ac 1 -ar {rate} -c:a pcm_s16le sound.wav")
    samples = np.frombuffer(data, "<i2").reshape(-1, channels) / 2**15
    return samples.mean(axis=1).astype(np.float32)

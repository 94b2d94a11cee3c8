"""A file's sound: WAV by NumPy alone, FLAC and Ogg by soundfile, other sampling rates by SciPy's polyphase filter.

Anything else is refused with the line of ffmpeg that converts it: no two decoders of lossy sound give the same samples.
"""

from __future__ import annotations

import shlex
import struct
from collections.abc import Iterator
from importlib.util import find_spec
from math import gcd
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporter.errors import JobError, MissingPackage
from exporter.runner import Floats

WAV, BY_SOUNDFILE = ".wav", (".flac", ".ogg")
KINDS = (WAV, *BY_SOUNDFILE)
OTHERS = (
    ".aac", ".aif", ".aiff", ".amr", ".m4a", ".mkv", ".mp3", ".mp4", ".oga", ".opus", ".webm", ".wma",
)  # fmt: skip
SHORTEST, LONGEST = 0.1, 60.0  # seconds: a word, and what attention over all of a sound still has the memory for
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE  # WAVE_FORMAT_… of a WAV's header
_EXTRA = "audio"


def check_sound(file: Path) -> None:
    """Raises JobError for what cannot be read or is too short or too long, MissingPackage for what reads it."""
    samples, rate = _decoded(file)
    seconds = len(samples) / rate
    if not SHORTEST <= seconds <= LONGEST:
        name = shlex.quote(str(file))
        raise JobError(
            f"{file} is {seconds:.2f} seconds long, and sounds of {SHORTEST} to {LONGEST:g} seconds are measured on; "
            f"a longer one is cut by: ffmpeg -i {name} -f segment -segment_time 20 part-%03d.wav"
        )


def read_sound(file: Path, rate: int) -> Floats:
    """Mono, float32 [T] within -1 and 1 at `rate` samples a second. Raises JobError or MissingPackage."""
    samples, own = _decoded(file)
    mono = samples.mean(axis=1)
    return (mono if own == rate else _resampled(mono, own, rate)).astype(np.float32)


def _resampled(samples: NDArray[np.float64], own: int, rate: int) -> NDArray[np.float64]:
    if find_spec("scipy") is None:
        raise MissingPackage(f"a sound of {own} samples a second for a model of {rate}", ["scipy"], _EXTRA)
    from scipy.signal import resample_poly

    common = gcd(own, rate)
    result: NDArray[np.float64] = resample_poly(samples, rate // common, own // common)
    return result


def _decoded(file: Path) -> tuple[NDArray[np.float64], int]:
    """[T, channels] and samples a second. Raises JobError."""
    if file.suffix.lower() not in KINDS:
        raise _unreadable(file, f"it is no {' or '.join(KINDS)}")
    samples, rate = _wav(file) if file.suffix.lower() == WAV else _by_soundfile(file)
    if not samples.size or not np.isfinite(samples).all():
        raise JobError(f"{file} holds {'values that are no numbers' if samples.size else 'no sound'}")
    return samples, rate


def _unreadable(file: Path, why: str) -> JobError:
    old, new = shlex.quote(str(file)), shlex.quote(file.with_suffix("").name + "-pcm.wav")
    return JobError(f"{file} cannot be read as a sound ({why}); convert it: ffmpeg -i {old} -c:a pcm_s16le {new}")


def _by_soundfile(file: Path) -> tuple[NDArray[np.float64], int]:
    if find_spec("soundfile") is None:
        raise MissingPackage(f"a {file.suffix} sound ({file.name})", ["soundfile"], _EXTRA)
    import soundfile

    try:
        samples, rate = soundfile.read(file, dtype="float64", always_2d=True)
    except (OSError, RuntimeError) as error:
        raise _unreadable(file, " ".join(str(error).split())) from error
    return samples, int(rate)


def _wav(file: Path) -> tuple[NDArray[np.float64], int]:
    """By "Multimedia Programming Interface and Data Specifications 1.0" (IBM and Microsoft 1991), chunk by chunk."""
    try:
        chunks = dict(_chunks(file.read_bytes()))
        header, data = chunks[b"fmt "], chunks[b"data"]
        kind, channels, rate, _, _, bits = struct.unpack("<HHIIHH", header[:16])
        if kind == _EXTENSIBLE:
            kind = struct.unpack("<H", header[24:26])[0]  # the first bytes of its GUID are the kind's number
    except (OSError, KeyError, ValueError, struct.error) as error:
        raise _unreadable(file, f"no WAV: {' '.join(str(error).split()) or type(error).__name__}") from error
    if not channels or not rate:
        raise _unreadable(file, f"its header has {channels} channels and {rate} samples a second")
    values = _values(data, kind, bits)
    if values is None:
        raise _unreadable(file, f"a WAV of kind {kind} with {bits} bits")
    return values[: len(values) - len(values) % channels].reshape(-1, channels), rate


def _chunks(riff: bytes) -> Iterator[tuple[bytes, bytes]]:
    if riff[:4] != b"RIFF" or riff[8:12] != b"WAVE":
        raise ValueError("it does not begin with RIFF and WAVE")
    place = 12
    while place + 8 <= len(riff):
        name, size = struct.unpack("<4sI", riff[place : place + 8])
        # A program that streams does not know the size: all that follows is the sound's.
        if name == b"data" and size in (0, 0xFFFFFFFF):
            size = len(riff) - place - 8
        if place + 8 + size > len(riff):
            raise ValueError(f"its {name.decode('latin1').strip()} is cut off")
        yield name, riff[place + 8 : place + 8 + size]
        place += 8 + size + size % 2


def _values(data: bytes, kind: int, bits: int) -> NDArray[np.float64] | None:
    """The numbers, 1 the largest of PCM; None for a kind that is not known."""
    if kind == _FLOAT and bits in (32, 64):
        return np.frombuffer(data[: len(data) // (bits // 8) * (bits // 8)], f"<f{bits // 8}").astype(np.float64)
    if kind != _PCM or bits not in (8, 16, 24, 32):
        return None
    if bits == 8:  # the only one without a sign
        return (np.frombuffer(data, np.uint8).astype(np.float64) - 128) / 128
    if bits == 24:
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data[: len(data) // 3 * 3], np.uint8).reshape(-1, 3)
        return wide.view("<i4")[:, 0] / 2.0**31
    size = bits // 8
    return np.frombuffer(data[: len(data) // size * size], f"<i{size}") / 2.0 ** (bits - 1)

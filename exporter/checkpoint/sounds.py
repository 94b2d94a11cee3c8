"""What is measured on where a model hears: sounds of files, or some that a seeded program makes.

A list of sounds is a text, so that all that is done with a text (its name, its place in a cache's key, its way to a
worker) is done with it: a line for each, `SHA256 FILE`, or one line `drawn COUNT SEED`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporter.checkpoint.sound_files import KINDS, OTHERS, check_sound, read_sound
from exporter.errors import JobError
from exporter.runner import Floats
from exporter.store import sha256_file

FEWEST = 8  # each is one sample: of fewer no error of a mean is known
Waves = NDArray[np.float64]
_DRAWN = "drawn"
_PEAK = 0.5  # of a made sound, where the largest of a file is 1


def drawn(count: int, seed: int) -> str:
    """The list of `count` sounds that are made."""
    return f"{_DRAWN} {count} {seed}"


def listed(folder: Path, flag: str) -> str:
    """The list of a folder's sounds, those of its subfolders included. Raises JobError; `flag` named the folder."""
    folder = folder.expanduser()
    if not folder.is_dir():
        raise JobError(f"no such folder of sounds: {folder} ({flag})")
    inside = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if other := next((path for path in inside if path.suffix.lower() in OTHERS), None):
        name, kind = shlex.quote(str(folder)), other.suffix
        raise JobError(
            f"{other} is no {' or '.join(KINDS)}, and all of a folder is measured on; make such files of them: "
            f'for one in {name}/*{kind}; do ffmpeg -i "$one" -ac 1 "${{one%.*}}.wav" && rm "$one"; done'
        )
    files = [path for path in inside if path.suffix.lower() in KINDS]
    once: dict[str, Path] = {}
    for path in files:  # a copy counts once
        once.setdefault(sha256_file(path), path)
    if len(once) < FEWEST:
        raise JobError(
            f"{folder} holds {len(once)} different sounds ({', '.join(KINDS)}), and at least {FEWEST} are needed to "
            f"measure anything: give another with {flag}"
        )
    return listed_files(list(once.values()))


def listed_files(files: Sequence[Path]) -> str:
    """The list of these files, in their order. Raises JobError for one that cannot be read."""
    for path in files:
        check_sound(path)
    return "\n".join(f"{sha256_file(path)} {path.absolute()}" for path in files)


def shared(one: str, other: str) -> str | None:
    """The name of a sound that two lists have in common; None: there is none. Made ones differ by their seed."""
    if one.startswith(_DRAWN) or other.startswith(_DRAWN):
        return "the made sounds" if one == other else None
    known = {digest for digest, _ in _lines(one)}
    return next((Path(name).name for digest, name in _lines(other) if digest in known), None)


def names(sounds: str) -> list[str]:
    """What each sound of a list is called."""
    if sounds.startswith(_DRAWN):
        return [f"made sound {number + 1}" for number in range(int(sounds.split()[1]))]
    return [Path(name).name for _, name in _lines(sounds)]


def read(sounds: str, rate: int) -> Iterator[Floats]:
    """The sounds of a list, mono, float32 [T] within -1 and 1, at `rate` samples a second. Raises JobError."""
    if sounds.startswith(_DRAWN):
        _, count, seed = sounds.split()
        yield from (draw(np.random.default_rng([int(seed), number]), rate) for number in range(int(count)))
        return
    for _, name in _lines(sounds):
        yield read_sound(Path(name), rate)


def _lines(sounds: str) -> list[tuple[str, str]]:
    return [(digest, name) for digest, _, name in (line.partition(" ") for line in sounds.splitlines())]


def draw(rng: np.random.Generator, rate: int) -> Floats:
    """A sound of its own length, 1 to 4 seconds: vowels, hisses, glides and pauses, over some noise."""
    length = int(rng.uniform(1, 4) * rate)
    pieces: list[Waves] = []
    while sum(map(len, pieces)) < length:
        seconds = np.arange(int(rng.uniform(0.06, 0.35) * rate)) / rate
        made = (_vowel, _vowel, _hiss, _glide, _pause)[int(rng.integers(5))](rng, seconds, rate)
        pieces.append(made * np.sin(np.pi * np.linspace(0, 1, len(made))) ** 0.5 * rng.uniform(0.2, 1))
    whole = np.concatenate(pieces)[:length]
    whole = whole * _PEAK / max(np.abs(whole).max(), 1e-3) + rng.normal(0, rng.uniform(0.0005, 0.01), length)
    result: Floats = whole.clip(-1, 1).astype(np.float32)
    return result


def _vowel(rng: np.random.Generator, seconds: Waves, rate: int) -> Waves:
    """Harmonics of a gliding pitch under three resonances (Fant 1960, "Acoustic Theory of Speech Production")."""
    pitch = rng.uniform(80, 260) * (1 + rng.uniform(-0.2, 0.2) * seconds / seconds[-1])
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    formants = rng.uniform((250, 800, 2000), (850, 2200, 3200))
    number = np.arange(1, max(int(rate * 0.4 / pitch.max()), 1) + 1)[:, None]
    away = (number * pitch.mean() - formants) / (60 + 0.08 * formants)
    loud = (1 / (1 + away**2)).sum(1) / number[:, 0] ** 0.5
    waves: Waves = loud @ np.sin(number * phase)
    return waves / max(float(np.abs(waves).max()), 1e-3)


def _hiss(rng: np.random.Generator, seconds: Waves, rate: int) -> Waves:
    """Noise of one band, as of s and f."""
    spectrum = np.fft.rfft(rng.normal(size=len(seconds)))
    hertz = np.fft.rfftfreq(len(seconds), 1 / rate)
    spectrum *= np.exp(-(((hertz - rng.uniform(0.1, 0.4) * rate) / (0.06 * rate)) ** 2))
    waves: Waves = np.fft.irfft(spectrum, len(seconds))
    return 0.4 * waves / max(float(np.abs(waves).max()), 1e-3)


def _glide(rng: np.random.Generator, seconds: Waves, rate: int) -> Waves:
    """One tone that rises or falls."""
    first, last = rng.uniform(0.01, 0.3, 2) * rate
    hertz = first * (last / first) ** (seconds / seconds[-1])
    waves: Waves = 0.5 * np.sin(2 * np.pi * np.cumsum(hertz) / rate)
    return waves


def _pause(rng: np.random.Generator, seconds: Waves, rate: int) -> Waves:
    return np.zeros(len(seconds))

"""Sounds as what is measured on: files of every kind, other sampling rates, lists, and those that are made."""

from __future__ import annotations

import numpy as np
import pytest
import speech_models

from exporter.checkpoint.sound_files import read_sound
from exporter.checkpoint.sounds import drawn, listed, listed_files, names, read, shared
from exporter.errors import JobError, MissingPackage
from exporter.job import Job
from exporter.pipeline.inputs import SOUNDS, calibration_list
from exporter.pipeline.labelled_sounds import labelled_sounds

pytestmark = pytest.mark.quick
RATE = speech_models.RATE


@pytest.fixture
def folder(tmp_path):
    for number, sound in enumerate(speech_models.sounds(9)):
        speech_models.write_wav(tmp_path / f"some/{number}.wav", sound)
    return tmp_path / "some"


@pytest.mark.parametrize(("bits", "kind"), [(8, 1), (16, 1), (24, 1), (32, 1), (32, 3), (64, 3)])
def test_each_kind_of_wav(bits, kind, tmp_path):
    sound = speech_models.sounds(1)[0]
    file = speech_models.write_wav(tmp_path / "one.wav", sound, channels=2, bits=bits, kind=kind)
    np.testing.assert_allclose(read_sound(file, RATE), sound, atol=1.01 / 2 ** (min(bits, 24) - 1))


def test_another_rate_is_resampled_without_aliases(tmp_path):
    seconds = np.arange(2 * 44_100) / 44_100
    low, high = (np.sin(2 * np.pi * hertz * seconds) for hertz in (440, 12_000))
    file = speech_models.write_wav(tmp_path / "one.wav", 0.4 * (low + high), rate=44_100)
    got = read_sound(file, RATE)
    assert len(got) == 2 * RATE
    wanted = 0.4 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)
    # 12 kHz is beyond what the new rate has: it must be gone, and not come back as 4 kHz.
    np.testing.assert_allclose(got[500:-500], wanted[500:-500], atol=0.002)


def test_a_folder_is_listed_once_and_read_in_order(folder):
    (folder / "copy.wav").write_bytes((folder / "3.wav").read_bytes())
    told = listed(folder, "--eval-audio")
    assert sorted(names(told)) == [f"{number}.wav" for number in range(9)]
    for sound, expected in zip(read(told, RATE), speech_models.sounds(9), strict=True):
        np.testing.assert_allclose(sound, expected, atol=1e-4)


def test_what_is_calibrated_on_is_other_than_what_is_measured_on(folder):
    told = listed(folder, "--eval-audio")
    assert shared(told, told) == "0.wav"
    assert shared(drawn(16, 0), drawn(16, 1)) is None
    job = Job(model="m", output="o", calib_audio=folder)
    with pytest.raises(JobError, match=r"shares sounds with what is measured on \(0.wav\)"):
        calibration_list(job, SOUNDS, told)


def test_what_is_no_sound_is_refused_with_the_line_that_mends_it(folder):
    (folder / "0.wav").write_bytes((folder / "0.wav").read_bytes()[:1000])
    with pytest.raises(JobError, match=r"0.wav cannot be read as a sound \(no WAV: its data is cut off\).*ffmpeg -i"):
        listed(folder, "--eval-audio")
    speech_models.write_wav(folder / "0.wav", np.zeros(100))
    with pytest.raises(JobError, match=r"0.01 seconds long.*segment_time"):
        listed(folder, "--eval-audio")
    speech_models.write_wav(folder / "0.wav", np.full(9000, np.nan), bits=32, kind=3)
    with pytest.raises(JobError, match="values that are no numbers"):
        listed(folder, "--eval-audio")
    (folder / "0.mp3").write_bytes(b"ID3")
    with pytest.raises(JobError, match=r"0.mp3 is no .wav or .flac or .ogg.*ffmpeg"):
        listed(folder, "--eval-audio")
    with pytest.raises(JobError, match="no such folder of sounds"):
        listed(folder / "none", "--eval-audio")
    with pytest.raises(JobError, match="holds 0 different sounds"):
        listed(speech_models.write_wav(folder / "one/a.txt", np.zeros(9)).parent, "--eval-audio")


def test_flac_is_read_where_soundfile_is(tmp_path):
    sound = speech_models.sounds(1)[0]
    (tmp_path / "one.flac").write_bytes(b"fLaC")
    try:
        import soundfile
    except ImportError:
        with pytest.raises(MissingPackage, match=r"a .flac sound \(one.flac\) needs soundfile"):
            listed_files([tmp_path / "one.flac"])
        return
    with pytest.raises(JobError, match="cannot be read as a sound"):
        listed_files([tmp_path / "one.flac"])
    soundfile.write(tmp_path / "one.flac", sound, RATE)
    np.testing.assert_allclose(read_sound(tmp_path / "one.flac", RATE), sound, atol=1e-4)


def test_made_sounds_are_the_same_each_time_and_unlike_each_other():
    first, again, others = (list(read(drawn(3, seed), RATE)) for seed in (0, 0, 1))
    for one, two, other in zip(first, again, others, strict=True):
        np.testing.assert_array_equal(one, two)
        assert len(one) != len(other)
        assert RATE <= len(one) <= 4 * RATE
        assert 0.01 < one.std() < 0.5
        assert np.abs(one).max() <= 1


def test_sounds_with_transcripts(folder):
    file = folder.parent / "said.jsonl"
    lines = [f'{{"path": "some/{number}.wav", "sentence": "word {number}"}}' for number in range(9)]
    file.write_text("\n".join(lines), encoding="utf-8")
    data = labelled_sounds(Job(model="m", output="o", eval_data=file))
    assert data.values == tuple(f"word {number}" for number in range(9))
    assert names(data.text) == [f"{number}.wav" for number in range(9)]
    assert data.about["guessed"] == ["text", "label"]
    file.write_text("\n".join(lines).replace("8.wav", "9.wav"), encoding="utf-8")
    with pytest.raises(JobError, match=r"line 9: no such sound"):
        labelled_sounds(Job(model="m", output="o", eval_data=file))
    with pytest.raises(JobError, match=r"give sounds with them, --eval-data FILE"):
        labelled_sounds(Job(model="m", output="o", max_wer_rise=0.1))
    with pytest.raises(JobError, match=r"give one of them"):
        labelled_sounds(Job(model="m", output="o", eval_data=file, eval_audio=folder))

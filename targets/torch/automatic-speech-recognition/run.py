"""Writes down what is said in a sound with the model in this folder, by transformers.

pip install torch transformers    (and torchao, where config.json has a quantization_config)
"""

from __future__ import annotations

import argparse
import sys
import wave
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

HERE = Path(__file__).resolve().parent


def read_wav(file: str, rate: int) -> np.ndarray:
    """[T] between -1 and 1, the mean of its channels. Ends the program for what is no such sound."""
    try:
        with wave.open(file) as sound:
            told = (sound.getframerate(), 8 * sound.getsampwidth())
            samples, channels = sound.readframes(sound.getnframes()), sound.getnchannels()
    except (OSError, EOFError, wave.Error) as error:
        raise SystemExit(f"{file} cannot be read as a WAV file: {error}") from error
    if told != (rate, 16):
        raise SystemExit(
            f"{file} has {told[0]} samples a second of {told[1]} bits, and {rate} of 16 are read: "
            f"ffmpeg -i {file} -ac 1 -ar {rate} -c:a pcm_s16le other.wav"
        )
    return np.frombuffer(samples, "<i2").reshape(-1, channels).mean(axis=1) / 32768


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sound", help="a WAV file")
    parser.add_argument("--language", help="of a model of several: its code, such as de (default: the sound's own)")
    parser.add_argument("--ids", action="store_true", help="print the tokens' ids: to compare formats by them")
    asked = parser.parse_args()
    processor = AutoProcessor.from_pretrained(HERE)
    model = AutoModelForSpeechSeq2Seq.from_pretrained(HERE, dtype="auto").eval()
    rate = processor.feature_extractor.sampling_rate
    features = processor(read_wav(asked.sound, rate), sampling_rate=rate, return_tensors="pt").input_features
    told = {} if asked.language is None else {"language": asked.language}
    began = perf_counter()
    with torch.inference_mode():
        # Always the most likely token, as the other formats' programs do. Beams: num_beams=5.
        out = model.generate(features.to(model.dtype), do_sample=False, num_beams=1, **told)
    seconds = perf_counter() - began
    special = {*processor.tokenizer.all_special_ids}
    new = [token for token in out[0].tolist() if token not in special]
    print(" ".join(map(str, new)) if asked.ids else processor.decode(new, skip_special_tokens=True).strip())
    print(f"{len(new)} tokens in {seconds:.2f} s", file=sys.stderr)


if __name__ == "__main__":
    main()

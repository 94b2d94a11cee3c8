"""What is said in a sound, by the model in this folder and transformers. Takes a WAV file, prints its transcript.

pip install torch transformers
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sound import read_sound
from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sound", nargs="?", type=Path, help="a WAV file; without one a tone is heard")
    asked = parser.parse_args()
    extractor = AutoFeatureExtractor.from_pretrained(HERE)
    tokenizer = AutoTokenizer.from_pretrained(HERE)
    model = AutoModelForCTC.from_pretrained(HERE, dtype="auto").eval()
    rate = extractor.sampling_rate
    samples = extractor(read_sound(asked.sound, rate), sampling_rate=rate, return_tensors="pt").input_values
    with torch.inference_mode():
        logits = model(input_values=samples.to(model.dtype)).logits[0]
    print(tokenizer.decode(logits.argmax(-1).tolist()))


if __name__ == "__main__":
    main()

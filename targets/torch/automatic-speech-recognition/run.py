"""Writes down what is said in a sound with the model in this folder, by transformers.

pip install torch transformers    (and torchao, where config.json has a quantization_config)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from time import perf_counter

import torch
from sound import read_sound
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sound", nargs="?", type=Path, help="a WAV file; without, a made tone")
    parser.add_argument("--language", help="of a model of several: its code, such as de (default: the sound's own)")
    parser.add_argument("--ids", action="store_true", help="print the tokens' ids: to compare formats by them")
    asked = parser.parse_args()
    processor = AutoProcessor.from_pretrained(HERE)
    model = AutoModelForSpeechSeq2Seq.from_pretrained(HERE, dtype="auto").eval()
    rate = processor.feature_extractor.sampling_rate
    features = processor(read_sound(asked.sound, rate), sampling_rate=rate, return_tensors="pt").input_features
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

"""What is said in a sound, by onnx/model.onnx beside this file: ONNX Runtime and the feature extractor.

Takes a WAV file, prints its transcript.

pip install onnxruntime transformers
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
from sound import read_sound
from transformers import AutoFeatureExtractor, AutoTokenizer

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sound", nargs="?", type=Path, help="a WAV file; without one a tone is heard")
    asked = parser.parse_args()
    extractor = AutoFeatureExtractor.from_pretrained(HERE)
    tokenizer = AutoTokenizer.from_pretrained(HERE)
    rate = extractor.sampling_rate
    samples = extractor(read_sound(asked.sound, rate), sampling_rate=rate, return_tensors="np").input_values
    has = onnxruntime.get_available_providers()
    providers = [one for one in ("CUDAExecutionProvider", "CPUExecutionProvider") if one in has]
    session = onnxruntime.InferenceSession(str(HERE / "onnx" / "model.onnx"), providers=providers)
    [logits] = session.run(["logits"], {"input_values": samples.astype(np.float32)})[0]
    print(tokenizer.decode(logits.argmax(-1).tolist()))


if __name__ == "__main__":
    main()

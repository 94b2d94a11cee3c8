"""Runs the model in this folder by exporter itself: transformers alone finds no weights that it knows here.

Prints a continued text; or for an encoder its hidden states' shape, a classifier's logits, a sound's transcript.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoTokenizer, GenerationConfig

from exporter.form import FORMS
from exporter.targets.torch.target import open_torch

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="?", default="Once upon a time", help="for a model of pictures or sounds a file")
    parser.add_argument("-n", "--tokens", type=int, default=40, help="how many to add to a text (%(default)s)")
    parser.add_argument("--ids", action="store_true", help="print the new tokens' ids: to compare formats by them")
    asked = parser.parse_args()
    task = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))["task"]
    if FORMS[task].inputs == "pixels":
        from PIL import Image

        picture = Image.open(asked.text).convert("RGB")
        processor = AutoImageProcessor.from_pretrained(HERE, backend="pil")
        pixels = processor(images=[picture], return_tensors="np")["pixel_values"][0].astype(np.float32)
        with open_torch(HERE, torch.get_num_threads()) as runner:
            print(runner.logits(pixels).tolist())
        return
    tokenizer = AutoTokenizer.from_pretrained(HERE)
    if FORMS[task].inputs == "waveform":
        from exporter.checkpoint.extractor import extracted, rate_of, read_extractor
        from exporter.checkpoint.sound_files import read_sound

        extractor = read_extractor(HERE, False)
        rate = rate_of(extractor)
        with open_torch(HERE, torch.get_num_threads()) as runner:
            frames = runner.logits(extracted(extractor, read_sound(Path(asked.text), rate), rate))
        print(tokenizer.decode(frames.argmax(-1).tolist()))
        return
    ids = np.array(tokenizer(asked.text)["input_ids"], np.int64)
    with open_torch(HERE, torch.get_num_threads()) as runner:
        if task != "text-generation":
            answer = runner.logits(ids)
            print(answer.tolist() if task == "text-classification" else f"hidden states {list(answer.shape)}")
            return
        said = (
            GenerationConfig.from_pretrained(HERE).eos_token_id if (HERE / "generation_config.json").is_file() else None
        )
        ends = {said} if isinstance(said, int) else set(said or ())
        began, new = perf_counter(), list[int]()
        logits = runner.prefill(ids)
        while len(new) < asked.tokens:
            new.append(int(logits.argmax()))
            if new[-1] in ends:
                break
            logits = runner.step(new[-1])
    seconds = perf_counter() - began
    print(" ".join(map(str, new)) if asked.ids else tokenizer.decode(new, skip_special_tokens=True))
    print(f"{len(new)} tokens in {seconds:.2f} s, the prompt's {len(ids)} included", file=sys.stderr)


if __name__ == "__main__":
    main()

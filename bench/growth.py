"""make bench ONLY=growth: what choosing a policy takes, from a tiny model to a billion parameters.

    python -m bench.growth                       both targets
    python -m bench.growth onnx:int8-static      one of them

The same command for each: `exporter calibrate`, with a gate that hardly a quantized layer keeps, so that every step is
taken: calibration, rounding, the order of the layers, simulations of the whole mix. The largest is a Llama of random
weights in a bfloat16 file: of it time and memory mean something, and nothing else. Run it on an idle machine, with
16 GB of memory.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench import record
from bench.jobs import DECODER, OUT, THREADS
from exporter.checkpoint.load import prepare, prepared
from exporter.checkpoint.recipes import RECIPES
from exporter.checkpoint.weights import stored_tensors

RANDOM = "random Llama"
SHAPE = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
VARIANTS = ("onnx:int8-static", "onnx:int4-weight")
GATE = 1e-6  # nats
TOKENS = 8192  # that are calibrated on: the default


def random_llama(tokenizer: Path, folder: Path) -> None:
    """A checkpoint of SHAPE in bfloat16, with another's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(dtype="bfloat16", **SHAPE)).to(torch.bfloat16)  # type: ignore[arg-type]
    model.save_pretrained(folder)
    for file in (*tokenizer.glob("tokenizer*"), *tokenizer.glob("special_tokens*")):
        shutil.copyfile(file, folder / file.name)


def parameters(folder: Path) -> int:
    """The numbers that a checkpoint's file holds, tied ones once."""
    return sum(math.prod(one.shape) for one in stored_tensors(folder).values())


def measured(model: str | Path, variant: str, scratch: Path) -> dict[str, Any]:
    """Seconds on the clock and of the processor, and the peak of the largest process of one `exporter calibrate`."""
    environment = os.environ | {"EXPORTER_CACHE": str(scratch / "cache")}
    command = [sys.executable, "-m", "exporter", "calibrate", "-m", str(model), "-t", variant, "--offline"]
    command += ["--calib-tokens", str(TOKENS), "--max-kl", str(GATE), "--threads", str(THREADS)]
    command += ["--policy-out", str(scratch / "policy.yaml")]
    print(" ".join(command[2:]), file=sys.stderr)
    began = time.perf_counter()
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"exporter calibrate ended with {os.waitstatus_to_exitcode(status)}")
    seconds, cpu = time.perf_counter() - began, used.ru_utime + used.ru_stime
    return {"s": seconds, "cpu_s": cpu, "peak_rss_bytes": 1024 * used.ru_maxrss}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=VARIANTS, metavar="TARGET", help=f"of {', '.join(VARIANTS)}")
    targets = parser.parse_args().targets
    about = record.begin("growth", THREADS)
    scratch = OUT / "growth"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    real = prepared(RECIPES[DECODER]) or prepare(RECIPES[DECODER], lambda holder: None)
    # In a process of its own: those that this one starts later count its peak of memory as theirs.
    making = multiprocessing.get_context("spawn").Process(target=random_llama, args=(real, scratch / "llama"))
    making.start()
    making.join()
    folders = {
        "tiny": record.ROOT / "models" / "tiny", DECODER: real, RANDOM: scratch / "llama",
    }  # fmt: skip
    figures = [
        {"model": name, "parameters": parameters(folder), "target": variant} | measured(folder, variant, scratch)
        for name, folder in folders.items()
        for variant in targets
    ]
    record.write(about, (), {"gate": GATE, "calibrated_tokens": TOKENS, "policies": figures})
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()

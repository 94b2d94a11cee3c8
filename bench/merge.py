"""make bench ONLY=merge: a merge larger than memory, of a synthetic checkpoint under a limit, against cp of its folder.

    python -m bench.merge --folder DISK

It needs three times the checkpoint's size on the disk of --folder, and removes all of it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import record
from exporter.machine import usable_cores

HIDDEN, INNER, VOCABULARY, RANK = 4096, 11008, 32000, 16
PROJECTIONS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
ADAPTED = {
    "q_proj and v_proj, PEFT's default for Llama": ("self_attn.q_proj", "self_attn.v_proj"),
    "every linear layer, the most that a LoRA changes": tuple(PROJECTIONS),
}
LIMIT = 3 * 10**9
_NOISE = np.random.default_rng(0).normal(0, 0.02, 1 << 22).astype(np.float32)


def write_safetensors(path: Path, tensors: dict[str, tuple[int, ...]], dtype: str) -> None:
    """A file of random tensors, written without holding one whole: the same noise, from another place in each."""
    noise = (_NOISE.view(np.uint32) >> 16).astype(np.uint16) if dtype == "BF16" else _NOISE
    header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors.items():
        size = int(np.prod(shape)) * noise.itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number, shape in enumerate(tensors.values()):
            left = int(np.prod(shape))
            rolled = np.roll(noise, 12345 * number)
            while left:
                file.write(rolled[:left].tobytes())
                left -= min(left, len(rolled))


def make_base(folder: Path, layers: int) -> None:
    """A Llama of `layers` layers in bfloat16, about 2 GB a file."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    tiny = record.ROOT / "models" / "tiny"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny / name, folder / name)
    groups: list[dict[str, tuple[int, ...]]] = [{"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}]
    for layer in range(layers):
        if layer and layer % 5 == 0:
            groups.append({})
        prefix = f"model.layers.{layer}"
        groups[-1] |= {f"{prefix}.{name}.weight": shape for name, shape in PROJECTIONS.items()}
        groups[-1] |= {f"{prefix}.{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    groups[-1] |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}
    index: dict[str, str] = {}
    for number, tensors in enumerate(groups, 1):
        name = f"model-{number:05}-of-{len(groups):05}.safetensors"
        write_safetensors(folder / name, tensors, "BF16")
        index |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def make_adapter(folder: Path, layers: int, names: tuple[str, ...]) -> None:
    """LoRA of rank 16 on the projections of these names."""
    folder.mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK, "bias": "none"}
    config |= {"target_modules": [name.split(".")[1] for name in names], "base_model_name_or_path": "base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors: dict[str, tuple[int, ...]] = {}
    for layer in range(layers):
        for name in names:
            rows, columns = PROJECTIONS[name]
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            tensors |= {f"{prefix}.lora_A.weight": (RANK, columns), f"{prefix}.lora_B.weight": (rows, RANK)}
    write_safetensors(folder / "adapter_model.safetensors", tensors, "F32")


def limit() -> str:
    """Limits this process and its children: by a cgroup of its own where that is allowed, else RLIMIT_DATA."""
    group = Path(f"/sys/fs/cgroup/memory/exporter-{os.getpid()}")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(LIMIT))
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
        return "RLIMIT_DATA"
    return "cgroup"


def measure(place: Path, layers: int) -> dict[str, Any]:
    """The result's figures."""
    base, copy = place / "base", place / "copy"
    make_base(base, layers)
    subprocess.run(["sync"], check=True)
    size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    free = copy_time(base, copy)
    kind = limit()
    bound = copy_time(base, copy)
    merges = []
    for what, names in ADAPTED.items():
        adapter, out = place / "adapter", place / "merged"
        make_adapter(adapter, layers, names)
        taken, told = merge_time(base, adapter, out)
        largest = 3 * 4 * max(rows * columns for rows, columns in map(PROJECTIONS.__getitem__, names))
        merges.append(
            {
                "name": what,
                "merge_s": taken,
                "bytes_per_s": size / taken,
                "share_of_cp": free / taken,
                "share_of_cp_under_limit": bound / taken,
                "peak_rss_bytes": told["peak_rss_bytes"],
                "aim_bytes": 1.3 * largest + 300e6,
                "modules_proven": told["proof"]["steps"][0]["modules"],
            }
        )
        shutil.rmtree(adapter)
        shutil.rmtree(out)
    return {
        "model_bytes": size, "rank": RANK, "limit_bytes": LIMIT, "limit_by": kind,
        "cp_s": free, "cp_under_limit_s": bound, "merges": merges,
    }  # fmt: skip


def merge_time(base: Path, adapter: Path, out: Path) -> tuple[float, dict[str, Any]]:
    """Seconds of `exporter merge`, whose publishing syncs, and its record."""
    options = ["-m", str(base), "--adapter", str(adapter), "-o", str(out), "--format", "json"]
    command = [sys.executable, "-m", "exporter", "merge", *options]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    taken = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stderr)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["way"] == "streaming", told["way"]
    return taken, told


def copy_time(base: Path, copy: Path) -> float:
    """Seconds that cp takes, with the data on the disk."""
    start = time.perf_counter()
    subprocess.run(["cp", "-r", base, copy], check=True)
    subprocess.run(["sync", "-f", copy / "config.json"], check=True)
    taken = time.perf_counter() - start
    shutil.rmtree(copy)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="a disk with room for three times"
    )
    parser.add_argument("--layers", type=int, default=30, help="0.4 GB each, and 0.5 GB")
    options = parser.parse_args()
    about = record.begin("merge", usable_cores())
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        figures = measure(Path(place), options.layers)
    record.write(about, (), figures)


if __name__ == "__main__":
    main()

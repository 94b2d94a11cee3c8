"""Where a decoder's time goes in ONNX Runtime: the microseconds of one token, by operator, from its own profiler.

    python -m bench.operators out/bench/smollm2-135m/onnx-int4-weight/onnx/model.onnx --past 512

Any graph whose cache has the names of optimum's exporters can be given. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.jobs import THREADS

STEPS = 20


def profiled(model: Path, past: int, threads: int) -> tuple[Counter[str], Counter[str]]:
    """(microseconds, nodes) of one token by operator, the means of STEPS tokens behind so many others."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        shapes = {value.name: value.shape for value in session.get_inputs()}
        feeds = {"input_ids": np.array([[5]]), "attention_mask": np.ones((1, past + 1), np.int64)}
        feeds["position_ids"] = np.array([[past]])
        feeds = {name: value for name, value in feeds.items() if name in shapes}
        random = np.random.default_rng(0)
        for name, shape in shapes.items():
            if name not in feeds:
                feeds[name] = random.standard_normal((1, shape[1], past, shape[3]), np.float32)
        for _ in range(STEPS + 1):  # the first allocates
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    times: Counter[str] = Counter()
    nodes: Counter[str] = Counter()
    for event in kernels[len(kernels) // (STEPS + 1) :]:
        times[event["args"]["op_name"]] += event["dur"]
        nodes[event["args"]["op_name"]] += 1
    return Counter({name: time // STEPS for name, time in times.items()}), Counter(
        {name: count // STEPS for name, count in nodes.items()}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="+")
    parser.add_argument("--past", type=int, default=512, help="tokens in the cache (default: 512)")
    arguments = parser.parse_args()
    for model in arguments.model:
        times, nodes = profiled(model, arguments.past, THREADS)
        table = Table("operator", "nodes", "µs", title=str(model))
        for name, time in times.most_common():
            table.add_row(name, str(nodes[name]), f"{time:,}")
        table.add_row("all", str(nodes.total()), f"{times.total():,}")
        Console().print(table)


if __name__ == "__main__":
    main()

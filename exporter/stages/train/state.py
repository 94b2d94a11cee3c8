"""The state of a training on disk, from which a killed one goes on: safetensors and JSON, no pickle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporter import store

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # AdamW's, of each weight


@dataclass
class State:
    """How many steps are done, the seconds that they took, and the curve (step, loss, kl, ce)."""

    done: int
    seconds: float
    curve: list[tuple[int, float, float, float]]


def save_state(states: Path, state: State, weights: Mapping[str, Any], optimizer: Any) -> None:
    """Publishes the state of a step, whole, and then removes the earlier ones."""
    from safetensors.torch import save_file

    tensors = {f"weight {name}": weight.detach().contiguous() for name, weight in weights.items()}
    for name, weight in weights.items():
        tensors |= {f"{moment} {name}": optimizer.state[weight][moment] for moment in _MOMENTS}
    earlier = _folders(states)
    with store.publish(states / f"step-{state.done:08d}") as building:
        save_file(tensors, building / "training.safetensors")
        (building / "training.json").write_text(json.dumps(asdict(state)), encoding="utf-8")
    for folder in earlier:
        shutil.rmtree(folder)


def last_state(states: Path, weights: Mapping[str, Any], optimizer: Any) -> State | None:
    """Puts the last saved state into the weights and the optimizer, and returns it; None where there is none."""
    import torch
    from safetensors.torch import load_file

    store.sweep(states)
    if not (folders := _folders(states)):
        return None
    tensors = load_file(folders[-1] / "training.safetensors")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(tensors[f"weight {name}"])
            optimizer.state[weight] = {moment: tensors[f"{moment} {name}"] for moment in _MOMENTS}
    read = json.loads((folders[-1] / "training.json").read_text(encoding="utf-8"))
    return State(read["done"], read["seconds"], [tuple(point) for point in read["curve"]])


def _folders(states: Path) -> list[Path]:
    return sorted(states.glob("step-*")) if states.is_dir() else []

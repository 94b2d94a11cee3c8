"""What a merge is proven with: the answers of base + adapter, before it, against the merged model's, after it.

The merge itself is held to float32's limit, whatever dtype is saved. What the saved dtype rounds away is measured
apart, on the folder that was written, and has a limit that grows with the dtype's unit roundoff.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.errors import BuildError, JobError
from exporter.runner import Floats, Ids

LENGTH, SEQUENCES = 48, 4
_SEED = 0
# Largest error of an answer over the largest answer; mean KL in nats. Measured on float32: 1e-7 to 1e-6, below 1e-9.
LIMITS = {
    "float32": (1e-4, 1e-6),
    "float16": (0.02, 1e-3),  # 32 times its roundoff, 2^-11
    "bfloat16": (0.13, 2e-2),  # the same of 2^-8
}
_FILE_KL = 0.02  # a probe file's answers may come from bfloat16 on another machine
_FILE_NAMES = ("input_ids", "logits")


@dataclass(frozen=True)
class Agreement:
    """How far two sets of answers are from each other, and the limits. `kl` is None where they are no distributions."""

    dtype: str
    tokens: int
    max_error: float
    largest: float  # the largest absolute answer of base + adapter
    kl: float | None
    max_error_limit: float
    kl_limit: float | None

    @property
    def passed(self) -> bool:
        small = self.max_error <= self.max_error_limit  # False for NaN
        return small and (self.kl is None or self.kl_limit is None or self.kl <= self.kl_limit)

    def record(self) -> dict[str, Any]:
        return asdict(self)


def probe_ids(tokenizer: Any, text: str, vocabulary: int) -> Ids:
    """int64 [4, 48]: half of a text's tokens, half random ids over the whole vocabulary, new tokens included."""
    ids = np.random.default_rng(_SEED).integers(0, vocabulary, (SEQUENCES, LENGTH), dtype=np.int64)
    if tokenizer is not None:
        known = np.array(tokenizer(text)["input_ids"][: SEQUENCES // 2 * LENGTH], np.int64)
        known = known[known < vocabulary][: len(known) // LENGTH * LENGTH].reshape(-1, LENGTH)
        ids[: len(known)] = known
    return ids


def answers(model: Any, ids: Ids) -> Floats:
    """A transformers model's float32 answers to [B, T] ids: logits, or the last hidden states where it has none."""
    import torch

    inputs = {"input_ids": torch.from_numpy(ids)}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = inputs["input_ids"]
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and 0 < limit < ids.shape[1]:
        inputs = {name: value[:, :limit] for name, value in inputs.items()}
    found = []
    with torch.inference_mode():
        for row in range(len(ids)):  # one by one: a classifier without a padding token takes no more
            out = model.eval()(**{name: value[row : row + 1] for name, value in inputs.items()})
            if "start_logits" in out:  # of question answering: each is over the positions
                found.append(torch.stack((out.start_logits, out.end_logits), 1))
            else:
                found.append(out.logits if "logits" in out else out.last_hidden_state)
    result: Floats = torch.cat(found).float().numpy()
    return result


def compare(truth: Floats, found: Floats, dtype: str, distribution: bool) -> Agreement:
    """`truth` and `found` are [..., V]; `distribution`: their softmax is one, so that a KL divergence has a meaning."""
    largest = float(np.abs(truth).max())
    error, kl = LIMITS[dtype]
    return Agreement(
        dtype,
        int(np.prod(truth.shape[:-1])),
        float(np.abs(truth.astype(np.float64) - found).max()),
        largest,
        mean_kl(truth, found) if distribution else None,
        error * max(1.0, largest),
        kl if distribution else None,
    )


def mean_kl(truth: Floats, found: Floats) -> float:
    """The mean over positions of KL(truth || found), in nats, from logits [..., V]."""
    p, q = _log_softmax(truth), _log_softmax(found)
    return float(np.maximum((np.exp(p) * (p - q)).sum(-1), 0).mean())


def _log_softmax(logits: Floats) -> Any:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def refuse_unproven(agreement: Agreement, what: str) -> None:
    """Raises BuildError when a merge does not answer as base + adapter did."""
    if not agreement.passed:
        kl = "" if agreement.kl is None else f", KL {agreement.kl:.2g} (limit {agreement.kl_limit:.2g})"
        raise BuildError(
            f"{what} does not answer as base + adapter do: largest error {agreement.max_error:.2g} (limit "
            f"{agreement.max_error_limit:.2g}){kl}; nothing was kept. "
            + ("Save more digits with --merge-dtype float32" if agreement.dtype != "float32" else "Please report it")
        )


def read_probe(path: Path) -> tuple[Ids, Floats]:
    """(input_ids int64 [B, T], logits float32 [B, T, V] or [B, classes]) of a --probe FILE. Raises JobError."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    how = (
        "write it where the adapter was trained: "
        "safetensors.torch.save_file({'input_ids': ids, 'logits': logits.float()}, FILE)"
    )
    try:
        found = load_file(path.expanduser())
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise JobError(f"the probe {path} is not a readable safetensors file ({error}); {how}") from error
    if not set(_FILE_NAMES) <= set(found):
        raise JobError(
            f"the probe {path} holds {', '.join(found) or 'nothing'}, not {' and '.join(_FILE_NAMES)}; {how}"
        )
    ids, logits = found["input_ids"], found["logits"]
    if ids.ndim != 2 or logits.shape[:1] != ids.shape[:1] or ids.dtype.kind != "i" or not np.isfinite(logits).all():
        raise JobError(
            f"the probe {path} must hold input_ids [B, T] and finite logits [B, T, V] or [B, classes]; {how}"
        )
    return ids.astype(np.int64), logits.astype(np.float32)


def check_probe(model: Any, path: Path) -> float:
    """The mean KL between a probe file's answers and a merged model's. Raises BuildError when it is above the limit."""
    ids, logits = read_probe(path)
    rows = model.get_input_embeddings().weight.shape[0]
    if ids.max() >= rows or ids.min() < 0:
        raise BuildError(f"the probe {path} has token {ids.max()}, and the merged model {rows} tokens: another base")
    found = answers(model, ids)
    if found.shape != logits.shape:
        raise BuildError(
            f"the probe {path} holds logits {list(logits.shape)}, and the merged model answers {list(found.shape)}"
        )
    kl = mean_kl(logits, found)
    if not kl <= _FILE_KL:
        raise BuildError(
            f"the merged model does not answer as the probe {path} says: KL {kl:.3g}, limit {_FILE_KL}: this is not "
            "the base that the adapter was trained on, or not the adapter that the probe was made with"
        )
    return kl

"""What is known of an engine that was built ahead of time, in words: parsed, by what, for which GPUs, its layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_NAMED = 3  # nodes that stayed in float32 for one reason; report.json has them all


def build_lines(row: Mapping[str, Any]) -> Iterator[str]:
    """What a row says of its engine; nothing where none is built ahead of time."""
    record = row["build"]["engine"]
    if record is None:
        return
    if "parsed" not in record:  # a third party's own
        yield from (f"{name}: {value}" for name, value in record.items())
        return
    if record["parsed"] is None:
        yield "not parsed: no parser of TensorRT or TensorRT-RTX can run here"
    else:
        yield f"parsed by {record['parsed_by']}: {'yes' if record['parsed'] else 'no'}"
    if record["refused"]:
        yield f"refused: {', '.join(record['refused'])}"
    if record["built_by"] is None:
        why = f"--no-{row['target']}-engine" if row["status"] == "ok" else "see why above"
        yield f"no engine ({why}); graph {record['onnx_bytes'] / 1e6:,.1f} MB"
    else:
        yield (
            f"engine built by {record['built_by']}: {record['engine_bytes'] / 1e6:,.1f} MB, "
            f"{record['engine_over_onnx']:.2f} × its graph's {record['onnx_bytes'] / 1e6:,.1f} MB"
        )
        yield f"for {', '.join(_gpus(record))}"
    yield f"profile (min:opt:max): {record['profile']}"
    yield "seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in record["seconds"].items())
    if (layers := record["layers"]) is not None:
        kinds = (", ".join(f"{count} {name}" for name, count in layers[by].items()) for by in _BY)
        yield f"{layers['count']} layers, by {layers['source']}: {'; '.join(kinds)}"
    if record["int8_share"] is not None:
        yield f"{record['int8_share']:.0%} of the linear layers' multiplications in int8"
    if record.get("sparse_tactics"):
        took = record["sparse_layers"]
        told = "what it took is not known" if took is None else f"taken for {took}"
        yield f"2:4 in {record['two_of_four_layers']} layers' weights: sparse tactics allowed, {told}"
    yield from _kept_lines(record["kept_float"])
    if (untimed := row["speed"]["untimed"]) is not None:
        yield f"quality: {row['artifact']['engine']}; latency: {untimed}"


_BY = ("by_precision", "by_type")


def _kept_lines(kept: Sequence[str]) -> Iterator[str]:
    """Nodes that stayed in float32, each as "node: why", by reason; the rarest first, for it says the most."""
    reasons: dict[str, list[str]] = {}
    for line in kept:
        node, _, why = line.rpartition(": ")
        reasons.setdefault(why, []).append(node)
    for why, nodes in sorted(reasons.items(), key=lambda item: len(item[1])):
        named = ", ".join(nodes[:_NAMED]) + ", …" * (len(nodes) > _NAMED)
        yield f"kept in float32, {why}: {len(nodes)} operator{'s' * (len(nodes) > 1)} ({named})"


def _gpus(record: Mapping[str, Any]) -> list[str]:
    named = record["capabilities"] or []
    if record["built_by"].startswith("tensorrt-rtx"):
        return named or ["RTX GPUs of compute capability 8.0, 8.6, 8.9 and 12.x, TensorRT-RTX's default"]
    which = "every GPU from Ampere on" if record["hardware_compatible"] else "the GPU that it was built on"
    return [which, *(["later versions of TensorRT too"] if record["version_compatible"] else [])]

"""How long a layer takes on this machine by its shape and scheme: measured once, alone, with the target's own engine.

What layers cost a policy is the sum of what they take for a token that is written, one row by itself, and for one that
is read, among 128; of a model without a KV cache the second alone. Each expert counts as if every token chose it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from exporter import cache, machine, store
from exporter.form import FORMS
from exporter.process import Session
from exporter.progress import counting
from exporter.scheme import Scheme
from exporter.targets import known

if TYPE_CHECKING:
    from exporter.quantization.cost import Costs, Shape
    from exporter.quantization.layer import Layer

_WRITTEN, _READ = 1, 128  # rows of a call
_COLD, _COPIES = 1 << 25, 32  # bytes of copies' weights, more than caches keep from call to call; and so many at most
_LEAST, _MOST, _SECONDS = 3, 20, 0.3  # runs, and what they may take together once there are so many
_ANY_RANGE = (-1.0, 1.0)  # layers that differ in that alone take as long


def layer_costs(session: Session, target: str, task: str, threads: int, layers: Mapping[str, Layer]) -> Costs:
    """Milliseconds per token of every layer at every rung. Raises what the target's engine raises."""
    from exporter.quantization.cost import Costs

    kinds = dict.fromkeys((layer.shape, _alike(one)) for layer in layers.values() for one in layer.choices)
    times: dict[tuple[Shape, Scheme | None], float] = {}
    for shape, scheme in counting(kinds, session.counted("timing layers")):
        took = _times(target, shape, scheme, threads, session.waiting)
        times[shape, scheme] = took[str(_READ)] / _READ + (took[str(_WRITTEN)] if FORMS[task].cached else 0.0)
    return Costs("ms per token", lambda shape, scheme: times[shape, _alike(scheme)])


def _alike(scheme: Scheme | None) -> Scheme | None:
    return scheme.model_copy(update={"range": _ANY_RANGE}) if scheme is not None and scheme.range else scheme


def _times(
    target: str, shape: Shape, scheme: Scheme | None, threads: int, waiting: Callable[[str], None]
) -> dict[str, float]:
    """Milliseconds of a layer by the rows of a call, from the cache where this machine was asked before."""
    told = scheme and scheme.model_dump(mode="json")
    here = [machine.cpu_name(), machine.cpu_features(), machine.usable_cores(), machine.versions()]
    key = store.content_key(["a layer's times", target, shape, told, threads, here])

    def make(folder: Path) -> dict[str, Any]:
        return {"target": target, "shape": shape, "scheme": told, "ms": _measured(target, shape, scheme, threads)}

    folder, _ = cache.TIMES.kept(key, waiting, make)
    manifest = store.read_manifest(folder)
    assert manifest is not None, folder
    took: dict[str, float] = manifest["ms"]
    return took


def _measured(target: str, shape: Shape, scheme: Scheme | None, threads: int) -> dict[str, float]:
    from exporter.quantization.cost import bytes_of

    copies = min(max(int(_COLD / bytes_of(shape, scheme)), 1), _COPIES)
    run = known.LAYER_RUNS[target](shape, scheme, copies, threads)
    return {str(rows): _quickest(run, rows) / copies for rows in (_WRITTEN, _READ)}


def _quickest(run: Callable[[int], object], rows: int) -> float:
    """Milliseconds of the quickest of some runs: what else the machine does only makes them slower."""
    run(rows)  # the first one allocates
    taken: list[float] = []
    while len(taken) < _LEAST or (len(taken) < _MOST and sum(taken) < _SECONDS):
        began = perf_counter()
        run(rows)
        taken.append(perf_counter() - began)
    return 1000 * min(taken)

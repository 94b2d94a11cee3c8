"""Which lengths of text a job's artifacts are proven at: past each boundary of the model's, and as far as was asked."""

from __future__ import annotations

from typing import Any

from exporter.checkpoint.boundaries import find_boundaries, positions_of
from exporter.errors import JobError
from exporter.job import Job
from exporter.pipeline.inputs import reads
from exporter.pipeline.source import Source

ALWAYS = 4096  # tokens: boundaries up to here are looked beyond in every job; it costs about what the evaluation does
_PAST = (32, 512)  # tokens beyond a boundary, at least and at most; half of the boundary between the two


def lengths_of(job: Job, source: Source) -> dict[str, Any]:
    """`lengths`: a mapping each (name, boundary, tokens, switch), the shortest first; `unproven`: (tokens, name).

    `boundary` is the length below which it makes no difference, `tokens` that of the text beyond it. Raises JobError
    for a --proven-length that the model has no positions for.
    """
    config, task, asked = source.config, source.checkpoint.task, job.proven_length
    if reads(task) is not None:  # no length of a text
        return {"lengths": [], "unproven": []}
    room = positions_of(config, task, source.max_length)
    if asked is not None and room is not None and asked > room:
        raise JobError(f"--proven-length {asked} is beyond this model's {room} positions")
    lengths: list[dict[str, Any]] = []
    unproven: list[tuple[int, str]] = []
    boundaries = find_boundaries(config, task, source.max_length)
    for one in boundaries:
        tokens = one.tokens + min(max(one.tokens // 2, _PAST[0]), _PAST[1])
        tokens = min(tokens, room or tokens)
        if one.tokens > max(ALWAYS, asked or 0):
            unproven.append((tokens, one.name))
        else:
            lengths.append({"name": one.name, "boundary": one.tokens, "tokens": tokens, "switch": one.switch})
    if asked is not None and asked > max((one["tokens"] for one in lengths), default=0):
        near = min((one["boundary"] for one in lengths), default=asked)
        lengths.append({"name": "", "boundary": near, "tokens": asked, "switch": True})
    return {"lengths": sorted(lengths, key=lambda one: one["tokens"]), "unproven": unproven}

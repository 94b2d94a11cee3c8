"""What a file says of itself: a description, and as metadata the model, its licence and what each signature takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from exporter.form import PIXELS
from exporter.targets.litert.convert import DECODE, KEYS, MASK, POSITIONS, PREFILL, SEE, TOKENS, VALUES
from exporter.targets.litert.flatbuffer import read_model, schema, signatures, write_model

FACTS = "exporter"  # the metadata's name: JSON
_TENSORS = {
    "input_ids": "int32 token ids, padded with any",
    "attention_mask": "int32, 1 for a token, 0 for padding",
    "token_type_ids": "int32, 0 for the first of two texts, 1 for the second",
    TOKENS: "int32 token ids, padded with any",
    POSITIONS: "int32 positions, counted from 0 at the beginning of the text; the first is where the cache is written",
    MASK: "float32, added to the attention's scores: 0 where a token sees a row of the cache, -30000 where not",
    PIXELS: "float32 [1, channels, height, width], as preprocessor_config.json has them made",
    "logits": "float32: for each token the scores of the next, or of a text or a picture the scores of each class",
    "last_hidden_state": "float32: the last layer's states of each token, or of each patch of a picture",
}
_CACHES = {
    KEYS: "float32 keys of a layer; written at input_pos[0], and the next call's input",
    VALUES: "float32 values of a layer; written at input_pos[0], and the next call's input",
}


def describe(file: Path, what: str, facts: Mapping[str, Any]) -> None:
    """Writes both into a file. `facts`: plain data, to which the signatures are added."""
    program = read_model(file)
    program.description = what
    told = {name: _signature(name, definition) for name, definition, _ in signatures(program)}
    text = json.dumps({**facts, "signatures": told}, ensure_ascii=False).encode()
    buffer = schema().BufferT()
    buffer.data = np.frombuffer(text, np.uint8)
    program.buffers.append(buffer)
    entry = schema().MetadataT()
    entry.name, entry.buffer = FACTS, len(program.buffers) - 1
    program.metadata = [*(program.metadata or ()), entry]
    written = file.with_suffix(".described")
    write_model(program, written)
    del program
    written.replace(file)


def _signature(name: str, definition: Any) -> dict[str, Any]:
    if name == SEE:
        said = "looks at a picture"
    elif name == DECODE:
        said = "decodes one token"
    else:
        does = "reads a prompt's" if name.startswith(PREFILL) else "reads a text of up to"
        said = f"{does} {name.rpartition('_')[2]} tokens, padded"
    parts = {
        part: {one.name.decode(): _tensor(one.name.decode()) for one in ones}
        for part, ones in (("inputs", definition.inputs), ("outputs", definition.outputs))
    }
    return {"description": said, **parts}


def _tensor(name: str) -> str:
    return _TENSORS.get(name) or next(told for prefix, told in _CACHES.items() if name.startswith(prefix))

"""Small random models converted to LiteRT, what torch answers, and a reference to prove them by."""

from __future__ import annotations

import json

import numpy as np
import torch
import transformers
from coreml_models import VOCABULARY, random_model

from exporter.checkpoint.opened import open_checkpoint
from exporter.measure.lengths import LENGTHS as KEPT
from exporter.measure.lengths import Lengths
from exporter.measure.quality import ANSWERS, Passages, Reference
from exporter.targets.litert.flatbuffer import floats_of, read_model, signatures, write_model
from exporter.targets.litert.places import module_of
from exporter.targets.litert.target import LITERT
from exporter.tasks.known import answer
from exporter.types import CLASSIFICATION, FEATURES, GENERATION, Checkpoint, ExportRequest, Probe

CACHE, LENGTHS = 62, "8,32"  # a cache that no number of prefills fills
IDS = np.random.default_rng(0).integers(1, VOCABULARY, CACHE)
FLOATS = 2e-6  # of the largest answer: float32's own, of another order of sums; 1.2e-6 was the most


def models_in(place):
    """get(kind): a checkpoint's folder, its task and the float32 model."""
    made = {}

    def get(kind):
        if kind not in made:
            folder, task = random_model(place / kind, kind)
            made[kind] = folder, task, load(folder, task)
        return made[kind]

    return get


def load(folder, task):
    classes = {FEATURES: transformers.AutoModel, CLASSIFICATION: transformers.AutoModelForSequenceClassification}
    kind = classes.get(task, transformers.AutoModelForCausalLM)
    return kind.from_pretrained(folder, dtype=torch.float32).eval()


def export(checkpoint, task, precision, folder, scratch, **more):
    """An artifact's folder, with the manifest that opening one needs."""
    folder.mkdir(parents=True)
    scratch.mkdir(parents=True, exist_ok=True)
    known = Checkpoint(checkpoint, task, checkpoint.name, "0" * 64, 0)
    asked = {"lengths": LENGTHS} | ({"max_length": CACHE} if task == GENERATION else {})
    options = LITERT.options(**asked | more.pop("options", {}))
    exported = LITERT.export(ExportRequest(known, precision, folder, scratch, 1, options, **more))
    (folder / "manifest.json").write_text(json.dumps({"task": task, "variant": f"litert:{precision}"}))
    return exported


def artifacts_in(place, models):
    """get(kind, precision): an artifact's folder; the float program is made once for all of a kind."""
    made = {}

    def get(kind, precision):
        if (kind, precision) not in made:
            checkpoint, task, _ = models(kind)
            folder = place / f"{kind}-{precision}"
            export(checkpoint, task, precision, folder, place / f"{kind}-scratch")
            made[kind, precision] = folder
        return made[kind, precision]

    return get


def torch_answer(model, given, task, **more):
    with torch.no_grad():
        out = model(input_ids=torch.tensor(np.atleast_2d(given)), **more)
    found = (out.last_hidden_state if task == FEATURES else out.logits).numpy()
    return found if np.ndim(given) == 2 or task == CLASSIFICATION else found[0]


def close(got, expected, share):
    assert got.shape == expected.shape
    error = np.abs(got - expected).max() / max(1.0, np.abs(expected).max())
    assert error < share, error


def reference_of(checkpoint, task, folder):
    """A reference's folder with what an export is proven by: a text, a probe, and what torch answers."""
    rows, mask = IDS[:24].reshape(2, 12), np.ones((2, 12), np.int64)
    mask[1, 7:] = 0
    passages = Passages(task, IDS, np.array([0, 30, CACHE] if task != GENERATION else [0, CACHE]), CACHE, CACHE // 2)
    with open_checkpoint(checkpoint, task, 1) as runner:
        answers = answer(runner, passages, lambda done, total: None)
        probe = Probe(rows, mask, runner.batch(rows, mask))
    folder.mkdir()
    Reference(passages, probe, answers).save(folder / ANSWERS)
    Lengths(CACHE).save(folder / KEPT)
    return folder


def changed(file, to, module, change, signature=None):
    """Writes a float program with other numbers in a module's weight: of all signatures, which share them, or of one
    that gets its own."""
    program = read_model(file)
    for name, _, graph in signatures(program):
        for tensor in graph.tensors:
            if module_of(tensor.name.decode()) == module and signature in (None, name):
                numbers = change(floats_of(program, tensor).copy()).view(np.uint8).reshape(-1)
                if signature is None:
                    program.buffers[tensor.buffer].data = numbers
                    return write_model(program, to)
                program.buffers.append(type(program.buffers[0])())
                tensor.buffer = len(program.buffers) - 1
                program.buffers[tensor.buffer].data = numbers
    return write_model(program, to)

"""Models of pictures exported by a target, each family once: what the tests of those targets have in common."""

from __future__ import annotations

import json

import numpy as np
import vision_models
from clients import artifact, client
from PIL import Image

from exporter import Job, run
from exporter.checkpoint.opened import open_checkpoint
from exporter.checkpoint.pictures import draw
from exporter.form import IMAGE_FEATURES, IMAGES
from exporter.measure.gates import judge
from exporter.measure.probe import compare_probe
from exporter.measure.quality import ANSWERS, Reference
from exporter.report.result import Result
from exporter.tasks.known import compare

HEADS = {IMAGES: "ForImageClassification", IMAGE_FEATURES: ""}


def made_in(place):
    """get(family, variants, …): the checkpoint, the output folder and the rows of a classifier's one run."""
    done = {}

    def get(family, variants, **more):
        if family not in done:
            model = vision_models.checkpoint(place / family / "model", family)
            out = place / family / "out"
            job = Job(
                model=str(model), output=out, threads=1, speed=False, policy="off", min_top1=0.6,
                target=variants, **more,
            )  # fmt: skip
            report = run(job)
            rows = {f"{row['target']}:{row['precision']}": row for row in report["results"]}
            assert {row["status"] for row in rows.values()} == {"ok"}, [row["reason"] for row in rows.values()]
            assert report["passed"], [(name, row["gates"]) for name, row in rows.items()]
            done[family] = model, out, rows
        return done[family]

    return get


def exported(target, place, family, task, **asked):
    """The checkpoint of a family, and its float32 artifact's folder, written in this process."""
    model = vision_models.checkpoint(place / "model", family, HEADS[task])
    options = target.options(**asked)
    return model, artifact(target, "fp32", model, task, place / "artifact", options=options)


def answers_alike(opened, model, task, limit):
    """A runner beside torch on pictures that nothing was made of, alone and several at once."""
    pixels = vision_models.pictures(model, seed=7).numpy()[:5]
    mask = np.ones((5, 3), np.int64)
    with open_checkpoint(model, task, 1) as runner:
        expected = runner.batch(pixels, mask)
    with opened as runner:
        for got in (runner.batch(pixels, mask), np.concatenate([runner.logits(one) for one in pixels])):
            assert got.shape == expected.shape
            assert np.abs(got - expected).max() < limit * max(1.0, np.abs(expected).max())


def missed(opened, precision, reference, task):
    """The gates that an artifact misses, which was broken."""
    told = Reference.load(reference / ANSWERS)
    row = Result("any", "any")
    with opened as runner:
        row.quality |= compare_probe(runner, told.probe, task)
        row.quality |= compare(runner, told)[0]
    return {gate.name for gate in judge(precision.limits(task), row, frozenset(), 64, "picture") if not gate.passed}


def said(folder, place):
    """What the program beside an artifact prints of a picture."""
    file = place / "picture.png"
    Image.fromarray(draw(np.random.default_rng(5))).save(file)
    return json.loads(client(folder, file))

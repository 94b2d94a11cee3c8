"""README.md of an artifact: what it says, that no name in it is markup, and that nothing depends on it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
import yaml
from markdown_it import MarkdownIt
from reports import HOSTILE

from exporter import Job, run, store
from exporter.checkpoint.card import CARD, README, card_files, carry_card, read_licence
from exporter.pipeline.again import bench_again
from exporter.pipeline.readme import alone, readme
from exporter.report import table
from exporter.report.columns import columns as columns_of
from exporter.report.files import read_report
from exporter.report.verifying import verified
from exporter.targets import known
from exporter.targets.folder.markdown import code, fenced, text

NAME = "a `b' $(c) {{ 7 * 7 }} [d](e) | *f*"
NASTY = [
    NAME,
    HOSTILE,
    "new\nline\n# heading",
    "```\nfence",
    "<b>bold</b> & `tick",
    "--- \n- item",
    "1. one",
    "@someone",
]
FRONT = "---\nlicense: other\nlicense_name: terms-of-two\nlicense_link: LICENSE\n---\n# A model\n"


def job(model, output, **more):
    small = {"eval_tokens": 256, "window": 64, "speed": False, "threads": 1}
    return Job(model=str(model), output=output, target=("onnx:int8-weight", "torch:bf16"), **small | more)


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """(checkpoint of a name that is hard to quote, report, output folder)."""
    place = tmp_path_factory.mktemp("made")
    model = shutil.copytree(tiny, place / NAME, ignore=shutil.ignore_patterns("adapter", "*.txt"))
    (model / README).write_text(FRONT)
    (model / "LICENSE").write_text("Two may.\n")
    return model, run(job(model, place / "out")), place / "out"


def page(folder):
    return (folder / README).read_text(encoding="utf-8")


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def row_of(report, variant):
    return next(row for row in report["results"] if table.name(row) == variant)


def test_it_says_how_to_run_this_very_artifact_and_what_was_measured_of_it(made):
    model, report, output = made
    folder, row = output / "onnx-int8-weight", row_of(report, "onnx:int8-weight")
    told = page(folder)
    front = yaml.safe_load(told.split("---\n")[1])
    assert front["license"] == "terms-of-two"
    assert front["pipeline_tag"] == "text-generation"
    assert "python run.py 'Once upon a time'" in told
    assert "node run.mjs 'Once upon a time'" in told
    assert f"`onnx/model.onnx` needs ONNX Runtime {row['build']['graph']['min_onnxruntime']} or later" in told
    assert f"pip install 'onnxruntime>={row['build']['graph']['min_onnxruntime']}' tokenizers" in told
    assert f"`onnx/model.onnx` ({table.megabytes(row['artifact']['bytes'])} MB)" in told
    [ratio] = [column for column in columns_of(report) if column.title == "PPL ratio"]
    assert f"| PPL ratio (± se) | {ratio.cell(row)} |" in told
    assert report["machine"]["cpu"] in told.replace("\\", "").replace("@&#8203;", "@")
    assert f"Length: {store.read_manifest(folder)['proven']}" in told.replace("\\", "")
    assert "The model's card names `terms-of-two` (LICENSE). Its terms: `LICENSE`." in told
    assert re.search(r"alone: it reads all \d+ texts that were tried as the checkpoint's own tokenizer does", told)
    for block in blocks(told, "sh"):
        subprocess.run(["sh", "-n"], input=block, text=True, check=True)
    [asked] = blocks(told, "yaml")
    again = Job.model_validate(yaml.safe_load(asked) | {"output": "out"})
    assert (again.target, again.model, again.window) == (("onnx:int8-weight",), str(model), 64)
    assert set(yaml.safe_load(asked)) == {"model", "target", "eval_tokens", "window"}
    by_torch = page(output / "torch-bf16")
    assert "pip install torch transformers\npython run.py" in by_torch
    assert 'AutoModelForCausalLM.from_pretrained(FOLDER, dtype="auto")' in by_torch


def test_the_checkpoints_own_page_is_its_card(made):
    _, _, output = made
    for name in ("onnx-int8-weight", "torch-bf16"):
        folder = output / name
        assert (folder / CARD).read_text() == FRONT
        assert (folder / "LICENSE").read_text() == "Two may.\n"
        manifest = store.read_manifest(folder)
        assert {"run.py", CARD, "LICENSE"} <= set(manifest["files"])
        assert {"run.py", CARD, "LICENSE"} <= set(manifest["extras"])
        assert README not in manifest["files"]
    # Where an artifact is the checkpoint of another job, the card is still the model's.
    assert card_files(output / "torch-bf16")[CARD] == output / "torch-bf16" / CARD


def test_a_tokenizer_that_reads_otherwise_without_transformers_is_told(made, tmp_path):
    _, _, output = made
    told = json.loads((output / "onnx-int8-weight" / "tokenizer.json").read_text())
    told["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(told))
    said = alone(tmp_path / "tokenizer.json", output / "reference" / "tokenizer.npz")
    assert re.match(
        r"it reads \d+ texts otherwise than the checkpoint's own tokenizer; first of \d+ texts: 'Hello", said
    )
    assert alone(tmp_path / "gone.json", output / "reference" / "tokenizer.npz") is None


def test_nothing_depends_on_it(made, tmp_path):
    model, _, first = made
    output = shutil.copytree(first, tmp_path / "out")
    kept = ("onnx-int8-weight", "reference", "torch-bf16")
    files = {path: path.stat().st_mtime_ns for name in kept for path in (output / name).iterdir()}
    changed, lost = output / "onnx-int8-weight" / README, output / "torch-bf16" / README
    before = page(lost.parent)
    changed.write_text("mine")
    lost.unlink()
    assert verified(output) == {"onnx-int8-weight": [], "reference": [], "torch-bf16": []}
    report = run(job(model, output))
    assert report["passed"]
    assert {path.name for path, time in files.items() if path.stat().st_mtime_ns != time} == {README}
    assert page(lost.parent) == before
    assert page(changed.parent) == page(first / "onnx-int8-weight")
    (output / "onnx-int8-weight" / "run.py").write_text("print('mine')")
    assert verified(output)["onnx-int8-weight"] != []


def test_bench_writes_it_anew_and_a_skipped_row_keeps_it(made, tmp_path, monkeypatch):
    _, _, first = made
    output = shutil.copytree(first, tmp_path / "out")
    for name in ("onnx-int8-weight", "torch-bf16"):
        (output / name / README).write_text("old")
    told = json.loads((output / "report.json").read_text())
    for row in told["results"]:
        if row["target"] == "torch" and row["precision"] == "bf16":
            row["target"] = "gone"  # a third party's that is not installed here
    (output / "report.json").write_text(json.dumps(told))
    bench_again(output, 1)
    assert "## What was measured" in page(output / "onnx-int8-weight")
    assert page(output / "torch-bf16") == "old"


@pytest.mark.parametrize("name", NASTY)
def test_no_name_is_markup_or_a_template(made, name):
    _, _, output = made
    report = read_report(output)
    folder = output / "onnx-int8-weight"
    manifest = store.read_manifest(folder)
    plain = MarkdownIt("commonmark").enable("table")
    before = [
        token.type for token in plain.parse(readme(report, row_of(report, "onnx:int8-weight"), manifest, folder, ""))
    ]
    report["evaluation"]["text"] = report["machine"]["cpu"] = name
    manifest |= {"model": name, "history": [name], "notes": [name], "proven": name}
    manifest["job"] = manifest["job"] | {"model": name}
    told = readme(
        table.clean(report), row_of(report, "onnx:int8-weight"), table.clean(manifest), folder, table.clean(name)
    )
    tokens = plain.parse(told)
    kinds = [token.type for token in tokens]
    assert kinds.count("heading_open") == before.count("heading_open")
    assert kinds.count("fence") == before.count("fence")
    assert kinds.count("td_open") == before.count("td_open")
    assert kinds.count("html_block") == 0
    inside = [child for token in tokens for child in token.children or ()]
    assert {child.content for child in inside if child.type == "html_inline"} <= {"<code>", "</code>"}
    assert not [child for child in inside if child.type in ("link_open", "image")]
    [asked] = [token.content for token in tokens if token.type == "fence" and token.info == "yaml"]
    assert yaml.safe_load(asked)["model"] == table.clean(name)
    assert ("{{" in told) == ("{{" in name)


def test_filters():
    assert text("a|b `c` *d*\n# e @f") == "a&#124;b \\`c\\` \\*d\\* \\# e @&#8203;f"
    assert text("- a") == "&#8203;- a"
    assert (code("model.onnx"), code("a`b")) == ("`model.onnx`", "<code>a\\`b</code>")
    assert fenced("a\n```\nb\n", "sh") == "````sh\na\n```\nb\n````\n"


@pytest.mark.parametrize(
    ("card", "name", "unread"),
    [
        ("---\nlicense: apache-2.0\n---\n", "apache-2.0", False),
        ("---\r\nlicense: [mit, bsd]\r\n---\r\n", "mit, bsd", False),
        ("---\nlicense: other\n---\n", "other", False),
        ("---\nlicense: 3\n---\n", None, False),
        ("---\nlicense: [\n---\n", None, True),
        ("---\n- a list\n---\n", None, False),
        ("# no front matter\n---\nlicense: mit\n---\n", None, False),
        (None, None, False),
    ],
)
def test_licences(tmp_path, card, name, unread):
    if card is not None:
        (tmp_path / CARD).write_bytes(card.encode())
    (tmp_path / "LICENSE-MIT").touch()
    (tmp_path / "licensed.json").touch()
    found = read_licence(tmp_path)
    assert (found.name, found.unread, found.files) == (name, unread, ("LICENSE-MIT",))


def test_a_page_that_a_target_wrote_itself_stays(tmp_path):
    checkpoint, folder = tmp_path / "checkpoint", tmp_path / "folder"
    for place, page in ((checkpoint, "the model's"), (folder, "the target's own")):
        place.mkdir()
        (place / README).write_text(page)
    assert carry_card(checkpoint, folder) == [CARD]
    assert ((folder / README).read_text(), (folder / CARD).read_text()) == ("the target's own", "the model's")


@pytest.mark.parametrize("name", known.BUILTIN)
def test_every_built_in_target_has_a_page_and_a_line_that_runs_it(name):
    target = known.get(name)
    assert (target.kit / f"{README}.jinja").is_file()
    assert "{folder}" in target.run

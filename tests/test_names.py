"""Folders with the names that people and scripts give them: they work, and the report shows them literally."""

import html
import json
import shutil

import pytest
from conftest import SMALL

NAMES = ["a b 'c' \"d\"", "モデル-ü", "-rf", "{{7*7}}", "<script>alert(1)<_script>", "[bold]$(x)&amp;|*"]


def test_every_name_is_shown_as_it_is(run_here, tiny, tmp_path):
    """One job with all the names at once: an adapter of each, merged in order, from a folder with a relative path."""
    model = tmp_path / NAMES[0]
    shutil.copytree(tiny, model, ignore=shutil.ignore_patterns("adapter"))
    for path in model.iterdir():
        path.chmod(0o444)
    model.chmod(0o555)
    flags = []
    for name in NAMES:
        shutil.copytree(tiny / "adapter", tmp_path / "adapters" / name)
        flags += ["--adapter", f"adapters/{name}"]
    done = run_here("run", *SMALL, "-m", NAMES[0], *flags, "-t", "onnx:fp32", "-o", NAMES[4], cwd=tmp_path)
    model.chmod(0o755)
    assert done.returncode == 0, done.stderr
    out = tmp_path / NAMES[4]
    report = json.loads((out / "report.json").read_text())
    assert report["name"] == NAMES[0]
    assert [line.split(" ", 2)[2] for line in report["model"]["history"][1:]] == [
        f"{name} (float32, PEFT, in memory)" for name in NAMES
    ]
    page = (out / "report.html").read_text()
    assert "<script>alert" not in page
    assert "49" not in page.split("<title>")[1].split("</title>")[0]
    for name in NAMES:
        assert name in html.unescape(page)


@pytest.mark.parametrize("name", ["-rf", "{{7*7}}"])
def test_every_name_can_be_a_models_and_an_outputs(run_here, tiny, tmp_path, name):
    (tmp_path / name).symlink_to(tiny)
    planned = run_here("run", "-m", name, "-o", f"{name} out", "--dry-run", "--format", "json", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["job"]["model"] == name
    assert json.loads(planned.stdout)["job"]["output"] == f"{name} out"

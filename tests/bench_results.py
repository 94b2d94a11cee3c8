"""The committed results of bench/, for tests that change a figure and look who notices."""

import json
import shutil
import subprocess
import sys

from conftest import ROOT

RESULTS = ROOT / "bench" / "results"


def result(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def at(value, path):
    """What stands at a path such as reports.0.label."""
    for step in path.split("."):
        value = value[int(step)] if isinstance(value, list) else value[step]
    return value


def put(value, path, new):
    head, _, last = path.rpartition(".")
    holder = at(value, head) if head else value
    holder[int(last) if isinstance(holder, list) else last] = new


def copy(folder):
    """The pages and the results in a folder where they can be changed."""
    shutil.copytree(RESULTS, folder / "bench" / "results")
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copyfile(ROOT / "README.md", folder / "README.md")
    return folder


def change(checkout, name, path, new):
    changed = result(name)
    put(changed, path, new)
    (checkout / "bench" / "results" / f"{name}.json").write_text(json.dumps(changed))


def run_module(*words):
    return subprocess.run([sys.executable, "-m", *map(str, words)], cwd=ROOT, capture_output=True, text=True)

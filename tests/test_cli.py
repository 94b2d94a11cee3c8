"""The command line as a user meets it: help, schema, precedence, listings, doctor, verify, report."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path

import click
import pytest
import yaml

import exporter
from exporter.command.cli import cli
from exporter.command.flags import headed
from exporter.job import Job, flag
from exporter.pipeline import sections
from exporter.targets import known

pytestmark = pytest.mark.quick

ROOT = Path(__file__).resolve().parent.parent
SMALL = ("--no-speed", "--eval-tokens", 256, "--threads", 1)
COMMANDS = (
    "bench",
    "calibrate",
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


def last_json(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def fake_install(site, name, version):
    """What metadata sees of an installed package."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.fixture(scope="module")
def built(run_cli, tmp_path_factory):
    """The output of a run."""
    out = tmp_path_factory.mktemp("built") / "out"
    done = run_cli("run", "-m", "models/tiny", "--target", "torch:bf16", *SMALL, "-o", out)
    assert done.returncode == 0, done.stderr
    return out


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


def test_run_help_shows_every_field_with_its_default(run_cli):
    words = " ".join(run_cli("run", "--help").stdout.split())
    assert {"--gguf-split-max-size", "--tensorrt-rtx-compute-capability", "--qat-steps"} <= OPTIONS.keys()
    for name, field in (FIELDS | OPTIONS).items():
        assert f" {name} " in words
        assert " ".join(field.description.split()) in words
        if isinstance(field.default, bool) or field.is_required() or field.default_factory or not field.default:
            continue
        default = ", ".join(field.default) if isinstance(field.default, tuple) else field.default
        assert f"[default: {default}]" in words


def test_the_common_flags_are_on_the_first_screen(run_cli):
    screen = run_cli("run", "--help", env={"COLUMNS": "100"}).stdout.splitlines()[:24]
    assert screen[0].startswith("Usage:")
    common = screen[screen.index("Common:") + 1 :]
    common = common[: common.index("")]
    assert [re.match(r"  (?:-\w, )?(--[\w-]+) ", line)[1] for line in common] == [
        "--model", "--adapter", "--target", "--output", "--config", "--eval-text", "--max-ppl-ratio", "--dry-run",
        "--force", "--format", "--verbose", "--help",
    ]  # fmt: skip


@pytest.mark.parametrize("command", ["run", "calibrate", "merge"])
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
        [] if command == "merge" else ["onnx", "gguf", "tensorrt", "tensorrt-rtx"]
    )


def test_schema_names_every_key_with_its_default(run_cli):
    done = run_cli("schema")
    schema = json.loads(done.stdout)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(schema["properties"]) == {*Job.model_fields, "onnx", "gguf", "tensorrt", "tensorrt-rtx", "qat"}
    assert set(schema["required"]) == {"model", "output"}
    assert schema["additionalProperties"] is False
    named(schema, Job)
    for section, model in sections.models().items():
        own = schema["properties"][section]
        if section == "qat":
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


def test_schema_takes_one_target_or_several_as_the_job_file_does(run_cli):
    kinds = {kind["type"] for kind in json.loads(run_cli("schema").stdout)["properties"]["target"]["anyOf"]}
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


def test_flags_win_over_the_file_within_a_section_too(run_cli, tmp_path):
    job = {"gguf": {"imatrix": "off", "split_max_size": "3G"}, "tensorrt": {"engine": False}, "qat": True}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({"model": "tiny", "target": "torch:bf16", **job}))
    flags = ("--gguf-split-max-size", "4G", "--tensorrt-engine", "--qat-steps", 7, "--gguf-tensor", "a=f16")
    done = run_cli(
        "run", "--config", tmp_path / "job.yaml", *flags, "-o", tmp_path / "b", "--dry-run", "--format", "json",
    )  # fmt: skip
    planned = last_json(done)
    assert planned["job"]["gguf"] == {"imatrix": "off", "split_max_size": 4_000_000_000, "tensor": ["a=f16"]}
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
def test_a_wrong_job_file_is_one_line_and_status_2(run_cli, tmp_path, text, complaint):
    (tmp_path / "job.yaml").write_text(text)
    done = run_cli("run", "--config", tmp_path / "job.yaml")
    assert done.returncode == 2
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_a_misspelt_flag_and_command_get_the_nearest(run_cli):
    assert "--eval-tokens" in run_cli("run", "--eval-token", "3").stderr
    assert run_cli("rum").returncode == 2


def test_targets_lists_every_precision_with_its_gates(run_cli):
    listed = last_json(run_cli("targets", "--format", "json"))
    rows = {(row["target"], row["precision"]): row for row in listed["targets"]}
    assert {("torch", "fp32"), ("onnx", "fp32"), ("onnx", "int8-weight")} <= set(rows)
    assert all(row["summary"] for row in rows.values())
    assert rows["onnx", "fp32"]["gates"]["max_logit_error"] == 0.001
    assert rows["onnx", "fp32"]["unavailable"] is None
    assert "tiny" in listed["recipes"]


def test_one_target_has_its_precisions_gates_options_and_an_example(run_cli):
    listed = last_json(run_cli("targets", "gguf", "--format", "json"))
    gates = {row["precision"]: row["gates"] for row in listed["precisions"]}
    assert gates["q4_k_m"]["max_ppl_ratio"] == 1.1
    assert [(one["flag"], one["key"], one["default"]) for one in listed["options"]] == [
        ("--gguf-imatrix", "gguf: {imatrix: …}", "auto"),
        ("--gguf-tensor", "gguf: {tensor: …}", ""),
        ("--gguf-split-max-size", "gguf: {split_max_size: …}", ""),
    ]
    assert listed["example"] == "exporter run -m MODEL -t gguf:q4_k_m --gguf-tensor ffn_down=q6_k -o out/gguf"
    human = run_cli("targets", "tensorrt-rtx", env={"COLUMNS": "60"}).stdout
    assert "--no-tensorrt-rtx-engine\n" in human
    assert "{compute_capability: …}" in human
    assert "no options of its own" in run_cli("targets", "torch").stdout


@pytest.mark.parametrize("name", [name for name, target in known.BUILTIN.items() if target.options])
def test_the_example_of_a_target_is_a_job(run_cli, name):
    """All of it is read; what stops it is the model, which is no one's."""
    example = last_json(run_cli("targets", name, "--format", "json"))["example"]
    done = run_cli(*shlex.split(example)[1:], "--dry-run")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "MODEL" in done.stderr


def test_a_misspelt_target_gets_the_nearest(run_cli):
    done = run_cli("targets", "guff")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: unknown target 'guff'; did you mean gguf?\n")


@pytest.mark.parametrize("command", [("targets",), ("targets", "tensorrt-rtx"), ("doctor",)], ids=" ".join)
def test_listings_fit_80_columns(run_cli, command):
    done = run_cli(*command, env={"COLUMNS": "80"})
    assert done.returncode == 0, done.stderr
    kept = ("trouble: ", "exporter run ")  # lines to be copied
    long = [line for line in done.stdout.splitlines() if len(line) > 80 and not line.startswith(kept)]
    assert long == []


def test_doctor_tells_what_decides_a_result(run_cli):
    facts = last_json(run_cli("doctor", "--format", "json", env={"OMP_NUM_THREADS": "3"}))
    assert facts["cpu"]
    assert facts["threads"] == facts["cores"] > 0
    assert facts["memory_bytes"] >= facts["memory_available_bytes"] > 0
    assert facts["environment"]["OMP_NUM_THREADS"] == "3"
    assert facts["versions"]["exporter"] == exporter.__version__
    assert facts["versions"]["onnxruntime"] == metadata.version("onnxruntime")
    assert {"cpu_features", "gpu", "gpus", "cache", "cache_free_bytes", "troubles"} <= set(facts)
    assert "No known trouble." in run_cli("doctor").stdout or facts["troubles"]


def test_doctor_knows_the_bad_pairs(run_cli, tmp_path):
    fake_install(tmp_path, "onnxruntime_gpu", "1.31.0")
    fake_install(tmp_path, "onnxruntime_genai", "0.13.1")
    fake_install(tmp_path, "optimum_onnx", "0.1.0")
    fake_install(tmp_path, "transformers", "4.57.1")
    facts = last_json(run_cli("doctor", "--format", "json", env={"PYTHONPATH": str(tmp_path), "PYTORCH_JIT": "0"}))
    troubles = "\n".join(facts["troubles"])
    assert "onnxruntime and onnxruntime-gpu share one folder" in troubles
    assert "onnxruntime-genai 0.13.1 writes the wrong rope_theta" in troubles
    assert "pip uninstall optimum-onnx" in troubles
    assert "transformers 4.57.1 is not >=" in troubles
    assert "unset PYTORCH_JIT" in troubles
    human = run_cli("doctor", env={"PYTHONPATH": str(tmp_path)})
    assert "trouble: onnxruntime and onnxruntime-gpu" in human.stdout
    assert human.returncode == 0


def test_verify_finds_a_changed_byte(run_cli, built, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(built, copy)
    whole = run_cli("verify", copy, "--format", "json")
    assert whole.returncode == 0
    assert json.loads(whole.stdout) == {"torch-bf16": [], "reference": []}
    model = copy / "torch-bf16" / "model.safetensors"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    (copy / "reference" / "reference.npz").unlink()
    damaged = run_cli("verify", copy)
    assert damaged.returncode != 0
    assert "torch-bf16: model.safetensors has other contents than when it was written" in damaged.stdout
    assert "reference: reference.npz is missing" in damaged.stdout


def test_report_renders_again(run_cli, built, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(built, copy)
    names = ("report.html", "report.md", "junit.xml")
    before = {name: (copy / name).read_bytes() for name in names}
    for name in names:
        (copy / name).unlink()
    done = run_cli("report", copy)
    assert done.returncode == 0, done.stderr
    assert "torch:bf16" in done.stdout
    assert {name: (copy / name).read_bytes() for name in names} == before


@pytest.mark.parametrize("command", ["report", "bench", "verify"])
def test_a_folder_without_results_is_refused(run_cli, command, tmp_path):
    done = run_cli(command, tmp_path)
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr
    assert "Traceback" not in done.stderr


def test_workflows_call_make_and_parse():
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        workflow = yaml.safe_load(path.read_text())
        steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
        assert any("make " in step.get("run", "") for step in steps), path
        assert all("@v" in step["uses"] for step in steps if "uses" in step), path

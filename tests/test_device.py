"""Where engines run: what --device means here, what cannot run there, and on a GPU the same answers as on the CPU."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from exporter import Job, run
from exporter.device import count, gpu_number, named
from exporter.errors import BuildError, JobError
from exporter.job import load_job
from exporter.pipeline.again import bench_again
from exporter.report.devices import device_lines
from exporter.report.result import Result
from exporter.targets import known
from exporter.targets.gguf.modelfile import gpu_layers_of, written
from exporter.targets.onnx_graph.device_session import open_session, profiled
from exporter.targets.onnx_graph.session import OnnxDecoder, options_of
from exporter.types import GENERATION, Variant

needs_no_gpu = pytest.mark.skipif(count() > 0, reason="a CUDA device is here: what its lack means is tested elsewhere")
QUICK = {"eval_tokens": 256, "speed": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("device") / "out"
    report = run(Job(model="tiny", output=out, target=("onnx:fp32", "onnx:int4-weight"), policy="off", **QUICK))
    assert report["passed"], [row["reason"] for row in report["results"]]
    return out


@pytest.mark.parametrize("asked", ["gpu", "cuda:", "cuda:x", "CUDA", "cuda:-1", ""])
def test_a_device_of_another_name_is_refused(asked):
    with pytest.raises(JobError, match="a device is auto, cpu, cuda, or one of several GPUs by its number"):
        load_job(Job, {"model": "tiny", "output": "out", "device": asked})


@needs_no_gpu
def test_a_gpu_that_is_not_there_is_refused_before_any_work(run_cli, folder, tmp_path):
    assert (gpu_number("auto"), gpu_number("cpu"), named(None)) == (None, None, "cpu")
    before = (folder / "report.json").read_bytes()
    for command in (("run", "-m", "tiny", "-o", tmp_path / "out"), ("bench", folder)):
        done = run_cli(*command, "--device", "cuda:1")
        assert done.returncode == 2
        assert (
            "error: --device cuda:1: this machine has no CUDA device; --device auto takes what there is" in done.stderr
        )
    assert not (tmp_path / "out" / "reference").exists()
    assert (folder / "report.json").read_bytes() == before


def test_every_row_says_what_it_ran_on(folder):
    report = json.loads((folder / "report.json").read_text())
    assert report["job"]["device"] == "auto"
    if count() == 0:
        assert {row["artifact"]["device"] for row in report["results"]} == {"cpu"}
        assert {json.dumps(row["artifact"]["placement"]) for row in report["results"]} == {"null"}


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider'")
def test_an_engine_that_silently_took_the_cpu_is_an_error(folder):
    """ONNX Runtime itself: asked for CUDA where there is none it opens the graph on the CPU, and raises nothing."""
    if count() > 0:
        pytest.skip("here CUDA is there")
    with pytest.raises(BuildError, match=r"opened model.onnx on CPUExecutionProvider, not cuda: its libraries of CUDA"):
        open_session(folder / "onnx-fp32/onnx/model.onnx", options_of(1), SimpleNamespace(number=0, stream=0))


def test_a_profile_tells_where_each_node_ran(folder, tmp_path):
    """Of a session on the CPU: all of them. Counted against the graph that ONNX Runtime made of the file."""
    import onnx
    import onnxruntime

    model, options = folder / "onnx-int4-weight/onnx/model.onnx", options_of(1)
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    with OnnxDecoder(model, 1) as runner:
        feeds = runner._feeds(np.arange(5, 12)[None], np.ones((1, 7), np.int64))
        told = profiled(session, runner._outputs[0], feeds)
    graph = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph
    assert (told["on_device"], told["copies"]) == (0, 0)
    assert told["on_cpu"]["MatMulNBits"] == sum(node.op_type == "MatMulNBits" for node in graph.node)
    assert sum(told["on_cpu"].values()) == len(graph.node)


def test_what_has_no_engine_for_a_gpu_is_measured_on_the_cpu_and_says_so_where_one_was_asked_for(monkeypatch):
    """The rule alone, as if there were a GPU: engines are not asked to run."""
    monkeypatch.setattr("exporter.device.count", lambda: 1)
    assert known.placed(Variant("coreml", "fp16"), "auto", GENERATION) == (None, None)
    assert known.placed(Variant("coreml", "fp16"), "cuda", GENERATION) == (None, "coreml has no engine for CUDA")
    assert known.placed(Variant("coreml", "fp16"), "cpu", GENERATION) == (None, None)
    number, why = known.placed(Variant("torch", "int8-static"), "auto", GENERATION)
    assert (number, why) == (None, "torchao's PT2E graph for x86 runs on the CPU alone")
    with pytest.raises(JobError, match=r"only 1, from cuda:0 on"):
        known.placed(Variant("onnx", "fp32"), "cuda:1", GENERATION)


@needs_no_gpu
def test_engines_that_are_built_without_cuda_name_the_command_that_mends_it(monkeypatch):
    monkeypatch.setattr("exporter.device.count", lambda: 1)
    mends = {
        "onnx:fp32": "pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu>=1.31'",
        "torch:fp16": "has no CUDA here: install a build for this GPU's driver",
        "gguf:q8_0": "CMAKE_ARGS=-DGGML_CUDA=on pip install",
    }
    for name, command in mends.items():
        number, why = known.placed(Variant(*name.split(":")), "cuda", GENERATION)
        assert number is None
        assert command in why


@needs_no_gpu
def test_a_bench_on_a_gpu_that_an_engine_does_not_use_fails_and_measures_nothing_in_its_place(folder, monkeypatch):
    monkeypatch.setattr("exporter.device.count", lambda: 1)
    told = []
    report = bench_again(folder, 1, failed=lambda variant, error: told.append(str(error)), device="cuda")
    rows = {f"{row['target']}:{row['precision']}": row for row in report["results"]}
    assert report["exit_status"] == 4
    assert {rows[name]["status"] for name in ("onnx:fp32", "onnx:int4-weight")} == {"failed"}
    assert rows["onnx:fp32"]["quality"]["ppl"]["value"] is None
    assert "onnx:fp32 is not measured on cuda: onnxruntime" in told[0]


def test_a_modelfile_holds_the_layers_of_the_gpu_and_no_template_can_speak_for_it(tmp_path):
    told = {"template": "PARAMETER num_gpu 3\n", "stops": [], "sampling": {}}
    (tmp_path / "Modelfile").write_text(written("model.gguf", told))
    assert gpu_layers_of(tmp_path) is None
    (tmp_path / "Modelfile").write_text(written("model.gguf", told, 7))
    assert gpu_layers_of(tmp_path) == 7
    assert gpu_layers_of(tmp_path / "elsewhere") is None


@pytest.mark.gpu
@pytest.mark.parametrize("target", ["onnx:fp32", "onnx:fp16", "onnx:int8-weight", "onnx:int4-weight", "torch:fp16"])
def test_a_gpu_answers_as_the_cpu_does(target, tmp_path):
    given = {"model": "tiny", "target": (target,), "policy": "off", "eval_tokens": 512, "repeats": 1}
    there = run(Job(output=tmp_path / "cuda", device="cuda", **given))
    here = run(Job(output=tmp_path / "cpu", device="cpu", **given))
    [row], [on_cpu] = (
        [row for row in one["results"] if row["target"] + ":" + row["precision"] == target] for one in (there, here)
    )
    assert row["status"] == "ok", row["reason"]
    assert row["artifact"]["device"].startswith("cuda:0 (")
    assert row["speed"]["latency_ms"]["decode"]["p50"] > 0
    assert row["memory"]["device_bytes"]["weights"] > 0
    # The CPU's kernels of integer weights round the activations too: SmolLM2's ratio was 0.0055 from an H100's.
    apart = 2e-2 if "int" in target else 1e-3
    assert abs(row["quality"]["ppl_ratio"]["value"] - on_cpu["quality"]["ppl_ratio"]["value"]) < apart
    assert row["quality"]["cache_kl"]["value"] < 1e-3
    reference = [one["results"][0] for one in (there, here)]
    assert abs(reference[0]["quality"]["ppl"]["value"] / reference[1]["quality"]["ppl"]["value"] - 1) < 1e-4


@pytest.mark.gpu
def test_the_reference_on_a_gpu_is_float32s(tmp_path):
    """TF32 has 10 bits of its 23: with it the KL of the two would be a hundred times this."""
    from exporter.checkpoint.opened import open_checkpoint
    from exporter.checkpoint.recipes import shipped
    from exporter.measure.arithmetic import log_softmax

    ids, path = np.arange(5, 260), shipped("tiny")
    with open_checkpoint(path, "text-generation", 1) as cpu, open_checkpoint(path, "text-generation", 1, gpu=0) as gpu:
        expected, got = log_softmax(cpu.logits(ids)), log_softmax(gpu.logits(ids))
    assert float((np.exp(expected) * (expected - got)).sum(-1).mean()) < 1e-4


def test_bfloat16_is_in_the_file_is_proven_by_rounding_and_is_not_timed_on_the_cpu(tmp_path):
    """Half the bytes; no session of it opens on the CPU; and what answers in its place loses what bfloat16 loses."""
    import onnxruntime

    both = ("onnx:bf16", "torch:bf16")
    report = run(
        Job(model="tiny", output=tmp_path / "out", target=both, device="cpu", eval_tokens=1024, speed=False, threads=1)
    )
    rows = {f"{row['target']}:{row['precision']}": row for row in report["results"]}
    row, torch = rows["onnx:bf16"], rows["torch:bf16"]
    assert row["status"] == "ok", row["reason"]
    assert row["artifact"]["bits_per_weight"] == 16
    assert row["artifact"]["size_ratio"] < 0.52
    assert "bfloat16 runs on a GPU (--device cuda)" in row["speed"]["untimed"]
    assert row["speed"]["prefill_tokens_per_s"] is None
    # Rounded at other places than torch's own, and as often: a graph in float32 would be at 1e-9.
    assert torch["quality"]["kl"]["value"] / 4 < row["quality"]["kl"]["value"] < torch["quality"]["kl"]["value"] * 4
    model = tmp_path / "out/onnx-bf16/onnx/model.onnx"
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    assert {file.name for file in (tmp_path / "out/onnx-bf16").iterdir()}.isdisjoint({"run.mjs", "run_genai.py"})
    assert "On a GPU alone" in (tmp_path / "out/onnx-bf16/README.md").read_text()


@pytest.mark.parametrize("prompt", [7, 40])
def test_steps_over_a_cache_of_fixed_size_are_those_over_one_that_grows(prompt):
    """What a CUDA graph captures on a GPU, run here by itself: two prompts, a run undone, a cache used again."""
    import torch

    from exporter.checkpoint.on_cuda import FixedSteps
    from exporter.checkpoint.opened import open_checkpoint
    from exporter.checkpoint.recipes import shipped

    ids = np.arange(5, 60)
    with open_checkpoint(shipped("tiny"), "text-generation", 1) as runner:
        assert FixedSteps.offered(runner._model)
        steps = FixedSteps(runner._model)
        for length, made in ((prompt, True), (prompt + 3, False)):
            runner.prefill(ids[:length])
            expected = [runner.step(int(token)) for token in ids[length : length + 9]]
            runner.prefill(ids[:length])
            steps.forget()
            with torch.inference_mode():
                assert steps.take(runner._cache) == made
                for number, token in enumerate(ids[length : length + 9]):
                    assert not steps.take(runner._cache)
                    steps.admit(int(token))
                    steps.run()
                    if number == 0:
                        steps.undo()
                        steps.run()
                    np.testing.assert_allclose(steps.last.numpy(), expected[number], atol=1e-4)


def test_a_report_says_what_ran_on_a_gpu_and_what_did_not():
    row = Result("onnx", "fp16").to_json()
    assert list(device_lines(row)) == []
    row["artifact"]["device"] = "cpu"
    assert list(device_lines(row)) == []
    row["artifact"] |= {"device": "cuda:0 (NVIDIA H100)"}
    row["memory"]["device_bytes"] = {"weights": 269_000_000, "arena": 1_000_000}
    assert list(device_lines(row)) == ["on cuda:0 (NVIDIA H100): weights 269.0 MB, arena 1.0 MB"]
    operators = {"Shape": 4, "Gather": 3, "Add": 2, "Mul": 1, "Div": 1, "Sub": 1, "Range": 1}
    row["artifact"]["placement"] = {"on_cpu": operators, "on_device": 90, "copies": 2}
    assert list(device_lines(row))[1] == (
        "ONNX Runtime ran 90 nodes there and 13 on the CPU: 4 Shape, 3 Gather, 2 Add, 1 Mul, 1 Div, 1 Sub and 1 more "
        "kinds; 2 copies between the two"
    )
    row["artifact"]["placement"] = {"on_cpu": {}, "on_device": 90, "copies": 0}
    assert list(device_lines(row))[1] == "ONNX Runtime ran 90 nodes there and 0 on the CPU; 0 copies between the two"

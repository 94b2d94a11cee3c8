"""GGUF through the whole program: gates, refusals before any work, a crash, memory, the cache and what fills it."""

import json
import os
import re
import shutil
import signal
from dataclasses import replace

import gguf_checkpoints
import numpy as np
import psutil
import pytest
import transformers
from clients import PROMPT, client, ids
from conftest import rewrite

from exporter import Job, run
from exporter.errors import BuildError, JobError
from exporter.report.table import value
from exporter.runner import CachedRunner, TokenizingRunner
from exporter.targets.gguf import converter
from exporter.targets.gguf.imatrix import read_imatrix, write_imatrix
from exporter.targets.gguf.runner import GgufDecoder, GgufEncoder
from exporter.targets.gguf.target import GGUF
from exporter.targets.gguf.toy import mending_command

TEXT = gguf_checkpoints.ROOT / "models" / "tiny" / "eval.txt"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return gguf_checkpoints.make("LlamaForCausalLM", tmp_path_factory.mktemp("llama"), hidden_size=256)


def job(checkpoint, output, *targets, **more):
    return Job(
        model=str(checkpoint), target=targets, output=output, eval_text=TEXT, eval_tokens=512, calib_tokens=1024,
        calib_text=gguf_checkpoints.TEXT, window=128, speed=False, threads=1, **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(llama, converter_cache, tmp_path_factory):
    """(report, output folder) of a job with four precisions."""
    output = tmp_path_factory.mktemp("run") / "out"
    return run(job(llama, output, "gguf:f32", "gguf:f16", "gguf:q8_0", "gguf")), output


def rows_of(report):
    return {row["precision"]: row for row in report["results"] if row["target"] == "gguf"}


def test_rows_and_gates(done):
    report, _ = done
    assert report["passed"], report["results"]
    rows = rows_of(report)
    assert list(rows) == ["f32", "f16", "q8_0", "q4_k_m"]
    for row in rows.values():
        assert row["gates"][0] == {
            "name": "max_tokenizer_errors", "limit": 0.0, "value": 0.0, "passed": True, "detail": "",
        }  # fmt: skip
        assert "llama.cpp" in row["artifact"]["engine"]
    assert value(rows["f32"], "logit_error") < 1e-4
    assert value(rows["f32"], "ppl_ratio") == pytest.approx(1, abs=1e-5)
    assert value(rows["f32"], "kl") < value(rows["f16"], "kl") < value(rows["q8_0"], "kl") < value(rows["q4_k_m"], "kl")
    assert rows["q8_0"]["artifact"]["bytes"] < rows["f16"]["artifact"]["bytes"] < rows["f32"]["artifact"]["bytes"]
    assert "importance matrix of 14 tensors over 1024 tokens of calib.txt" in rows["q4_k_m"]["reason"]


def test_nothing_is_quantized_of_a_file_that_does_not_agree(done, tmp_path, converter_cache):
    """Of one that does, `done` has the quantized files: each was proven against the same reference."""
    another = gguf_checkpoints.make("LlamaForCausalLM", tmp_path / "another", hidden_size=256, rms_norm_eps=0.5)
    reference = done[1] / "reference"
    wanted = gguf_checkpoints.request(another, "q8_0", tmp_path, converter_cache, reference=reference)
    same = json.loads((reference / "manifest.json").read_text())["model_sha256"]  # as if it were what was measured
    wanted = replace(wanted, checkpoint=replace(wanted.checkpoint, sha256=same))
    for _ in range(2):  # the second time from what stands beside it
        with pytest.raises(BuildError, match=r"its float16 file does not agree with the reference \(KL .* probe"):
            GGUF.export(wanted)
    assert list(wanted.folder.iterdir()) == []


def test_the_folder(done):
    _, output = done
    folder = output / "gguf-q4_k_m"
    names = {path.name for path in folder.iterdir()}
    [weights] = [name for name in names if name.endswith("-Q4_K_M.gguf")]
    assert names - {weights} == {
        "imatrix.gguf", "Modelfile", "config.json", "generation_config.json", "manifest.json", "tokenizer.json",
        "tokenizer.model", "tokenizer_config.json", "README.md", "run.py",
    }  # fmt: skip
    assert json.loads((folder / "manifest.json").read_text())["weights"] == [weights]
    assert (folder / "Modelfile").read_text().splitlines()[0] == f"FROM ./{weights}"
    page = (folder / "README.md").read_text()
    assert f"llama-cli -m {weights} -p 'Once upon a time'" in page
    assert re.search(r"^ollama create [a-z0-9._-]+-q4_k_m -f Modelfile$", page, re.MULTILINE)


def test_its_program_continues_a_text_as_the_runner_does(done, llama):
    folder = done[1] / "gguf-q8_0"
    prompt = np.array(transformers.AutoTokenizer.from_pretrained(llama)(PROMPT)["input_ids"], np.int64)
    tokens = ids(folder)
    assert 2 in tokens or len(tokens) == 24
    with GGUF.open(folder, 1) as runner:
        # llama-cpp-python sets another attention than llama.cpp's default, and random weights leave the likeliest
        # tokens close together.
        logits, missed = runner.prefill(prompt), []
        for token in tokens:
            missed.append((logits.max() - logits[token]) / logits.std())
            logits = runner.step(token)
    assert max(missed) < 0.02, missed
    assert sum(one == 0 for one in missed) > 12, missed
    assert client(folder, PROMPT)  # as text


def test_what_is_there_is_reused_and_another_option_is_another_artifact(done, llama, converter_cache, tmp_path):
    out = shutil.copytree(done[1], tmp_path / "out")

    def weights():
        return next((out / "gguf-q4_k_m").glob("*Q4_K_M.gguf")).stat().st_mtime_ns

    first = weights()
    run(job(llama, out, "gguf", force=True))
    assert weights() == first
    report = run(job(llama, out, "gguf", gguf={"imatrix": "off"}, force=True))
    assert weights() != first
    assert "without importance matrix" in rows_of(report)["q4_k_m"]["reason"]


def test_a_file_that_an_option_names_counts_by_its_contents(done, llama, converter_cache, tmp_path):
    written = []
    for name, source in (("a", "gguf-q4_k_m"), ("b", "gguf-q4_k_m"), ("a", None)):
        if source is None:
            other = read_imatrix(tmp_path / "b.gguf")
            write_imatrix(replace(other, chunks=other.chunks + 1), tmp_path / "a.gguf")
        else:
            shutil.copyfile(done[1] / source / "imatrix.gguf", tmp_path / f"{name}.gguf")
        run(job(llama, tmp_path / "out", "gguf", gguf={"imatrix": tmp_path / f"{name}.gguf"}, force=True))
        written.append((tmp_path / "out" / "gguf-q4_k_m" / "manifest.json").stat().st_mtime_ns)
    assert written[0] == written[1] != written[2]


def test_a_tokenizer_that_differs_fails_its_artifact_and_shows_where(llama, converter_cache, tmp_path):
    """This class of transformers 5 reads leading spaces otherwise than the tokenizer.model that llama.cpp gets."""
    broken = shutil.copytree(llama, tmp_path / "broken")
    gguf_checkpoints.change(broken / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    report = run(job(broken, tmp_path / "out", "gguf:f16"))
    assert report["exit_status"] == 3
    [gate] = [gate for gate in rows_of(report)["f16"]["gates"] if not gate["passed"]]
    assert gate["name"] == "max_tokenizer_errors"
    assert gate["value"] > 1
    assert "texts: ' ', token 1: the checkpoint's tokenizer gives [" in gate["detail"]
    assert "the checkpoint's tokenizer gives" in (tmp_path / "out" / "report.md").read_text()


def test_an_unknown_pre_tokenizer_is_refused_before_any_work(refused, converter_cache, model, tiny):
    unknown, told = model(), json.loads((tiny / "tokenizer.json").read_text())
    words = {"type": "Split", "pattern": {"Regex": "[a-z]+"}, "behavior": "Isolated", "invert": False}
    told["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [words, told["pre_tokenizer"]]}
    rewrite(unknown / "tokenizer.json", json.dumps(told))
    line = refused("-m", unknown, "-t", "gguf", status=4)
    assert "gguf:q4_k_m cannot be built here" in line
    assert "does not know this tokenizer's pre-tokenizer (fingerprint " in line


def test_without_a_matrix_what_demands_one_is_refused(refused, llama, converter_cache):
    line = refused("-m", llama, "-t", "gguf:iq2_xs", "--gguf-imatrix", "off", status=4)
    assert "importance matrix: drop --gguf-imatrix off" in line


def test_calibrating_on_what_is_measured_is_refused(refused, llama, converter_cache):
    line = refused("-m", llama, "-t", "gguf", "--eval-text", TEXT, "--calib-text", TEXT)
    assert "give another --calib-text" in line


def test_offline_with_an_empty_cache_names_the_command_that_fills_it(refused, llama, tmp_path):
    line = refused("-m", llama, "-t", "gguf", "--offline", env={"EXPORTER_CACHE": str(tmp_path / "empty")}, status=4)
    assert "exporter fetch gguf" in line


def test_offline_with_a_filled_cache_works(llama, converter_cache, tmp_path):
    report = run(job(llama, tmp_path / "out", "gguf:q8_0", offline=True))
    assert report["passed"]


def test_a_source_package_fills_a_cache(run_cli, converter_cache, tmp_path):
    wrong = tmp_path / "llama_cpp_python.tar.gz"
    wrong.write_bytes(b"no")
    empty = {"EXPORTER_CACHE": str(tmp_path / "empty")}
    refused = run_cli("fetch", "gguf", "--source", wrong, env=empty)
    assert refused.returncode == 2
    assert "is not the source package of llama-cpp-python" in refused.stderr
    (tmp_path / "package").mkdir()
    package = converter._download(tmp_path / "package")
    fetched = run_cli("fetch", "gguf", "--source", package, env=empty | {"PIP_NO_INDEX": "1"})
    assert fetched.returncode == 0, fetched.stderr
    found = converter.cached(tmp_path / "empty")
    assert found is not None
    assert not list(found.parent.glob(".*"))
    (found / "convert_hf_to_gguf.py").write_text("")  # damaged: it is not used
    assert converter.cached(tmp_path / "empty") is None
    with pytest.raises(BuildError, match="exporter fetch gguf"):
        converter.fetch(tmp_path / "empty", offline=True)
    with pytest.raises(JobError, match="no such file"):
        converter.fetch(tmp_path / "empty", offline=True, source=tmp_path / "missing")


@pytest.fixture
def crashing(tmp_path):
    """An environment in which llama.cpp's decode meets an illegal instruction, as a build for another CPU does."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, llama_cpp\n"
        "llama_cpp.llama_decode = lambda *arguments: os.kill(os.getpid(), signal.SIGILL)\n"
    )
    return {"PYTHONPATH": str(tmp_path)}


def test_a_crash_is_a_failed_row_that_names_the_signal_and_the_command(run_cli, crashing, llama, out, converter_cache):
    done = run_cli(
        "run", "-m", llama, "-t", "gguf:q8_0", "-o", out, "--no-speed", "--eval-tokens", 256, "--format", "json",
        env=crashing,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    row = rows_of(json.loads(done.stdout.splitlines()[-1]))["q8_0"]
    assert row["status"] == "failed"
    assert signal.Signals.SIGILL.name in row["reason"]
    assert mending_command() in row["reason"]


def test_doctor_finds_the_crash(run_cli, crashing):
    troubles = json.loads(run_cli("doctor", "--format", "json", env=crashing).stdout)["troubles"]
    [line] = [line for line in troubles if "gguf" in line]
    assert line == f"the engine of gguf is killed by SIGILL on a toy model: {mending_command()}"
    healthy = json.loads(run_cli("doctor", "--format", "json").stdout)["troubles"]
    assert not [line for line in healthy if "gguf" in line]


def test_opening_and_closing_leaves_nothing_behind(done):
    _, output = done
    file = next((output / "gguf-q8_0").glob("*Q8_0.gguf"))
    process, ids = psutil.Process(), np.arange(5, 69)

    def cycles(count):
        for _ in range(count):
            with GgufDecoder(file, 1) as runner:
                runner.logits(ids)
                runner.step(7)
        return process.memory_info().rss, process.num_fds(), process.num_threads()

    cycles(20)  # allocators settle
    memory, files, threads = cycles(20)
    after, files_after, threads_after = cycles(200)
    assert after - memory < 8e6  # one cycle holds above 30 MB
    assert (files_after, threads_after) == (files, threads)


def test_kinds_of_runners(done, tmp_path, converter_cache):
    _, output = done
    with GGUF.open(output / "gguf-q8_0", 1) as runner:
        assert isinstance(runner, CachedRunner)
        assert isinstance(runner, TokenizingRunner)
        ids = np.arange(5, 25)
        last = runner.prefill(ids)
        np.testing.assert_allclose(last, runner.logits(ids)[-1], atol=1e-5)
        long = np.resize(np.arange(5, 600), 1400)  # beyond the first cache, and several batches
        assert runner.logits(long).shape == (1400, gguf_checkpoints.PIECES)
    assert not hasattr(GgufEncoder, "step")
    with pytest.raises(BuildError, match="cannot load"):
        GgufDecoder(TEXT, 1)
    assert os.environ["EXPORTER_CACHE"] == str(converter_cache)

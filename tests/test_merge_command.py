"""`exporter merge` as a user runs it: what it writes, proves and refuses, and what is left when it is cut short."""

import json
import shutil
import signal
import subprocess
import sys

import psutil
import pytest
import torch
from conftest import ROOT, after_steps, alone, the_error
from safetensors.torch import load_file, save_file

# PEFT asks transformers by a name that it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ADAPTER = "models/tiny/adapter"
FILES = {
    "README.md", "calib.txt", "config.json", "eval.txt", "generation_config.json", "manifest.json",
    "model.safetensors", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip


@pytest.fixture
def merge(run_here, out):
    def run(*args, output=out):
        return run_here("merge", "-m", "tiny", "-o", output, "--threads", 1, *args)

    return run


@pytest.fixture
def refused(merge, out):
    """Runs a merge that cannot work; the one line that says why. Nothing is left of it."""

    def run(*args, status=2, output=out):
        before = sorted(out.parent.rglob("*"))
        done = merge(*args, output=output)
        assert (done.returncode, done.stdout) == (status, ""), done.stderr
        assert sorted(out.parent.rglob("*")) == before
        return the_error(done.stderr)

    return run


@pytest.fixture
def adapter(tiny, tmp_path):
    """A copy of the shipped adapter, in a folder whose name is no name for a shell."""
    folder = tmp_path / 'it\'s my "LoRA" = 1'
    shutil.copytree(tiny / "adapter", folder)
    return folder


def answers(folder, ids):
    from transformers import AutoModelForCausalLM

    with torch.inference_mode():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 2048, (2, 24), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def truth(tiny, ids):
    """What PEFT's own forward answers with the adapter on the base."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), tiny / "adapter").eval()
    with torch.inference_mode():
        return model(ids).logits


def test_a_merged_folder_is_a_checkpoint_and_says_how_it_was_proven(run_cli, out, truth, ids):
    done = run_cli("merge", "-m", "tiny", "-o", out, "--threads", 1, "--adapter", ADAPTER, "--format", "json")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in out.iterdir()} == FILES
    record = json.loads(done.stdout.splitlines()[-1])
    assert record["way"] == "memory"
    assert record["adapters"][0]["tensors"] == 42
    assert record["adapters"][0]["identity"] == "verified: base_model.sha256 is the base's"
    assert record["proof"]["saved"]["kl"] < 1e-9
    # Two ways of summing in float32: the logits reach 18.
    assert torch.allclose(answers(out, ids), truth, atol=1e-4)
    assert run_cli("verify", out).stdout == f"{out.name}: whole\n"


def test_streaming_writes_the_same_weights(merge, tmp_path):
    for way in ("memory", "streaming"):
        assert merge("--adapter", ADAPTER, "--merge", way, output=tmp_path / way).returncode == 0
    memory, streaming = (load_file(tmp_path / way / "model.safetensors") for way in ("memory", "streaming"))
    assert memory.keys() == streaming.keys()
    assert all(torch.equal(memory[name], streaming[name]) for name in memory)
    assert {path.name for path in (tmp_path / "streaming").iterdir()} == FILES
    configs = [json.loads((tmp_path / way / "config.json").read_text()) for way in ("memory", "streaming")]
    assert configs[0] == configs[1]


def test_a_model_that_does_not_fit_is_streamed(tiny, out):
    """Under a limit that the merge in memory would pass, its worker too; PEFT and torch alone take a third of it."""
    command = [sys.executable, "-m", "exporter", "merge", "-m", "tiny", "--adapter", tiny / "adapter", "-o", out]
    limited = ["prlimit", "--data=1050000000", *map(str, command), "--format", "json"]
    done = subprocess.run(limited, capture_output=True, text=True, check=False, cwd=ROOT, env=alone())
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert record["way"] == "streaming"
    assert "the whole model was not run" in record["proof"]["on"]
    assert record["adapters"][0]["identity"] == "verified: base_model.sha256 is the base's"


@pytest.mark.parametrize(("dtype", "saved"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
@pytest.mark.parametrize("way", ["memory", "streaming"])
def test_the_dtype_that_is_asked_for(merge, out, way, dtype, saved):
    assert merge("--adapter", ADAPTER, "--merge", way, "--merge-dtype", dtype).returncode == 0
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {saved}
    assert json.loads((out / "config.json").read_text())["dtype"] == dtype


def test_a_probe_from_the_training_proves_the_base(merge, refused, out, tmp_path, truth, ids, tiny, adapter):
    probe = tmp_path / "probe.safetensors"
    save_file({"input_ids": ids, "logits": truth}, probe)
    done = merge("--adapter", ADAPTER, "--probe", probe)
    assert done.returncode == 0, done.stderr
    assert "answers as the probe file says: KL" in done.stdout
    shutil.rmtree(out)
    save_file({"input_ids": ids, "logits": answers(tiny, ids)}, probe)  # the base's own: without the adapter
    assert "does not answer as the probe" in refused("--adapter", ADAPTER, "--probe", probe, status=4)
    assert "use --merge memory" in refused("--adapter", ADAPTER, "--probe", probe, "--merge", "streaming")
    assert "is not a readable safetensors file" in refused("--adapter", ADAPTER, "--probe", "README.md")


def test_an_expected_perplexity_proves_the_base(merge, refused, out):
    text = ("--adapter", ADAPTER, "--eval-text", "models/tiny/adapter/eval.txt", "--eval-tokens", 512)
    line = refused(*text, "--expect-perplexity", 30, status=4)
    found = line.split(" is ")[1].split(",")[0]
    done = merge(*text, "--expect-perplexity", found)
    assert done.returncode == 0, done.stderr
    assert f"perplexity {found}, as expected" in done.stdout
    assert {path.name for path in out.iterdir()} == FILES


@pytest.mark.parametrize("way", ["memory", "streaming"])
def test_another_base_of_the_same_shapes_is_told_by_its_hash(refused, merge, adapter, out, way):
    (adapter / "base_model.sha256").write_text("0" * 64)
    line = refused("--adapter", adapter, "--merge", way)
    assert "was trained on other weights: its base_model.sha256 is 000000000000…" in line
    (adapter / "base_model.sha256").unlink()
    done = merge("--adapter", adapter, "--merge", way)
    assert done.returncode == 0, done.stderr
    assert "base identity not verifiable" in done.stdout


def test_what_is_there_already_is_not_overwritten(merge, refused, out):
    out.mkdir()
    (out / "thesis.txt").write_text("three years of work")
    assert "holds other files; choose a new folder with -o" in refused("--adapter", ADAPTER, "--force")
    (out / "thesis.txt").unlink()
    assert merge("--adapter", ADAPTER).returncode == 0
    assert "holds a model that exporter wrote" in refused("--adapter", ADAPTER)
    assert merge("--adapter", ADAPTER, "--force", "--merge-dtype", "bfloat16").returncode == 0
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_weights_of_adapters(merge, refused, out, adapter, truth, ids, tiny):
    """Half of an adapter twice is the adapter; a name with an equals sign is a name."""
    done = merge("--adapter", f"{adapter}=0.5", "--adapter", f"{ADAPTER}=0.5")
    assert done.returncode == 0, done.stderr
    assert 'merged 0.5 of LoRA it\'s my "LoRA" = 1 + 0.5 of LoRA adapter (cat)' in done.stdout
    assert torch.allclose(answers(out, ids), truth, atol=1e-4)
    shutil.rmtree(out)
    assert "'x' is no weight; write DIR=0.7" in refused("--adapter", f"{ADAPTER}=x")
    assert "give every adapter a weight, or none" in refused("--adapter", f"{adapter}=0.5", "--adapter", ADAPTER)
    assert "is for --combine" in refused("--adapter", ADAPTER, "--combine", "cat", "--density", 0.5)


def test_nothing_to_merge(refused):
    assert "nothing to merge: give the adapter's folder with --adapter DIR" in refused()


def test_a_full_disk_leaves_nothing(refused, mounted, tmp_path):
    disk = mounted("size=5m")
    line = refused("--adapter", ADAPTER, output=disk / "out", status=4)
    assert "is too full: this job needs about 10 MB" in line
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill -9"])
@pytest.mark.parametrize("way", ["memory", "streaming"])
def test_cut_short_in_the_middle_and_run_again(merge, out, way, number, cache):
    command = [sys.executable, "-m", "exporter", "merge", "-m", "tiny", "--adapter", ADAPTER, "--merge", way, "-o", out]
    run = psutil.Popen(
        [str(word) for word in command],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=alone(EXPORTER_CACHE=str(cache)),
    )
    while not list(out.parent.glob(f".{out.name}.*.tmp/.merged.*.tmp")):
        assert run.poll() is None, run.communicate()
    worker = run.children()[0]
    worker.suspend()
    run.send_signal(number)
    _, told = run.communicate(timeout=20)
    psutil.wait_procs([worker], timeout=10)
    if number == signal.SIGINT:
        assert (run.returncode, after_steps(told)) == (130, "interrupted: what was unfinished has been removed")
        assert list(out.parent.iterdir()) == []
    else:
        worker.resume() if worker.is_running() else None
        psutil.wait_procs([worker], timeout=10)
        assert not out.exists()
    assert merge("--adapter", ADAPTER).returncode == 0
    assert [path.name for path in out.parent.iterdir()] == [out.name]

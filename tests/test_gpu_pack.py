"""bench.gpu: packed into parts, joined and installed over a machine's own packages, and run there; here, on the CPU."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from alone import as_wheel, closure, listed
from bench_results import run_module
from conftest import ROOT

from bench.gpu import join
from bench.gpu.cards import PEAK_BYTES_PER_S
from bench.gpu.measure import compared
from bench.gpu.pack import WITH_TORCH
from bench.gpu.parts import write_parts
from bench.gpu.section import NOTHING, gpu
from exporter.onnxruntimes import CPU

ROWS = ("onnx:fp32", "onnx:int4-weight")  # of three: torch:bf16 is not for an environment without torch
SIZE = 4_000_000


def outside(**more):
    """The environment of somebody who has no checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "EXPORTER_FORK"))}
    return kept | more


# The Python that this environment is over: it has none of these packages, as a bare machine has none.
BARE = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")


def joined(parts, destination, *words, python=BARE):
    command = [python, parts / "join.py", parts, destination, *words]
    return subprocess.run(command, env=outside(), capture_output=True, text=True)


def parts_of(folder):
    """The names of each volume's parts, by the volume's name."""
    manifest = json.loads((folder / "parts" / join.MANIFEST).read_text())
    return {one["name"]: [part["name"] for part in one["parts"]] for one in manifest["volumes"]}


@pytest.fixture(scope="module")
def packed(measured, tmp_path_factory, cache):
    """The pack's folder, of the shipped model and the wheels of this very environment."""
    wheels, folder = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("pack") / "pack"
    for one in closure([*(need.name for need in listed()), CPU]):
        as_wheel(one, wheels)
    for name in WITH_TORCH:
        as_wheel(metadata.distribution(name), wheels)
    words = ["--of", measured, "--part-size", SIZE, "--wheels", wheels]
    done = run_module("bench.gpu", "--pack", folder, *words)
    assert done.returncode == 0, done.stderr
    names = parts_of(folder)
    assert [*names] == ["what every row needs", "torch:bf16", *ROWS]
    for name, files in names.items():
        assert f"{files[0]}{f' to {files[-1]}' if len(files) > 1 else ''}: {name}, " in done.stdout
    return folder


@pytest.fixture
def parts(packed, tmp_path):
    """A copy of the parts, to be broken."""
    return shutil.copytree(packed / "parts", tmp_path / "parts")


@pytest.fixture(scope="module")
def box(packed, tmp_path_factory):
    """What join.py lays out and installs."""
    destination = tmp_path_factory.mktemp("box") / "here"
    done = joined(packed / "parts", destination)
    assert done.returncode == 0, done.stderr
    assert f"cd {destination}/source && ../venv/bin/python -m bench.gpu --run .." in done.stdout
    return destination


def in_box(box, *words, cwd=None):
    command = [box / "venv" / "bin" / "python", *map(str, words)]
    return subprocess.run(command, cwd=cwd or box / "source", env=outside(), capture_output=True, text=True)


def test_the_parts_are_of_the_size_and_are_what_the_manifest_says(packed):
    manifest = json.loads((packed / "parts" / join.MANIFEST).read_text())
    parts = [part for volume in manifest["volumes"] for part in volume["parts"]]
    for volume in manifest["volumes"]:
        *whole, last = (part["bytes"] for part in volume["parts"])
        assert all(size == SIZE for size in whole)
        assert 0 < last <= SIZE
    assert [part["name"] for part in parts] == [f"part-{number:03}" for number in range(len(parts))]
    for part in parts:
        data = (packed / "parts" / part["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (part["bytes"], part["sha256"])
    again = run_module("bench.gpu", "--pack", packed, "--of", packed)
    assert again.returncode == 2
    assert again.stderr.startswith(f"error: {packed}/parts is there already")


def test_files_come_out_of_parts_as_they_went_in(tmp_path):
    """At the cuts too: parts of some bytes, one file of many of them, one that is empty."""
    given = {"a/b.bin": os.urandom(5000), "a/empty": b"", "c": b"\0" * 3000}
    for name, data in given.items():
        file = tmp_path / "in" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    first, second = ({name: tmp_path / "in" / name for name in some} for some in (["a/b.bin", "a/empty"], ["c"]))
    manifest = write_parts({"one": first, "two": second}, tmp_path / "parts", 97)
    assert len(manifest["volumes"][0]["parts"]) > 50
    for volume in manifest["volumes"]:
        join.unpack(volume, join.checked(tmp_path / "parts", volume), tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in given} == given


@pytest.mark.parametrize("harm", ["missing", "damaged", "cut"])
def test_a_part_that_is_not_whole_is_one_line_and_nothing_is_made(parts, tmp_path, harm):
    part = parts / "part-001"
    if harm == "missing":
        part.unlink()
        said = "parts are missing in"
    else:
        data = bytearray(part.read_bytes())
        data[1000] ^= 1
        part.write_bytes(data if harm == "damaged" else data[:-1])
        said = "part-001 is damaged: it is not what manifest.json says"
    done = joined(parts, tmp_path / "box")
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert "part-001" in line
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]


def test_rows_are_joined_as_they_come_over_the_packages_of_an_environment(packed, tmp_path):
    """As on a box whose Python is one of a virtual environment: this one's torch is seen, and the pack's exporter."""
    parts, destination = tmp_path / "parts", tmp_path / "box"
    names = parts_of(packed)
    base, half = names["what every row needs"], names[ROWS[0]][:-1]
    assert half
    parts.mkdir()
    for file in (join.MANIFEST, "join.py", *base, *half, *names[ROWS[1]]):
        shutil.copy(packed / "parts" / file, parts)
    some = joined(parts, destination, join.PARTLY, python=sys.executable)
    assert some.returncode == 0, some.stderr
    assert f"joined what every row needs, {ROWS[1]}\nnot here yet: torch:bf16, {ROWS[0]}\n" in some.stdout
    seen = in_box(destination, "-c", "import exporter, torch; print(exporter.__file__, torch.__file__)")
    ours, theirs = seen.stdout.split()
    assert ours.startswith(str(destination))
    assert not theirs.startswith(str(destination))
    early = in_box(destination, "-m", "bench.gpu", "--run", destination, "--rehearse", "--rows", ROWS[0])
    assert early.returncode == 4
    assert f"{ROWS[0]}: its parts are not joined\n" in early.stdout
    shutil.copytree(packed / "parts", parts, dirs_exist_ok=True)
    rest = joined(parts, destination)
    assert rest.returncode == 0, rest.stderr
    assert f"joined torch:bf16, {ROWS[0]}\nnext:" in rest.stdout
    whole = in_box(destination, "-m", "exporter", "verify", destination / "out")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    again = joined(parts, destination)
    assert again.returncode == 1
    assert again.stderr == f"error: {destination} is there already: name a folder that is not\n"


def test_exporter_comes_from_the_pack_and_measures_there(box):
    where = in_box(box, "-c", "import exporter, onnxruntime; print(exporter.__file__, onnxruntime.__file__)")
    for file in where.stdout.split():
        assert file.startswith(str(box / "venv")), where.stderr
    whole = in_box(box, "-m", "exporter", "verify", box / "out")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    done = in_box(box, "-m", "exporter", "bench", box / "out", "--device", "cpu", "--format", "json", cwd=box)
    assert done.returncode == 0, done.stderr
    rows = {f"{row['target']}:{row['precision']}": row for row in json.loads(done.stdout.splitlines()[-1])["results"]}
    assert {name for name, row in rows.items() if row["status"] == "ok"} == {*ROWS}
    assert all(rows[name]["artifact"]["device"] == "cpu" for name in ROWS)
    assert rows["torch:fp32"]["status"] == "skipped"


def test_cuda_that_is_not_there_is_refused(box):
    done = in_box(box, "-m", "exporter", "bench", box / "out", "--device", "cuda")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --device cuda: this machine has no CUDA device")
    done = in_box(box, "-m", "bench.gpu", "--run", box)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no GPU here")
    assert len(done.stderr.splitlines()) == 1
    assert not (box / "source" / "bench" / "results").exists()


def test_a_rehearsal_measures_each_row_once_and_goes_on_where_it_was(box):
    first = in_box(box, "-m", "bench.gpu", "--run", box, "--rehearse", "--rows", ROWS[0])
    assert first.returncode == 0, first.stderr
    file = box / "rehearsal" / "gpu.json"
    before = json.loads(file.read_text())
    assert before["figures"]["card"] == "the CPU"
    # On the same processor nothing differs, and a share of a bandwidth that nobody published is not told.
    told = before["figures"]["rows"][ROWS[0]]
    assert (told["device"], told["agrees"], told["share_of_peak"]) == ("cpu", True, None)
    assert abs(told["ppl_ratio_from_cpu"]) < 1e-6
    none = in_box(box, "-m", "bench.gpu", "--run", box, "--rehearse", "--seconds", "0", "--rows", *ROWS)
    assert none.returncode == 4
    assert f"not measured: {ROWS[1]};" in none.stderr
    assert json.loads(file.read_text())["figures"]["not_measured"] == [ROWS[1]]
    lost = in_box(box, "-m", "bench.gpu", "--run", box, "--rehearse", "--rows", "torch:bf16")
    assert lost.returncode == 4
    assert "torch:bf16: failed: exporter bench ended with status 4: error: no artifact of " in lost.stdout
    assert "torch:bf16 needs torch, transformers" in lost.stdout
    rest = in_box(box, "-m", "bench.gpu", "--run", box, "--rehearse", "--rows", *ROWS)
    assert rest.returncode == 0, rest.stderr
    assert f"{ROWS[0]}: measured before" in rest.stdout
    after = json.loads(file.read_text())
    assert after["figures"]["rows"][ROWS[0]] == told
    assert {row["precision"] for row in after["reports"][0]["results"]} == {"fp32", "int4-weight"}
    assert after["figures"]["not_measured"] == []
    assert str(box) not in file.read_text()
    unknown = in_box(box, "-m", "bench.gpu", "--run", box, "--rehearse", "--rows", "onnx:fp23")
    assert unknown.returncode == 2
    assert "did you mean onnx:fp32" in unknown.stderr


CARD = "NVIDIA H100 80GB HBM3"


def row(precision, ratio, bytes_, decode, target="onnx"):
    figures = {"ppl_ratio": ratio, "top1": 0.99}
    return {
        "target": target, "precision": precision, "status": "ok", "reason": None, "gates": [{"passed": True}],
        "quality": {name: {"value": value, "se": 0.001} for name, value in figures.items()},
        "artifact": {"bytes": bytes_, "device": f"cuda:0 ({CARD})", "placement": {"on_cpu": {"Shape": 2}}},
        "speed": {"prefill_tokens_per_s": 10 * decode, "decode_tokens_per_s": decode},
        "memory": {"device_bytes": {"weights": 300_000_000, "arena": 100_000_000}},
    }  # fmt: skip


def test_a_row_is_held_against_the_cpu_s_and_the_card_s_bandwidth():
    cpu, same, other = row("fp32", 1.0, 1, 1), row("fp32", 1.0005, 335_000_000, 1000), row("fp32", 1.002, 1, 1)
    told = compared("onnx:fp32", same, cpu, CARD, tied=True)
    assert (told["agrees"], told["share_of_peak"]) == (True, pytest.approx(0.1))
    assert told["ppl_ratio_from_cpu"] == pytest.approx(5e-4)
    assert compared("onnx:fp32", other, cpu, CARD, tied=True)["agrees"] is False
    assert compared("onnx:int4-weight", other, cpu, CARD, tied=True)["agrees"] is None
    assert compared("onnx:fp32", same, cpu, "NVIDIA of tomorrow", tied=True)["share_of_peak"] is None
    assert compared("onnx:fp32", same, cpu, CARD, tied=False)["share_of_peak"] is None
    assert compared("onnx:fp32", None, cpu, CARD, tied=True)["ppl_ratio_from_cpu"] is None


def test_the_page_says_what_a_result_says():
    """A result as measure.py writes it, with figures that nobody measured: this is of its text."""
    rows = [row("fp16", 1.0001, 269_000_000, 1000), row("fp16", 1.0, 269_000_000, 500, "torch")]
    told = {f"{one['target']}:fp16": compared("onnx:fp16", one, one, CARD, tied=True) for one in rows}
    told = {name: one | {"status": "ok", "reason": None} for name, one in told.items()}
    told["onnx:bf16"] = compared("onnx:bf16", None, None, CARD, tied=True) | {"status": "failed", "reason": "no kernel"}
    result = {
        "machine": {"cpu": "EPYC", "cores": 16}, "versions": {"onnxruntime-gpu": "1.31.0"},
        "figures": {
            "card": CARD, "peak_bytes_per_s": PEAK_BYTES_PER_S[CARD], "rows": told, "cpu": {"cpu": "AMD EPYC"},
            "not_measured": ["onnx:bf16"],
        },
        "reports": [{
            "name": "smollm2-135m", "model": {"task": "text-generation"}, "results": rows,
            "evaluation": {"text": "wiki.test.raw", "tokens_scored": 8191, "window": 1024},
        }],
    }  # fmt: skip
    text = gpu(result)
    [line] = [line for line in text.splitlines() if line.startswith("| onnx:fp16")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:] == [
        "1.0001 ± 0.0010", "+0.0e+00", "0.9900", "0.9900", "10,000", "2.00", "1,000", "2.00", "8%", "400", "2",
        "passed",
    ]  # fmt: skip
    assert "- onnx:bf16: no kernel." in text
    assert "Not measured: onnx:bf16." in text
    assert "3.35 TB/s" in text
    without = copy.deepcopy(result)
    without["figures"] |= {"card": "NVIDIA of tomorrow", "peak_bytes_per_s": None}
    assert "not known, so no share of it is told" in gpu(without)


def test_without_a_result_the_page_says_so():
    result = ROOT / "bench" / "results" / "gpu.json"
    assert (NOTHING in (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")) != result.exists()

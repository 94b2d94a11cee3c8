"""`exporter clean`: real folders and locks, and real entries of real runs; nothing foreign or in use ever goes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, alone, last_json, the_error

from exporter import cache, lock, store
from exporter.cleaning import Asked, Entry, chosen, look
from exporter.targets.gguf import converter

DAY = 86400
KEYS = ("1" * 64, "2" * 64, "3" * 64)
HOLD = """
import sys, time
from pathlib import Path
from exporter import cache, lock, store
if sys.argv[1] == "using":
    with cache.using():
        store.used(Path(sys.argv[2]))
        print("held", flush=True)
        time.sleep(60)
with lock.locked(Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""
SLOW = """
import os, signal, sys
from exporter import cleaning
real = cleaning.shutil.rmtree
def killed(folder, *how, **more):
    next(path for path in folder.rglob("*") if path.is_file()).unlink()
    os.kill(os.getpid(), signal.SIGKILL)
cleaning.shutil.rmtree = killed
from exporter.command.cli import main
sys.argv = ["exporter", "clean", "--all"]
main()
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A cache of the test's own, with a name that a shell would trip over."""
    folder = tmp_path / 'it\'s a "cache" $HOME'
    folder.mkdir()
    monkeypatch.setenv("EXPORTER_CACHE", str(folder))
    return folder


def entry(kind, key, days=0, size=1000, **facts):
    """An entry as its writer makes it, last used some days ago."""
    folder = kind.entry(key)
    with store.one_maker(folder, lambda holder: None), store.publish(folder) as building:
        (building / "in it").mkdir()
        (building / "in it" / "a \"quoted\" 'name'").write_bytes(bytes(size))
        store.write_manifest(building, key, [], facts)
    ago(folder, days)
    return folder


def ago(path, days):
    then = time.time() - days * DAY
    os.utime(path, (then, then))


@pytest.fixture
def holding(root):
    """`holding(how, folder)`: another process that makes an entry, or uses it as a run does."""
    running = []

    def begin(how, folder):
        command = [sys.executable, "-c", HOLD, how, str(folder)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT))
        assert running[-1].stdout.readline() == "held\n"
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def snapshot(folder):
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in folder.rglob("*")}


def test_alone_it_says_what_is_there_and_changes_nothing(root, run_here):
    old, new = entry(cache.MERGED, KEYS[0], 40), entry(cache.MERGED, KEYS[1], 2)
    entry(cache.CALIBRATIONS, KEYS[2], 3)
    before = snapshot(root)
    told = last_json(run_here("clean", "--format", "json"))
    rows = {row["kind"]: row for row in told["kinds"]}
    assert list(rows) == [kind.name for kind in cache.KINDS]
    merged = rows["merged"]
    assert merged["entries"] == 2
    assert merged["bytes"] == sum(
        path.stat().st_size for one in (old, new) for path in one.rglob("*") if path.is_file()
    )
    assert (merged["oldest_use"], merged["newest_use"]) == (old.stat().st_mtime, new.stat().st_mtime)
    assert rows["pruned"] | {"bytes": 0, "oldest_use": None, "newest_use": None, "entries": 0} == rows["pruned"]
    assert all(row["what"] and row["again"] for row in told["kinds"])
    human = run_here("clean")
    assert human.returncode == 0
    assert "nothing is removed: --older-than 30d, --keep 20G or --all says what is to go" in human.stdout
    assert run_here("clean", "--all", "--dry-run").stdout.count("would go: ") == 4  # three and their sum
    assert snapshot(root) == before


def test_by_age(root, run_here):
    old, new = entry(cache.PRUNED, KEYS[0], 40), entry(cache.PRUNED, KEYS[1], 20)
    told = last_json(run_here("clean", "--older-than", "30d", "--format", "json"))
    assert [one["path"] for one in told["entries"] if one["goes"]] == [str(old)]
    assert (old.exists(), new.exists()) == (False, True)
    assert list(root.rglob(".*")) == []
    assert run_here("clean", "--older-than", "2w").returncode == 0
    assert not new.exists()


def test_by_size_the_least_recently_used_go_first_until_the_rest_fits(root, run_here):
    made = [entry(cache.MERGED, key, days, 10_000) for key, days in zip(KEYS, (5, 9, 7), strict=True)]
    store.used(made[1])  # the oldest was used just now
    done = run_here("clean", "--keep", "25K")
    assert done.returncode == 0, done.stderr
    assert [one.exists() for one in made] == [True, True, False]
    assert run_here("clean", "--keep", "25K").stdout.endswith("left: 0.0 MB\n")
    assert [one.exists() for one in made] == [True, True, False]


def test_age_and_size_together_take_what_either_does():
    ones = [Entry(cache.MERGED, Path(name), 10, used, None) for name, used in (("a", 1), ("b", 50), ("c", 60))]
    busy = Entry(cache.MERGED, Path("busy"), 100, 0, "a run")
    assert [one.path.name for one in chosen(ones, Asked(older_than=60, keep=10), 100)] == ["a", "b"]
    assert [one.path.name for one in chosen([busy, *ones], Asked(keep=115), 100)] == ["a", "b"]
    assert chosen([busy, *ones], Asked(older_than=99), 99.5) == []
    assert chosen([busy], Asked(everything=True), 100) == []


def test_a_kind_alone(root, run_here):
    merged, pruned = entry(cache.MERGED, KEYS[0]), entry(cache.PRUNED, KEYS[0])
    told = last_json(run_here("clean", "--kind", "pruned", "--all", "--format", "json"))
    assert ([row["kind"] for row in told["kinds"]], told["foreign"]) == (["pruned"], [])
    assert (merged.exists(), pruned.exists()) == (True, False)


@pytest.mark.parametrize("how", ["making", "using"])
def test_what_is_in_use_stays_and_is_said(root, run_here, holding, how):
    used, other = entry(cache.MERGED, KEYS[0], 40), entry(cache.MERGED, KEYS[1], 40)
    process = holding(how, used)
    done = run_here("clean", "--all")
    assert done.returncode == 0, done.stderr
    assert (used.exists(), other.exists()) == (True, False)
    assert f"in use, and never removed: 1, 0.0 MB (exporter's process {process.pid}, since " in done.stdout
    line = the_error(run_here("clean", "--keep", "1").stderr)
    assert "--keep says 0.0 MB: the rest is in use" in line
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run_here("clean", "--keep", "1").returncode == 0
    assert not used.exists()
    assert [path for path in root.rglob(".*") if not path.name.startswith(".exporter-run-")] == []
    assert cache.users(root) == []
    assert list(root.rglob(".*")) == []


def test_what_all_runs_have_together_stays_as_long_as_there_is_one(root, run_here, holding):
    log = cache.LOGS.entry("merge.log")
    log.parent.mkdir()
    log.write_text("printed")
    (root / "torchinductor" / "ab").mkdir(parents=True)
    run = holding("using", root / "nothing")
    assert run_here("clean", "--all").returncode == 0
    assert (log.exists(), (root / "torchinductor").exists()) == (True, True)
    run.kill()
    run.wait()
    assert run_here("clean", "--all").returncode == 0
    assert (log.exists(), (root / "torchinductor").exists()) == (False, False)


def test_who_reads_while_it_is_being_removed_keeps_it(root, monkeypatch, run_here):
    """A reader without the lock stamps it between the last look and the rename."""
    folder = entry(cache.MERGED, KEYS[0], 40)
    rename = Path.rename

    def late(path, to):
        store.used(folder)
        return rename(path, to)

    with monkeypatch.context() as here:
        here.setattr(Path, "rename", late)
        told = last_json(run_here("clean", "--all", "--format", "json"))
    assert store.reusable(folder, KEYS[0]) is not None
    assert [one["in_use"] for one in told["entries"]] == ["a run that began just now"]
    assert list(root.rglob(".*")) == []


def test_kill_9_in_the_middle_leaves_nothing_under_an_entry_s_name(root, run_here):
    folder = entry(cache.MERGED, KEYS[0])
    killed = subprocess.run([sys.executable, "-c", SLOW], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not folder.exists()
    left = [path for path in folder.parent.iterdir() if path.is_dir()]
    assert [re.sub(r"[0-9a-f]{8}\.tmp$", "", path.name) for path in left] == [f".{folder.name}."]
    human = run_here("clean").stdout
    assert "left by what was killed: 1, 0.0 MB: the next run removes it" in human
    assert left[0].exists()
    told = last_json(run_here("clean", "--older-than", "30d", "--format", "json"))
    assert [one["path"] for one in told["left_behind"]] == [str(left[0])]
    assert list(root.rglob(".*")) == []


def test_what_another_makes_is_not_taken_for_a_leftover(root, run_here, holding):
    folder = cache.MERGED.entry(KEYS[0])
    process = holding("making", folder)
    half = store.temporary(folder)
    half.mkdir()
    assert last_json(run_here("clean", "--all", "--format", "json"))["left_behind"] == []
    assert half.exists()
    process.kill()
    process.wait()
    assert run_here("clean", "--all").returncode == 0
    assert not half.exists()


def test_no_link_is_followed(root, run_here, tmp_path):
    """Of an entry, in an entry, of a kind's folder, and of the cache itself."""
    away = tmp_path / "away"
    (away / "precious").mkdir(parents=True)
    (away / "precious" / "thesis").write_text("years")
    folder = entry(cache.MERGED, KEYS[0])
    outside = entry(cache.MERGED, KEYS[1])
    outside.rename(away / outside.name)
    outside.symlink_to(away / outside.name)
    (folder / "link").symlink_to(away / "precious")
    (root / "calibrations").symlink_to(away)
    half = store.temporary(folder)
    half.symlink_to(away / "precious")
    before = snapshot(away)
    told = last_json(run_here("clean", "--all", "--format", "json"))
    assert [one["path"] for one in told["entries"]] == [str(folder)]
    assert (folder.exists(), outside.is_symlink(), half.is_symlink()) == (False, True, True)
    assert {str(outside), str(root / "calibrations"), str(half)} == set(told["foreign"])
    assert snapshot(away) == before


def test_a_link_to_the_cache_is_the_cache(root, run_here, tmp_path, monkeypatch):
    folder = entry(cache.MERGED, KEYS[0])
    (tmp_path / "link").symlink_to(root)
    monkeypatch.setenv("EXPORTER_CACHE", str(tmp_path / "link"))
    assert run_here("clean", "--all").returncode == 0
    assert (folder.exists(), (tmp_path / "link").is_symlink()) == (False, True)


def test_in_a_folder_that_is_no_cache_nothing_goes(root, run_here):
    """A project's own checkpoints, logs and trainings, under the names that the cache has."""
    for name in (
        "thesis.tex", "checkpoints/merged-final/model.safetensors", "checkpoints/merged-1111111111111111/model.bin",
        "checkpoints/best/manifest.json", "training/1111111111111111/data.csv", "training/run/step-1", "logs/own.log",
        "calibrations/manifest.json", "llama.cpp/converter-1/convert.py", "merged-1111111111111111/manifest.json",
        "checkpoints/.hidden",
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text('{"key": "2", "recipe": "other", "files": {}}' if name.endswith("json") else "own")
    before = snapshot(root)
    told = last_json(run_here("clean", "--all", "--format", "json"))
    assert told["entries"] == []
    assert {str(root / "thesis.tex"), str(root / "checkpoints" / "best"), str(root / "logs" / "own.log")} < {
        *told["foreign"]
    }
    assert len(told["foreign"]) == 11, told["foreign"]
    assert snapshot(root) == before
    assert "not exporter's, left alone: " in run_here("clean").stdout


@pytest.mark.parametrize("where", ["missing", "file"])
def test_a_cache_that_is_not_there(run_here, monkeypatch, tmp_path, where):
    (tmp_path / "file").touch()
    monkeypatch.setenv("EXPORTER_CACHE", str(tmp_path / where))
    done = run_here("clean", "--all")
    if where == "missing":
        assert (done.returncode, (tmp_path / where).exists()) == (0, False)
    else:
        assert done.returncode == 2
        assert the_error(done.stderr).startswith(f"error: cannot read {tmp_path / where}: Not a directory; set ")


def test_what_cannot_be_removed_is_a_line_and_status_4(run_here, mounted, monkeypatch):
    disk = mounted("size=1m")
    monkeypatch.setenv("EXPORTER_CACHE", str(disk))
    folder = entry(cache.MERGED, KEYS[0], 40)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    done = run_here("clean", "--all", "--format", "json")
    assert done.returncode == 4
    assert the_error(done.stderr).startswith(f"error: cannot remove {folder}: ")
    told = json.loads(done.stdout)
    assert (list(told["failed"]), told["bytes_going"]) == ([str(folder)], 0)
    assert store.reusable(folder, KEYS[0]) is not None


def test_another_user_s_are_left_whole(monkeypatch):
    if os.getuid() != 0:
        pytest.skip("only root can run a program as another user")
    code = "import os, sys; sys.path[:0] = [sys.argv.pop(1)]; from exporter.command.cli import main; "
    # Before, for it may not read this Python's files.
    code += "import exporter.command.clean, exporter.command.show, fcntl; "
    code += "os.setgid(65534); os.setuid(65534); sys.argv[1:] = ['clean', '--all', '--format', 'json']; main()"

    def nobody():
        return subprocess.run([sys.executable, "-c", code, ROOT], cwd=ROOT, capture_output=True, text=True)

    # Not in pytest's own folder, which no other user may pass through.
    with tempfile.TemporaryDirectory() as home:
        root = Path(home, "cache")
        monkeypatch.setenv("EXPORTER_CACHE", str(root))
        folder = entry(cache.MERGED, KEYS[0], 40)
        done = nobody()
        assert (done.returncode, done.stdout) == (2, "")  # what cannot be seen is not an empty cache
        assert the_error(done.stderr).startswith(f"error: cannot read {root}: Permission denied; set EXPORTER_CACHE")
        Path(home).chmod(0o755)
        done = nobody()
        assert done.returncode == 4, done.stdout + done.stderr
        assert the_error(done.stderr) == (
            f"error: cannot remove {folder}: Permission denied; clean the cache as its owner\n"
        )
        assert store.reusable(folder, KEYS[0]) is not None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--older-than", "30"), "give hours, days or weeks, such as 12h, 30d or 8w"),
        (("--older-than", "1m"), "give hours, days or weeks"),
        (("--keep", "20 GB"), "give a number of bytes, or one with K, M or G, such as 4G"),
        (("--kind", "checkpoints"), "is not one of 'merged'"),
        (("--all", "--keep", "1G"), "--all removes whatever its age and size"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_goes(root, run_here, flags, said):
    folder = entry(cache.MERGED, KEYS[0], 400)
    done = run_here("clean", *flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in " ".join(done.stderr.split())
    assert folder.exists()


def test_states_recipes_and_the_converter_are_known_by_what_their_writers_leave(root):
    state = cache.STATES.entry(KEYS[0])
    (state / "step-00000010").mkdir(parents=True)
    (state / ".step-00000020.0a1b2c3d.tmp").mkdir()
    recipe = cache.RECIPES.entry("smollm2-135m")
    with store.publish(recipe) as building:
        store.write_manifest(building, KEYS[1], [], {"recipe": "smollm2-135m"})
    tool = cache.CONVERTER.entry("0.3.36")
    with store.publish(tool) as building:
        (building / converter._MARK).write_text(json.dumps({"version": "0.3.36"}))
    held = look()
    assert {(one.kind.name, one.path) for one in held.entries} == {
        ("states", state), ("recipes", recipe), ("converter", tool),
    }  # fmt: skip
    assert held.foreign == ()


def test_a_run_stamps_what_it_uses_again_and_makes_what_is_gone(tiny, tmp_path, run_cli, root):
    """The merge of a real run: used again it counts as used, cleaned it is made once more, the same."""

    def run(name):
        done = run_cli(
            "run", "-m", tiny, "--adapter", tiny / "adapter", *SMALL, "-t", "torch:fp32", "-o", tmp_path / name,
            env=alone(EXPORTER_CACHE=str(root)),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path / name / "report.json").read_text())["model"]["sha256"]

    first = run("a")
    [merged] = (root / "checkpoints").iterdir()
    weights = store.read_manifest(merged)["files"]["model.safetensors"]["sha256"]
    ago(merged, 40)
    assert run("b") == first
    assert time.time() - merged.stat().st_mtime < DAY
    done = run_cli("clean", "--older-than", "1d", env={"EXPORTER_CACHE": str(root)})
    assert (done.returncode, merged.exists()) == (0, True), done.stderr
    ago(merged, 40)
    assert run_cli("clean", "--older-than", "1d", env={"EXPORTER_CACHE": str(root)}).returncode == 0
    assert not merged.exists()
    assert run("c") == first
    assert store.read_manifest(merged)["files"]["model.safetensors"]["sha256"] == weights
    assert {path.name for path in root.iterdir()} <= {kind.folder for kind in cache.KINDS} | {"torchinductor"}
    assert look().foreign == ()
    assert not lock._beside(merged).exists()

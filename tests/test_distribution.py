"""What pip calls this program, and the commands it prints: from a checkout, a folder, a file, a repository."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from exporter.distribution import install_command

ROOT = Path(__file__).resolve().parents[1]
NAME = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"]
ASK = """import json
from exporter import distribution as d
from exporter.errors import MissingPackage
said = str(MissingPackage("this", ["bitsandbytes"], "qlora"))
print(json.dumps({"name": d.name(), "said": said, "strangers": d.strangers(), "needs": len(d.requires())}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet")
    subprocess.run([sys.executable, "-m", "pip", "wheel", *offline, "-w", folder, ROOT], check=True)
    [built] = folder.glob("*.whl")
    assert built.name.startswith(NAME.replace("-", "_"))
    return built


@pytest.fixture
def site(wheel, tmp_path):
    """A folder that this program is installed in, as pip lays it out."""
    site = tmp_path / "site"
    shutil.unpack_archive(wheel, site, "zip")
    return site


def ask(site, origin=None, modules=None):
    """What the program says of itself: its metadata in `site`, itself in `modules` where that is another folder.

    `origin` is pip's record of where it came from.
    """
    if origin is not None:
        [info] = site.glob("*.dist-info")
        (info / "direct_url.json").write_text(json.dumps(origin))
    code = f"import sys; sys.path[:0] = {[str(modules or site), str(site)]!r}\n{ASK}"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def command(*where):
    return ask(*where)["said"].partition("install with: ")[2]


def test_from_a_registry(site):
    said = ask(site)
    assert said["name"] == NAME != "exporter"
    assert said["said"] == f"this needs bitsandbytes; install with: pip install '{NAME}[qlora]'"
    assert said["needs"] > 20


def test_from_a_folder(site, tmp_path):
    folder = tmp_path / "it's here"
    folder.mkdir()
    quoted = "'" + str(folder).replace("'", "'\"'\"'") + "[qlora]'"
    assert command(site, {"url": folder.as_uri(), "dir_info": {}}) == f"pip install {quoted}"
    shutil.move(site / "exporter", folder / "exporter")
    editable = {"url": folder.as_uri(), "dir_info": {"editable": True}}
    assert command(site, editable, folder) == f"pip install -e {quoted}"


def test_from_a_file_and_a_repository(site, wheel):
    file = {"url": wheel.as_uri(), "archive_info": {}}
    assert command(site, file) == f"pip install '{NAME}[qlora] @ {wheel.as_uri()}'"
    vcs = {"url": "https://host/a/b", "vcs_info": {"vcs": "git", "commit_id": "0123abc"}, "subdirectory": "py"}
    assert command(site, vcs) == f"pip install '{NAME}[qlora] @ git+https://host/a/b@0123abc#subdirectory=py'"


def test_where_its_folder_is_gone_the_extras_own_packages_are_named(site, tmp_path):
    origin = {"url": (tmp_path / "gone").as_uri(), "dir_info": {}}
    assert re.fullmatch(r"pip install 'bitsandbytes>=[\d.]+'", command(site, origin))


def test_from_a_checkout_as_these_tests_run():
    assert install_command("qlora", ["bitsandbytes"], "-U") == f"pip install -U -e '{ROOT}[qlora]'"


def test_a_stranger_of_the_same_import_name_is_told(site, run_cli, tmp_path):
    assert not any("0.0.4" in line for line in ask(site)["strangers"])
    info = site / "exporter-0.0.4.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: exporter\nVersion: 0.0.4\n")
    [line] = [line for line in ask(site)["strangers"] if "0.0.4" in line]
    assert line.startswith(
        f"the package exporter 0.0.4 is another program and has the same module and command as {NAME}"
    )
    assert f"pip uninstall -y exporter && pip install --force-reinstall --no-deps {NAME}" in line
    shutil.copytree(info, tmp_path / "path" / info.name)
    done = run_cli("doctor", "--format", "json", env={"PYTHONPATH": f"{ROOT}:{tmp_path / 'path'}"})
    facts = json.loads(done.stdout)
    assert any("exporter 0.0.4 is another program" in line for line in facts["troubles"])
    assert facts["versions"]["exporter"] != "0.0.4"


def test_an_install_under_the_old_name_is_told(site):
    info = site / "exporter-0.0.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: exporter\nVersion: 0.0.9\n")
    (info / "entry_points.txt").write_text("[console_scripts]\nexporter = exporter.command.cli:main\n")
    said = ask(site)
    assert said["name"] == NAME
    assert [line for line in said["strangers"] if "0.0.9 is this program under its old name" in line]


def test_no_text_spells_the_name_out():
    """A command in the program is made by install_command; in a page it is of the checkout at hand."""
    files = [*(ROOT / "exporter").rglob("*.py"), ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    spelled = re.compile(rf"pip install [^`]*({NAME}|exporter)\b|\b({NAME}|exporter)\[")
    assert not [(file.name, line) for file in files for line in file.read_text().splitlines() if spelled.search(line)]


def test_a_checkout_that_was_never_installed_knows_its_needs(tmp_path):
    shutil.copytree(ROOT / "exporter", tmp_path / "copy" / "exporter", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "copy")
    said = ask(tmp_path / "copy")
    assert said["name"] == NAME
    assert said["needs"] == len(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    assert said["said"].endswith(f"pip install -e '{tmp_path / 'copy'}[qlora]'")

"""The distribution that this program is: its name, where it was installed from, and the command that installs an extra.

Its name is not the import name: `exporter` in the package registry is a stranger's, whose modules would lie in the same
folder as these. So no command that is printed spells the name out; it is read from the metadata, here.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

MODULE = "exporter"
_PACKAGE = Path(__file__).resolve().parent
_COMMAND = f"{MODULE}.command.cli:main"  # the entry point that only this program has


@cache
def ours() -> metadata.Distribution | None:
    """What pip installed of this very folder; None in a checkout that it never did, or under the old name alone."""
    found = [one for one in _under_our_command() if _is_here(one)]
    # An editable install from before the name was changed is still there, and of the same folder.
    return next((one for one in found if one.name != MODULE), None)


def name() -> str:
    """What pip calls it: `pip uninstall NAME`."""
    found = ours()
    return found.name if found else str(_project().get("name", MODULE))


def version() -> str:
    """The version of the code that runs: metadata of an editable install may be older."""
    return str(import_module(MODULE).__version__)


def requires() -> list[str]:
    """Its requirements, with their markers: the metadata's, or of a checkout that was never installed the project's."""
    found = ours()
    return _project().get("dependencies", []) if found is None else found.requires or []


def install_command(extra: str, packages: Iterable[str] = (), options: str = "") -> str:
    """The command that installs this program with one of its extras ("": none) from where it came from.

    A folder is installed again as it was, editable or not, and a file or a repository by its address (PEP 610); where
    they are gone, or nobody knows the distribution, the command names `packages`, the extra's own.
    """
    start = " ".join(["pip install", *([options] if options else [])])
    bracket = f"[{extra}]" if extra else ""
    found = ours()
    if found is None and _project():
        return f"{start} -e {shlex.quote(f'{_PACKAGE.parent}{bracket}')}"
    if found is None:
        return f"{start} {_quoted(packages)}"
    origin = _origin(found)
    local = _local(origin)
    if local is not None and not local.exists():
        return f"{start} {_quoted(_of_extra(found, extra) or packages)}"
    if local is not None and "dir_info" in origin:
        editable = "-e " if origin["dir_info"].get("editable") else ""
        return f"{start} {editable}{shlex.quote(f'{local}{bracket}')}"
    return f"{start} {shlex.quote(found.name + bracket + _address(origin))}"


def strangers() -> list[str]:
    """What is installed under the module's name and is not this program, or is it under its old name: a line each."""
    lines = []
    again = install_command("", [name()], "--force-reinstall --no-deps")
    for one in metadata.distributions(name=MODULE):
        old = any(point.value == _COMMAND for point in one.entry_points)
        what = "this program under its old name, and has" if old else "another program and has"
        lines.append(
            f"the package {MODULE} {one.version} is {what} the same module and command as {name()}: "
            f"pip uninstall -y {MODULE} && {again}"
        )
    return list(dict.fromkeys(lines))  # a folder can be on the path twice


def _under_our_command() -> Iterator[metadata.Distribution]:
    for point in metadata.entry_points(group="console_scripts", name=MODULE):
        if point.value == _COMMAND and point.dist is not None:
            yield point.dist


def _is_here(one: metadata.Distribution) -> bool:
    """Whether a distribution is of this folder: an editable one's checkout, or what lies beside its metadata."""
    origin = _origin(one)
    local = _local(origin)
    if origin.get("dir_info", {}).get("editable"):
        return local is not None and local / MODULE == _PACKAGE
    return Path(str(one.locate_file(MODULE))).resolve() == _PACKAGE


def _origin(one: metadata.Distribution) -> dict[str, Any]:
    """https://packaging.python.org/en/latest/specifications/direct-url/; empty for what came from a registry."""
    text = one.read_text("direct_url.json")
    return {} if text is None else dict(json.loads(text))


def _local(origin: dict[str, Any]) -> Path | None:
    parts = urlsplit(origin.get("url", ""))
    return Path(unquote(parts.path)).resolve() if parts.scheme == "file" and "vcs_info" not in origin else None


def _address(origin: dict[str, Any]) -> str:
    """` @ URL`, of a file or a repository; "" for what came from a registry."""
    if not origin:
        return ""
    vcs = origin.get("vcs_info")
    address = f"{vcs['vcs']}+{origin['url']}@{vcs['commit_id']}" if vcs else origin["url"]
    below = f"#subdirectory={origin['subdirectory']}" if "subdirectory" in origin else ""
    return f" @ {address}{below}"


def _of_extra(one: metadata.Distribution, extra: str) -> list[str]:
    from packaging.requirements import Requirement

    needs = [Requirement(line) for line in one.requires or []] if extra else []
    held = (need for need in needs if need.marker and not need.marker.evaluate({"extra": ""}))
    return [f"{need.name}{need.specifier}" for need in held if need.marker and need.marker.evaluate({"extra": extra})]


def _project() -> dict[str, Any]:
    """The table `project` of a checkout's pyproject.toml; empty where this is no checkout of the program."""
    import tomllib

    file = _PACKAGE.parent / "pyproject.toml"
    project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {}) if file.is_file() else {}
    return project if MODULE in project.get("scripts", {}) else {}


def _quoted(packages: Iterable[str]) -> str:
    return " ".join(map(shlex.quote, packages))

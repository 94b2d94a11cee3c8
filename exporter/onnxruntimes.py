"""Which of ONNX Runtime's two packages is here, and the commands that change the one for the other.

`onnxruntime` runs on the CPU alone, `onnxruntime-gpu` on CUDA and on the CPU. Both bring the modules of one folder,
`onnxruntime`, and pip knows nothing of that: installed together each overwrites the other's files, and what uninstalls
the one takes the other's along. No requirement can say "one of the two", so exporter's names the first, and the change
is two commands of a person. Nothing here imports either.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from exporter import distribution

MODULE = CPU = "onnxruntime"
GPU = "onnxruntime-gpu"
# The first whose wheels are known to be built for CUDA 13, whose libraries the extra [cuda] brings.
GPU_FROM = ">=1.31"
_LIBRARIES = "LD_LIBRARY_PATH"
_TOLD = Path("capi", "build_and_package_info.py")  # a line of assignments, in either package's own folder


@dataclass(frozen=True)
class Found:
    """What is imported as `onnxruntime` here.

    `packages`: those of the two that pip knows in that folder, and their versions; `built`: whose files lie there,
    which with both is whose came last; None where there are none, or not all. `cuda`: the CUDA that it is built for.
    """

    packages: dict[str, str]
    built: str | None
    cuda: str | None

    @property
    def whole(self) -> bool:
        """Whether one package is there, with the files that are its own; or none, which is nothing to mend."""
        return [*self.packages] == ([self.built] if self.built else [])

    def changes(self) -> dict[str, str]:
        """The command that leads to each package that is not what is there, by the package's name."""
        there = [self.built] if self.whole else []
        # NVIDIA's GPUs and their builds are of Linux and Windows.
        return {name: self.change_to(name) for name in (CPU, GPU) if name not in there and not _impossible(name)}

    def change_to(self, name: str) -> str:
        """The command after which that package alone is there. With both there, both must go: their files are mixed."""
        install = f"pip install {shlex.quote(name + needed(name))}"
        return " && ".join([*([f"pip uninstall -y {' '.join(self.packages)}"] if self.packages else []), install])


def found() -> Found:
    """What is there. A package of another folder on the path, which is not imported, is not told: it harms nobody."""
    spec = find_spec(MODULE)
    folders = [Path(one) for one in (spec.submodule_search_locations or ())] if spec else []
    places = {folder.parent.resolve() for folder in folders}
    packages: dict[str, str] = {}
    for name in (CPU, GPU):
        for one in metadata.distributions(name=name):
            # Where no module is, whatever pip knows of is without its files.
            if not places or Path(str(one.locate_file(""))).resolve() in places:
                packages.setdefault(name, one.version)
    told = [folder / _TOLD for folder in folders if (folder / _TOLD).is_file() and (folder / "__init__.py").is_file()]
    values = dict(re.findall(r"^(\w+) = '([^']*)'", told[0].read_text(encoding="utf-8"), re.M)) if told else {}
    return Found(packages, values.get("package_name"), values.get("cuda_version"))


def needed(name: str) -> str:
    """The versions of one of the two that exporter takes, as pip writes them."""
    if name == GPU:
        return GPU_FROM
    return next((line.removeprefix(CPU) for line in distribution.requires() if re.match(rf"{CPU}[<>=!~]", line)), "")


def troubles(gpus: list[str]) -> list[str]:
    """What is wrong with what is there, with the commands that mend it; `gpus`: the names of this machine's."""
    here = found()
    either = ", or ".join(f"for {name}: {command}" for name, command in here.changes().items())
    if len(here.packages) > 1:
        return [f"{CPU} and {GPU} share one folder and break each other; its files are now of {here.built}; {either}"]
    if not here.whole:
        name = next(iter(here.packages), None)
        lies = f"the files in its folder are of {here.built}" if here.built else "its files are not, or not all"
        if name is None:  # brought by no package: a build of one's own, which is its owner's
            return []
        return [f"{name} is installed, and {lies} (as where {CPU} and {GPU} were, and one went); {either}"]
    if gpus and here.built == CPU:
        has = f"this machine has a GPU ({', '.join(gpus)}), and {CPU} is the build that uses none"
        return [f"{has}; for --device cuda: {here.change_to(GPU)}"]
    return []


def library_path() -> dict[str, str]:
    """The variable with which a process finds CUDA's libraries of pip's packages, wherever on the path they are.

    ONNX Runtime itself looks for them beside its own folder only (`preload_dlls`): in a virtual environment over a
    machine's own packages they are not there. Empty where there are none; the system's are found without it.
    """
    roots = (Path(entry) / "nvidia" for entry in sys.path)
    folders = [str(found) for root in roots if root.is_dir() for found in sorted(root.glob("*/lib"))]
    before = os.environ.get(_LIBRARIES)
    return {_LIBRARIES: os.pathsep.join([*folders, *([before] if before else [])])} if folders else {}


def _impossible(name: str) -> bool:
    return name == GPU and sys.platform == "darwin"

"""What the tests share: the program as users start it, and a cache of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent  # where pip put `exporter` and `export`

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """EXPORTER_CACHE of the whole test session, so that no test reads or fills the user's."""
    before = os.environ.get("EXPORTER_CACHE")
    folder = tmp_path_factory.mktemp("cache")
    os.environ["EXPORTER_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["EXPORTER_CACHE"]
    else:
        os.environ["EXPORTER_CACHE"] = before


@pytest.fixture(scope="session")
def run_cli(cache: Path) -> Cli:
    """`exporter ARGS` in a process of its own, from the repository's root; `env` adds to the environment."""

    def run(*args: object, env: Mapping[str, str] | None = None, program: str = "exporter") -> subprocess.CompletedProcess[str]:
        command = [str(BIN / program), *map(str, args)]
        return subprocess.run(command, env={**os.environ, **(env or {})}, cwd=ROOT, capture_output=True, text=True, check=False)

    return run

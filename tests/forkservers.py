"""Two processes that have imported what exports need, for all tests of a session: their workers are forks of them.

With xdist alone, where many tests run; until a server is warm a worker starts by itself, as a user's first does. Tests
that change the environment, HOME or PYTHONPATH, get workers of their own: no server fits.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from exporter import forkserver, machine
from exporter.process import lasting_server, worker_environment

# None that starts a thread when it is imported, as onnxruntime does: a fork has none. None that changes torch.
_IMPORTED = ("onnx", "onnxscript.optimizer", "onnxscript.rewriter", "optimum.exporters.tasks", "PIL.Image")
_servers = []
_folders = []


def pytest_configure(config):
    """In xdist's controller: its environment is that of the processes that run the tests."""
    if not (forkserver.FORKS and getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput")):
        return
    folder = tempfile.mkdtemp(prefix="exporter-forkservers-")
    _folders.append(folder)
    os.environ[forkserver.SHARED] = folder
    for threads in {1, machine.usable_cores()}:
        environment = os.environ | worker_environment(threads) | {"TORCHINDUCTOR_CACHE_DIR": folder}
        _servers.append(lasting_server(Path(folder), threads, environment, _IMPORTED))


def pytest_unconfigure():
    for server in _servers:
        server.stdin.close()
        server.wait()
    for folder in _folders:
        shutil.rmtree(folder)

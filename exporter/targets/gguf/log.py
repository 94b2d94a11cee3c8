"""What llama.cpp logs: warnings and errors go to stderr, and the last error is kept to say why a call failed."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

_WARNING, _ERROR = 3, 4  # ggml_log_level
_kept: list[str] = []
_callback: Any = None  # llama.cpp holds no reference to it


def listen() -> None:
    """Takes llama.cpp's log over, once in a process: it would tell hundreds of lines of every file that it opens."""
    global _callback
    import llama_cpp

    if _callback is not None:
        return

    def tell(level: int, text: bytes, data: ctypes.c_void_p) -> None:
        if level in (_WARNING, _ERROR):
            line = text.decode(errors="replace")
            sys.stderr.write(line)
            if level == _ERROR and line.strip():
                _kept[:] = [*_kept[-3:], line.strip()]

    _callback = llama_cpp.llama_log_callback(tell)
    llama_cpp.llama_log_set(_callback, ctypes.c_void_p(0))


def forget() -> None:
    """Drops what earlier calls said."""
    _kept.clear()


def last_errors() -> str:
    """The last errors in one line, or where to look."""
    return "; ".join(_kept) or "its log says why"

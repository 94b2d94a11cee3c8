"""What coremltools must be helped with, each with its reason upstream; nothing of it stays behind."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps coremltools from telling, whenever it is imported, which of its parts are for macOS and which of the
    versions beside it it was not tested with: exporter's tests are what says so.
    """
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def scalar_sizes() -> Iterator[None]:
    """A size that is known stays one number while a trace is converted.

    coremltools 9.0 makes an array of one of it (numtotensor in its frontend's ops.py), such as of a head's size that a
    rotary embedding halves, and int() of that (_cast there) is an error since numpy 2.4. Its own registry takes another
    function for the operator, as for operators that it does not know, and gets its own back.
    """
    from coremltools.converters.mil import Builder, register_torch_op
    from coremltools.converters.mil.frontend.torch import ops

    original = ops.numtotensor

    def numtotensor(context: Any, node: Any) -> None:
        size = context[node.inputs[0]]
        if size.val is None or size.shape != ():
            original(context, node)
        else:
            context.add(Builder.const(val=size.val, name=node.name))

    register_torch_op(numtotensor, override=True)
    try:
        yield
    finally:
        register_torch_op(original, override=True)

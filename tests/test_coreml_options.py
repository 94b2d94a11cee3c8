"""What Core ML is asked and cannot do, said before any work."""

import pytest

from exporter.errors import JobError
from exporter.scheme import Scheme
from exporter.targets.coreml.options import CoremlOptions
from exporter.targets.coreml.precisions import cannot_express
from exporter.targets.coreml.target import prepare
from exporter.types import GENERATION, Preparation

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("precision", "options", "line"),
    [
        ("fp16", {"target": "iOS17", "cache": "state"}, "--coreml-cache state needs --coreml-target iOS18, macOS15"),
        ("int4", {"target": "macOS14"}, "macOS14 has no int4 weights: give --coreml-target iOS18, macOS15, or int8"),
        ("palettize4", {"target": "iOS17"}, "iOS17 has no palettize4 weights"),
        ("fp16", {"max_length": 32}, "is less than what is measured on, 64 tokens"),
    ],
)
def test_options_that_do_not_fit(precision, options, line, tmp_path):
    asked = Preparation(tmp_path, {}, GENERATION, precision, CoremlOptions(**options), tmp_path, True, 64, None)
    try:
        told = prepare(asked)
    except JobError as error:
        told = str(error)
    assert line in told


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(weight="int4", group=32, symmetric=False),
        Scheme(weight="int8", group=None, input="dynamic"),
        Scheme(weight="int4", group=32),
    ],
)
def test_schemes_that_cannot_be_expressed(scheme):
    assert "cannot express" in cannot_express("int8", scheme)
    assert "takes no policy" in cannot_express("fp16", scheme)

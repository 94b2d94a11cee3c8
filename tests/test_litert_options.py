"""What LiteRT is asked and cannot do, said before any work."""

import pytest
from pydantic import ValidationError

from exporter.errors import JobError
from exporter.scheme import Scheme
from exporter.targets.litert.options import LitertOptions
from exporter.targets.litert.precisions import cannot_express
from exporter.targets.litert.target import check, prepare
from exporter.types import FEATURES, GENERATION, Preparation

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("task", "options", "line"),
    [
        (FEATURES, {"lengths": "16,32"}, "give --litert-lengths 16,32,64, or --window 32"),
        (FEATURES, {"bundle": True}, "--litert-bundle is for text generation"),
        (FEATURES, {"max_length": 128}, "--litert-max-length is for text generation"),
        (GENERATION, {"max_length": 32}, "is less than what is measured on, 64 tokens"),
        (GENERATION, {"max_length": 64, "lengths": "32,128"}, "--litert-lengths 32,128: the cache holds 64 tokens"),
    ],
)
def test_options_that_do_not_fit(task, options, line, tmp_path):
    asked = Preparation(tmp_path, {}, task, "fp16", LitertOptions(**options), tmp_path, True, 64, None)
    with pytest.raises(JobError, match=line):
        prepare(asked)


@pytest.mark.parametrize("task", [GENERATION, FEATURES])
def test_what_a_flatbuffer_cannot_hold_is_refused_before_any_work(task, tmp_path):
    def said(parameters):
        options = LitertOptions(max_length=64 if task == GENERATION else None)
        return prepare(Preparation(tmp_path, {}, task, "int4-weight", options, tmp_path, True, 64, parameters))

    assert said(536_870_911) is None  # 2 GB less 3 bytes
    assert "its float32 weights are 2,147,483,648 bytes" in said(536_870_912)
    assert said(None) is None  # a stage will give the model its shape: the conversion looks again


@pytest.mark.parametrize(("given", "lengths"), [("256,64,128", (64, 128, 256)), (64, (64,)), ([8, 4], (4, 8))])
def test_lengths_in_any_order_and_as_yaml_has_them(given, lengths):
    assert LitertOptions(lengths=given).asked() == lengths


@pytest.mark.parametrize("given", ["64, 128", "", "1,64", "64,64", "-8", "a"])
def test_what_is_no_list_of_lengths(given):
    with pytest.raises(ValidationError, match="lengths are"):
        LitertOptions(lengths=given)


@pytest.mark.parametrize(
    ("precision", "scheme"),
    [
        ("int8-weight", Scheme(weight="int8", input="dynamic")),
        ("int8-dynamic", Scheme(weight="int8", group=32)),
        ("int8-dynamic", Scheme(weight="int8", symmetric=False)),
        ("int8-static", Scheme(weight="int4", group=32, input="dynamic")),
        ("int4-weight", Scheme(weight="int4", group=32)),
        ("int4-weight", Scheme(weight="int4", group=16, input="dynamic")),
        ("int4-weight", Scheme(weight="palette4")),
    ],
)
def test_schemes_that_cannot_be_expressed(precision, scheme):
    assert "cannot express" in cannot_express(precision, scheme)
    assert "takes no policy" in cannot_express("fp16", scheme)


def test_models_that_are_not_exported():
    assert "encoder-decoder" in check({"is_encoder_decoder": True}, GENERATION, "fp32")
    assert "mamba" in check({"model_type": "mamba"}, GENERATION, "fp32")

"""What is damaged, or cannot be evaluated, is refused in one line that says what and where."""

import json
import shutil

import numpy as np
import pytest
from mil_programs import build, random, save

from exporter.errors import BuildError
from exporter.targets.coreml.inspection import inspect
from exporter.targets.coreml.mil.evaluator import Evaluator

WEIGHT = random(16, 8)
MODEL, BLOB = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One linear layer, whose 512 bytes are at the weight file's end."""
    x = random(2, 8)
    path = save(build({"y": lambda mb, x: mb.linear(x=x, weight=WEIGHT)}, {"x": x}), tmp_path_factory.mktemp("whole"))
    np.testing.assert_allclose(Evaluator(path, half=False).run({"x": x})["y"], x @ WEIGHT.T, rtol=1e-5)
    return path


@pytest.fixture
def package(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "broken.mlpackage")


def refused(package, *, inspected=True):
    """The error's one line; `inspect` refuses it likewise."""
    with pytest.raises(BuildError) as caught:
        Evaluator(package, half=True)
    assert "\n" not in str(caught.value)
    if inspected:
        with pytest.raises(BuildError):
            inspect(package)
    return str(caught.value)


def _model_of(package):
    """The specification's file: the package names its folder by chance."""
    entries = json.loads((package / "Manifest.json").read_text())
    return package / "Data" / entries["itemInfoEntries"][entries["rootModelIdentifier"]]["path"]


def _edit(package, change):
    from coremltools.proto import Model_pb2

    specification = Model_pb2.Model()
    specification.ParseFromString(_model_of(package).read_bytes())
    change(specification)
    _model_of(package).write_bytes(specification.SerializeToString())


def _operations(specification):
    function = specification.mlProgram.functions["main"]
    return function.block_specializations[function.opset].operations


@pytest.mark.parametrize("size", [0, 63, 64, 120, 200, 600])
def test_a_truncated_weight_file(package, size):
    blob = package / BLOB
    blob.write_bytes(blob.read_bytes()[:size])
    assert "weight.bin is truncated" in refused(package)


def test_a_missing_weight_file(package):
    (package / BLOB).unlink()
    assert "weight.bin is missing" in refused(package)


def test_a_weight_file_of_another_version(package):
    data = bytearray((package / BLOB).read_bytes())
    data[4] = 1
    (package / BLOB).write_bytes(data)
    assert "version 1, not 2" in refused(package)


def test_a_record_that_is_none(package):
    data = bytearray((package / BLOB).read_bytes())
    data[64:68] = bytes(4)
    (package / BLOB).write_bytes(data)
    assert "weight.bin is damaged: no tensor begins at byte 64" in refused(package)


def test_a_record_of_an_unknown_type(package):
    data = bytearray((package / BLOB).read_bytes())
    data[68] = 99
    (package / BLOB).write_bytes(data)
    assert "a tensor of type 99, which is not known" in refused(package)


def test_a_weight_that_is_another(package):
    data = bytearray((package / BLOB).read_bytes())
    data[68] = 1  # float16: twice as many
    (package / BLOB).write_bytes(data)
    assert "the program has fp32[16, 8] where it holds 256 fp16" in refused(package, inspected=False)


def test_a_missing_model(package):
    _model_of(package).unlink()
    assert "has no model" in refused(package)


def test_a_manifest_that_names_none(package):
    (package / "Manifest.json").write_text('{"itemInfoEntries": {}}')
    assert "Manifest.json is damaged" in refused(package)


def test_what_is_no_package(tmp_path):
    assert "does not exist" in refused(tmp_path / "nothing.mlpackage")
    assert "has no Manifest.json" in refused(tmp_path)


def test_a_damaged_specification(package):
    model = _model_of(package)
    model.write_bytes(model.read_bytes()[:-7])
    assert "model.mlmodel is damaged" in refused(package)


@pytest.mark.parametrize("version", [5, 11])
def test_a_version_that_is_not_known(package, version):
    _edit(package, lambda specification: setattr(specification, "specificationVersion", version))
    assert f"specification version {version}; ML programs of 6 to 10" in refused(package)


def test_a_model_that_is_no_program(package):
    def change(specification):
        specification.ClearField("mlProgram")
        specification.neuralNetwork.SetInParent()

    _edit(package, change)
    assert "of the kind neuralNetwork, not an ML program" in refused(package)


def test_all_unknown_operators_are_named(package):
    def change(specification):
        for kind in ("while_loop", "lstm"):
            _operations(specification).add(type=kind)

    _edit(package, change)
    assert refused(package, inspected=False).endswith("has operators that cannot be evaluated: lstm, while_loop")
    assert inspect(package)["functions"][0]["not_evaluated"] == ["lstm", "while_loop"]


def test_an_unknown_parameter_is_named(package):
    def change(specification):
        linear = next(operation for operation in _operations(specification) if operation.type == "linear")
        linear.inputs["novelty"].CopyFrom(linear.inputs["x"])

    _edit(package, change)
    assert "linear -> " in refused(package, inspected=False)
    assert "novelty" in refused(package, inspected=False)


def test_a_value_that_nothing_gives(package):
    def change(specification):
        linear = next(operation for operation in _operations(specification) if operation.type == "linear")
        linear.inputs["x"].arguments[0].name = "nobody"

    _edit(package, change)
    assert "reads nobody, which nothing gives" in refused(package)


def test_a_constant_of_too_many_numbers(package):
    def change(specification):
        texts = (operation.attributes["val"].immediateValue.tensor.strings for operation in _operations(specification))
        next(text for text in texts if text.values).values.append("more")

    _edit(package, change)
    assert "a constant of type string[] has 2 numbers" in refused(package, inspected=False)

"""An .mlpackage: a folder with a manifest, the specification of a model and its weights."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.errors import BuildError, MissingPackage
from exporter.targets.coreml.mil.blob import BlobFile

# ML programs came with 6 (iOS 15); 7 is iOS 16, 8 iOS 17, 9 iOS 18, 10 iOS 26. A later one may mean anything.
_VERSIONS = range(6, 11)


@dataclass
class Package:
    """An opened .mlpackage. `specification`: the message Model of coremltools' Model_pb2."""

    path: Path
    specification: Any
    _data: Path
    _blobs: dict[str, BlobFile] = field(default_factory=dict)

    def blob(self, name: str) -> BlobFile:
        """A weight file by its name in the program, such as @model_path/weights/weight.bin."""
        if name not in self._blobs:
            self._blobs[name] = BlobFile(self._data / name.removeprefix("@model_path/"))
        return self._blobs[name]


def open_package(path: Path) -> Package:
    """Raises BuildError, in one line, for what is no .mlpackage with an ML program of a known version."""
    model = _model_file(path)
    specification = _parsed(model)
    version, kind = specification.specificationVersion, specification.WhichOneof("Type")
    if version not in _VERSIONS:
        known = f"{_VERSIONS[0]} to {_VERSIONS[-1]}"
        raise BuildError(f"{path} has specification version {version}; ML programs of {known} can be read")
    if kind != "mlProgram":
        raise BuildError(f"{path} holds a model of the kind {kind or 'none'}, not an ML program (mlProgram)")
    if not specification.mlProgram.functions:
        raise BuildError(f"{path} holds an ML program without a function")
    return Package(path, specification, model.parent)


def _model_file(path: Path) -> Path:
    """The specification's file, which the manifest names."""
    manifest = path / "Manifest.json"
    if not manifest.is_file():
        what = "has no Manifest.json" if path.is_dir() else "is no folder" if path.exists() else "does not exist"
        raise BuildError(f"{path} is not an .mlpackage: it {what}")
    try:
        told = json.loads(manifest.read_text(encoding="utf-8"))
        item = told["itemInfoEntries"][told["rootModelIdentifier"]]["path"]
    except (ValueError, KeyError, TypeError) as error:
        raise BuildError(f"{manifest} is damaged: it names no model") from error
    model = path / "Data" / str(item)
    if not model.is_file():
        raise BuildError(f"{path} has no model: {model} is missing; copy the whole .mlpackage folder")
    return model


def _parsed(model: Path) -> Any:
    logging.getLogger("coremltools").setLevel(logging.ERROR)  # it tells, imported, what of it is for macOS alone
    try:
        from coremltools.proto import Model_pb2
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise MissingPackage("reading an .mlpackage", ["coremltools"], "coreml") from error
    specification = Model_pb2.Model()
    try:
        specification.ParseFromString(model.read_bytes())
    except DecodeError as error:
        raise BuildError(f"{model} is damaged: it is not the specification of a Core ML model") from error
    return specification

"""An artifact's folder as the clients look for it, by their defaults.

transformers.js opens onnx/model.onnx, in Node by itself and in a browser where config.json says "fp32", for the file's
name has no ending; optimum's loaders take the one .onnx of a folder, wherever it lies; onnxruntime-genai opens the file
that genai_config.json names. So the graph is there once, with its weights in model.onnx_data beside it above 2 GB.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.device import Gpu
from exporter.form import FORMS
from exporter.store import write_text
from exporter.targets.folder.files import copy_configuration
from exporter.targets.folder.kit import programs
from exporter.targets.onnx import two_towers
from exporter.targets.onnx.bf16 import open_stand_in
from exporter.targets.onnx.genai_config import GENAI_CONFIG, NotDescribedError, genai_config
from exporter.targets.onnx.pair import HALVES, open_onnx_pair, weights_of_pair, zero_counts_of_pair
from exporter.targets.onnx.two_towers import open_onnx_towers, weights_of_towers, zero_counts_of_towers
from exporter.targets.onnx_graph import held
from exporter.targets.onnx_graph.device_session import CudaDecoder, CudaRunner
from exporter.targets.onnx_graph.encoder_decoder_session import OnnxEncoderDecoder
from exporter.targets.onnx_graph.session import OnnxDecoder, OnnxRunner
from exporter.targets.onnx_graph.zeros import zero_counts
from exporter.types import GENERATION, Checkpoint, Weight, Zeros

if TYPE_CHECKING:
    import onnx_ir as ir

MODEL = "onnx/model.onnx"
DATA = f"{MODEL}_data"
_JS = "transformers.js_config"


def place(folder: Path) -> Path:
    """Where the graph is to be written in an empty folder."""
    (folder / MODEL).parent.mkdir()
    return folder / MODEL


def describe_for_genai(checkpoint: Checkpoint, model: ir.Model, folder: Path) -> list[str]:
    """Writes genai_config.json for a decoder's graph; or a note, why onnxruntime-genai cannot run it."""
    if checkpoint.task != GENERATION:
        return []
    try:
        told = genai_config(checkpoint.path, model.graph, MODEL)
    except NotDescribedError as error:
        return [f"not for onnxruntime-genai: {error}"]
    _write(folder / GENAI_CONFIG, told)
    return []


def configure(checkpoint: Path, folder: Path, browsers: bool = True) -> tuple[str, ...]:
    """The checkpoint's configuration and tokenizer; returns the weights' files.

    `browsers`: as transformers.js reads them too, which runs no bfloat16.
    """
    copy_configuration(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop(_JS, None)  # what a checkpoint says there is said of other files than this one
    if browsers:
        config[_JS] = {"dtype": "fp32", "use_external_data_format": _external(folder)}
    _write(folder / "config.json", config)
    template, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if template.is_file():
        told = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
        if "chat_template" not in told:  # where transformers.js alone looks
            _write(settings, told | {"chat_template": template.read_text(encoding="utf-8")})
    files = [file for name in (MODEL, *HALVES) for file in (name, f"{name}_data")]
    return tuple(name for name in dict.fromkeys((*files, *two_towers.FILES)) if (folder / name).is_file())


def _external(folder: Path) -> bool | Mapping[str, bool | int]:
    """Whether the weights are in a file of their own; of several graphs, of which, or in how many."""
    if _has_towers(folder):
        return two_towers.EXTERNAL
    if (folder / MODEL).is_file():
        return (folder / DATA).is_file()
    return {Path(name).stem: (folder / f"{name}_data").is_file() for name in HALVES}


def _has_towers(folder: Path) -> bool:
    return all((folder / name).is_file() for name in two_towers.TOWERS)


def _write(file: Path, told: dict[str, Any]) -> None:
    write_text(file, json.dumps(told, indent=2, ensure_ascii=False) + "\n")


def open_onnx(folder: Path, threads: int, gpu: int | None = None) -> OnnxRunner | OnnxEncoderDecoder:
    """The runner of an artifact's folder: a decoder for text generation. `gpu`: the GPU's number; None: the CPU."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    task = manifest["task"]
    if FORMS[task].encodes:
        return open_onnx_pair(folder, threads, manifest["variant"], gpu)
    if FORMS[task].matches:
        return open_onnx_towers(folder, threads, manifest["variant"], gpu)
    if gpu is not None:
        return (CudaDecoder if task == GENERATION else CudaRunner)(folder / MODEL, threads, Gpu(gpu))
    if manifest.get("variant") == "onnx:bf16":
        return open_stand_in(folder / MODEL, folder, threads, task == GENERATION)
    return (OnnxDecoder if task == GENERATION else OnnxRunner)(folder / MODEL, threads)


def weights_of(folder: Path, files: Sequence[str] = ()) -> list[Weight]:
    """The weight matrices in an artifact's graph."""
    if _has_towers(folder):
        return weights_of_towers(folder)
    return held.weights_of(folder / MODEL) if (folder / MODEL).is_file() else weights_of_pair(folder)


def zeros_of(folder: Path, files: Sequence[str] = ()) -> Zeros:
    """The zeros in an artifact's graph."""
    if _has_towers(folder):
        counts = zero_counts_of_towers(folder)
    else:
        counts = zero_counts(folder / MODEL) if (folder / MODEL).is_file() else zero_counts_of_pair(folder)
    return Zeros(counts, "ONNX Runtime stores and multiplies a zero as any other number: no speed, and the same bytes")


def clients(folder: Path, task: str) -> dict[str, Path]:
    """The programs that run an artifact: run_genai.py too where onnxruntime-genai can open it, and its tokenizer."""
    found = programs("onnx", task)
    if not all((folder / name).is_file() for name in (GENAI_CONFIG, "tokenizer.json")):
        found.pop("run_genai.py", None)
    if _JS not in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        found = {name: path for name, path in found.items() if path.suffix != ".mjs"}
    return found

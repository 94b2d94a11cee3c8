"""GGUF for llama.cpp, Ollama and LM Studio: converted, quantized and run by llama.cpp's own code.

The folder holds the file (or its parts), the importance matrix that it was quantized with in llama.cpp's format, an
Ollama Modelfile, and the checkpoint's configuration and tokenizer. Needs the extra [gguf].
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from exporter.errors import BuildError, JobError
from exporter.form import FORMS
from exporter.targets.folder.files import copy_configuration, hard_link, model_name
from exporter.targets.folder.kit import kit, programs
from exporter.targets.folder.proven import FLOAT16
from exporter.targets.gguf import proof
from exporter.targets.gguf.converter import convert, fetch
from exporter.targets.gguf.encoder_decoder import kind_of, refused
from exporter.targets.gguf.imatrix import ImportanceMatrix, from_calibration, read_imatrix, write_imatrix
from exporter.targets.gguf.inspection import inspect
from exporter.targets.gguf.modelfile import gpu_layers_of, modelfile, written
from exporter.targets.gguf.options import GgufOptions
from exporter.targets.gguf.quantize import quantize
from exporter.targets.gguf.runner import GgufDecoder, GgufEncoder
from exporter.targets.gguf.split import split
from exporter.targets.gguf.toy import mending_command, run_toy
from exporter.targets.gguf.types import (
    FLOATS,
    IGNORE_MATRIX,
    demands_matrix,
    describe_types,
    parse_overrides,
    weights_of,
)
from exporter.targets.gguf.zeros import zeros_of
from exporter.types import (
    GENERATION,
    Exported,
    ExportRequest,
    Gates,
    Precision,
    Preparation,
    Target,
)


def export(request: ExportRequest) -> Exported:
    """Writes the artifact's folder. The float16 file is made once for all the quantized precisions of a run."""
    with ThreadPoolExecutor(1) as beside:
        # It has to import transformers, while another process converts.
        conversation = beside.submit(_modelfile, request)
        return _export(request, conversation)


def _export(request: ExportRequest, conversation: Future[tuple[dict[str, Any], list[str]]]) -> Exported:
    options: GgufOptions = request.options
    precision = request.precision
    name = f"{model_name(request.checkpoint.source)}-{precision.upper()}.gguf"
    building = request.folder / name
    notes = []
    if precision in FLOATS:
        hard_link(_float_file(request, precision), building)
        if options.tensor:
            notes.append("--gguf-tensor does not apply to a float file")
    else:
        source = _float_file(request, "f16")
        proof.prove(source, request)
        matrix = _matrix(request, source)
        overrides = parse_overrides(options.tensor)
        quantize(source, building, precision, matrix.means() if matrix else {}, overrides, request.threads)
        if matrix is None:
            notes.append("without importance matrix")
        else:
            write_imatrix(matrix, request.folder / "imatrix.gguf")
            tokens = int(max(count.max() for count in matrix.counts.values()))
            notes.append(f"importance matrix of {len(matrix.sums)} tensors over {tokens} tokens of {matrix.dataset}")
    notes.insert(0, describe_types(building, precision))
    copy_configuration(request.checkpoint.path, request.folder)
    if request.checkpoint.task == GENERATION:
        told, lacks = conversation.result()
        text = written(name, told, options.gpu_layers)
        (request.folder / "Modelfile").write_text(text, encoding="utf-8")
        notes += lacks
    weights = split(building, options.split_max_size) if options.split_max_size else (name,)
    if len(weights) > 1:
        notes.append(f"in {len(weights)} parts: Ollama takes one file only (llama-gguf-split --merge makes one)")
    return Exported(weights, tuple(notes))


def _float_file(request: ExportRequest, kind: str) -> Path:
    """The converted float file in the scratch folder, made by the first export that needs it."""
    file, done = request.scratch / f"{kind}.gguf", request.scratch / f"{kind}.done"
    if not done.is_file():
        _refuse_tokenizer_code(request)
        assert request.cache is not None
        converter = fetch(request.cache, offline=True)  # `prepare` filled the cache
        convert(converter, request.checkpoint.path, model_name(request.checkpoint.source), file, kind)
        done.touch()
    return file


def _modelfile(request: ExportRequest) -> tuple[dict[str, Any], list[str]]:
    """What the Modelfile says, which is the same at all precisions: read once, because it takes transformers to."""
    if request.checkpoint.task != GENERATION:
        return {}, []
    made = request.scratch / "modelfile.json"
    if not made.is_file():
        read = modelfile(request.checkpoint.path, request.checkpoint.trust_remote_code)
        made.write_text(json.dumps(read), encoding="utf-8")
    told, notes = json.loads(made.read_text(encoding="utf-8"))
    return told, notes


def _refuse_tokenizer_code(request: ExportRequest) -> None:
    """The converter lets some tokenizers run the model's own code; only the user may allow that."""
    file = request.checkpoint.path / "tokenizer_config.json"
    brings = file.is_file() and json.loads(file.read_text(encoding="utf-8")).get("auto_map")
    if brings and not request.checkpoint.trust_remote_code:
        raise JobError("the tokenizer brings Python code of its own; read it, then run again with --trust-remote-code")


def _matrix(request: ExportRequest, source: Path) -> ImportanceMatrix | None:
    """The importance matrix that the job asks for: read, or from the calibration; None where there is none to use."""
    options: GgufOptions = request.options
    if (request.precision in IGNORE_MATRIX and not options.tensor) or options.imatrix == "off":
        return None
    if FORMS[request.checkpoint.task].encodes and options.imatrix == "auto":  # no statistics are kept of one
        return None
    if options.imatrix != "auto":
        return read_imatrix(options.imatrix)
    if request.calibration is None:
        raise BuildError(f"{request.precision} needs a calibration, and got none")
    return from_calibration(request.calibration, source)


def calibrates(precision: str, options: GgufOptions) -> bool:
    """Every type that an importance matrix makes better gets one, unless the job says off or brings its own."""
    uses = precision not in IGNORE_MATRIX or (precision not in FLOATS and bool(options.tensor))
    return uses and options.imatrix == "auto"


def check(config: Mapping[str, Any], task: str, precision: str) -> str | None:
    return refused(config, task, precision)


def prepare(wanted: Preparation) -> str | None:
    """Reads an importance matrix that is given, fetches the converter, and lets it read the tokenizer."""
    options: GgufOptions = wanted.options
    if options.gpu_layers is not None and wanted.task != GENERATION:
        raise JobError("--gguf-gpu-layers is for text generation: an encoder is on the GPU as a whole")
    if isinstance(options.imatrix, Path):
        read_imatrix(options.imatrix)
    demanded = wanted.precision not in FLOATS and demands_matrix(wanted.precision, parse_overrides(options.tensor))
    if options.imatrix == "off" and demanded:
        return "llama.cpp refuses to quantize to this type without an importance matrix: drop --gguf-imatrix off"
    try:
        converter = fetch(wanted.cache, wanted.offline)
    except BuildError as error:
        return str(error)
    return _refusal(converter, wanted.path)


@cache
def _refusal(converter: Path, checkpoint: Path) -> str | None:
    """Why the converter does not take this architecture or tokenizer; asked once for all the precisions of a job."""
    with TemporaryDirectory() as folder:
        try:
            outfile = Path(folder) / "vocabulary.gguf"
            convert(converter, checkpoint, checkpoint.name, outfile, "f16", vocabulary_only=True)
        except BuildError as error:
            return str(error)
    return None


def open_gguf(folder: Path, threads: int, gpu: int | None = None) -> GgufDecoder | GgufEncoder:
    """An artifact's folder as a runner; what it is for and its precision are in the manifest.

    `gpu`: the GPU's number, None: the CPU.
    """
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    kind = kind_of(manifest["task"])
    # llama.cpp finds the other parts by the first one's name.
    exact = manifest["variant"].endswith(":f32")
    return kind(folder / min(manifest["weights"]), threads, exact, gpu, gpu_layers_of(folder))


def lacks_cuda(precision: str, task: str) -> str | None:
    """Why the llama.cpp that is installed runs nothing on a GPU, or None: its binding tells."""
    import llama_cpp

    if llama_cpp.llama_supports_gpu_offload():
        return None
    return (
        "llama-cpp-python was built without CUDA: CMAKE_ARGS=-DGGML_CUDA=on pip install --no-cache-dir "
        f"--force-reinstall --no-deps --no-binary llama-cpp-python llama-cpp-python=={llama_cpp.__version__}"
    )


# Measured on SmolLM2-135M (2,048 tokens of WikiText-2, importance matrix of 8,192 other tokens; rows of 576 fall back):
# ratio 1.0000 f32 · 1.0001 f16 · 1.0004 bf16 · 1.005 q8_0 · 1.009 q6_k · 1.008 q5_k_m · 1.011 q5_k_s · 1.007 q5_1 ·
# 1.035 q5_0 · 1.031 q4_k_m · 1.033 q4_k_s · 1.005 q4_1 (the grid that its weights lie on) · 1.117 q4_0 · 1.101 iq4_nl ·
# 1.104 iq4_xs · 1.090 q3_k_m · 1.188 iq3_xxs · 1.147 q2_k · 1.50 iq2_xs; KL with the cache at most 0.004.
# KL of SmolLM2-135M: 0.0037 q8_0 · 0.0063 q5_k_m · 0.033 q4_k_m (0.053 without a matrix) · 0.163 q4_0 (0.282) ·
# 0.096 iq4_xs (0.176). No KL was measured of the others: their limits are about 1.5 times the perplexity's logarithm.
# A layer's mean bits are limited by what llama.cpp falls back to where 256 does not divide the rows: q5_0 (5.5) for
# q4_k, q5_1 (6) for q5_k, q8_0 (8.5) for q6_k, iq4_nl (4.5) for all below; SmolLM2's are 5.7 at q4_k_m, 6.2 at q5_k_m.
def _quantized(summary: str, bits: float, ratio: float, kl: float, cosine: float, cache_kl: float) -> Precision:
    gates = Gates(max_tokenizer_errors=0, max_ppl_ratio=ratio, max_kl=kl, min_cosine=cosine, max_cache_kl=cache_kl)
    return Precision(summary, replace(gates, max_bits_per_weight=bits), bits=bits)


GGUF = Target(
    name="gguf",
    summary="llama.cpp, Ollama, LM Studio",
    precisions={
        "f32": Precision(
            "float32",
            Gates(
                max_tokenizer_errors=0,
                max_ppl_ratio=1.001,
                max_kl=1e-4,
                min_cosine=0.9999,
                max_logit_error=5e-3,
                max_cache_kl=1e-6,
            ),
        ),
        "f16": Precision(
            "float16 weights",
            Gates(
                max_tokenizer_errors=0,
                max_ppl_ratio=1.005,
                max_kl=FLOAT16.kl,
                min_cosine=FLOAT16.cosine,
                max_cache_kl=1e-3,
                max_bits_per_weight=17,
            ),
            bits=17,
        ),
        "bf16": _quantized("bfloat16 weights", 17, 1.01, 0.01, 0.999, 0.01),
        "q8_0": _quantized("8-bit, blocks of 32", 9, 1.02, 0.03, 0.99, 0.01),
        "q6_k": _quantized("6-bit, super-blocks of 256", 9, 1.03, 0.04, 0.99, 0.01),
        "q5_k_m": _quantized("5-bit, some 6-bit, super-blocks of 256", 7, 1.06, 0.08, 0.98, 0.01),
        "q5_k_s": _quantized("5-bit, super-blocks of 256", 6.5, 1.06, 0.08, 0.98, 0.01),
        "q5_1": _quantized("5-bit with offset, blocks of 32", 6.5, 1.06, 0.08, 0.98, 0.01),
        "q5_0": _quantized("5-bit, blocks of 32", 6.5, 1.06, 0.08, 0.98, 0.01),
        "q4_k_m": _quantized("4-bit, some 6-bit, super-blocks of 256", 6.5, 1.1, 0.14, 0.95, 0.02),
        "q4_k_s": _quantized("4-bit, super-blocks of 256", 6.5, 1.1, 0.14, 0.95, 0.02),
        "q4_1": _quantized("4-bit with offset, blocks of 32", 5.5, 1.15, 0.2, 0.95, 0.02),
        "q4_0": _quantized("4-bit, blocks of 32", 5.5, 1.2, 0.3, 0.95, 0.02),
        "iq4_nl": _quantized("4-bit, uneven steps, blocks of 32", 5.5, 1.15, 0.2, 0.95, 0.02),
        "iq4_xs": _quantized("4-bit, uneven steps, super-blocks of 256", 5.5, 1.15, 0.2, 0.95, 0.02),
        "q3_k_m": _quantized("3-bit, some 4- and 5-bit, super-blocks of 256", 5.5, 1.2, 0.3, 0.9, 0.03),
        "iq3_xxs": _quantized("3-bit from a codebook; demands an importance matrix", 5.5, 1.35, 0.45, 0.85, 0.03),
        "q2_k": _quantized("2-bit, some 4-bit, super-blocks of 256", 5.5, 1.35, 0.45, 0.8, 0.03),
        "iq2_xs": _quantized("2-bit from a codebook; demands an importance matrix", 5.5, 1.8, 0.9, 0.75, 0.03),
    },
    default="q4_k_m",
    requires=("llama_cpp",),
    builds_with=lambda options: ("gguf", "sentencepiece"),
    extra="gguf",
    check=check,
    export=export,
    open=open_gguf,
    open_cuda=open_gguf,
    lacks_cuda=lacks_cuda,
    weights=weights_of,
    zeros=zeros_of,
    inspects={".gguf": inspect},
    run="python {folder}/run.py {example}",
    kit=kit("gguf"),
    programs=lambda folder, task: programs("gguf", task),
    options=GgufOptions,
    prepare=prepare,
    calibrates=calibrates,
    fetch=lambda cache, source: fetch(cache, offline=False, source=source),
    selftest=run_toy,
    mends_crash=mending_command,
)

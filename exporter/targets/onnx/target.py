"""ONNX for ONNX Runtime and its clients: one float32 graph, and a pass over it for each precision below.

The graph is a trace of the model's own code, with the operators of opset 23 that ONNX Runtime has fused kernels for.
The folder is what optimum, transformers.js and onnxruntime-genai open (layout.py): the graph, the configuration,
tokenizer and chat template.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.errors import BuildError
from exporter.form import FORMS
from exporter.targets.folder.kit import kit
from exporter.targets.folder.limits import bfloat16, float16, float32, of_convolutions
from exporter.targets.onnx import two_towers
from exporter.targets.onnx.bf16 import bfloat16_graph
from exporter.targets.onnx.encoder_decoder import export_pair, refused
from exporter.targets.onnx.half import half, overflowing
from exporter.targets.onnx.kernels import Labels, describe, weight_products
from exporter.targets.onnx.layout import (
    clients,
    configure,
    describe_for_genai,
    open_onnx,
    place,
    weights_of,
    zeros_of,
)
from exporter.targets.onnx.options import OnnxOptions
from exporter.targets.onnx.parts import finish
from exporter.targets.onnx.quantize import (
    SCHEMES,
    cannot_express,
    check_policy,
    quantize_by_policy,
    quantize_by_rule,
)
from exporter.targets.onnx.two_towers import write_towers
from exporter.targets.onnx_graph import fused_operators, versions
from exporter.targets.onnx_graph.attention_operator import ANY_SIZE, OPSET
from exporter.targets.onnx_graph.cached_attention import fuse
from exporter.targets.onnx_graph.device_session import lacks_cuda
from exporter.targets.onnx_graph.file import load_graph, made_once, save_graph
from exporter.targets.onnx_graph.float_proof import prove
from exporter.targets.onnx_graph.inspection import inspect
from exporter.targets.onnx_graph.largest import ranges_of
from exporter.targets.onnx_graph.modules import module_rows
from exporter.targets.onnx_graph.traced import load_model, notes_of, trace_causal_lm, trace_encoder
from exporter.targets.traced_model.cache import refused_cache
from exporter.types import (
    GENERATION,
    Exported,
    ExportRequest,
    Gates,
    Precision,
    Preparation,
    Target,
    agreement,
)

if TYPE_CHECKING:
    import onnx_ir as ir


def export(request: ExportRequest) -> Exported:
    """Writes the artifact's folder. The float graph is made once for all the precisions of a run."""
    if FORMS[request.checkpoint.task].encodes:
        return export_pair(request, _told)
    if FORMS[request.checkpoint.task].matches:
        notes, needs = write_towers(request, _told)
        weights = configure(request.checkpoint.path, request.folder, request.precision != "bf16")
        return Exported(weights, tuple(notes), graph=needs)
    check_policy(request.precision, request.policy)
    model, notes, labels = _graph(request)
    needs = finish(model, request)
    if request.precision != "bf16":
        notes += describe_for_genai(request.checkpoint, model, request.folder)
    model_onnx = place(request.folder)
    save_graph(model, model_onnx)
    if request.precision == "int8-static":
        notes.append(describe(weight_products(model_onnx, request.scratch), labels))
    return Exported(
        configure(request.checkpoint.path, request.folder, request.precision != "bf16"), tuple(notes), graph=needs
    )


def _graph(request: ExportRequest) -> tuple[ir.Model, list[str], Labels]:
    """The graph at the request's precision, notes, and what a policy told of its weights."""
    if request.precision == "bf16":
        plain = partial(_write_float, request, fused_operators.simplify)
        model = bfloat16_graph(load_graph(made_once(request.scratch, plain, "standard")))
        return model, notes_of(model), Labels()
    float_graph = made_once(request.scratch, partial(_write_float, request, fuse))
    if request.precision in SCHEMES:
        prove(float_graph, request)
    model = load_graph(float_graph)
    notes = notes_of(model)
    model, said, labels = _at_precision(model, request)
    return model, [*notes, *said], labels


def _write_float(request: ExportRequest, fusing: Callable[[ir.Model], None], model: Path) -> None:
    """The float32 graph. `fusing` finds operators in it: ONNX Runtime's own too, or ONNX's alone."""
    checkpoint = request.checkpoint
    oldest = request.options.min_onnxruntime if request.options else None
    # The weights in a file of their own: it is mapped, not read, by all that follows.
    how: dict[str, Any] = {"trust_remote_code": checkpoint.trust_remote_code, "limit": 0, "traces": request.traces}
    if oldest is None or versions.number(oldest) >= versions.number(versions.OPSETS[OPSET]):
        how |= {"attention": ANY_SIZE, "fuse": fusing}
    if checkpoint.task == GENERATION:
        trace_causal_lm(checkpoint.path, model, **how)
    else:
        trace_encoder(checkpoint.path, checkpoint.task, model, **how)


def _at_precision(model: ir.Model, request: ExportRequest) -> tuple[ir.Model, list[str], Labels]:
    """The float graph brought to the request's precision, notes, and what a policy told of its weights."""
    checkpoint, precision = request.checkpoint, request.precision
    decoder = FORMS[checkpoint.task].answers == "vocabulary"
    convolves = FORMS[checkpoint.task].inputs != "text"
    if request.policy is not None:
        modules = module_rows(load_model(checkpoint.path, checkpoint.task, checkpoint.trust_remote_code))
        seen = partial(_ranges, request)
        return model, *quantize_by_policy(model, request.policy, modules, decoder, convolves, seen)
    if precision == "fp16":
        beyond = _overflowing(request)
        return half(model, beyond), _told(beyond), Labels()
    return model, quantize_by_rule(model, precision, decoder, convolves) if precision in SCHEMES else [], Labels()


def _overflowing(request: ExportRequest) -> dict[str, float]:
    """What float16 cannot hold on the calibration's windows. They are of other text than what is measured on."""
    windows = np.load(request.calibration / "windows.npy") if request.calibration else None
    graph = load_graph(made_once(request.scratch, partial(_write_float, request, fuse)))
    return overflowing(graph, windows, request.scratch, request.threads)


def _ranges(request: ExportRequest, names: list[str]) -> Mapping[str, tuple[float, float]]:
    """Of values of the float graph, on what is calibrated on; whatever is quantized has the same names."""
    if request.calibration is None:
        raise BuildError("the outputs of convolutions need ranges, and there is nothing to calibrate on")
    graph = load_graph(made_once(request.scratch, partial(_write_float, request, fuse)))
    return ranges_of(graph, names, np.load(request.calibration / "windows.npy"), request.scratch, request.threads)


def _told(beyond: Mapping[str, float]) -> list[str]:
    if not beyond:
        return []
    worst = sorted(beyond, key=lambda name: -beyond[name])[:3]
    told = ", ".join(f"{name} reaches {beyond[name]:.3g}" for name in worst)
    return [f"what reads or writes {len(beyond)} tensors stays in float32, for float16 cannot hold them: {told}"]


def check(config: Mapping[str, Any], task: str, precision: str) -> str | None:
    if config.get("is_encoder_decoder") and not FORMS[task].encodes:
        these = " and ".join(name for name, form in FORMS.items() if form.encodes)
        return f"an encoder-decoder is exported to ONNX for {these}, and not for {task}"
    if (reason := refused(task, precision) or two_towers.refused(task, precision)) is not None:
        return reason
    return refused_cache(config) if task == GENERATION else None


def prepare(wanted: Preparation) -> str | None:
    """Refuses what would round too little of a model of pictures: no kernel has 4-bit weights of convolutions."""
    if wanted.precision != "int4-weight":
        return None
    return of_convolutions(wanted, ONNX.precisions[wanted.precision].gates.min_named_share or 0.0, "onnx:int4-weight")


# Measured: KL of SmolLM2-135M; then of random BERTs without a policy, on 185 lines, a number's error, three labels'
# agreement, six labels' agreement. fp16 1e-5, 0.0024, 100%, 100%; bf16 0.001 (KL alone);
# int8-weight 0.0037, 0.073, 97%, 97%; int8-dynamic 0.055, 0.14, 96%, 98%;
# int8-static 0.015 (under its policy), 0.28, 95%, 96%; int4-weight 0.24 (0.058), 1.05, 87%, 77%.
# A random BERT's answers lie close together, which is hard on an error over their spread and on agreement. Of MiniLM
# trained on 8 classes (93% right), on 4 labels (98%) and on a number (Pearson 0.92), the worst of each: agreement 99.3%
# int8-weight and int8-dynamic, 98.2% int8-static, 98.9% int4-weight; KL at most 0.0034; a number's error 0.0002 fp16,
# 0.006 int8-weight, 0.018 int8-dynamic, 0.038 int8-static, 0.029 int4-weight.
ONNX = Target(
    name="onnx",
    summary="ONNX Runtime, transformers.js, onnxruntime-genai, optimum",
    precisions={
        "fp32": float32("float32"),
        "fp16": float16("float16 weights and arithmetic"),
        "bf16": bfloat16("bfloat16 weights and arithmetic, for a GPU"),
        "int8-weight": Precision(
            "8-bit weights in blocks of 32",
            Gates(
                max_ppl_ratio=1.02,
                max_kl=0.03,
                min_cosine=0.99,
                max_regression_error=0.15,
                max_cache_kl=0.01,
                min_named_share=0.9,
            ),
            by_task=agreement(0.93),
            schemes=SCHEMES["int8-weight"],
            bits=8,
            table_bits=8,
        ),
        "int8-dynamic": Precision(
            "int8 weights per channel, activations quantized at run time",
            Gates(
                max_ppl_ratio=1.02,
                max_kl=0.05,
                min_cosine=0.98,
                max_regression_error=0.25,
                max_cache_kl=0.1,
                min_named_share=0.9,
            ),
            by_task=agreement(0.9),
            schemes=SCHEMES["int8-dynamic"],
            bits=8,
            table_bits=8,
        ),
        "int8-static": Precision(
            "int8 weights per channel, activations in ranges fixed by calibration (Q/DQ)",
            Gates(
                max_ppl_ratio=1.02,
                max_kl=0.03,
                min_cosine=0.98,
                max_regression_error=0.25,
                max_cache_kl=0.01,
                min_named_share=0.5,
            ),
            by_task=agreement(0.9),
            schemes=SCHEMES["int8-static"],
            bits=8,
            table_bits=8,
        ),
        "int4-weight": Precision(
            "4-bit weights in blocks of 32, embedding and head 8-bit",
            Gates(
                max_ppl_ratio=1.10,
                max_kl=0.15,
                min_cosine=0.95,
                max_regression_error=0.4,
                max_cache_kl=0.05,
                min_named_share=0.5,
            ),
            by_task=agreement(0.8),
            schemes=SCHEMES["int4-weight"],
            bits=4,
            table_bits=8,
        ),
    },
    default="int8",
    aliases={"int8": {task: "int8-weight" if form.cached else "int8-dynamic" for task, form in FORMS.items()}},
    with_torch=True,
    requires=("onnxruntime",),
    builds_with=lambda options: ("onnx", "onnx_ir"),
    extra="onnx",
    check=check,
    prepare=prepare,
    export=export,
    open=open_onnx,
    open_cuda=open_onnx,
    lacks_cuda=lacks_cuda,
    weights=weights_of,
    zeros=zeros_of,
    inspects={".onnx": inspect},
    run="python {folder}/run.py {example}",
    kit=kit("onnx"),
    programs=clients,
    # float16 is checked for overflow on the calibration's windows.
    calibrates=lambda precision, options: precision == "fp16",
    options=OnnxOptions,
    schemes=cannot_express,
    experts=True,
    convolutions=True,
)

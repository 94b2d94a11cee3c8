"""LiteRT for Android and the edge: converted by litert-torch, quantized by ai-edge-quantizer, run by ai-edge-litert.

The folder holds model.tflite and the checkpoint's configuration and tokenizer; of text generation, where it is asked
for, model.litertlm too. Needs the extra [litert].
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from exporter.checkpoint.card import read_licence
from exporter.errors import BuildError, JobError
from exporter.form import FORMS
from exporter.quantization.policy import check_schemes
from exporter.scheme import Scheme
from exporter.targets.folder.files import copy_configuration
from exporter.targets.folder.kit import kit, programs
from exporter.targets.folder.limits import of_convolutions, of_one_text_or_picture
from exporter.targets.folder.proven import FLOAT32, prove_program
from exporter.targets.litert.agreement import prove_signatures
from exporter.targets.litert.bundle import BUNDLE, write_bundle
from exporter.targets.litert.convert import convert, too_large
from exporter.targets.litert.describe import describe
from exporter.targets.litert.held import FILE, weights_of
from exporter.targets.litert.inspection import inspect
from exporter.targets.litert.opened import open_file, open_folder
from exporter.targets.litert.options import USUAL_LENGTH, LitertOptions, encoded
from exporter.targets.litert.places import name_tensors
from exporter.targets.litert.precisions import PRECISIONS, cannot_express, usual
from exporter.targets.litert.quantize import HALF, Forms, quantize
from exporter.targets.litert.ranges import output_ranges, seen_ranges
from exporter.targets.litert.zeros import zeros_of
from exporter.targets.traced_model.cache import refused_cache
from exporter.targets.traced_model.wrapped import refused_encoder
from exporter.tasks.known import TASKS
from exporter.types import GENERATION, Exported, ExportRequest, Preparation, Target

FLOAT, PLACES = "float.tflite", "places.json"  # in the scratch folder


def export(request: ExportRequest) -> Exported:
    """Writes the artifact's folder. The float32 program is made once for all the precisions of a run."""
    options: LitertOptions = request.options
    precision, to = request.precision, request.folder / FILE
    check_schemes(request.policy, lambda scheme: cannot_express(precision, scheme))
    if precision == "int8-static" and request.policy is None:
        raise BuildError("litert:int8-static needs a policy with the ranges of its inputs; 'exporter run' makes one")
    told = _float_program(request)
    program = request.scratch / FLOAT
    notes: list[str] = []
    if precision == "fp32":
        shutil.copyfile(program, to)
    else:
        prove_program(program, request, "float32 program", open_file, FLOAT32)
        notes = _quantized(request, program, told["places"], to)
    card = read_licence(request.checkpoint.path)
    checkpoint = request.checkpoint
    facts = {
        "model": checkpoint.source,
        "task": checkpoint.task,
        "precision": precision,
        "license": card.name or card.link,
        "history": list(checkpoint.history),
    }
    describe(to, f"{checkpoint.source}: {checkpoint.task} as litert:{precision}", facts)
    notes += [told["limited"]] if told["limited"] else []
    copy_configuration(checkpoint.path, request.folder)
    extras: tuple[str, ...] = ()
    if options.bundle:
        write_bundle(request.folder, checkpoint)
        extras = (BUNDLE,)
    return Exported((FILE,), tuple(notes), extras=extras)


def _float_program(request: ExportRequest) -> dict[str, Any]:
    """The float32 program in the scratch folder, made by the first export that needs it, and what is known of it."""
    told = request.scratch / PLACES
    if not told.is_file():
        request.progress("converting to LiteRT", 0, 0)
        converted = request.scratch / "converted.tflite"
        made = convert(request.checkpoint, request.options, converted)
        places = name_tensors(converted, request.scratch / FLOAT, made.model)
        converted.unlink()
        prove_signatures(request.scratch / FLOAT, request)
        told.write_text(json.dumps({"limited": made.limited, "places": places}), encoding="utf-8")
    values: dict[str, Any] = json.loads(told.read_text(encoding="utf-8"))
    return values


def _quantized(request: ExportRequest, program: Path, places: Mapping[str, Sequence[str]], to: Path) -> list[str]:
    """Writes the file at the request's precision; returns notes."""
    from exporter.checkpoint.linear import convolutions, weight_of, weighted_layers
    from exporter.checkpoint.model import load_model

    checkpoint, precision = request.checkpoint, request.precision
    model = load_model(checkpoint.path, checkpoint.task, "float32", checkpoint.trust_remote_code).eval()
    layers, head = weighted_layers(model), model.get_output_embeddings()
    pictures, convolved = FORMS[checkpoint.task].inputs == "pixels", convolutions(model).keys() & layers.keys()
    if request.policy is not None and (strangers := sorted(request.policy.keys() - layers.keys())):
        raise BuildError(f"the policy: the checkpoint has no linear layer {strangers[0]}")

    def form(name: str) -> Scheme | str | None:
        if precision == HALF:
            return HALF
        if request.policy is not None:
            return request.policy.get(name)
        return usual(precision, weight_of(layers[name]).shape[1], layers[name] is head, name in convolved)

    forms: dict[str, Scheme | str | None] = {}
    for constant, modules in places.items():
        found = {form(name) for name in modules}
        if len(found) > 1:
            raise BuildError(f"the policy: {' and '.join(modules)} have the same weights; give them the same scheme")
        forms[constant] = found.pop()
    _fit(forms, places, {name: int(weight_of(layer).shape[1]) for name, layer in layers.items()}, convolved)
    static = sorted({places[one][0] for one, it in forms.items() if isinstance(it, Scheme) and it.input == "static"})
    ranges = {}
    if static:
        assert request.calibration is not None
        request.progress(f"ranges of {len(static)} layers' outputs", 0, 0)
        samples = request.calibration / "windows.npy"
        ranges = seen_ranges(program, samples, static) if pictures else output_ranges(model, samples, static)
        ranges = {name: ranges[name] for one, its in places.items() for name in its if name in ranges}
    request.progress(f"quantizing {len(set(map(tuple, places.values())))} layers", 0, 0)
    quantize(program, to, forms, precision == HALF, ranges)
    return _notes(precision, forms, places, "layers" if pictures else "linear layers")


def _fit(
    forms: Forms, places: Mapping[str, Sequence[str]], inputs: Mapping[str, int], convolved: Collection[str]
) -> None:
    """Raises BuildError where a policy's scheme does not fit its layer."""
    for constant, scheme in forms.items():
        name = places[constant][0]
        if isinstance(scheme, Scheme) and name in convolved and (scheme.group or scheme.bits != 8):
            raise BuildError(f"the policy: {name} is a convolution, which is no {scheme}: int8 per channel, or float")
        if isinstance(scheme, Scheme) and scheme.group and inputs[name] % scheme.group:
            wrong = f"{inputs[name]} inputs, no multiple of the group {scheme.group}"
            raise BuildError(f"the policy: {name} has {wrong}; give it another group, or float")


def _notes(precision: str, forms: Forms, places: Mapping[str, Sequence[str]], what: str) -> list[str]:
    """How many layers have the inputs that the precision is called after. Raises BuildError where none has."""
    by_layer = {places[constant][0]: it for constant, it in forms.items()}
    kinds: Counter[str] = Counter(it.input for it in by_layer.values() if isinstance(it, Scheme))
    named = {"int8-dynamic": "dynamic", "int8-static": "static"}.get(precision)
    if named is None:
        return []
    if not kinds[named]:
        raise BuildError(
            f"no layer of litert:{precision} would have a {named} input: the policy gives them all another; "
            "try litert:int8-weight"
        )
    return [f"{named} inputs in {kinds[named]} of {len(by_layer)} {what}"]


def check(config: Mapping[str, Any], task: str, precision: str) -> str | None:
    if config.get("is_encoder_decoder"):
        return "encoder-decoder models are not exported to LiteRT yet"
    if (reason := of_one_text_or_picture(task, "LiteRT")) is not None or FORMS[task].inputs == "pixels":
        return reason
    return refused_cache(config) if task == GENERATION else refused_encoder(config)


def prepare(wanted: Preparation) -> str | None:
    """Checks the options against one another and the texts that will be measured, and the size of the file."""
    options: LitertOptions = wanted.options
    asked = options.asked()
    if wanted.task != GENERATION:
        if options.bundle or options.max_length:
            flag = "--litert-bundle" if options.bundle else "--litert-max-length"
            raise JobError(f"{flag} is for text generation; this model's task is {wanted.task}")
        if FORMS[wanted.task].inputs == "pixels":
            return _of_pictures(wanted)
        lengths = asked or encoded(TASKS[wanted.task].window)
        if (longest := lengths[-1]) < wanted.window:
            more = ",".join(map(str, [*lengths, wanted.window]))
            raise JobError(
                f"the longest of --litert-lengths, {longest}, is less than what is measured on, {wanted.window} "
                f"tokens: give --litert-lengths {more}, or --window {longest}"
            )
        return _too_large(wanted)
    limit = options.max_length or USUAL_LENGTH
    if limit < wanted.window:
        raise JobError(
            f"--litert-max-length {limit} is less than what is measured on, {wanted.window} tokens: "
            f"raise it, or give --window {limit}"
        )
    if asked and asked[-1] > limit:
        raise JobError(f"--litert-lengths {options.lengths}: the cache holds {limit} tokens (--litert-max-length)")
    return _too_large(wanted)


def _of_pictures(wanted: Preparation) -> str | None:
    if wanted.options.lengths:
        raise JobError("--litert-lengths is for models of texts, and a picture has the size that its processor makes")
    if wanted.precision == "int4-weight":
        least = LITERT.precisions[wanted.precision].gates.min_named_share or 0.0
        if (reason := of_convolutions(wanted, least, "litert:int4-weight")) is not None:
            return reason
    return _too_large(wanted)


def _too_large(wanted: Preparation) -> str | None:
    return None if wanted.parameters is None else too_large(wanted.parameters)


LITERT = Target(
    name="litert",
    summary="LiteRT (TensorFlow Lite): Android and the edge",
    precisions=PRECISIONS,
    default="int8-dynamic",
    with_torch=True,
    requires=("ai_edge_litert", "ai_edge_quantizer", "litert_torch", "torch", "transformers", "optimum"),
    extra="litert",
    check=check,
    export=export,
    open=open_folder,
    weights=weights_of,
    zeros=zeros_of,
    inspects={".tflite": inspect},
    run="python {folder}/run.py {example}",
    kit=kit("litert"),
    programs=lambda folder, task: programs("litert", task),
    options=LitertOptions,
    prepare=prepare,
    # Of a static product the output has a range too: it is found on the calibration's windows.
    calibrates=lambda precision, options: precision == "int8-static",
    schemes=cannot_express,
    convolutions=True,
)

"""Core ML for macOS and iOS: converted by coremltools, compressed weight by weight, proven without a Mac.

The folder holds model.mlpackage, which Xcode and coremltools open, and the checkpoint's configuration and tokenizer.
Apple's framework predicts on macOS only: elsewhere the program is run by exporter's own evaluator, which tells what it
answers and never its speed. Needs the extra [coreml].
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.checkpoint.card import read_licence
from exporter.errors import BuildError, JobError
from exporter.form import FORMS
from exporter.quantization.policy import check_schemes
from exporter.runner import Floats
from exporter.scheme import Scheme
from exporter.targets.coreml.convert import PACKAGE, convert, name_it
from exporter.targets.coreml.held import weights_of
from exporter.targets.coreml.inspection import inspect
from exporter.targets.coreml.opened import open_folder, open_package
from exporter.targets.coreml.options import BLOCKS, ROUNDED_INPUTS, SYSTEMS, USUAL_LENGTH, CoremlOptions
from exporter.targets.coreml.precisions import FLOATS, PRECISIONS, cannot_express
from exporter.targets.coreml.sparse import pruned, sparsify
from exporter.targets.coreml.traps import quiet
from exporter.targets.coreml.weights import PALETTES, Place, dump, find_places, forms_of, load
from exporter.targets.coreml.zeros import zeros_of
from exporter.targets.folder.files import copy_configuration, model_name
from exporter.targets.folder.kit import kit, programs
from exporter.targets.folder.limits import of_convolutions, of_one_text_or_picture
from exporter.targets.folder.proven import FLOAT16, prove_program
from exporter.targets.traced_model.attention import PLAIN
from exporter.targets.traced_model.cache import refused_cache
from exporter.targets.traced_model.wrapped import refused_encoder
from exporter.types import GENERATION, Checkpoint, Exported, ExportRequest, Preparation, Target

PROGRAM = "program.json"  # what a caller must know of the package
FACTS = "facts.json"  # beside the float package: that, and where its layers' weights are


def export(request: ExportRequest) -> Exported:
    """Writes the artifact's folder. The float16 program is made once for all the compressed precisions of a run."""
    options: CoremlOptions = request.options
    precision, to = request.precision, request.folder / PACKAGE
    check_schemes(request.policy, lambda scheme: cannot_express(precision, scheme))
    if precision == "int8-static" and request.policy is None:
        raise BuildError("coreml:int8-static needs a policy with the ranges of its inputs; 'exporter run' makes one")
    package = _float_package(request, half=precision != "fp32")
    notes: list[str] = []
    if precision in FLOATS:
        _float(package, to, options.system, bits=32 if precision == "fp32" else 16)
    else:
        prove_program(package, request, "float16 program", open_package, FLOAT16)
        notes = _compressed(request, package, to)
    card = read_licence(request.checkpoint.path)
    facts = {
        "author": _author(request),
        "license": card.name or card.link,
        "versionString": request.checkpoint.sha256[:12],
    }
    name_it(to, request.checkpoint, precision, facts)
    told = json.loads(package.with_name(FACTS).read_text(encoding="utf-8"))
    (request.folder / PROGRAM).write_text(json.dumps(told["program"], indent=2) + "\n", encoding="utf-8")
    notes += [told["limited"]] if told["limited"] else []
    if request.checkpoint.task == GENERATION and not options.stateful:
        why = "--coreml-cache none" if options.cache == "none" else f"{options.target} has no state to keep it in"
        notes.append(f"without a KV cache ({why}): each call reads the whole text")
    copy_configuration(request.checkpoint.path, request.folder)
    files = sorted(path.relative_to(request.folder).as_posix() for path in to.rglob("*") if path.is_file())
    return Exported(tuple(files), tuple(notes), extras=(PROGRAM,))


def _author(request: ExportRequest) -> str:
    """Who published the model, as its hub id has it; else its name alone."""
    owner, slash, _ = request.checkpoint.source.partition("/")
    local = Path(request.checkpoint.source).exists()
    return owner if slash and not local else model_name(request.checkpoint.source)


def _float_package(request: ExportRequest, half: bool) -> Path:
    """The float program in the scratch folder, made by the first export that needs it, with what is known of it."""
    folder = request.scratch / ("float16" if half else "float32")
    package, done = folder / PACKAGE, folder / FACTS
    if not done.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        request.progress("converting to Core ML", 0, 0)
        made = convert(request.checkpoint, request.options, half)
        places = find_places(made.package._mil_program, made.traced.model)
        made.package.save(str(package))
        told = {"program": made.told(), "limited": made.limited, "places": dump(places)}
        done.write_text(json.dumps(told), encoding="utf-8")
    return package


def _float(package: Path, to: Path, system: int, bits: int) -> None:
    """Writes the float package, with sparse weights where the model was pruned."""
    places = load(json.loads(package.with_name(FACTS).read_text(encoding="utf-8"))["places"])
    if chosen := pruned(places, bits):
        sparsify(package, to, {places[name].constant for name in chosen}, system)
    else:
        shutil.copytree(package, to)


def _compressed(request: ExportRequest, package: Path, to: Path) -> list[str]:
    """Writes the package at the request's precision; returns notes."""
    from exporter.checkpoint.linear import weight_of, weighted_layers
    from exporter.targets.coreml.compress import compress, mean_squares

    checkpoint = request.checkpoint
    places = load(json.loads(package.with_name(FACTS).read_text(encoding="utf-8"))["places"])
    forms = forms_of(request.precision, places, request.policy, request.options.system)
    layers = weighted_layers(_stored_model(checkpoint))
    notes = _unplaced(request.policy, places, layers)

    def weight(name: str) -> Floats:
        whole: Floats = weight_of(layers[name]).detach().numpy()
        return whole

    # Under a policy the weights lie on their palettes already.
    palettes = request.precision in PALETTES and request.policy is None
    fed_to = [name for name, form in forms.items() if form.palette]
    importance = mean_squares(request.calibration, fed_to) if palettes and request.calibration else {}
    request.progress(f"compressing {len(forms)} layers", 0, 0)
    compress(package, to, places, forms, weight, importance, request.options.system)
    if palettes:
        fed = f"weighted by what {len(importance)} layers were fed" if importance else "whose weights count alike"
        notes.append(f"palettes {fed}")
    return notes


def _stored_model(checkpoint: Checkpoint) -> Any:
    """The checkpoint's model with the weights that its program has."""
    from exporter.checkpoint.model import load_model
    from exporter.targets.traced_model.pictures import wrap_pictures

    if FORMS[checkpoint.task].inputs == "pixels":
        return wrap_pictures(checkpoint, PLAIN).model
    return load_model(checkpoint.path, checkpoint.task, "float32", checkpoint.trust_remote_code)


def _unplaced(
    policy: Mapping[str, Scheme | None] | None, places: Mapping[str, Place], layers: Mapping[str, Any]
) -> list[str]:
    """A note on what a policy compresses and the program does not hold by itself. Raises BuildError for no layer."""
    left = [name for name, scheme in (policy or {}).items() if scheme is not None and name not in places]
    for name in left:
        if name not in layers:
            raise BuildError(f"the policy: the checkpoint has no linear layer {name}")
    why = "an embedding shares their weights, or the program does without them"
    return [f"in float16, for {why}: {', '.join(left)}"] if left else []


def read_package(path: Path) -> Mapping[str, Any]:
    """What is in an .mlpackage, for `exporter inspect`."""
    with quiet():
        return inspect(path)


def check(config: Mapping[str, Any], task: str, precision: str) -> str | None:
    if config.get("is_encoder_decoder"):
        return "encoder-decoder models are not exported to Core ML yet"
    if (reason := of_one_text_or_picture(task, "Core ML")) is not None or FORMS[task].inputs == "pixels":
        return reason
    return refused_cache(config) if task == GENERATION else refused_encoder(config)


def prepare(wanted: Preparation) -> str | None:
    """Checks the options against one another, the precision and the texts that will be measured."""
    options: CoremlOptions = wanted.options
    newer = ", ".join(name for name, system in SYSTEMS.items() if system >= BLOCKS)
    if options.cache == "state" and options.system < BLOCKS:
        raise JobError(f"--coreml-cache state needs --coreml-target {newer}; {options.target} has no states")
    if wanted.precision in ("int4", "palettize6", "palettize4") and options.system < BLOCKS:
        return f"{options.target} has no {wanted.precision} weights: give --coreml-target {newer}, or int8"
    if wanted.precision == "int8-static" and options.system < ROUNDED_INPUTS:
        return f"{options.target} rounds no activations: give --coreml-target iOS17 or later, or int8"
    if FORMS[wanted.task].inputs == "pixels":
        if options.max_length is not None:
            raise JobError("--coreml-max-length is for models of texts, and a picture has no length")
        few = COREML.precisions[wanted.precision]
        rounds = few.bits is not None and few.bits < 8
        least = few.gates.min_named_share or 0.0
        return of_convolutions(wanted, least, f"coreml:{wanted.precision}") if rounds else None
    limit = options.max_length or USUAL_LENGTH
    if limit < wanted.window:
        raise JobError(
            f"--coreml-max-length {limit} is less than what is measured on, {wanted.window} tokens: "
            f"raise it, or give --window {limit}"
        )
    return None


COREML = Target(
    name="coreml",
    summary="Apple's Core ML: Mac, iPhone, iPad",
    precisions=PRECISIONS,
    default="fp16",
    with_torch=True,
    requires=("coremltools", "torch", "transformers", "optimum"),
    extra="coreml",
    check=check,
    export=export,
    open=open_folder,
    weights=weights_of,
    zeros=zeros_of,
    inspects={".mlpackage": read_package},
    run="python {folder}/run.py {example}",
    kit=kit("coreml"),
    programs=lambda folder, task: programs("coreml", task),
    options=CoremlOptions,
    prepare=prepare,
    calibrates=lambda precision, options: precision in PALETTES and options.calibrate,
    schemes=cannot_express,
    convolutions=True,
)

"""Any architecture of transformers to ONNX: the model's own PyTorch code, traced.

Inputs and outputs have the names that optimum, onnxruntime-genai and transformers.js share, and the weights are stored
once, under the checkpoint's own names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.experts import split_experts
from exporter.checkpoint.load import read_config
from exporter.checkpoint.model import class_of, trust_code
from exporter.checkpoint.processor import picture_shape, read_processor
from exporter.checkpoint.weight_norm import merge_weight_norms
from exporter.errors import BuildError, unknown
from exporter.form import FED, FORMS, PIXELS, SAMPLES, Form
from exporter.targets.onnx_graph.attention_operator import standard, use_operator
from exporter.targets.onnx_graph.cache_wrapper import cached_decoder, encoder
from exporter.targets.onnx_graph.choices import chosen_by_tensors
from exporter.targets.onnx_graph.file import LIMIT, save_graph
from exporter.targets.onnx_graph.kept_trace import kept_trace
from exporter.targets.onnx_graph.tracing import Shapes, by_torch_export, by_torchscript, with_weights
from exporter.targets.traced_model.cache import answer_shapes
from exporter.targets.traced_model.wrapped import encoder_inputs
from exporter.types import GENERATION

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    import torch

BATCH, NEW, PAST, TOTAL = "batch_size", "sequence_length", "past_sequence_length", "total_sequence_length"
SOURCE, READ = "encoder_sequence_length", "past_encoder_sequence_length"  # what an encoder reads; what is read of it
SOUND, FRAMES = "samples", "frames"  # of a sound; half a second of it is traced
# Sizes at the trace: above 1, which exporters take for a constant, and all different from one another, but for those
# of a source, all of which is read.
SAMPLE = {BATCH: 2, NEW: 3, PAST: 5, TOTAL: 8, SOURCE: 7, READ: 7, SOUND: 9_001}

_EXPORTER, _WRITTEN_OUT = "exporter", "exporter.written_out"  # in a graph's metadata


def trace_causal_lm(
    checkpoint: Path,
    model_onnx: Path,
    *,
    trust_remote_code: bool = False,
    dynamo: bool = False,
    attention: range | None = None,
    fuse: Callable[[ir.Model], None] | None = None,
    limit: int = LIMIT,
    traces: Path | None = None,
) -> None:
    """Writes a causal LM with its KV cache as a float32 ONNX graph (opset 18; 23 where it has the operator Attention).

    Inputs: input_ids int64 [batch_size, sequence_length], attention_mask int64 [batch_size, total_sequence_length],
    position_ids like input_ids where the model's forward takes them, past_key_values.N.key and .value float32
    [batch_size, heads, past_sequence_length, head size]. Outputs: logits float32 [batch_size, sequence_length, V],
    present.N.key and .value with total_sequence_length. Heads and head size are numbers. Layers with a sliding window
    keep their whole past too, and mask it.

    TorchScript traces it, or torch.export where TorchScript fails, or torch.export at once with `dynamo`; the graph's
    metadata says which, and why. `attention` asks for ONNX's operator, where model and TorchScript can have it, and
    heads have one of those sizes; `fuse` brings the graph into another form before it is written. `limit` is
    save_graph's, `traces` is traced's. Raises BuildError where neither can do it.
    """
    model = load_model(checkpoint, GENERATION, trust_remote_code)
    beyond = set() if attention is None else use_operator(model, attention)
    vocabulary, layers = answer_shapes(model)
    names = ["input_ids", "attention_mask"]
    if "position_ids" in inspect.signature(model.forward).parameters:
        names.append("position_ids")
    inputs: Shapes = {name: (BATCH, TOTAL if name == "attention_mask" else NEW) for name in names}
    outputs: Shapes = {"logits": (BATCH, NEW, vocabulary)}
    for number, layer in enumerate(layers):
        for part, (heads, size) in zip(("key", "value"), layer, strict=True):
            inputs[f"past_key_values.{number}.{part}"] = (BATCH, heads, PAST, size)
            outputs[f"present.{number}.{part}"] = (BATCH, heads, TOTAL, size)
    graph = traced(model, cached_decoder(model, names), inputs, outputs, dynamo, traces, beyond)
    del model  # so that save_graph can let go of the weights as it writes them
    if fuse is not None:
        fuse(graph)
    save_graph(graph, model_onnx, limit)


def trace_encoder(
    checkpoint: Path,
    task: str,
    model_onnx: Path,
    *,
    trust_remote_code: bool = False,
    dynamo: bool = False,
    attention: range | None = None,
    fuse: Callable[[ir.Model], None] | None = None,
    limit: int = LIMIT,
    traces: Path | None = None,
) -> None:
    """Writes a model that reads whole texts as a float32 ONNX graph (opset 18 or 23).

    Inputs, all int64 [batch_size, sequence_length]: input_ids, attention_mask, and token_type_ids where the model and
    its tokenizer have them; of pictures pixel_values float32 [batch_size, C, H, W], of the size that its processor
    has; of sounds input_values float32 [batch_size, samples], of one length in a batch. Outputs, float32: those of its
    task's form, such as last_hidden_state [batch_size, sequence_length, H], logits [batch_size, frames, V] or
    [batch_size, classes], or start_logits [batch_size, sequence_length]. Exporters, options, metadata and errors are
    as with trace_causal_lm.
    """
    form = FORMS[task]
    if form.cached:
        raise BuildError(unknown("task", task, [name for name, one in FORMS.items() if not one.cached]))
    model = load_model(checkpoint, task, trust_remote_code)
    # sdpa's graph looks for NaN in rows that are masked whole: a fifth of MiniLM's time at 512 tokens, for rows that
    # no text has.
    model.set_attn_implementation("eager")
    # Of pictures and of one sound nothing is masked, which the operator's kernels are for.
    beyond = set() if attention is None or form.inputs in FED else use_operator(model, attention)
    inputs = _encoder_shapes(checkpoint, model, form, trust_remote_code)
    names = list(inputs)
    if form.inputs == "pixels" and form.answers == "states":
        output: tuple[str | int, ...] = (BATCH, *_states_shape(model, inputs, form))
    else:
        one = [] if len(form.outputs) > 1 else [form.width(model.config)]  # several outputs have no axis of their own
        places = FRAMES if form.inputs == "waveform" else NEW
        output = (BATCH, places, *one) if form.per_token else (BATCH, *one)
    answers = dict.fromkeys(form.outputs, output)
    graph = traced(model, encoder(model, names, form.outputs), inputs, answers, dynamo, traces, beyond)
    del model
    if fuse is not None:
        fuse(graph)
    save_graph(graph, model_onnx, limit)


def _encoder_shapes(checkpoint: Path, model: Any, form: Form, trust: bool) -> Shapes:
    if form.inputs == "pixels":
        return {PIXELS: (BATCH, *picture_shape(read_processor(checkpoint, trust)))}
    if form.inputs == "waveform":
        merge_weight_norms(model)
        return {SAMPLES: (BATCH, SOUND)}
    return dict.fromkeys(encoder_inputs(checkpoint, model), (BATCH, NEW))


def _states_shape(model: Any, inputs: Shapes, form: Form) -> tuple[int, ...]:
    """Of one picture: [P, H], or [H, height, width]."""
    import torch

    with torch.no_grad():
        states = model(**_sample(model.config, inputs))[form.outputs[0]]
    return tuple(int(size) for size in states.shape[1:])


def load_model(checkpoint: Path, task: str, trust_remote_code: bool) -> Any:
    """The model in float32, with the attention that transformers prefers for it: sdpa where it has it, else eager.

    Each expert of a mixture is linear layers of its own.
    """
    import torch

    trust = trust_code(checkpoint, trust_remote_code)
    kind = class_of(task, read_config(checkpoint).get("model_type"))
    model = kind.from_pretrained(checkpoint, dtype=torch.float32, trust_remote_code=trust)
    return split_experts(model).eval()


def traced(
    model: Any,
    wrapper: torch.nn.Module,
    inputs: Shapes,
    outputs: Shapes,
    dynamo: bool,
    traces: Path | None = None,
    beyond: Collection[str] = (),
) -> ir.Model:
    """The wrapper's graph with named dimensions, and each weight in it once, still in torch's memory.

    `traces`: the folder of one run's traces, where TorchScript's is kept for other weights, and found again. `beyond`
    is use_operator's, and told in the graph's metadata.
    """
    config = model.config.get_text_config()
    sample = _sample(config, inputs)
    exported = partial(by_torch_export, positions=getattr(config, "max_position_embeddings", None))
    scripted = partial(_by_torchscript, traces=traces, beyond=beyond)
    ways: list[tuple[str, Callable[..., ir.Model]]] = [("TorchScript", scripted), ("torch.export", exported)]
    ways = ways[dynamo:]
    failed: list[str] = []
    while True:
        name, export = ways[len(failed)]
        try:
            with chosen_by_tensors(model):
                graph = export(wrapper, sample, inputs, outputs)
            break
        except Exception as error:  # whatever the model's code or the exporter's runs into
            failed.append(f"{name}: {type(error).__name__}: {error}".splitlines()[0])
            if len(failed) == len(ways):
                raise BuildError(f"{type(model).__name__} cannot be traced to ONNX: {'; '.join(failed)}") from error
    graph.metadata_props[_EXPORTER] = "; ".join([name, *(f"not {line}" for line in failed)])
    if beyond:
        graph.metadata_props[_WRITTEN_OUT] = " and ".join(sorted(beyond))
    standard(graph)
    _name_dimensions(graph, inputs | outputs)
    _strip_wrapper(graph)
    _store_as_multiplied(graph)
    return graph


def _by_torchscript(
    wrapper: torch.nn.Module,
    sample: dict[str, torch.Tensor],
    inputs: Shapes,
    outputs: Shapes,
    traces: Path | None,
    beyond: Collection[str],
) -> ir.Model:
    """by_torchscript's graph with its weights: traced, or found among the traces."""

    def make() -> onnx.ModelProto:
        trace = by_torchscript(wrapper, sample, inputs, outputs)
        if beyond:  # known now: a trace that is found runs no model
            trace.metadata_props.add(key=_WRITTEN_OUT, value=" and ".join(sorted(beyond)))
        return trace

    return with_weights(kept_trace(traces, wrapper, inputs, outputs, make), wrapper, inputs)


def notes_of(graph: ir.Model) -> list[str]:
    """What a row says of how its float graph came to be."""
    notes = [f"traced by {line}" for line in (graph.metadata_props.get(_EXPORTER),) if line and "not " in line]
    beyond = graph.metadata_props.get(_WRITTEN_OUT)
    return [*notes, *([f"attention is written out, not an operator: {beyond}"] if beyond else [])]


def _sample(config: Any, inputs: Shapes) -> dict[str, torch.Tensor]:
    """Random inputs of SAMPLE's sizes, from optimum's generators."""
    import torch
    from optimum.utils import DummyTextInputGenerator, NormalizedConfigManager, NormalizedTextConfig

    if (name := next((one for one in FED.values() if one in inputs), None)) is not None:
        sizes = [SAMPLE[size] if isinstance(size, str) else size for size in inputs[name]]
        return {name: torch.randn(sizes, generator=torch.Generator().manual_seed(0))}
    try:
        normalized = NormalizedConfigManager.get_normalized_config_class(config.model_type)(config)
    except KeyError:  # a newer architecture than optimum has a table for, with the usual names
        normalized = NormalizedTextConfig(config)
    sample = {}
    for name, shape in inputs.items():
        sizes = [SAMPLE[size] if isinstance(size, str) else size for size in shape]
        texts = DummyTextInputGenerator(GENERATION, normalized, batch_size=sizes[0], sequence_length=sizes[1])
        sample[name] = texts.generate(name) if len(sizes) == 2 else texts.random_float_tensor(sizes)
    return sample


def _name_dimensions(model: ir.Model, shapes: Shapes) -> None:
    import onnx_ir as ir

    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = ir.Shape(shapes[str(value.name)])


def _strip_wrapper(model: ir.Model) -> None:
    """Weights get the checkpoint's names, nodes those of their modules, such as /model/layers.0/mlp/up_proj/MatMul."""
    for value in list(model.graph.initializers.values()):
        value.name = str(value.name).removeprefix("wrapped.")
    for node in model.graph:
        node.name = (node.name or "").removeprefix("/wrapped")
        for value in node.outputs:
            value.name = (value.name or "").removeprefix("/wrapped")


def _store_as_multiplied(model: ir.Model) -> None:
    """Stores a matrix that is only ever used transposed, as torch's Linear does, the way that MatMul takes it.

    Quantizers look for a MatMul with a constant. A matrix that an embedding uses too (tied weights) stays as it is, and
    so does its Transpose, which runtimes fold when they load the model.
    """
    import torch
    from onnx_ir.tensor_adapters import TorchTensor

    for value in model.graph.initializers.values():
        weight, nodes = getattr(value.const_value, "raw", None), [node for node, _ in value.uses()]
        transposed = nodes and all(node.op_type == "Transpose" and _permutation(node) == [1, 0] for node in nodes)
        if not transposed or not isinstance(weight, torch.Tensor):
            continue
        value.const_value = TorchTensor(weight.T, name=value.name)  # a view: it is copied when it is written
        value.shape = value.const_value.shape
        for node in nodes:
            node.outputs[0].replace_all_uses_with(value)
            model.graph.remove(node, safe=True)


def _permutation(transpose: ir.Node) -> Sequence[int]:
    attribute = transpose.attributes.get("perm")
    return [] if attribute is None else list(attribute.as_ints())

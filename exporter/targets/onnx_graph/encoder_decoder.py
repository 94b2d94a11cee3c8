"""An encoder-decoder to two ONNX graphs, of the model's own PyTorch code, traced.

The decoder is one graph for the first step and for all others, without a branch: keys and values of the source are
computed of as many of its states as the cache lacks, which is all of them or none, and put behind those in the cache.
So optimum and transformers.js, which feed an empty cache first, open it as their decoder_model_merged.onnx, and
quantizers see ordinary matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from exporter.checkpoint.speech import spectrogram_of
from exporter.errors import BuildError
from exporter.form import FORMS, SPECTROGRAM
from exporter.targets.onnx_graph.cache_wrapper import encoder
from exporter.targets.onnx_graph.file import LIMIT, save_graph
from exporter.targets.onnx_graph.traced import BATCH, NEW, PAST, READ, SOURCE, TOTAL, load_model, traced

if TYPE_CHECKING:
    import torch

    from exporter.targets.onnx_graph.tracing import Shapes

# The modules that attend to a source, by their names in transformers, and what their keys' and values' layers are.
_CROSS = {"EncDecAttention": ("k", "v"), "encoder_attn": ("k_proj", "v_proj")}


class _Layer(NamedTuple):
    """A decoder's layer: its attention to the source, the layers of that one's keys and values, heads and their size.

    `own`: (heads, head size) of its attention to itself.
    """

    keys: Any
    values: Any
    heads: int
    size: int
    own: tuple[int, int]


def trace_encoder_decoder(
    checkpoint: Path,
    task: str,
    encoder_onnx: Path,
    decoder_onnx: Path,
    *,
    trust_remote_code: bool = False,
    dynamo: bool = False,
    limit: int = LIMIT,
    traces: Path | None = None,
) -> None:
    """Writes both halves as float32 ONNX graphs (opset 18).

    The encoder: input_ids and attention_mask int64 [batch_size, encoder_sequence_length] to last_hidden_state. The
    decoder: encoder_attention_mask, input_ids int64 [batch_size, sequence_length], encoder_hidden_states and
    past_key_values.N.decoder.key, .decoder.value, .encoder.key, .encoder.value float32 [batch_size, heads, past, head
    size], all empty at first, to logits and present.N.… likewise, whose encoder parts are whole after the first step.
    Of speech the encoder's input is input_features float32 [batch_size, mel, frames], both numbers, and as no source
    has padding, the decoder has no encoder_attention_mask. Weights that both halves have, such as a shared embedding,
    are in both files. `traces` is traced's. Raises BuildError.
    """
    model = load_model(checkpoint, task, trust_remote_code)
    model.set_attn_implementation("eager")
    hears, width = FORMS[task].inputs == "spectrogram", int(model.config.hidden_size)
    read: Shapes = dict.fromkeys(("input_ids", "attention_mask"), (BATCH, SOURCE))
    states: Shapes = {"last_hidden_state": (BATCH, SOURCE, width)}
    if hears:
        read = {SPECTROGRAM: (BATCH, *spectrogram_of(model.config))}
        states = {"last_hidden_state": (BATCH, int(model.config.max_source_positions), width)}
    graph = traced(model, encoder(model.get_encoder(), list(read), list(states)), read, states, dynamo, traces)
    save_graph(graph, encoder_onnx, limit)
    del graph
    layers, vocabulary = _layers(model)
    inputs: Shapes = {} if hears else {"encoder_attention_mask": (BATCH, SOURCE)}
    inputs |= {"input_ids": (BATCH, NEW), "encoder_hidden_states": (BATCH, SOURCE, width)}
    outputs: Shapes = {"logits": (BATCH, NEW, vocabulary)}
    for number, layer in enumerate(layers):
        for half, (heads, size), past, total in (
            ("decoder", layer.own, PAST, TOTAL),
            ("encoder", (layer.heads, layer.size), READ, f"{READ}_out"),
        ):
            for part in ("key", "value"):
                inputs[f"past_key_values.{number}.{half}.{part}"] = (BATCH, heads, past, size)
                outputs[f"present.{number}.{half}.{part}"] = (BATCH, heads, total, size)
    graph = traced(model, _decoder(model, layers, masked=not hears), inputs, outputs, dynamo, traces)
    del model, layers  # so that save_graph can let go of the weights as it writes them
    save_graph(graph, decoder_onnx, limit)


def _layers(model: Any) -> tuple[list[_Layer], int]:
    """The decoder's layers, and the vocabulary's size, as a short forward has them. Raises BuildError."""
    import torch
    from transformers.cache_utils import DynamicLayer, EncoderDecoderCache
    from transformers.modeling_outputs import BaseModelOutput

    name, some = type(model).__name__, torch.tensor([[1, 2, 3]])
    source = BaseModelOutput(last_hidden_state=torch.zeros(1, 3, int(model.config.hidden_size)))
    with torch.no_grad():
        out = model(encoder_outputs=source, decoder_input_ids=some, use_cache=True, return_dict=True)
    cache: Any = out.past_key_values
    if not isinstance(cache, EncoderDecoderCache):
        raise BuildError(f"{name} cannot be exported: it has no KV cache of both attentions")
    kept: Any = cache
    own, cross = kept.self_attention_cache.layers, kept.cross_attention_cache.layers
    if any(type(layer) is not DynamicLayer for layer in (*own, *cross)):
        raise BuildError(f"{name} cannot be exported: its cache is no pair of keys and values for each layer")
    found = list(_projections(model.get_decoder()))
    if len(found) != len(cross):
        raise BuildError(
            f"{name} cannot be exported: {len(found)} of its {len(cross)} decoder layers have an attention to "
            f"the source that is called {' or '.join(_CROSS)}"
        )
    layers = []
    for (keys, values), mine, of_source in zip(found, own, cross, strict=True):
        (_, heads, _, size), (_, heads_of_source, _, size_of_source) = mine.keys.shape, of_source.keys.shape
        layers.append(_Layer(keys, values, heads_of_source, size_of_source, (heads, size)))
    return layers, int(out.logits.shape[-1])


def _projections(decoder: Any) -> Iterator[tuple[Any, Any]]:
    for path, module in decoder.named_modules():
        if (names := _CROSS.get(path.rpartition(".")[2])) is not None:
            keys, values = (getattr(module, name) for name in names)
            yield keys, values


def _decoder(model: Any, layers: list[_Layer], masked: bool) -> torch.nn.Module:
    """forward(*tensors): the source's mask (where it is `masked`), new ids, the source's states, then of each layer
    keys and values of the past and of the source; -> (logits, the same of each layer with what is new)."""
    import torch
    from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache
    from transformers.modeling_outputs import BaseModelOutput

    make_layer: Any = DynamicLayer  # which transformers leaves untyped

    def pairs_of(tensors: Sequence[torch.Tensor]) -> list[Any]:
        made = [make_layer() for _ in layers]
        for layer, keys, values in zip(made, tensors[0::2], tensors[1::2], strict=True):
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
        return made

    def cache_of(made: list[Any]) -> Any:
        cache = DynamicCache()
        cache.layer_class_to_replicate = None
        cache.layers = made
        return cache

    class Source(torch.nn.Module):  # a module, so that its nodes have a name of their own beside the model's
        def forward(self, states: torch.Tensor, past: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            """Each layer's keys and values of the whole source: those in the cache, or else made of its states."""
            batch, length = states.shape[0], states.shape[1]
            new = states[:, : _lacking(length, past[0])]
            made = []
            for layer, read in zip(layers, zip(past[0::2], past[1::2], strict=True), strict=True):
                # No -1 in the shape: of no numbers it could be anything.
                shape = (batch, new.shape[1], layer.heads, layer.size)
                for before, projection in zip(read, (layer.keys, layer.values), strict=True):
                    made.append(torch.cat([before, projection(new).reshape(shape).transpose(1, 2)], dim=2))
            return made

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrapped, self.source = model, Source()

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            mask, (ids, states, *past) = (tensors[0], tensors[1:]) if masked else (None, tensors)
            of_source = [past[4 * number + place] for number in range(len(layers)) for place in (2, 3)]
            cross = pairs_of(self.source(states, of_source))
            own = pairs_of([past[4 * number + place] for number in range(len(layers)) for place in (0, 1)])
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
            cache.self_attention_cache, cache.cross_attention_cache = cache_of(own), cache_of(cross)
            cache.is_updated = dict.fromkeys(range(len(layers)), True)
            out = self.wrapped(
                attention_mask=mask,
                decoder_input_ids=ids,
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                past_key_values=cache,
                use_cache=True,
                return_dict=True,
            )
            both = [one for pair in zip(own, cross, strict=True) for one in pair]
            return (out.logits, *(tensor for one in both for tensor in (one.keys, one.values)))

    return Decoder().eval()


def _lacking(length: Any, read: Any) -> Any:
    """How many of a source's states are to be computed, as a tensor: `length`, or 0."""
    import torch

    return length * (torch._shape_as_tensor(read)[2] == 0).long()

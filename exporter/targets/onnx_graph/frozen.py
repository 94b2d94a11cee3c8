"""What a trace decided at the traced length: an error, unless it is known that it does not matter.

TorchScript's tracer writes down what one run did. Where the model's Python asks a tensor for a number, or compares a
size, the answer is that of the traced sizes for good, and the tracer warns. torch.export instead narrows the sizes that
its program takes. Each place in HARMLESS was looked at; any other fails the trace, by its name.
"""

from __future__ import annotations

import linecache
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, TextIO

_CONFIG = "a number of the configuration, not of the text"
_HEADS = "heads and their size, which the weights have, not the text"
_CHECK = "it only checks a shape, and fails there where it does not fit"
_MASK = "the graph's mask is as long as past and new tokens together, at every length"
_SAME = "the same attention, packed otherwise"
_PICTURE = "a picture's channels and size, which are the graph's own at every batch"
_SELF = "keys and queries of one layer are of the same tokens"

# (file, line of it) -> why it answers alike at every length. Files are told from their package on.
HARMLESS: Mapping[tuple[str, str], str] = {
    ("transformers/cache_utils.py", "self.keys = torch.tensor([], dtype=self.dtype, device=self.device)"):
        "empty, and replaced by the past or joined with what is new",
    ("transformers/cache_utils.py", "self.values = torch.tensor([], dtype=self.dtype, device=self.device)"):
        "empty, and replaced by the past or joined with what is new",
    ("transformers/cache_utils.py", "if not self.is_initialized or self.keys.numel() == 0:"):
        "the traced past's own size, which is 0 for an empty one: what the other branch says",
    ("transformers/cache_utils.py",
     "self._sliding_window_tensor = torch.tensor(self.sliding_window, dtype=torch.long)"):
        _CONFIG,
    ("transformers/integrations/sdpa_attention.py", "elif q_length == 1 and not is_torchdynamo_compiling():"): _SAME,
    ("transformers/integrations/sdpa_attention.py",
     "is_causal = q_length > 1 and attention_mask is None and is_causal"):
        "False at every length: masking_utils always makes the mask while tracing",
    ("transformers/masking_utils.py",
     "if (padding_length := kv_length + kv_offset - attention_mask.shape[-1]) > 0:"): _MASK,
    ("transformers/masking_utils.py", "if padding_mask is not None and padding_mask.shape[-1] > kv_length:"): _MASK,
    ("transformers/modeling_rope_utils.py",
     "torch.tensor(config.max_position_embeddings, dtype=seq_len.dtype, device=seq_len.device),"): _CONFIG,
    ("torch/nn/functional.py", "if padding_idx >= weight.size(0):"): "the size of a table, which the weights have",
    ("torch/nn/functional.py", "if size_prods == 1:"): _CHECK,
    ("transformers/models/codegen/modeling_codegen.py",
     "query, value, key = torch.split(qkv_split, local_dim, dim=-1)"):
        _HEADS,
    ("transformers/models/codegen/modeling_codegen.py",
     "sin, cos = torch.split(sincos, sincos.shape[-1] // 2, dim=-1)"):
        _HEADS,
    ("transformers/models/gptj/modeling_gptj.py", "sin, cos = torch.split(sincos, sincos.shape[-1] // 2, dim=-1)"):
        _HEADS,
    ("transformers/models/deberta/modeling_deberta.py",
     "return torch.sqrt(torch.tensor(query_layer.size(-1), dtype=torch.float) * scale_factor)"): _HEADS,
    ("transformers/models/deberta/modeling_deberta.py", "if query_layer.size(-2) != key_layer.size(-2):"): _SELF,
    ("transformers/models/deberta_v2/modeling_deberta_v2.py", "torch.tensor(mid - 1).type_as(relative_pos),"): _CONFIG,
    ("transformers/models/deberta_v2/modeling_deberta_v2.py",
     "torch.ceil(torch.log(abs_pos / mid) / torch.log(torch.tensor((max_position - 1) / mid)) * (mid - 1)) + mid"):
        _CONFIG,
    ("transformers/models/deberta_v2/modeling_deberta_v2.py",
     "return torch.sqrt(torch.tensor(query_layer.size(-1), dtype=torch.float) * scale_factor)"): _HEADS,
    ("transformers/models/deberta_v2/modeling_deberta_v2.py", "if key_layer.size(-2) != query_layer.size(-2):"): _SELF,
    ("transformers/models/mpt/modeling_mpt.py",
     "position_bias_query_index = max(0, position_bias.size(1) - query_length)"):
        "0 at every length: the bias has one row",
    ("transformers/models/mpt/modeling_mpt.py", "position_bias_key_index = max(0, position_bias.size(2) - key_length)"):
        "the bias has all of the model's positions, and the difference is traced; longer texts fail in the sum",
    ("transformers/models/xglm/modeling_xglm.py",
     "if not (is_torchdynamo_compiling() and torch.is_tensor(max_pos)) and max_pos > self.weights.size(0):"):
        "beyond the model's positions alone, where the graph's lookup fails",
    ("transformers/models/xglm/modeling_xglm.py",
     "if attn_weights.size() != (bsz * self.num_heads, tgt_len, src_len):"): _CHECK,
    ("transformers/models/clip/modeling_clip.py", "if seq_length > max_position_embedding:"):
        "beyond the model's positions alone, where the graph's sum fails",
    ("transformers/models/clip/modeling_clip.py",
     "if not interpolate_pos_encoding and (height != self.image_size or width != self.image_size):"): _PICTURE,
    ("transformers/models/convnext/modeling_convnext.py", "if num_channels != self.num_channels:"): _PICTURE,
    ("transformers/models/deit/modeling_deit.py", "if num_channels != self.num_channels:"): _PICTURE,
    ("transformers/models/deit/modeling_deit.py",
     "if height != self.image_size[0] or width != self.image_size[1]:"): _PICTURE,
    ("transformers/models/resnet/modeling_resnet.py", "if num_channels != self.num_channels:"): _PICTURE,
    ("transformers/models/vit/modeling_vit.py", "if num_channels != self.num_channels:"): _PICTURE,
    ("transformers/models/vit/modeling_vit.py",
     "if height != self.image_size[0] or width != self.image_size[1]:"): _PICTURE,
    ("transformers/models/whisper/modeling_whisper.py", "if input_features.shape[-1] != expected_seq_length:"):
        "a spectrogram's frames, which are the graph's own at every batch",
    ("transformers/models/xglm/modeling_xglm.py", "if attention_mask.size() != (bsz, 1, tgt_len, src_len):"): _CHECK,
    ("transformers/models/xglm/modeling_xglm.py",
     "if attn_output.size() != (bsz * self.num_heads, tgt_len, self.head_dim):"): _CHECK,
}  # fmt: skip
_OWN = Path(__file__).parent.as_posix()  # written for the trace: it asks for heads and which arguments there are
_TOLD = 2  # places that an error names


class Frozen(Exception):  # what the model is in the graph, rather than an error of anybody's
    """A trace that is right at the traced length alone."""


class Place(NamedTuple):
    """A line of code. `file` is told from its package on, such as transformers/cache_utils.py."""

    file: str
    number: int
    line: str

    def __str__(self) -> str:
        return f"{self.file}:{self.number} ({self.line})"


@contextmanager
def nothing_frozen() -> Iterator[None]:
    """Raises Frozen at its end where TorchScript's tracer warned of a place that is not in HARMLESS."""
    from torch.jit._trace import TracerWarning

    found: dict[Place, None] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=TracerWarning)
        show = warnings.showwarning

        def note(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if not issubclass(category, TracerWarning):
                show(message, category, filename, lineno, file, line)
                return
            places = _places(sys._getframe(1))
            if places and not any((place.file, place.line) in HARMLESS for place in places):
                found[places[-1]] = None

        warnings.showwarning = note  # which catch_warnings puts back
        yield
    if found:
        raise _frozen(map(str, found), len(found))


def unnarrowed(program: Any, positions: int | None) -> None:
    """Raises Frozen where torch.export found that its program takes some sizes alone.

    `program`: an ExportedProgram. `positions`: tokens that the model has positions for, the bound that is its own.
    """
    # Tables of positions may begin behind those of the padding. Sizes from 2 on are what torch.export always supposes.
    least = None if positions is None else positions - 2
    found = []
    for symbol, span in program.range_constraints.items():
        if not str(symbol).startswith("s"):  # u: a number of the data, such as the tokens of an expert
            continue
        bound = span.upper if span.upper.is_Integer else None
        if span.lower > 2 or (bound is not None and (least is None or int(bound) < least)):
            found.append(f"a size between {span.lower} and {span.upper}")
    if found:
        raise _frozen(iter(found), len(found))


def _frozen(places: Iterator[str], count: int) -> Frozen:
    told = [place for place, _ in zip(places, range(_TOLD), strict=False)]
    more = f" and {count - len(told)} more" if count > len(told) else ""
    return Frozen(f"{', '.join(told)}{more} was decided at the traced length")


def _places(frame: FrameType | None) -> list[Place]:
    """Where a warning came from: torch's innermost line, and the line that called torch; none for our own code."""
    inner = []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.as_posix().startswith(_OWN) and path.name != Path(__file__).name:
            return []
        if path.name not in ("warnings.py", Path(__file__).name):
            line = linecache.getline(str(path), frame.f_lineno).strip()
            inner.append(Place(_told(path), frame.f_lineno, line))
            if not inner[-1].file.startswith("torch/"):
                return [inner[0], inner[-1]]
        frame = frame.f_back
    return inner


def _told(path: Path) -> str:
    """A file from its package on; of code that is in no package, its last two parts."""
    parts = path.parts
    for folder in ("site-packages", "dist-packages"):
        if folder in parts:
            return "/".join(parts[len(parts) - parts[::-1].index(folder) :])
    return "/".join(parts[-2:])

"""One packed weight in, its float rows out: bitsandbytes' 4 and 8 bits, GPTQ, AWQ.

Every function yields the values of the [out, in] weight in order, in blocks of rows or flat, so that a caller who
writes them as they come never holds all of it. Values are those that the method's own kernels multiply with: computed
in float32, then rounded once to the dtype that the method dequantizes to. Formats:
https://huggingface.co/docs/bitsandbytes (the keys beside a 4-bit weight), the GPTQ paper (arXiv:2210.17323) with
AutoGPTQ's layout, the AWQ paper (arXiv:2306.00978) with AutoAWQ's GEMM layout.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from exporter.errors import JobError

if TYPE_CHECKING:
    import torch

BITS = (2, 3, 4, 8)  # of GPTQ; 5 to 7 exist in another layout, planar
BLOCK = 64  # bitsandbytes' blocksize where nobody chose another
_NESTED_BLOCK = 256  # its second level's; Params4bit has no way to choose another
_CHUNK = 1 << 20  # values at a time: 4 MiB of float32
# Column 8c+_AWQ_ORDER[i] of the weight lies in the i-th four bits of word c: the order its GEMM kernel reads.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

Parts = Mapping[str, "torch.Tensor"]


def bnb4_rows(parts: Parts) -> Iterator[torch.Tensor]:
    """A bitsandbytes NF4 or FP4 weight, flat, in the dtype that its model had when it was quantized.

    `parts` are the tensors as stored, under their names after the weight's: "weight", "absmax", "quant_map" (the 16
    values), "quant_state.bitsandbytes__nf4" (JSON) and, with double quantization, "nested_absmax", "nested_quant_map".
    Not by bitsandbytes' own kernel: with AVX-512, 0.50 takes another block's scale where rows are not whole blocks.
    """
    import torch

    state = json.loads(bytes(next(part for kind, part in parts.items() if kind.startswith("quant_state")).tolist()))
    scales = parts["absmax"].float()
    if "nested_absmax" in parts:
        outer = parts["nested_absmax"].repeat_interleave(state["nested_blocksize"])[: len(scales)]
        scales = parts["nested_quant_map"][parts["absmax"].long()] * outer + torch.tensor(state["nested_offset"])
    packed, count = parts["weight"].view(-1).view(torch.uint8), math.prod(state["shape"])
    yield from _from_4bit(packed, scales, parts["quant_map"], state["blocksize"], count, getattr(torch, state["dtype"]))


def int8_rows(parts: Parts) -> Iterator[torch.Tensor]:
    """A bitsandbytes LLM.int8() weight, float32: int8 [out, in] in "weight", each row's absmax in "SCB"."""
    weight, scale = parts["weight"], parts["SCB"].float()
    if int(parts.get("weight_format", 0)) != 0:
        raise JobError("an int8 weight is stored in another order than by rows (weight_format is not 0); save it anew")
    for rows in _blocks(weight.shape[0], weight.shape[1]):
        yield weight[rows] * scale[rows].view(-1, 1) * 7.874015718698502e-3  # 1/127, as bitsandbytes writes it


def gptq_rows(parts: Parts, config: Mapping[str, Any], name: str) -> Iterator[torch.Tensor]:
    """A GPTQ weight in its scales' dtype. "qweight" int32 [in·bits/32, out], "qzeros" [groups, out·bits/32], "scales"
    [groups, out], and "g_idx" [in], the group of each input, which act-order (desc_act) shuffles.

    Format v1 stores each zero point less one, v2 as it is.
    """
    import torch

    qweight, scales, groups = parts["qweight"], parts["scales"], parts["scales"].shape[0]
    if "g_idx" in parts:
        index = parts["g_idx"].long()
    else:
        index = torch.arange(32 * qweight.shape[0] // int(config["bits"]))
        size = int(config.get("group_size", 128))
        index = index // (size if size > 0 else len(index))
        if config.get("desc_act"):
            raise JobError(f"{name} has no g_idx, and its model was quantized with desc_act: the groups are not known")
    bits = 32 * qweight.shape[0] // len(index)  # GPTQModel's "dynamic" gives some modules other bits than the rest
    if bits not in BITS or (bits != config.get("bits") and not config.get("dynamic")):
        raise JobError(f"{name} has {bits} bits, and config.json says {config.get('bits')}; get the file again")
    if int(index.min()) < 0 or int(index.max()) >= groups:
        raise JobError(f"{name} has {groups} groups of scales, and g_idx names others; get the file again")
    zeros = _gptq_zeros(parts["qzeros"], bits, scales.shape[1], config, name)
    for columns in _blocks(scales.shape[1], len(index)):
        values = unpack(qweight[:, columns], bits, len(index)).float()
        values -= zeros[:, columns].float()[index]
        values *= scales[:, columns].float()[index]
        yield values.t().to(scales.dtype)


def awq_rows(parts: Parts, group_size: int, name: str) -> Iterator[torch.Tensor]:
    """A 4-bit AWQ weight of the GEMM layout in its scales' dtype: "qweight" int32 [in, out/8], "qzeros" [groups,
    out/8], "scales" [groups, out]. A negative `group_size` means one group."""
    inputs, outputs = parts["qweight"].shape[0], parts["scales"].shape[1]
    size = group_size if group_size > 0 else inputs
    if size * parts["scales"].shape[0] != inputs:
        raise JobError(
            f"{name} has {parts['scales'].shape[0]} groups of scales, not {inputs}/{size}; get the file again"
        )
    for columns in _blocks(outputs, inputs, multiple=8):
        words = slice(columns.start // 8, columns.stop // 8)
        values = _awq_values(parts["qweight"][:, words]).float().view(-1, size, columns.stop - columns.start)
        values -= _awq_values(parts["qzeros"][:, words]).float()[:, None]
        values *= parts["scales"][:, columns].float()[:, None]
        yield values.view(inputs, -1).t().to(parts["scales"].dtype)


def through_bnb4(blocks: Iterable[torch.Tensor], kind: str, double: bool) -> Iterator[torch.Tensor]:
    """What a float weight, given in blocks, is after bitsandbytes' quantization to "nf4" or "fp4" and back.

    Flat, and in its own dtype. Every block but the last has a multiple of BLOCK values.

    `double`: the blocks' scales are quantized as well (the QLoRA paper's, arXiv:2305.14314).
    """
    import bitsandbytes.functional
    import torch

    bnb: Any = bitsandbytes.functional
    packed, scales, count, dtype, code = [], [], 0, torch.float32, torch.empty(0)
    # In pieces, which is the same bit by bit: bitsandbytes holds ten times a weight while it quantizes it.
    for block in blocks:
        flat = block.reshape(-1)
        for start in range(0, len(flat), _CHUNK):
            piece, state = bnb.quantize_4bit(flat[start : start + _CHUNK], blocksize=BLOCK, quant_type=kind)
            packed.append(piece.view(-1))
            scales.append(state.absmax)
        count, dtype, code = count + len(flat), block.dtype, state.code
    scale = torch.cat(scales)
    if double:
        offset = scale.mean()
        scale = bnb.dequantize_blockwise(*bnb.quantize_blockwise(scale - offset, blocksize=_NESTED_BLOCK)) + offset
    yield from _from_4bit(torch.cat(packed), scale, code, BLOCK, count, dtype)


def through_int8(blocks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """What a float weight, given in blocks of rows [n, in], is after LLM.int8() and back, float32. bitsandbytes goes by
    way of float16."""
    import torch
    from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant

    for block in blocks:
        packed, scale, _ = int8_vectorwise_quant(block.to(torch.float16))
        yield int8_vectorwise_dequant(packed, scale)


def unpack(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The first `count` fields of `bits` bits in each column of int32 words, uint8 [count, columns].

    A column is one stream of bits, the lowest first; with 3 bits a field can begin in one word and end in the next.
    """
    import torch

    first = torch.arange(count) * bits
    word, shift = first // 32, (first % 32)[:, None]
    stream = words.long() & 0xFFFFFFFF
    values = stream[word] >> shift
    if 32 % bits:
        values |= stream[(word + 1).clamp(max=len(stream) - 1)] << (32 - shift)
    fields: torch.Tensor = values & (2**bits - 1)
    return fields.to(torch.uint8)


def _gptq_zeros(packed: torch.Tensor, bits: int, columns: int, config: Mapping[str, Any], name: str) -> torch.Tensor:
    """The zero points, int16 [groups, columns]."""
    import torch

    zeros = unpack(packed.t(), bits, columns).t().to(torch.int16)
    if gptq_format(config) == "gptq_v2":
        return zeros
    if not bool((zeros == 2**bits - 1).any()):
        return zeros + 1
    # A zero point of 0 is stored as -1. GPTQModel subtracts word by word, so that it borrows from the next field, and
    # adds word by word again; others set every higher bit of the word, or wrap each field: then nobody knows.
    if "gptqmodel" not in str(config.get("meta")):
        raise JobError(
            f"{name} holds zero points of 0 in GPTQ's format v1, which its kernels read in different ways; "
            "give the float checkpoint that the model was quantized from with -m"
        )
    if bits == 3:
        return (zeros + 1) & 7
    ones = sum(1 << at for at in range(0, 31, bits))
    return unpack((packed + ones).t(), bits, columns).t().to(torch.int16)


def gptq_format(config: Mapping[str, Any]) -> str:
    """ "gptq" (v1), "gptq_v2", or what else a GPTQ quantization_config names."""
    if config.get("is_marlin_format"):
        return "marlin"
    return str(config.get("checkpoint_format") or config.get("format") or "gptq").lower()


def awq_format(config: Mapping[str, Any]) -> str:
    """ "gemm", or what else an AWQ quantization_config names."""
    if config.get("backend") == "llm-awq":
        return "llm-awq"
    return str(config.get("version") or config.get("checkpoint_format") or config.get("format") or "gemm").lower()


def _from_4bit(
    packed: torch.Tensor, scales: torch.Tensor, code: torch.Tensor, block: int, count: int, dtype: torch.dtype
) -> Iterator[torch.Tensor]:
    """`count` values out of two in a byte, the higher four bits first: code[bits] times the scale of the block."""
    import torch

    for start in range(0, count, _CHUNK):  # whole blocks: they have 32 to 4096 values
        end = min(start + _CHUNK, count)
        pairs = packed[start // 2 : -(-end // 2)]
        values = code[torch.stack([pairs >> 4, pairs & 15], dim=1).view(-1)[: end - start].int()]
        values *= scales[start // block : -(-end // block)].repeat_interleave(block)[: end - start]
        yield values.to(dtype)


def _awq_values(words: torch.Tensor) -> torch.Tensor:
    """The fields of int32 words [rows, n] in the weight's order, uint8 [rows, 8n]."""
    import torch

    fields = (words[:, :, None] >> torch.arange(0, 32, 4, dtype=torch.int32)) & 15
    values = torch.empty_like(fields, dtype=torch.uint8)
    values[:, :, list(_AWQ_ORDER)] = fields.to(torch.uint8)
    return values.flatten(1)


def _blocks(count: int, width: int, multiple: int = 1) -> Iterator[slice]:
    """Slices over `count` rows of `width` values, each of about _CHUNK values."""
    step = max(1, _CHUNK // max(1, width) // multiple) * multiple
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))

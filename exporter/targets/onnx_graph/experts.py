"""A mixture of experts in a traced graph: each expert's matrices are its own, and read the tokens that chose it.

transformers' own ways are no graphs: one loops over the experts that were hit, one counts the tokens of each in Python,
and one (batched_mm) gathers a copy of the weights for every token: 1.6 GB more for a prompt of 512 tokens of a model of
38 MB. Here every expert is written down, with as many rows as there are pairs of a token and it, which may be none:
the work is tokens * experts of each, and no value is larger than that times a width.

A checkpoint stacks the experts' weights, [experts, outputs, inputs]. The graph has them as matrices, named
STACK.NUMBER, so that quantizers find them; `split` sees to that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir

_NAME = "exporter_onnx"  # among transformers' implementations of experts


def use_experts(model: Any) -> None:
    """Lets a model's experts compute so that they can be traced; experts that transformers cannot switch stay."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(_NAME, _compute)
    model.set_experts_implementation(_NAME)


def _compute(experts: Any, hidden: Any, chosen: Any, weights: Any) -> Any:
    """transformers' experts function: [T, H] with the experts chosen and their weights, [T, k] each, to [T, H].

    The pairs of a token and an expert, S = T * k, are numbered token by token. Each expert takes its pairs' tokens, in
    the order of their numbers; what they all answer is put back into the pairs' order and summed over each token's.
    """
    import torch

    each, width = chosen.shape[-1], hidden.shape[-1]
    expert_of = chosen.reshape(-1)  # [S]
    pairs, answers = [], []
    for number in range(experts.num_experts):
        own = (expert_of == number).nonzero().reshape(-1)  # [n]
        rows = hidden.index_select(0, torch.div(own, each, rounding_mode="floor"))
        pairs.append(own)
        answers.append(_expert(experts, number, rows))
    order = torch.cat(pairs)
    places = torch.zeros_like(order).scatter(0, order, torch.arange(order.shape[0], device=order.device))
    answer = torch.cat(answers).index_select(0, places) * weights.reshape(-1, 1)
    return answer.reshape(-1, each, width).sum(1).to(hidden.dtype)


def _expert(experts: Any, number: int, rows: Any) -> Any:
    """What one expert makes of [n, H]."""
    kind = "gate_up_proj" if experts.has_gate else "up_proj"
    inner = _linear(experts, kind, number, rows)
    inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
    answer = _linear(experts, "down_proj", number, inner)
    return experts.post_expert_norm(answer) if experts.has_post_expert_norm else answer


def _linear(experts: Any, name: str, number: int, rows: Any) -> Any:
    weight = getattr(experts, name)[number]
    product = rows @ (weight if experts.is_transposed else weight.T)
    return product + getattr(experts, f"{name}_bias")[number] if experts.has_bias else product


def split(model: ir.Model) -> None:
    """Makes what a graph takes out of a stack of weights by a constant number an initializer of its own.

    A stack that is only ever read so is dropped. The parts are views of it until they are written.
    """
    import onnx_ir as ir
    from onnx_ir.tensor_adapters import TorchTensor

    stacks = dict.fromkeys(node.inputs[0] for node in model.graph if _number(node) is not None)
    for stack in stacks:
        assert stack is not None
        uses = [(node, _number(node)) for node, position in stack.uses() if position == 0]
        raw = getattr(stack.const_value, "raw", None)
        if raw is None or any(number is None for _, number in uses):
            continue
        parts: dict[int, ir.Value] = {}
        for node, number in uses:
            assert number is not None
            if number not in parts:
                tensor = TorchTensor(raw[number], name=f"{stack.name}.{number}")
                kind = ir.TensorType(tensor.dtype)
                parts[number] = ir.Value(name=tensor.name, shape=tensor.shape, type=kind, const_value=tensor)
                model.graph.register_initializer(parts[number])
            node.outputs[0].replace_all_uses_with(parts[number])
            model.graph.remove(node, safe=True)
        model.graph.initializers.pop(str(stack.name))


def _number(node: ir.Node) -> int | None:
    """Which part of a stack of floats, along its first axis, a Gather takes; None where it does anything else."""
    stack = node.inputs[0] if node.op_type == "Gather" else None
    if stack is None or not stack.is_initializer() or stack.shape is None or len(stack.shape) < 2:
        return None
    axis, index = node.attributes.get("axis"), node.inputs[1]
    constant = None if index is None else _constant(index)
    if constant is None or constant.shape.rank() or (axis is not None and axis.as_int() != 0):
        return None
    return int(constant.numpy())


def _constant(value: ir.Value) -> ir.TensorProtocol | None:
    if value.const_value is not None:
        return value.const_value
    maker = value.producer()
    if maker is None or maker.op_type != "Constant" or "value" not in maker.attributes:
        return None
    return maker.attributes["value"].as_tensor()

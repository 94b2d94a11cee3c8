"""Quantization-aware training: Checkpoint in, Checkpoint out, whose weights lie on the grid of their schemes.

The student computes with weights and inputs rounded as the artifact's will be (exporter.quantization.grid); it learns
from the float model that it was, its teacher (LLM-QAT, Liu et al. 2023, arXiv:2305.17888, of text instead of generated
data). What is saved are the rounded values themselves, in float32: a target's quantizer finds their codes again, and
loses nothing.

Memory, in float32 copies of the model that are held at once: six (teacher, weights, gradients, two moments of AdamW,
rounded weights), with `lora` three (the weights that teacher and student share, these with the factors added, and
rounded). Gradient checkpointing keeps of the rounded ones, and of the activations, one layer's only. The process peaks
higher, for the allocator keeps what is freed: 8.0 copies, with lora 5.6, with lora and checkpointing 4.8 (a Llama of 41
million parameters, windows of 16). Beside that there are two tensors of logits, [batch, window, vocabulary].
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from exporter.checkpoint.configuration import keep_configuration
from exporter.checkpoint.folder import carry
from exporter.checkpoint.linear import linear_layers, shared_weights, weight_of
from exporter.checkpoint.model import Load
from exporter.checkpoint.tokenizer import check_ids, rows_of
from exporter.errors import BuildError, JobError, unknown
from exporter.scheme import Scheme
from exporter.stages.loss import losses
from exporter.stages.train.options import QatOptions
from exporter.stages.train.state import State, last_state, save_state

if TYPE_CHECKING:
    from torch import Tensor

_WARMUP = 0.05  # of the steps
_CLIP = 1.0  # largest norm of the gradient
_STEP_RATE = 10.0  # the learned steps' and ranges' learning rate over the weights': theirs is relative

Progress = Callable[[int, int], None]


def training_windows(
    tokenizer: Any, text: str, skip: int, name: str, options: QatOptions, max_length: int | None
) -> Tensor:
    """A text's tokens after the first `skip` as int64 [windows, window]; what is left over is not used.

    Raises JobError for a short text.
    """
    import torch

    if max_length is not None and options.window > max_length:
        raise JobError(f"--qat-window {options.window}: the model has {max_length} positions; give a smaller window")
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][skip:]
    count = len(ids) // options.window
    if count < options.batch:
        raise JobError(
            f"the text {name} has {len(ids)} tokens, and one step of QAT takes {options.batch} windows of "
            f"{options.window}: give a longer text with --qat-data FILE, or a smaller batch or window"
        )
    return torch.tensor(ids[: count * options.window]).view(count, options.window)


def train(
    load: Load,
    base: Path,
    schemes: Mapping[str, Scheme | None],
    windows: Tensor,
    options: QatOptions,
    folder: Path,
    states: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Trains the causal LM of `base` on int64 [windows, window] ids and saves it into an empty folder.

    `schemes` are by the names of linear layers, static ones with a range to begin from. A layer whose weight another
    module uses too, such as a tied lm_head, is trained but not rounded. `states`: a folder of this very training
    (keyed by all that it is made of), where a killed one goes on from; it may be removed once the result is kept.

    Returns history (lines), schemes (the given ones with the learned ranges), and record (for the report: the options,
    seconds, layers, what stayed in float, and the curve [step, loss, kl, ce], each before its step's update). The same
    input gives the same weights on one kind of CPU and number of threads, interrupted or not. Raises JobError for
    schemes that do not fit, BuildError for a training that diverged; nothing is written then.
    """
    import torch

    model = load(base).eval()  # no dropout: teacher and student would differ by it
    check_ids(rows_of(model), windows, "the training text")
    model.requires_grad_(options.lora is None)
    teacher = copy.deepcopy(model).requires_grad_(False) if options.lora is None else None
    trained, shared = _roundable(model, schemes)
    inputs = _round(model, trained, options)
    if options.checkpointing:
        _checkpoint_layers(model)
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    # Of layers that stay in float: the others' zeros are RoundedWeight's.
    linear = [f"{layer}.weight" for layer in linear_layers(model)]
    used = {name: weights[name] != 0 for name in linear if name in weights}
    optimizer = _optimizer(weights, options)
    state = last_state(states, weights, optimizer) or State(0, 0.0, [])
    began = perf_counter() - state.seconds
    for step in range(state.done, options.steps):
        torch.manual_seed(options.seed + step)  # whatever a model draws is the same after an interruption
        for group in optimizer.param_groups:
            group["lr"] = group["highest"] * _rate(step, options.steps)
        ids = windows[_order(step, len(windows), options)]
        kl, ce = _learn(model, teacher, ids, options.kd)
        loss = options.kd * kl + (1 - options.kd) * ce
        norm = torch.nn.utils.clip_grad_norm_(weights.values(), _CLIP)
        # Worse than twice a guess among all tokens is no model any more, though it may stay finite for long.
        if not math.isfinite(loss) or not torch.isfinite(norm) or ce > 2 * math.log(model.config.vocab_size):
            raise BuildError(
                f"QAT diverged at step {step + 1}: the loss is {loss:.3g}; take a lower learning rate, such as "
                f"--qat-lr {options.lr / 10:g}"
            )
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for name, mask in used.items():
                weights[name].mul_(mask)
        state.curve.append((step, loss, kl, ce))
        progress(step + 1, options.steps)
        state.done, state.seconds = step + 1, perf_counter() - began
        if state.done % options.save == 0 and state.done < options.steps:
            save_state(states, state, weights, optimizer)
    learned = dict(schemes) | {name: one.scheme() for name, one in inputs.items()}
    _save(model, trained, base, folder)
    record = {
        **options.identity(),
        "seconds": state.seconds,
        "tokens": windows.numel(),
        "layers": len(trained),
        "shared": shared,
        "curve": state.curve,
    }
    line = f"trained {options.steps} steps as {options.scheme} (QAT, {_how(options)}), saved in float32"
    return {"history": [line], "schemes": learned, "record": record}


def _how(options: QatOptions) -> str:
    return f"KL {options.kd:g} to the float model" + (f", LoRA of rank {options.lora}" if options.lora else "")


def _roundable(model: Any, schemes: Mapping[str, Scheme | None]) -> tuple[dict[str, Scheme], list[str]]:
    """The layers to round, and those that stay in float because another module has their weight. Raises JobError."""
    modules = linear_layers(model)
    tied = shared_weights(model)
    rounded, shared = {}, []
    for name, scheme in schemes.items():
        if name not in modules:
            raise JobError(f"QAT: {unknown('module', name, modules)}")
        if scheme is None:
            continue
        columns = weight_of(modules[name]).shape[1]
        if scheme.group is not None and columns % scheme.group:
            raise JobError(f"QAT: {name} has {columns} inputs, no multiple of the group {scheme.group}: leave it float")
        if scheme.palette:
            raise JobError(f"QAT: {name} has {scheme}, and palettes are not trained: leave it float, or give it int4")
        if scheme.input == "static" and scheme.range is None:
            raise JobError(f"QAT: {name} has a static input without a range; give one, or let calibration find it")
        if name in tied:
            shared.append(name)
        else:
            rounded[name] = scheme
    if not rounded:
        raise JobError("QAT has nothing to train for: the policy leaves every layer in float")
    return rounded, shared


def _round(model: Any, schemes: Mapping[str, Scheme], options: QatOptions) -> dict[str, Any]:
    """Lets the layers compute with rounded weights and inputs; returns what rounds the inputs, by layer."""
    import torch
    from torch.nn.utils import parametrize

    from exporter.stages.train.rounding import RoundedInput, RoundedWeight

    modules, inputs = linear_layers(model), {}
    for number, (name, scheme) in enumerate(schemes.items()):
        module = modules[name]
        transposed = not isinstance(module, torch.nn.Linear)
        rounding = RoundedWeight(module.weight, scheme, transposed, options.lora, options.seed + number)
        parametrize.register_parametrization(module, "weight", rounding)
        if scheme.input != "float":
            inputs[name] = module.rounded_input = RoundedInput(scheme)
            module.register_forward_pre_hook(inputs[name])
    return inputs


def _checkpoint_layers(model: Any) -> None:
    from transformers.modeling_layers import GradientCheckpointingLayer

    model.activation_checkpointing_enable()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True  # transformers' condition; what is inside the layer stays in eval mode


def _optimizer(weights: Mapping[str, Any], options: QatOptions) -> Any:
    """AdamW, without decay: the weights shall stay near what they are. Steps and ranges have a rate of their own."""
    import torch

    learned = {name for name in weights if name.endswith((".log_steps", ".log_range"))}
    groups = [
        {"params": [weights[name] for name in weights if name not in learned], "highest": options.lr},
        {"params": [weights[name] for name in weights if name in learned], "highest": options.lr * _STEP_RATE},
    ]
    return torch.optim.AdamW(groups, weight_decay=0.0)


def _rate(step: int, steps: int) -> float:
    """The learning rate of a step over the highest: a linear warmup, then half a cosine."""
    return min((step + 1) / max(1, round(_WARMUP * steps)), 0.5 * (1 + math.cos(math.pi * step / steps)))


def _order(step: int, count: int, options: QatOptions) -> list[int]:
    """The windows of a step: a function of the seed and the step alone, each window once in an epoch."""
    import torch

    chosen = []
    for place in range(step * options.batch, (step + 1) * options.batch):
        generator = torch.Generator().manual_seed(options.seed + place // count)
        chosen.append(int(torch.randperm(count, generator=generator)[place % count]))
    return chosen


def _learn(model: Any, teacher: Any, ids: Tensor, kd: float) -> tuple[float, float]:
    """Adds one batch's gradient; its mean KL and cross entropy."""
    import torch

    with torch.no_grad():
        if teacher is None:
            with _unrounded(model):
                wanted = model(input_ids=ids, use_cache=False).logits
        else:
            wanted = teacher(input_ids=ids, use_cache=False).logits
    logits = model(input_ids=ids, use_cache=False).logits
    kl, ce, gradient = losses(logits.detach(), wanted, ids, kd, 1 - kd)
    if math.isfinite(kl):
        torch.autograd.backward(logits, gradient)
    return kl, ce


@contextmanager
def _unrounded(model: Any) -> Iterator[None]:
    """Within the block the model is the frozen float one: the teacher that costs no memory of its own."""
    switches = [module for module in model.modules() if hasattr(module, "rounding")]
    for switch in switches:
        switch.rounding = False
    try:
        yield
    finally:
        for switch in switches:
            switch.rounding = True


def _save(model: Any, schemes: Mapping[str, Scheme], base: Path, folder: Path) -> None:
    """Puts the rounded values in the weights' places and writes an ordinary checkpoint."""
    import torch
    from torch.nn.utils import parametrize

    modules = linear_layers(model)
    with torch.no_grad():
        for name in schemes:
            module = modules[name]
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
            if not torch.isfinite(module.weight).all():
                raise BuildError(f"QAT diverged in its last step: {name} holds NaN or Inf; take a lower --qat-lr")
            if hasattr(module, "rounded_input"):
                del module.rounded_input
    model.config.dtype = torch.float32
    model.save_pretrained(folder)
    keep_configuration(base, folder, model.config, "float32")
    carry(base, [], folder)

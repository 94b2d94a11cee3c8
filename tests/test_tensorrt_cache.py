"""The decode step of one shape that the GPU runner captures, run on the CPU: the same graph, its past padded."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
import transformers as t

from exporter.targets.onnx_graph.attention_operator import KERNEL_SIZES
from exporter.targets.onnx_graph.session import OnnxDecoder
from exporter.targets.onnx_graph.traced import trace_causal_lm
from exporter.targets.tensorrt.cache import PAST, StepInputs

VOCABULARY = 120
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"vocab_size": VOCABULARY, "max_position_embeddings": 128, "num_key_value_heads": 2}
MODELS = {
    "llama": t.LlamaConfig(**SIZES),
    "gpt2": t.GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=128),
    "sliding window of 6": t.MistralConfig(**SIZES, sliding_window=6),
}
ROOM = 15


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("prompt", [1, 9, 14])
def test_padded_steps_are_the_usual_ones(family, prompt, tmp_path):
    torch.manual_seed(0)
    model = t.AutoModelForCausalLM.from_config(MODELS[family])
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(tmp_path)
    trace_causal_lm(tmp_path, tmp_path / "model.onnx", attention=KERNEL_SIZES)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    outputs = [value.name for value in session.get_outputs()]
    shapes = {value.name: tuple(value.shape) for value in session.get_inputs()}
    kinds = {name: torch.float32 if name.startswith(PAST) else torch.int64 for name in shapes}

    def run(tensors):
        answers = session.run(None, {name: tensor.numpy() for name, tensor in tensors.items()})
        return {name: torch.from_numpy(answer) for name, answer in zip(outputs, answers, strict=True)}

    ids = np.random.default_rng(0).integers(VOCABULARY, size=ROOM + 1)
    step = StepInputs(shapes, kinds, ROOM, "cpu")
    for _ in range(2):  # a second text, behind what the first one left
        feeds = {
            "input_ids": torch.from_numpy(ids[None, :prompt]),
            "attention_mask": torch.ones(1, prompt, dtype=torch.int64),
            "position_ids": torch.arange(prompt)[None],
        } | {name: torch.zeros(1, shapes[name][1], 0, shapes[name][3]) for name in step.past}
        step.begin(prompt, run({name: feeds[name] for name in shapes}))
        with OnnxDecoder(tmp_path / "model.onnx", 1) as usual:
            usual.prefill(ids[:prompt])
            for token in ids[prompt:]:
                step.write(int(token))
                answers = run(step.tensors)
                step.keep(answers)
                want = usual.step(int(token))
                assert np.abs(answers["logits"][0, -1].numpy() - want).max() < 1e-5 * np.abs(want).max()
        ids = ids[::-1].copy()

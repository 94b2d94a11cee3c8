"""Quantized checkpoints to float ones, and what QLoRA's training saw.

In: bitsandbytes', GPTQ's or AWQ's tensors, or a float checkpoint. Out: a float checkpoint.
Read first: dequantize.py.
"""

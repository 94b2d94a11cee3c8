"""Quantization-aware training: a checkpoint whose weights lie on the grid of their schemes.

In: a float checkpoint, schemes, windows of text. Out: the trained checkpoint and the policy it was trained for.
Read first: qat.py.
"""

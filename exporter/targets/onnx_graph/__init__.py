"""ONNX graphs, for every format that begins with one: traced or built, edited, quantized by operators, saved, opened.

In: a float checkpoint. Out: a graph on the disk, or in memory as onnx_ir's.
Read first: traced.py.
"""

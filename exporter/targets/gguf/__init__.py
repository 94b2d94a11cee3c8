"""GGUF: converted, quantized and run by llama.cpp's own code.

In: a float checkpoint, and the statistics for an importance matrix. Out: a file, or its parts, that llama.cpp opens.
Read first: target.py.
"""

"""A model as a trace that needs no masks made inside: Core ML's and LiteRT's converters take such a one.

In: a checkpoint's folder. Out: a TorchScript program with named inputs, and what their sizes mean.
Read first: traced.py; masks.py for what an engine's caller must make, cache.py for the KV cache as buffers.
"""

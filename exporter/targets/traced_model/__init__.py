"""A model as a trace that needs no masks made inside: Core ML's and LiteRT's converters take such a one.

In: a checkpoint's folder. Out: the model wrapped for a trace (wrapped.py), and of it a TorchScript program with named
inputs, and what their sizes mean (traced.py), or the caches that an engine is given and gives back (outer_cache.py).
Read first: wrapped.py; masks.py for what an engine's caller must make, cache.py for the KV cache as buffers.
"""

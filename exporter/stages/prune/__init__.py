"""Weights made zero, or left out: a checkpoint that is smaller, or that an engine can make smaller.

In: a float checkpoint, what --prune asked for, windows of text for the methods that look at what layers are fed. Out: a
float checkpoint, and what was done to each layer.
Read first: options.py, which has the methods in one table; of those that write zeros, sparse.py; of those
that change shapes, rebuilt.py.
"""

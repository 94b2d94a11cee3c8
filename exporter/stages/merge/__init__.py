"""Adapters into the weights, in memory or file by file, and the proof that nothing was lost.

In: a checkpoint and its adapters. Out: the merged checkpoint, and how far it is from base + adapter.
Read first: merge.py.
"""

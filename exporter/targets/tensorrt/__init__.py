"""TensorRT and TensorRT-RTX: a plain graph of the precision asked for, and the engine built from it.

In: a float checkpoint, a policy, the sizes that the engine must take. Out: an engine, its graph and its proof.
Read first: target.py.
"""

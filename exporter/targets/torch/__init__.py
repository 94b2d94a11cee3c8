"""PyTorch: the float32 reference that everything is compared with, bfloat16, and torchao's int8.

In: a float checkpoint. Out: a folder that transformers, or for int8-static this room, opens.
Read first: target.py.
"""

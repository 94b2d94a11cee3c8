"""Hugging Face folders: found, checked, read tensor by tensor, written, and loaded as the float model.

In: what the user named. Out: a Checkpoint's folder, its configuration, its tensors, its model.
Read first: load.py.
"""

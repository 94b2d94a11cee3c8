"""What the folders of all formats have in common: configuration, tokenizer, names.

In: a checkpoint's folder. Out: files in an artifact's.
Read first: files.py.
"""

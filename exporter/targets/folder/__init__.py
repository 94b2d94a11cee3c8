"""What the folders of all formats have in common: configuration, tokenizer, names, and files made from templates.

In: a checkpoint's folder. Out: files in an artifact's.
Read first: files.py; kit.py for what targets/ holds, markdown.py for names in its pages,
proven.py for what must agree before anything is quantized.
"""

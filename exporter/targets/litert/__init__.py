"""LiteRT (TensorFlow Lite): a checkpoint as a model.tflite of several signatures that share their weights.

In: a checkpoint, and where there is one a policy. Out: an artifact's folder, and a runner of it.
Read first: target.py; convert.py for the signatures, flatbuffer.py for the file's form.
"""

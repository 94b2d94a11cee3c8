"""Distillation: a smaller model learns to answer as a larger one does.

options.py: what it can be asked. distill.py: the stage. trainer.py: transformers' Trainer with a teacher. objective.py:
what is learned, for each task.
"""

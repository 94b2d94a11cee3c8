"""Distillation: a smaller model learns to answer as a larger one does.

In: a teacher, a student (pruned, or cut of the teacher), tokens to learn on. Out: a float checkpoint of the student,
and the record of what it learned.
Read first: distill.py, which is the stage; objective.py says what is learned, for each task; trainer.py is
transformers' Trainer with a teacher.
"""

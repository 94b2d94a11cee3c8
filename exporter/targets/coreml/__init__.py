"""Core ML: a checkpoint as a model.mlpackage, compressed weight by weight, and proven where Apple's framework is not.

In: a checkpoint, and where there is one a policy. Out: an artifact's folder, and a runner of it.
Read first: target.py; mil/__init__.py for the evaluator that runs a package on any system.
"""

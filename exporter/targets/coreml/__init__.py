"""Core ML: written as an .mlpackage, and read and run on any operating system.

In: a float checkpoint. Out: model.mlpackage, proven by the reference evaluator in mil/ off macOS.
Read first: mil/__init__.py for the evaluator.
"""

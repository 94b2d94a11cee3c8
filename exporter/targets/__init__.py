"""A room for each format, where it is written and opened; known.py has the table of them.

In: a float checkpoint and a policy. Out: an artifact's folder, and a Runner of it.
Read first: torch/target.py, the smallest; its record says all that a target can say of itself.
"""

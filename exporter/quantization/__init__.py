"""What targets and stages share of rounding: grids, schemes by layer, ranges, and how a policy is chosen by measuring.

In: a float model and calibration text. Out: a Policy, and the float checkpoint that goes with it.
Read first: policy.py (what is chosen), grid.py (the one place that rounds), then preparing.py and quantizing.py.
"""

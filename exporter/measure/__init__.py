"""What is measured of an opened artifact, whatever its format: quality against the reference, latency, size, gates.

In: a Runner and the reference's stored answers. Out: figures, with their standard errors.
Read first: quality.py.
"""

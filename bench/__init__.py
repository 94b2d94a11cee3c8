"""The programs that measure, and their results. Not shipped: they run from a checkout's root.

Each of those that __main__.py lists measures and writes results/NAME.json, nothing else; families/ is a test more than
a measurement (make families).
render.py writes the tables of README.md and docs/ from these files; compare.py says what got worse between two.
In: a machine with nothing else to do. Out: results/*.json. Read first: record.py, what a result holds.
"""

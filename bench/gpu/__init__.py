"""Measuring on a GPU box that is at hand for minutes and has no network: packed before, joined and run there.

    python -m bench.gpu --pack DIR --text wiki.test.raw    here: artifacts, exporter and wheels, in parts
    python3 join.py PARTS DEST                             there: joined, checked, installed (join.py travels along)
    DEST/venv/bin/python -m bench.gpu --run DEST           there: each row on the GPU, the most valuable first

Read first: __main__.py. pack.py makes and gathers, parts.py splits, join.py joins, measure.py runs, section.py
writes the page's table.
"""

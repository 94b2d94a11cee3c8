"""The programs that measure. Not shipped: run from a checkout's root, `python -m bench.NAME`."""

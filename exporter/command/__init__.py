"""What a person types and sees: flags become a job, a report becomes a table, an error one line and an exit status.

In: the command line. Out: stdout, stderr, the exit status. Nothing is decided here that the Python API would not do.
Read first: cli.py.
"""

"""run(job): the whole program, from a job to a report.

In: a Job. Out: artifacts, each with its row of the report. What is heavy happens in workers, processes of their own.
Read first: run.py, from top to bottom; each step that it calls is a file of this room.
"""

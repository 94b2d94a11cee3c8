"""What each task is measured on, how a runner is asked, and what is compared: a file for each, and a line in known.py.

In: a runner, and a text or pictures. Out: the reference's answers, and figures beside them. Read first: task.py.

The form of a task's answers, which engines need to know too, is a line of exporter/form.py.
"""

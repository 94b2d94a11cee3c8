"""What each task is measured on, how a runner is asked, and what is compared: a file for each, and a line in known.py.

Read task.py first. The form of a task's answers, which engines need to know too, is a line of exporter/form.py.
"""

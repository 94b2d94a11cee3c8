"""A room for each stage: Checkpoint in, Checkpoint out, an ordinary float folder of Hugging Face's each time.

What trains or changes weights in torch is a stage; number formats are the targets'. No stage knows another.

In: a Checkpoint, and what the stage alone can be asked. Out: a Checkpoint, with a line more of history.
Read first: merge/merge.py.
"""

"""A room for each stage: Checkpoint in, Checkpoint out, an ordinary float folder of Hugging Face's each time.

What trains or changes weights in torch is a stage; number formats are the targets'. No stage knows another.
Read first: merge/merge.py.
"""

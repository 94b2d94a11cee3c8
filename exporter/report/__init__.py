"""The report: its rows, and the forms it takes (report.json, a page, a comment, test cases, a table).

In: what was measured. Out: text. Whatever is shown can be made again from report.json alone.
Read first: document.py for what a report holds, render.py for how it is shown.
"""

"""MIL, the language of an .mlpackage: read and run by NumPy alone, so that an artifact is proven off macOS too.

In: an .mlpackage, whoever wrote it. Out: a runner of exporter.runner's protocols. It is written from the operators'
specification and shares no code with what writes the packages, or a mistake would be made twice and seen never.

    package.py      the folder: manifest, specification, the blob file; what is damaged is refused here
    blob.py         weight.bin and its packed integers
    values.py       types and constants of the program
    program.py      functions and operators as plain data
    compiling.py    a function made ready to run: constants decoded once, unknown operators refused
    evaluator.py    runs it, in float32 or rounded to the declared float16
    operators.py    the table of operators; their arithmetic is in elementwise, reductions, shapes, indexing, products,
                    pooling, normalization and compression
    rounding.py     float32 to float16's numbers
    threads.py      how many of them the arithmetic takes
    runner.py       what exporter measures

Read first: evaluator.py.
"""

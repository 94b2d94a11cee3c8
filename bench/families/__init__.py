"""The families of models that exporter is held to: each is exported by the whole program and asked beside transformers.

    python -m bench.families --jobs 2        all whose answer is not known of this code: make families
    python -m bench.families --only gemma2   one, whatever is known

In: nothing but the configurations here; the weights are random. Out: results/families.json, a row for each family,
which docs/models.md shows. Read first: family.py, what a family is; then examined.py, what is done with one.
"""

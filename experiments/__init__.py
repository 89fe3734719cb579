"""The studies: one file an experiment, read top to bottom. `python -m experiments` lists them."""

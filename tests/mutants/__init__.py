"""Proof that the tests of the guarantees can fail: each guard is taken out in turn, and its test must notice.

`make mutants` runs it; `make mutants ARGS="-k fence"` runs some.
"""

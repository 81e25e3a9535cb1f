"""Chaos with a checker: a whole installation under a seeded mix of faults, and a judge of what it did.

`python -m chaos --help`; `docs/guarantees.md` says what is done, how it is judged and what was found.
"""

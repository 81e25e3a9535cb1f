"""Deadlines of runs and demanded confirmations: which have come, what follows, and who is told."""

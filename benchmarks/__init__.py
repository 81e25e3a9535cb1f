"""What the bus costs and how fast it is: `python -m benchmarks` measures, docs/benchmarks.md says how and what came
out.

Each part runs in a process of its own (server, node, publisher, client), each figure has the CPU time of each beside
the wall time, and a figure counts only when what was sent, received and acked is the same number.
"""

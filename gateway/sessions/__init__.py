"""A session on a node: its life, what its client says, what its delivery machine says, and who else is connected."""

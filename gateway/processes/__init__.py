"""The processes of the gateway: one node, or a parent and its workers; their ports, signals and ends."""

"""A node's talk with the store for its sessions: reads, acks, attaches, steps, what users send, token streams."""

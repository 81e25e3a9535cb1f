"""The gateway node: fans the users' streams out to WebSockets, and takes their acks back."""

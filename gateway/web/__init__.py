"""HTTP beside the socket: tickets, events, acks, history, Server-Sent Events, and what requests may cost."""

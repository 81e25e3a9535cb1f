"""A Redis-backed event bus with delivery guarantees: what agents, tools and operators import."""

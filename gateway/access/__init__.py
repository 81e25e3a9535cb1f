"""Who may come in: tokens, keys, origins, addresses, limits, and what was revoked."""

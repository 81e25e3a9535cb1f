"""Publishing: an event is made, waits in its user's line, is stored, and is kept while a failover may lose it."""

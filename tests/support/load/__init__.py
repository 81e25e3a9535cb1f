"""Load from processes of their own: a publisher and many clients, each with a log that the checker reads."""

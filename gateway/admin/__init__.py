"""The admin port: what operators look at and do, over HTTP."""

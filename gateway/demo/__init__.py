"""What `eventbus-gateway dev` runs beside the nodes: a demo agent with its tools, a front door, and a page."""

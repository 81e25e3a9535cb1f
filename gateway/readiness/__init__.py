"""Whether a node can do its work, how that is proven, and what becomes of its sessions when it can not."""

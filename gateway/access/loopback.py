"""Whether an address, or the header of a request, is of this machine alone. Pure."""

from __future__ import annotations

from ipaddress import ip_address

__all__ = ["is_for_this_machine", "is_loopback"]


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is for this machine alone. Another name than `localhost` counts as not."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def is_for_this_machine(host: str | None) -> bool:
    """Whether the header `Host` names this machine as only who is on it does.

    A page of the web can have its own name lead to a loopback address, and then read what answers there; its requests
    carry that name. Without the header (HTTP/1.0) nothing is known, and no browser asks.
    """
    if host is None:
        return True
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return is_loopback(name.lower())

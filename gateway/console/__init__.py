"""The console of operators: a page on the admin port, and the feed that keeps it up to date.

The page is plain files without a build step. What it shows comes from the admin API, with the operator's token; the
page itself holds nothing that is worth a token.

Source: docs/console.md.
"""

from __future__ import annotations

from gateway.console.feed import feed_route
from gateway.console.files import page_routes

__all__ = ["feed_route", "page_routes"]

"""The dashboard: pages that a browser shows, made on the server out of what the client tells."""

from teguh.server._pages.dashboard import Dashboard

__all__ = ["Dashboard"]

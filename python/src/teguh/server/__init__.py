"""The HTTP service: the SQL functions for those who would rather curl. The extra ``server``.

``create_app(dsn, tokens=[…])`` is an ASGI application of its own, or to be mounted in another;
``teguh serve`` runs it.
"""

from teguh.server._app import Service, create_app
from teguh.server._auth import Token, read_tokens

__all__ = ["Service", "Token", "create_app", "read_tokens"]
